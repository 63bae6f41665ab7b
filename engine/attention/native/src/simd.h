// Vectors of 32-bit lanes over the compiler's vector extension, and the few operations that have an
// instruction of their own where the processor has AVX-512. Everything here works on any target.
#pragma once

#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <new>

#if defined(__AVX512F__)
#include <immintrin.h>
#endif

namespace agentrt {

#if defined(__AVX512F__) && defined(__AVX512BW__)
constexpr int W = 16;       // lanes of a vector
constexpr int MAX_NB = 4;   // vectors of columns that a tile keeps in registers
#else
constexpr int W = 8;
constexpr int MAX_NB = 2;
#endif
constexpr int MAX_MB = 6;   // rows of a tile

typedef float vf __attribute__((vector_size(4 * W)));
typedef int32_t vi __attribute__((vector_size(4 * W)));
typedef uint32_t vu __attribute__((vector_size(4 * W)));
typedef uint16_t vh __attribute__((vector_size(2 * W)));
typedef int16_t vs __attribute__((vector_size(2 * W)));
typedef int8_t vb2 __attribute__((vector_size(2 * W)));
typedef int16_t vs2 __attribute__((vector_size(4 * W)));

template <class V, class P>
inline V load(const P* from) {
  V value;
  std::memcpy(&value, from, sizeof(V));
  return value;
}

template <class V, class P>
inline void store(P* to, V value) {
  std::memcpy(to, &value, sizeof(V));
}

inline vf splat(float x) { return vf{} + x; }
inline vu splat(uint32_t x) { return vu{} + x; }

inline float lanes_sum(vf x) {
#if defined(__AVX512F__) && defined(__AVX512BW__)
  return _mm512_reduce_add_ps((__m512)x);
#else
  float total = 0;
  for (int i = 0; i < W; ++i) total += x[i];
  return total;
#endif
}

inline vf vmax(vf a, vf b) { return a < b ? b : a; }

inline float lanes_max(vf x) {
#if defined(__AVX512F__) && defined(__AVX512BW__)
  return _mm512_reduce_max_ps((__m512)x);
#else
  float most = x[0];
  for (int i = 1; i < W; ++i) most = most < x[i] ? x[i] : most;
  return most;
#endif
}

// 2^x for x <= 0 (and any x up to 120), relative error below 2e-7; far below zero it is zero; NaN
// stays NaN. The polynomial is the best of its degree for 2^r on [-1/2, 1/2], by relative error.
inline vf vexp2(vf x) {
#if defined(__AVX512F__) && defined(__AVX512BW__)
  x = (vf)_mm512_max_ps((__m512)splat(-150.0f), (__m512)x);  // of a NaN, the second
  const vf n = (vf)_mm512_roundscale_ps((__m512)x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
#else
  const vf low = splat(-126.0f), magic = splat(12582912.0f);
  const vi tiny = x < low;
  x = tiny ? low : x;  // keeps NaN: the comparison is false
  const vf n = (x + magic) - magic;
#endif
  const vf r = x - n;
  vf p = splat(1.5345810970757157e-4f);
  p = p * r + 1.3399930903688073e-3f;
  p = p * r + 9.618489071726799e-3f;
  p = p * r + 5.550328642129898e-2f;
  p = p * r + 2.4022646248340607e-1f;
  p = p * r + 6.931471824645996e-1f;
  p = p * r + 1.0f;
#if defined(__AVX512F__) && defined(__AVX512BW__)
  return (vf)_mm512_scalef_ps((__m512)p, (__m512)n);
#else
  const vi bits = (__builtin_convertvector(n, vi) + 127) << 23;
  return tiny ? vf{} : p * (vf)bits;
#endif
}

// The same, as exact as bfloat16 needs it: relative error below 4e-6, and never less than 2^-126.
inline vf vexp2_short(vf x) {
  const vf magic = splat(12582912.0f);
  x = vmax(x, splat(-126.0f));
  const vf shifted = x + magic, r = x - (shifted - magic);
  vf p = splat(9.570101276040077e-3f);
  p = p * r + 5.591785907745361e-2f;
  p = p * r + 2.40247443318367e-1f;
  p = p * r + 6.931217908859253e-1f;
  p = p * r + 9.999992847442627e-1f;
  return (vf)((vi)p + ((vi)shifted << 23));  // the low bits of `shifted` count whole powers
}

constexpr float LOG2_E = 1.44269504f;

inline vf vexp(vf x) { return vexp2(x * LOG2_E); }

// bfloat16, as its bits.
inline float from_bf16(uint16_t x) {
  const uint32_t bits = uint32_t(x) << 16;
  float value;
  std::memcpy(&value, &bits, 4);
  return value;
}

inline vf from_bf16(vh x) { return (vf)(__builtin_convertvector(x, vu) << 16); }

inline vh to_bf16(vf x) {
#if defined(__AVX512BF16__) && defined(__AVX512BW__)
  return (vh)_mm512_cvtneps_pbh((__m512)x);
#else
  const vu bits = (vu)x;
  const vu rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
  const vu nan = (bits >> 16) | 0x40u;
  return __builtin_convertvector((vu)(x == x ? (vi)rounded : (vi)nan), vh);
#endif
}

inline uint16_t to_bf16(float x) {
  uint32_t bits;
  std::memcpy(&bits, &x, 4);
  if (x != x) return uint16_t((bits >> 16) | 0x40u);
  return uint16_t((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16);
}

// Scratch that only grows, aligned to a cache line; new memory is zero.
template <class T>
class Buffer {
 public:
  Buffer() = default;
  Buffer(const Buffer&) = delete;
  Buffer& operator=(const Buffer&) = delete;
  ~Buffer() { std::free(data_); }

  T* fit(long size) {
    if (size > size_) {
      const size_t bytes = (size * sizeof(T) + 63) / 64 * 64;
      void* fresh = std::aligned_alloc(64, bytes);
      if (fresh == nullptr) throw std::bad_alloc();
      std::memset(fresh, 0, bytes);
      std::free(data_);
      data_ = static_cast<T*>(fresh);
      size_ = size;
    }
    return data_;
  }

 private:
  T* data_ = nullptr;
  long size_ = 0;
};

// How a type's values are read, written, and multiplied. A unit is 32 bits: one float, or a pair of
// bfloat16 that lie next to each other along the dimension that is summed over.
struct Fp32 {
  typedef float Value;
  static constexpr int PER_UNIT = 1;
  static vf read(const Value* p) { return load<vf>(p); }
  static void write(Value* p, vf x) { store(p, x); }
  static float read1(const Value* p) { return *p; }
  static void write1(Value* p, float x) { *p = x; }
  static vf round(vf x) { return x; }
  static float round1(float x) { return x; }
  static vf power(vf x) { return vexp2(x); }
  static vf dot(vf sum, vu a, vu b) { return sum + (vf)a * (vf)b; }
};

struct Bf16 {
  typedef uint16_t Value;
  static constexpr int PER_UNIT = 2;
  static vf read(const Value* p) { return from_bf16(load<vh>(p)); }
  static void write(Value* p, vf x) { store(p, to_bf16(x)); }
  static float read1(const Value* p) { return from_bf16(*p); }
  static void write1(Value* p, float x) { *p = to_bf16(x); }
  static vf round(vf x) { return from_bf16(to_bf16(x)); }
  static float round1(float x) { return from_bf16(to_bf16(x)); }
  static vf power(vf x) { return vexp2_short(x); }
  static vf dot(vf sum, vu a, vu b) {
#if defined(__AVX512BF16__) && defined(__AVX512BW__)
    return (vf)_mm512_dpbf16_ps((__m512)sum, (__m512bh)a, (__m512bh)b);
#else
    sum = sum + (vf)(a << 16) * (vf)(b << 16);
    return sum + (vf)(a & 0xffff0000u) * (vf)(b & 0xffff0000u);
#endif
  }
};

// acc[MB][NB] += a[MB rows, k units] . b[k units, NB vectors]; b's rows are ldb units apart.
template <class K, int MB, int NB>
inline __attribute__((always_inline)) void tile(
    vf (&acc)[MB][NB], const uint32_t* a, long lda, const uint32_t* b, long ldb, long k) {
  for (long i = 0; i < k; ++i) {
    vu column[NB];
#pragma GCC unroll 8
    for (int n = 0; n < NB; ++n) column[n] = load<vu>(b + i * ldb + n * W);
#pragma GCC unroll 8
    for (int m = 0; m < MB; ++m) {
      const vu unit = splat(a[m * lda + i]);
#pragma GCC unroll 8
      for (int n = 0; n < NB; ++n) acc[m][n] = K::dot(acc[m][n], unit, column[n]);
    }
  }
}

// c[MB, NB vectors] (+)= a . b
template <class K, int MB, int NB>
void product_tile(const uint32_t* a, long lda, const uint32_t* b, long ldb, float* c, long ldc,
                  long k, bool add) {
  vf acc[MB][NB];
#pragma GCC unroll 8
  for (int m = 0; m < MB; ++m)
#pragma GCC unroll 8
    for (int n = 0; n < NB; ++n) acc[m][n] = add ? load<vf>(c + m * ldc + n * W) : vf{};
  tile<K, MB, NB>(acc, a, lda, b, ldb, k);
#pragma GCC unroll 8
  for (int m = 0; m < MB; ++m)
#pragma GCC unroll 8
    for (int n = 0; n < NB; ++n) store(c + m * ldc + n * W, acc[m][n]);
}

template <class K, int NB>
void product_rows(const uint32_t* a, long lda, const uint32_t* b, long ldb, float* c, long ldc,
                  long m, long k, bool add) {
  const long blocks = (m + MAX_MB - 1) / MAX_MB;
  for (long block = 0; block < blocks; ++block) {
    const long low = m * block / blocks, rows = m * (block + 1) / blocks - low;
    const uint32_t* from = a + low * lda;
    float* to = c + low * ldc;
    switch (rows) {
      case 1: product_tile<K, 1, NB>(from, lda, b, ldb, to, ldc, k, add); break;
      case 2: product_tile<K, 2, NB>(from, lda, b, ldb, to, ldc, k, add); break;
      case 3: product_tile<K, 3, NB>(from, lda, b, ldb, to, ldc, k, add); break;
      case 4: product_tile<K, 4, NB>(from, lda, b, ldb, to, ldc, k, add); break;
      case 5: product_tile<K, 5, NB>(from, lda, b, ldb, to, ldc, k, add); break;
      default: product_tile<K, 6, NB>(from, lda, b, ldb, to, ldc, k, add); break;
    }
  }
}

// c[m, n] (+)= a[m, k units] . b[k units, n]; n is a multiple of W.
template <class K>
void product(const uint32_t* a, long lda, const uint32_t* b, long ldb, float* c, long ldc, long m,
             long n, long k, bool add) {
  long column = 0;
  for (; column + MAX_NB * W <= n; column += MAX_NB * W)
    product_rows<K, MAX_NB>(a, lda, b + column, ldb, c + column, ldc, m, k, add);
  for (; column + 2 * W <= n; column += 2 * W)
    product_rows<K, 2>(a, lda, b + column, ldb, c + column, ldc, m, k, add);
  for (; column < n; column += W)
    product_rows<K, 1>(a, lda, b + column, ldb, c + column, ldc, m, k, add);
}

// to[i][row] = from[row][first + i] for W rows, i < count <= 16; to's rows are ldt units apart.
inline void transpose(const uint32_t* const* from, long first, long count, uint32_t* to, long ldt) {
#if defined(__AVX512F__) && defined(__AVX512BW__)
  if (count == 16) {
    __m512i r[16], t[16];
#pragma GCC unroll 16
    for (int i = 0; i < 16; ++i) r[i] = _mm512_loadu_si512(from[i] + first);
#pragma GCC unroll 8
    for (int i = 0; i < 16; i += 2) {
      t[i] = _mm512_unpacklo_epi32(r[i], r[i + 1]);
      t[i + 1] = _mm512_unpackhi_epi32(r[i], r[i + 1]);
    }
#pragma GCC unroll 4
    for (int i = 0; i < 16; i += 4) {
      r[i] = _mm512_unpacklo_epi64(t[i], t[i + 2]);
      r[i + 1] = _mm512_unpackhi_epi64(t[i], t[i + 2]);
      r[i + 2] = _mm512_unpacklo_epi64(t[i + 1], t[i + 3]);
      r[i + 3] = _mm512_unpackhi_epi64(t[i + 1], t[i + 3]);
    }
    // r[4 g + c]: rows 4 g .. 4 g + 3 of units c, c + 4, c + 8, c + 12, one in each quarter.
#pragma GCC unroll 4
    for (int c = 0; c < 4; ++c) {
      const __m512i a = _mm512_shuffle_i32x4(r[c], r[4 + c], 0x88);
      const __m512i b = _mm512_shuffle_i32x4(r[c], r[4 + c], 0xdd);
      const __m512i d = _mm512_shuffle_i32x4(r[8 + c], r[12 + c], 0x88);
      const __m512i e = _mm512_shuffle_i32x4(r[8 + c], r[12 + c], 0xdd);
      _mm512_storeu_si512(to + c * ldt, _mm512_shuffle_i32x4(a, d, 0x88));
      _mm512_storeu_si512(to + (c + 4) * ldt, _mm512_shuffle_i32x4(b, e, 0x88));
      _mm512_storeu_si512(to + (c + 8) * ldt, _mm512_shuffle_i32x4(a, d, 0xdd));
      _mm512_storeu_si512(to + (c + 12) * ldt, _mm512_shuffle_i32x4(b, e, 0xdd));
    }
    return;
  }
#endif
  for (long unit = 0; unit < count; ++unit)
    for (int i = 0; i < W; ++i) to[unit * ldt + i] = from[i][first + unit];
}

// Two rows of `n` bfloat16 to n pairs (first, second).
inline void interleave(const uint16_t* first, const uint16_t* second, long n, uint32_t* to) {
  long i = 0;
#if defined(__AVX512F__) && defined(__AVX512BW__)
  // Lane 2 j is value j of the first row, lane 2 j + 1 that of the second (index + 32).
  alignas(64) static const uint16_t PLACES[64] = {
      0,  32, 1,  33, 2,  34, 3,  35, 4,  36, 5,  37, 6,  38, 7,  39, 8,  40, 9,  41, 10, 42,
      11, 43, 12, 44, 13, 45, 14, 46, 15, 47, 16, 48, 17, 49, 18, 50, 19, 51, 20, 52, 21, 53,
      22, 54, 23, 55, 24, 56, 25, 57, 26, 58, 27, 59, 28, 60, 29, 61, 30, 62, 31, 63};
  const __m512i early = _mm512_load_si512(PLACES), late = _mm512_load_si512(PLACES + 32);
  for (; i + 32 <= n; i += 32) {
    const __m512i a = _mm512_loadu_si512(first + i), b = _mm512_loadu_si512(second + i);
    _mm512_storeu_si512(to + i, _mm512_permutex2var_epi16(a, early, b));
    _mm512_storeu_si512(to + i + 16, _mm512_permutex2var_epi16(a, late, b));
  }
#endif
  for (; i + W <= n; i += W) {
    const vu low = __builtin_convertvector(load<vh>(first + i), vu);
    const vu high = __builtin_convertvector(load<vh>(second + i), vu);
    store(to + i, low | (high << 16));
  }
  for (; i < n; ++i) to[i] = uint32_t(first[i]) | uint32_t(second[i]) << 16;
}

}  // namespace agentrt
