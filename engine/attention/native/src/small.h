// What stands between the matrix products: norms, rotation with the write to the pages, SiLU.
//
// Values are rounded to the model's type where the torch path rounds them (after the norm, after
// SiLU), so that both paths differ by single roundings at most; the rotation is fp32 throughout.
#pragma once

#include <cmath>

#include "simd.h"

namespace agentrt {

template <class K>
float mean_square(const typename K::Value* x, long n) {
  vf total{};
  long i = 0;
  for (; i + W <= n; i += W) {
    const vf value = K::read(x + i);
    total += value * value;
  }
  float sum = lanes_sum(total);
  for (; i < n; ++i) sum += K::read1(x + i) * K::read1(x + i);
  return sum / float(n);
}

template <class K>
void norm_row(const typename K::Value* x, const typename K::Value* weight, long n, float eps,
              typename K::Value* to) {
  const float factor = 1.0f / std::sqrt(mean_square<K>(x, n) + eps);
  long i = 0;
  for (; i + W <= n; i += W)
    K::write(to + i, K::round(K::read(x + i) * factor) * K::read(weight + i));
  for (; i < n; ++i)
    K::write1(to + i, K::round1(K::read1(x + i) * factor) * K::read1(weight + i));
}

template <class K>
void add_row(typename K::Value* x, const typename K::Value* delta, long n) {
  long i = 0;
  for (; i + W <= n; i += W) K::write(x + i, K::read(x + i) + K::read(delta + i));
  for (; i < n; ++i) K::write1(x + i, K::read1(x + i) + K::read1(delta + i));
}

inline vf silu(vf x) {
  // e^-|x| never overflows; the sigmoid of a negative x is that of -x times it.
  const vf small = vexp(x < 0 ? x : -x), one = splat(1.0f);
  return x * ((x < 0 ? small : one) / (one + small));
}

template <class K>
void silu_row(const typename K::Value* gate, const typename K::Value* up, long n,
              typename K::Value* to) {
  long i = 0;
  for (; i + W <= n; i += W)
    K::write(to + i, K::round(silu(K::read(gate + i))) * K::read(up + i));
  for (; i < n; ++i) {
    const float x = K::read1(gate + i);
    K::write1(to + i, K::round1(x / (1.0f + std::exp(-x))) * K::read1(up + i));
  }
}

// Rotate one head of `dim` values: value i is paired with value i + dim / 2.
template <class K>
void rotate_head(typename K::Value* x, const float* cos, const float* sin, long dim,
                 typename K::Value* to) {
  const long half = dim / 2;
  long i = 0;
  for (; i + W <= half; i += W) {
    const vf a = K::read(x + i), b = K::read(x + half + i);
    const vf c = load<vf>(cos + i), s = load<vf>(sin + i);
    K::write(to + i, a * c - b * s);
    K::write(to + half + i, b * c + a * s);
  }
  for (; i < half; ++i) {
    const float a = K::read1(x + i), b = K::read1(x + half + i);
    K::write1(to + i, a * cos[i] - b * sin[i]);
    K::write1(to + half + i, b * cos[i] + a * sin[i]);
  }
}

}  // namespace agentrt
