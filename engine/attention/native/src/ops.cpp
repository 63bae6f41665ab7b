// The operators as torch sees them: checks and shapes.
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/zeros.h>
#include <torch/library.h>

#include <optional>
#include <string>
#include <tuple>

#include "layers.h"
#include "parts.h"

namespace agentrt {
namespace {

template <class F>
auto by_type(const Tensor& x, const F& f) {
  if (x.scalar_type() == at::kFloat) return f(Fp32{});
  TORCH_CHECK(x.scalar_type() == at::kBFloat16, "only float32 and bfloat16 are computed here");
  return f(Bf16{});
}

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
    const Planned step{table, slices, works, partial, arrived, window};
    Pool pool;
    attend_all<K>(pool, attention<K>(kv, step, data<K>(q), q.stride(0), q.size(1), data<K>(out)),
                  works.size(0));
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
    const LayerPages<K> pages = layer_pages<K>(kv);
    const int64_t* slot = slots.const_data_ptr<int64_t>();
    const long bytes = pages.dim * sizeof(typename K::Value);
    Pool().share_rows(k.size(0), 2 * pages.kv_heads * pages.dim, [&](long low, long high) {
      for (long t = low; t < high; ++t)
        for (long h = 0; h < pages.kv_heads; ++h) {
          auto* to = pages.at(slot[t], h);
          std::memcpy(to, data<K>(k) + t * k.stride(0) + h * k.stride(1), bytes);
          std::memcpy(to + pages.values, data<K>(v) + t * v.stride(0) + h * v.stride(1), bytes);
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
    const LayerPages<K> pages = layer_pages<K>(kv);
    const Turn<K> turn{norm ? data<K>(*norm) : nullptr, float(eps), cos.const_data_ptr<float>(),
                       sin.const_data_ptr<float>()};
    Pool pool;
    rotate_store_all<K>(pool, data<K>(heads), heads.size(0), heads.size(1), pages,
                        slots.const_data_ptr<int64_t>(), turn);
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
    Pool pool;
    add_norm_all<K>(pool, data<K>(x), delta ? data<K>(*delta) : nullptr, x.size(0), x.size(1),
                    data<K>(weight), float(eps), data<K>(out));
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
    Pool().share_rows(x.size(0), n, [&](long low, long high) {
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
  Pool().share(panels, [&](long i) { pack_panel(data<Bf16>(weight), outputs, inputs, i, to); });
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

Tensor linear(const Tensor& x, const Tensor& panels, int64_t outputs,
              const std::optional<Tensor>& bias, bool wide) {
  Tensor out = make_output(x, outputs, wide);
  const Packed layer = packed(panels, bias, outputs);
  TORCH_CHECK(x.size(1) == layer.inputs, "the layer has ", layer.inputs, " inputs, not ", x.size(1));
  Pool pool;
  linear_all(pool, data<Bf16>(x), x.size(0), layer, output(out, wide, bias));
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
  Pool().share_rows(index.size(0), inputs, [&](long low, long high) {
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
  Pool().share(panels, [&](long i) {
    pack_panel8(data<Fp32>(weight), outputs, inputs, i, packed.data_ptr<int8_t>(),
                scales.data_ptr<float>());
  });
  return {packed, scales};
}

Tensor linear8(const Tensor& x, const Tensor& packed, const Tensor& scales, int64_t outputs,
               const std::optional<Tensor>& bias, bool wide) {
  const long inputs = x.size(1), padded = packed.size(1) * 2;
  Pool pool;
  const long threads = pool.threads();
  Tensor out = make_output(x, outputs, wide);
  TORCH_CHECK(padded_to(inputs, GROUP) == padded, "the layer has ", padded, " inputs, not ",
              inputs);
  Tensor narrow = at::empty({x.size(0), padded}, x.options().dtype(at::kShort));
  Tensor factors = at::empty({x.size(0), padded / GROUP}, scales.options());
  Pool().share_rows(x.size(0), inputs, [&](long low, long high) {
    for (long t = low; t < high; ++t)
      quantize_row(data<Bf16>(x) + t * inputs, inputs, narrow.data_ptr<int16_t>() + t * padded,
                   factors.data_ptr<float>() + t * (padded / GROUP));
  });
  const Output to = output(out, wide, bias);
  pool.share(pieces(outputs, threads), [&](long i) {
    linear_piece8(narrow.const_data_ptr<int16_t>(), factors.const_data_ptr<float>(), x.size(0),
                  inputs, packed.const_data_ptr<int8_t>(), scales.const_data_ptr<float>(),
                  piece(i, outputs, threads), to);
  });
  return out;
}

// What the compiler was allowed to use.
std::string instructions() {
  if (tiles_allowed()) return "amx_bf16";
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
  m.class_<Layers>("Layers")
      .def(torch::init<std::vector<MaybeTensor>, double>())
      .def("run", &Layers::run);
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
