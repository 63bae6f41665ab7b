// All layers of a decoder on packed bfloat16 weights, in one parallel region.
#pragma once

#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <torch/custom_class.h>

#include <optional>
#include <vector>

#include "parts.h"

namespace agentrt {

using at::Tensor;
using MaybeTensor = std::optional<Tensor>;

template <class K>
typename K::Value* data(const Tensor& x) {
  return static_cast<typename K::Value*>(x.data_ptr());
}

inline void dense(const Tensor& x) {
  TORCH_CHECK(x.is_contiguous(), "a tensor must be contiguous");
}

inline Packed packed(const Tensor& panels, const MaybeTensor& bias, long outputs) {
  if (bias) dense(*bias);
  return {reinterpret_cast<const uint32_t*>(panels.const_data_ptr<int32_t>()),
          bias ? data<Bf16>(*bias) : nullptr, panels.size(1) * 2, outputs};
}

template <class K>
LayerPages<K> layer_pages(const Tensor& kv) {
  return {data<K>(kv), kv.stride(0), kv.size(2), kv.size(3), kv.size(4)};
}

// What attention needs of one planned step and one window; see plan() in ops.cpp.
struct Planned {
  Tensor table, slices, works, partial, arrived;
  int64_t window;
};

template <class K>
Attention<K> attention(const Tensor& kv, const Planned& step, const typename K::Value* q,
                       long q_stride, long queries, typename K::Value* out) {
  Attention<K> a;
  const long heads = kv.size(2), dim = kv.size(4);
  a.shape = {heads, queries / heads, dim, padded_to(dim, W), kv.size(3)};
  a.pages = data<K>(kv);
  a.values = kv.stride(0);
  a.table = step.table.const_data_ptr<int64_t>();
  a.slices = reinterpret_cast<const Slice*>(step.slices.const_data_ptr<int64_t>());
  a.work = reinterpret_cast<const Work*>(step.works.const_data_ptr<int64_t>());
  a.q = q;
  a.q_stride = q_stride;
  a.out = out;
  a.window = step.window;
  a.scale = float(1.0 / std::sqrt(double(dim)));
  a.partial = step.partial.data_ptr<float>();
  a.partial_rows = step.partial.size(1);
  a.arrived = reinterpret_cast<std::atomic<int32_t>*>(step.arrived.data_ptr<int32_t>());
  return a;
}

struct LayerWeights {
  Tensor input_norm, qkv;
  MaybeTensor qkv_bias, qk_norm;
  Tensor out;
  MaybeTensor out_bias;
  Tensor mlp_norm, gate_up;
  MaybeTensor gate_up_bias;
  Tensor down;
  MaybeTensor down_bias;
};

// Memory of one step, for all layers one after another.
struct Rows {
  Tensor normed, heads, attended, more, wide, inner, delta;
};

class Layers : public torch::CustomClassHolder {
 public:
  static constexpr size_t EACH = 11;

  // EACH tensors a layer, in the order of LayerWeights; what a layer lacks is None.
  Layers(const std::vector<MaybeTensor>& weights, double eps) : eps_(float(eps)) {
    TORCH_CHECK(weights.size() % EACH == 0, "a layer has ", EACH, " weights");
    for (size_t i = 0; i < weights.size(); i += EACH) {
      const MaybeTensor* w = &weights[i];
      layers_.push_back({*w[0], *w[1], w[2], w[3], *w[4], w[5], *w[6], *w[7], w[8], *w[9], w[10]});
    }
  }

  // Run all layers over x [T, hidden] bfloat16, in place; returns what is still to be added to it.
  // kv [layers, 2, pages, kv heads, page, dim]; `plans` has works, partial and arrived for each of
  // `windows`; `which` says for each layer which of them is its own.
  Tensor run(Tensor x, const Tensor& cos, const Tensor& sin, const Tensor& kv, const Tensor& slots,
             const Tensor& table, const Tensor& slices, const std::vector<Tensor>& plans,
             const std::vector<int64_t>& windows, const std::vector<int64_t>& which) const {
    for (const Tensor& one : {x, cos, sin, kv, slots, table, slices}) dense(one);
    TORCH_CHECK(x.scalar_type() == at::kBFloat16 && kv.scalar_type() == at::kBFloat16,
                "these layers compute bfloat16");
    TORCH_CHECK(which.size() == layers_.size() && size_t(kv.size(0)) == layers_.size(),
                "there are ", layers_.size(), " layers");
    std::vector<Planned> steps;
    for (size_t i = 0; i < windows.size(); ++i)
      steps.push_back({table, slices, plans[3 * i], plans[3 * i + 1], plans[3 * i + 2], windows[i]});
    const Rows rows = make_rows(x, kv.size(3), kv.size(5));
    std::vector<Tensor> pages = kv.unbind(0);
    const Turn<Bf16> turn{nullptr, eps_, cos.const_data_ptr<float>(), sin.const_data_ptr<float>()};
    together([&](Member& member) {
      for (size_t i = 0; i < layers_.size(); ++i)
        layer(member, layers_[i], x, i > 0, rows, pages[i], slots, turn, steps[which[i]]);
    });
    return rows.delta;
  }

 private:
  Rows make_rows(const Tensor& x, long kv_heads, long dim) const {
    const LayerWeights& first = layers_[0];
    const long tokens = x.size(0), hidden = x.size(1), inner = first.down.size(1) * 2;
    const long queries = first.out.size(1) * 2 / dim, all = queries + 2 * kv_heads;
    const auto make = [&](long n) { return at::empty({tokens, n}, x.options()); };
    const long wide = inner % PANEL ? 2 * inner : 0;
    return {make(hidden), make(all * dim), make(queries * dim), make(hidden), make(wide), make(inner),
            make(hidden)};
  }

  void layer(Member& m, const LayerWeights& w, const Tensor& stream, bool add, const Rows& rows,
             const Tensor& kv, const Tensor& slots, Turn<Bf16> turn, const Planned& step) const {
    const long tokens = stream.size(0), hidden = stream.size(1), dim = kv.size(4);
    const long kv_heads = kv.size(2), all = rows.heads.size(1) / dim, inner = rows.inner.size(1);
    const long queries = all - 2 * kv_heads;
    uint16_t *x = data<Bf16>(stream), *normed = data<Bf16>(rows.normed);
    uint16_t *heads = data<Bf16>(rows.heads), *attended = data<Bf16>(rows.attended);
    const auto line = [&](const uint16_t* from, const Tensor& panels, const MaybeTensor& bias,
                          const Tensor& to) {
      const Packed one = packed(panels, bias, to.size(1));
      linear_all(m, from, tokens, one, Output{to.data_ptr(), false, one.bias, one.outputs});
    };
    add_norm_all<Bf16>(m, x, add ? data<Bf16>(rows.delta) : nullptr, tokens, hidden,
                       data<Bf16>(w.input_norm), eps_, normed);
    line(normed, w.qkv, w.qkv_bias, rows.heads);
    turn.norm = w.qk_norm ? data<Bf16>(*w.qk_norm) : nullptr;
    rotate_store_all<Bf16>(m, heads, tokens, all, layer_pages<Bf16>(kv), slots.const_data_ptr<int64_t>(), turn);
    attend_all<Bf16>(m, attention<Bf16>(kv, step, heads, all * dim, queries, attended),
                     step.works.size(0));
    line(attended, w.out, w.out_bias, rows.more);
    add_norm_all<Bf16>(m, x, data<Bf16>(rows.more), tokens, hidden, data<Bf16>(w.mlp_norm), eps_,
                       normed);
    mlp(m, normed, tokens, packed(w.gate_up, w.gate_up_bias, 2 * inner), rows);
    line(data<Bf16>(rows.inner), w.down, w.down_bias, rows.delta);
  }

  static void mlp(Member& m, const uint16_t* x, long tokens, const Packed& gate_up,
                  const Rows& rows) {
    uint16_t *to = data<Bf16>(rows.inner), *wide = data<Bf16>(rows.wide);
    const long inner = gate_up.outputs / 2;
    if (inner % PANEL == 0) {
      mlp_all(m, x, tokens, gate_up, to);
      return;
    }
    linear_all(m, x, tokens, gate_up, Output{wide, false, gate_up.bias, 2 * inner});
    m.share_rows(tokens, 2 * inner, [&](long low, long high) {
      for (long t = low; t < high; ++t)
        silu_row<Bf16>(wide + 2 * t * inner, wide + (2 * t + 1) * inner, inner, to + t * inner);
    });
  }

  std::vector<LayerWeights> layers_;
  float eps_;
};

}  // namespace agentrt
