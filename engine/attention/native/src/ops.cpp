// The operators as torch sees them: checks, shapes, and the split over torch's own threads.
#include <ATen/Parallel.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/zeros.h>
#include <torch/library.h>

#include <atomic>
#include <optional>
#include <string>
#include <tuple>

#include "attention.h"
#include "linear.h"
#include "small.h"

namespace agentrt {
namespace {

using at::Tensor;

// Run f(0) .. f(count - 1) on torch's threads; whoever is free takes the next.
template <class F>
void share(long count, const F& f) {
  const long threads = std::min<long>(count, at::get_num_threads());
  if (threads <= 1 || at::in_parallel_region()) {
    for (long i = 0; i < count; ++i) f(i);
    return;
  }
  std::atomic<long> next{0};
  at::parallel_for(0, threads, 1, [&](int64_t, int64_t) {
    for (long i = next++; i < count; i = next++) f(i);
  });
}

// Run f(low, high) over rows; alone where the rows hold too few values to be worth waking anybody.
template <class F>
void share_rows(long rows, long values, const F& f) {
  const long grain = std::max<long>(1, (1 << 15) / std::max<long>(values, 1));
  at::parallel_for(0, rows, grain, f);
}

template <class K>
typename K::Value* data(const Tensor& x) {
  return static_cast<typename K::Value*>(x.data_ptr());
}

template <class F>
auto by_type(const Tensor& x, const F& f) {
  if (x.scalar_type() == at::kFloat) return f(Fp32{});
  TORCH_CHECK(x.scalar_type() == at::kBFloat16, "only float32 and bfloat16 are computed here");
  return f(Bf16{});
}

void dense(const Tensor& x) { TORCH_CHECK(x.is_contiguous(), "a tensor must be contiguous"); }

void same(const Tensor& x, const Tensor& y) {
  TORCH_CHECK(x.scalar_type() == y.scalar_type(), "tensors of two types: ", x.scalar_type(),
              " and ", y.scalar_type());
}

// [(slice, row, rows, low, high, part, parts, partial)], scratch of partial results, their counters.
std::tuple<Tensor, Tensor, Tensor> plan(const Tensor& slices, int64_t kv_heads, int64_t group,
                                        int64_t dim, int64_t window) {
  std::vector<Work> work;
  const auto* from = reinterpret_cast<const Slice*>(slices.const_data_ptr<int64_t>());
  const long rows = cut(from, slices.size(0), group, window, work);
  Tensor table = at::empty({long(work.size()), 8}, slices.options());
  std::memcpy(table.data_ptr(), work.data(), work.size() * sizeof(Work));
  const auto floats = slices.options().dtype(at::kFloat);
  Tensor partial = at::empty({kv_heads, rows, padded_to(dim, W) + 2}, floats);
  Tensor arrived = at::zeros({long(work.size()), kv_heads}, floats.dtype(at::kInt));
  return {table, partial, arrived};
}

// How many kv heads a unit takes. Reading whole pages is faster where reading is what takes the time
// (few rows), as long as there remain units enough to share.
long heads_together(const Work& first, long works, long heads) {
  if (first.rows > 1) return 1;
  return std::clamp<long>(works * heads / (4L * at::get_num_threads()), 1, heads);
}

void attend(const Tensor& kv, const Tensor& table, const Tensor& slices, const Tensor& works,
            const Tensor& partial, const Tensor& arrived, const Tensor& q, int64_t window,
            Tensor out) {
  same(kv, q);
  same(kv, out);
  TORCH_CHECK(q.stride(2) == 1 && q.stride(1) == q.size(2), "each token's heads must be dense");
  TORCH_CHECK(out.is_contiguous() && kv.is_contiguous(), "pages and output must be contiguous");
  dense(table);
  dense(slices);
  dense(works);
  by_type(kv, [&](auto type) {
    typedef decltype(type) K;
    Attention<K> a;
    const long heads = kv.size(2), dim = kv.size(4);
    a.shape = {heads, q.size(1) / heads, dim, padded_to(dim, W), kv.size(3)};
    a.pages = data<K>(kv);
    a.values = kv.stride(0);
    a.table = table.const_data_ptr<int64_t>();
    a.slices = reinterpret_cast<const Slice*>(slices.const_data_ptr<int64_t>());
    a.work = reinterpret_cast<const Work*>(works.const_data_ptr<int64_t>());
    a.q = data<K>(q);
    a.q_stride = q.stride(0);
    a.out = data<K>(out);
    a.window = window;
    a.scale = float(1.0 / std::sqrt(double(dim)));
    a.partial = partial.data_ptr<float>();
    a.partial_rows = partial.size(1);
    a.arrived = reinterpret_cast<std::atomic<int32_t>*>(arrived.data_ptr<int32_t>());
    const long count = works.size(0), step = heads_together(a.work[0], count, heads);
    share(count * ((heads + step - 1) / step), [&](long i) {
      static thread_local Scratch scratch;
      // Backwards: a slice's later tiles see more keys, and the long ones had better come first.
      const long low = i / count * step;
      a.unit(count - 1 - i % count, low, std::min(low + step, heads), scratch);
    });
  });
}

void store_kv(Tensor kv, const Tensor& slots, const Tensor& k, const Tensor& v) {
  same(kv, k);
  same(kv, v);
  TORCH_CHECK(k.stride(2) == 1 && v.stride(2) == 1, "each head's values must be dense");
  dense(kv);
  dense(slots);
  by_type(kv, [&](auto type) {
    typedef decltype(type) K;
    const long heads = kv.size(2), page = kv.size(3), dim = kv.size(4);
    const int64_t* slot = slots.const_data_ptr<int64_t>();
    share_rows(k.size(0), 2 * heads * dim, [&](int64_t low, int64_t high) {
      for (long t = low; t < high; ++t)
        for (long h = 0; h < heads; ++h) {
          const long at = ((slot[t] / page * heads + h) * page + slot[t] % page) * dim;
          const long bytes = dim * sizeof(typename K::Value);
          std::memcpy(data<K>(kv) + at, data<K>(k) + t * k.stride(0) + h * k.stride(1), bytes);
          std::memcpy(data<K>(kv) + kv.stride(0) + at,
                      data<K>(v) + t * v.stride(0) + h * v.stride(1), bytes);
        }
    });
  });
}

// Norm and rotate the queries and keys of `heads [T, query + 2 kv heads, dim]`; queries stay there,
// keys and values go to their slots.
void rotate_store(Tensor kv, const Tensor& slots, Tensor heads, const std::optional<Tensor>& norm,
                  double eps, const Tensor& cos, const Tensor& sin) {
  same(kv, heads);
  dense(kv);
  dense(slots);
  if (norm) dense(*norm);
  TORCH_CHECK(heads.is_contiguous() && cos.is_contiguous() && sin.is_contiguous(),
              "heads, cosines and sines must be contiguous");
  by_type(kv, [&](auto type) {
    typedef decltype(type) K;
    typedef typename K::Value Value;
    const long kv_heads = kv.size(2), page = kv.size(3), dim = kv.size(4);
    const long all = heads.size(1), queries = all - 2 * kv_heads;
    const int64_t* slot = slots.const_data_ptr<int64_t>();
    const float *c = cos.const_data_ptr<float>(), *s = sin.const_data_ptr<float>();
    const Value* weight = norm ? data<K>(*norm) : nullptr;
    share_rows(heads.size(0), all * dim, [&](int64_t low, int64_t high) {
      static thread_local Buffer<Value> scratch;
      Value* normed = scratch.fit(dim);
      for (long t = low; t < high; ++t) {
        Value* x = data<K>(heads) + t * all * dim;
        for (long h = 0; h < all; ++h, x += dim) {
          const long head = (h - queries) % kv_heads;
          const long at = ((slot[t] / page * kv_heads + head) * page + slot[t] % page) * dim;
          Value* to = h < queries ? x : data<K>(kv) + at;
          if (h >= queries + kv_heads) {
            std::memcpy(to + kv.stride(0), x, dim * sizeof(Value));
            continue;
          }
          if (weight != nullptr) norm_row<K>(x, weight + h * dim, dim, float(eps), normed);
          else std::memcpy(normed, x, dim * sizeof(Value));
          rotate_head<K>(normed, c + t * dim / 2, s + t * dim / 2, dim, to);
        }
      }
    });
  });
}

// x += delta, if there is one; returns x normed.
Tensor add_norm(Tensor x, const std::optional<Tensor>& delta, const Tensor& weight, double eps) {
  same(x, weight);
  dense(weight);
  TORCH_CHECK(x.is_contiguous() && (!delta || delta->is_contiguous()), "rows must be contiguous");
  Tensor out = at::empty(x.sizes(), x.options());
  by_type(x, [&](auto type) {
    typedef decltype(type) K;
    const long n = x.size(1);
    share_rows(x.size(0), n, [&](int64_t low, int64_t high) {
      for (long t = low; t < high; ++t) {
        if (delta) add_row<K>(data<K>(x) + t * n, data<K>(*delta) + t * n, n);
        norm_row<K>(data<K>(x) + t * n, data<K>(weight), n, float(eps), data<K>(out) + t * n);
      }
    });
  });
  return out;
}

// silu(first half of each row) * second half
Tensor silu_mul(const Tensor& x) {
  TORCH_CHECK(x.is_contiguous(), "rows must be contiguous");
  const long n = x.size(1) / 2;
  Tensor out = at::empty({x.size(0), n}, x.options());
  by_type(x, [&](auto type) {
    typedef decltype(type) K;
    share_rows(x.size(0), n, [&](int64_t low, int64_t high) {
      for (long t = low; t < high; ++t) {
        const auto* from = data<K>(x) + t * 2 * n;
        silu_row<K>(from, from + n, n, data<K>(out) + t * n);
      }
    });
  });
  return out;
}

Tensor pack(const Tensor& weight) {
  TORCH_CHECK(weight.scalar_type() == at::kBFloat16 && weight.is_contiguous() &&
                  weight.size(1) % 2 == 0,
              "packs dense bfloat16 with an even number of inputs");
  const long outputs = weight.size(0), inputs = weight.size(1);
  const long panels = padded_to(outputs, PANEL) / PANEL;
  Tensor packed = at::empty({panels, inputs / 2, PANEL}, weight.options().dtype(at::kInt));
  auto* to = reinterpret_cast<uint32_t*>(packed.data_ptr<int32_t>());
  share(panels, [&](long i) { pack_panel(data<Bf16>(weight), outputs, inputs, i, to); });
  return packed;
}

Tensor make_output(const Tensor& x, long outputs, bool wide) {
  TORCH_CHECK(x.dim() == 2 && x.scalar_type() == at::kBFloat16 && x.is_contiguous(),
              "a packed layer takes dense bfloat16 rows");
  return at::empty({x.size(0), outputs}, x.options().dtype(wide ? at::kFloat : at::kBFloat16));
}

Output output(Tensor& out, bool wide, const std::optional<Tensor>& bias) {
  if (bias) dense(*bias);
  return {out.data_ptr(), wide, bias ? data<Bf16>(*bias) : nullptr, out.size(1)};
}

Tensor linear(const Tensor& x, const Tensor& packed, int64_t outputs,
              const std::optional<Tensor>& bias, bool wide) {
  const long inputs = packed.size(1) * 2, threads = at::get_num_threads();
  Tensor out = make_output(x, outputs, wide);
  TORCH_CHECK(x.size(1) == inputs, "the layer has ", inputs, " inputs, not ", x.size(1));
  const Output to = output(out, wide, bias);
  const auto* panels = reinterpret_cast<const uint32_t*>(packed.const_data_ptr<int32_t>());
  share(pieces(outputs, threads), [&](long i) {
    linear_piece(data<Bf16>(x), x.size(0), inputs, panels, piece(i, outputs, threads), to);
  });
  return out;
}

// Rows of the weight that was packed, [T, inputs].
Tensor rows(const Tensor& packed, const Tensor& where) {
  const Tensor index = where.contiguous();
  const long inputs = packed.size(1) * 2;
  Tensor out = at::empty({index.size(0), inputs}, packed.options().dtype(at::kBFloat16));
  const auto* from = reinterpret_cast<const uint32_t*>(packed.const_data_ptr<int32_t>());
  const int64_t* id = index.const_data_ptr<int64_t>();
  const long known = packed.size(0) * PANEL;
  share_rows(index.size(0), inputs, [&](int64_t low, int64_t high) {
    for (long t = low; t < high; ++t) {
      TORCH_CHECK(0 <= id[t] && id[t] < known, "row ", id[t], " is not in the weight");
      unpack_row(from, inputs, id[t], data<Bf16>(out) + t * inputs);
    }
  });
  return out;
}

std::tuple<Tensor, Tensor> pack8(const Tensor& weight) {
  TORCH_CHECK(weight.scalar_type() == at::kFloat && weight.is_contiguous(), "packs dense float32");
  const long outputs = weight.size(0), inputs = weight.size(1);
  const long panels = padded_to(outputs, PANEL) / PANEL, padded = padded_to(inputs, GROUP);
  Tensor packed = at::empty({panels, padded / 2, 2 * PANEL}, weight.options().dtype(at::kChar));
  Tensor scales = at::empty({panels, padded / GROUP, PANEL}, weight.options());
  share(panels, [&](long i) {
    pack_panel8(data<Fp32>(weight), outputs, inputs, i, packed.data_ptr<int8_t>(),
                scales.data_ptr<float>());
  });
  return {packed, scales};
}

Tensor linear8(const Tensor& x, const Tensor& packed, const Tensor& scales, int64_t outputs,
               const std::optional<Tensor>& bias, bool wide) {
  const long inputs = x.size(1), padded = packed.size(1) * 2, threads = at::get_num_threads();
  Tensor out = make_output(x, outputs, wide);
  TORCH_CHECK(padded_to(inputs, GROUP) == padded, "the layer has ", padded, " inputs, not ",
              inputs);
  Tensor narrow = at::empty({x.size(0), padded}, x.options().dtype(at::kShort));
  Tensor factors = at::empty({x.size(0), padded / GROUP}, scales.options());
  share_rows(x.size(0), inputs, [&](int64_t low, int64_t high) {
    for (long t = low; t < high; ++t)
      quantize_row(data<Bf16>(x) + t * inputs, inputs, narrow.data_ptr<int16_t>() + t * padded,
                   factors.data_ptr<float>() + t * (padded / GROUP));
  });
  const Output to = output(out, wide, bias);
  share(pieces(outputs, threads), [&](long i) {
    linear_piece8(narrow.const_data_ptr<int16_t>(), factors.const_data_ptr<float>(), x.size(0),
                  inputs, packed.const_data_ptr<int8_t>(), scales.const_data_ptr<float>(),
                  piece(i, outputs, threads), to);
  });
  return out;
}

// One layer of a decoder on packed weights: x += delta, attention and its residual, MLP.
// Returns what the next layer has to add to x. The operators above, without a way to Python and back
// between them.
Tensor layer(Tensor x, const std::optional<Tensor>& delta, const Tensor& input_norm,
             const Tensor& qkv, const std::optional<Tensor>& qkv_bias,
             const std::optional<Tensor>& qk_norm, const Tensor& out,
             const std::optional<Tensor>& out_bias, const Tensor& mlp_norm, const Tensor& gate_up,
             const std::optional<Tensor>& gate_up_bias, const Tensor& down,
             const std::optional<Tensor>& down_bias, double eps, const Tensor& cos,
             const Tensor& sin, Tensor kv, const Tensor& slots, const Tensor& table,
             const Tensor& slices, const Tensor& works, const Tensor& partial,
             const Tensor& arrived, int64_t window) {
  const long tokens = x.size(0), hidden = x.size(1), dim = kv.size(4), kv_heads = kv.size(2);
  const long queries = out.size(1) * 2 / dim, inner = down.size(1) * 2;
  Tensor heads = linear(add_norm(x, delta, input_norm, eps), qkv, (queries + 2 * kv_heads) * dim,
                        qkv_bias, false)
                     .view({tokens, queries + 2 * kv_heads, dim});
  rotate_store(kv, slots, heads, qk_norm, eps, cos, sin);
  Tensor attended = at::empty({tokens, queries, dim}, x.options());
  attend(kv, table, slices, works, partial, arrived, heads.narrow(1, 0, queries), window, attended);
  Tensor more = linear(attended.view({tokens, queries * dim}), out, hidden, out_bias, false);
  Tensor wide = linear(add_norm(x, more, mlp_norm, eps), gate_up, 2 * inner, gate_up_bias, false);
  return linear(silu_mul(wide), down, hidden, down_bias, false);
}

// What the compiler was allowed to use.
std::string instructions() {
#if defined(__AVX512BF16__) && defined(__AVX512BW__)
  return "avx512_bf16";
#elif defined(__AVX512F__) && defined(__AVX512BW__)
  return "avx512";
#elif defined(__AVX2__)
  return "avx2";
#else
  return "generic";
#endif
}

#define AGENTRT_LIBRARY(name, m) TORCH_LIBRARY(name, m)
AGENTRT_LIBRARY(AGENTRT_NATIVE, m) {
  m.def("instructions() -> str", instructions);
  m.def("layer(Tensor(a!) x, Tensor? delta, Tensor input_norm, Tensor qkv, Tensor? qkv_bias, "
        "Tensor? qk_norm, Tensor out, Tensor? out_bias, Tensor mlp_norm, Tensor gate_up, "
        "Tensor? gate_up_bias, Tensor down, Tensor? down_bias, float eps, Tensor cos, Tensor sin, "
        "Tensor(b!) kv, Tensor slots, Tensor table, Tensor slices, Tensor works, "
        "Tensor(c!) partial, Tensor(d!) arrived, int window) -> Tensor", layer);
  m.def("plan(Tensor slices, int kv_heads, int group, int dim, int window) "
        "-> (Tensor, Tensor, Tensor)", plan);
  m.def("attend(Tensor kv, Tensor table, Tensor slices, Tensor works, Tensor(b!) partial, "
        "Tensor(c!) arrived, Tensor q, int window, Tensor(a!) out) -> ()", attend);
  m.def("store_kv(Tensor(a!) kv, Tensor slots, Tensor k, Tensor v) -> ()", store_kv);
  m.def("rotate_store(Tensor(a!) kv, Tensor slots, Tensor(b!) heads, Tensor? norm, float eps, "
        "Tensor cos, Tensor sin) -> ()", rotate_store);
  m.def("add_norm(Tensor(a!) x, Tensor? delta, Tensor weight, float eps) -> Tensor", add_norm);
  m.def("silu_mul(Tensor x) -> Tensor", silu_mul);
  m.def("pack(Tensor weight) -> Tensor", pack);
  m.def("linear(Tensor x, Tensor packed, int outputs, Tensor? bias, bool wide) -> Tensor", linear);
  m.def("rows(Tensor packed, Tensor index) -> Tensor", rows);
  m.def("pack8(Tensor weight) -> (Tensor, Tensor)", pack8);
  m.def("linear8(Tensor x, Tensor packed, Tensor scales, int outputs, Tensor? bias, bool wide) "
        "-> Tensor", linear8);
}

}  // namespace
}  // namespace agentrt
