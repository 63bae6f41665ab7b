// Linear layers over weights that were packed once, for any number of rows.
//
// bfloat16: panels of 64 outputs, `[outputs / 64, inputs / 2, 64]` pairs of inputs, so that one load
// brings the same two inputs of 16 outputs, and a panel is read from front to back.
// int8: the same order in pairs of int8, with a scale for each output and 64 inputs. The activations
// become int16 with a scale for each row and 64 inputs, so that what is lost is the weights' rounding.
#pragma once

#include <algorithm>
#include <cmath>

#include "amx.h"
#include "simd.h"
#include "small.h"

namespace agentrt {

constexpr long PANEL = 64;  // outputs of a panel
constexpr long GROUP = 64;  // inputs that share a scale

inline long padded_to(long n, long multiple) { return (n + multiple - 1) / multiple * multiple; }

// A piece of a layer's outputs that one thread computes: columns [low, low + count).
struct Columns {
  long low, count;
};

// Whole panels, except that what is left over when threads share them evenly is cut in halves.
inline long pieces(long outputs, long threads) {
  const long panels = padded_to(outputs, PANEL) / PANEL;
  return panels + (threads > 1 ? panels % threads : 0);
}

inline Columns piece(long index, long outputs, long threads) {
  const long panels = padded_to(outputs, PANEL) / PANEL;
  const long whole = threads > 1 ? panels - panels % threads : panels;
  if (index < whole) return {index * PANEL, PANEL};
  return {whole * PANEL + (index - whole) * (PANEL / 2), PANEL / 2};
}

// Where results go: bfloat16 or float, with a bias or none.
struct Output {
  void* to;
  bool wide;  // float
  const uint16_t* bias;
  long outputs;
  long first = 0;  // row of the output that row 0 is

  Output from(long row) const { return {to, wide, bias, outputs, first + row}; }

  void put(long row, long column, const float* from, long count) const {
    count = std::min(count, outputs - column);
    const long at = (first + row) * outputs + column;
    long i = 0;
    for (; i + W <= count; i += W) {
      vf x = load<vf>(from + i);
      if (bias != nullptr) x += Bf16::read(bias + column + i);
      if (wide) store(static_cast<float*>(to) + at + i, x);
      else Bf16::write(static_cast<uint16_t*>(to) + at + i, x);
    }
    for (; i < count; ++i) {
      const float x = from[i] + (bias == nullptr ? 0.0f : from_bf16(bias[column + i]));
      if (wide) static_cast<float*>(to)[at + i] = x;
      else static_cast<uint16_t*>(to)[at + i] = to_bf16(x);
    }
  }
};

inline void pack_panel(const uint16_t* weight, long outputs, long inputs, long panel,
                       uint32_t* packed) {
  const long units = (inputs + 1) / 2;
  uint32_t* to = packed + panel * units * PANEL;
  for (long unit = 0; unit < units; ++unit)
    for (long j = 0; j < PANEL; ++j) {
      const long row = panel * PANEL + j;
      uint32_t pair = 0;
      if (row < outputs) {
        const uint16_t* from = weight + row * inputs + 2 * unit;
        pair = from[0] | (2 * unit + 1 < inputs ? uint32_t(from[1]) << 16 : 0u);
      }
      to[unit * PANEL + j] = pair;
    }
}

inline void unpack_row(const uint32_t* packed, long inputs, long row, uint16_t* to) {
  const uint32_t* from = packed + row / PANEL * (inputs / 2) * PANEL + row % PANEL;
  for (long unit = 0; unit < inputs / 2; ++unit, from += PANEL)
    std::memcpy(to + 2 * unit, from, 4);
}

// Whether a sum over so many pairs is left to the tile registers, whatever the number of rows.
inline bool on_tiles(long units) { return units % 16 == 0 && tiles_allowed(); }

// Rows that are taken through all panels before the next: what they hold stays in a core's cache.
inline long rows_together(long inputs) {
  constexpr long BYTES = 3L << 18;
  return std::max<long>(64, BYTES / (2 * inputs) / 32 * 32);
}

constexpr long BLOCK_ROWS = 32;  // rows whose sums are kept before they are written

// c[rows, n] = x[rows, units] . panel[units, n]; c's rows are PANEL apart.
inline void panel_product(Tiles& tiles, const uint32_t* x, long rows, long units,
                          const uint32_t* panel, long n, float* c) {
#if defined(AGENTRT_AMX)
  if (on_tiles(units)) {
    tiles_rows(tiles, x, units, panel, PANEL, c, PANEL, rows, n, units, false);
    return;
  }
#endif
  product<Bf16>(x, units, panel, PANEL, c, PANEL, rows, n, units, false);
}

// The columns that all rows pass by before the next: of many rows few, so that what is read of the
// panel stays close.
inline long columns_together(long rows, long units, long count) {
  return rows > BLOCK_ROWS && on_tiles(units) ? std::min<long>(32, count) : count;
}

inline const uint32_t* columns_of(const uint32_t* packed, long units, long column) {
  return packed + column / PANEL * units * PANEL + column % PANEL;
}

// Rows of x [rows, inputs] times the columns of one piece; inputs is even.
inline void linear_piece(const uint16_t* x, long rows, long inputs, const uint32_t* packed,
                         Columns columns, const Output& out) {
  const long units = inputs / 2, step = columns_together(rows, units, columns.count);
  const uint32_t* from = reinterpret_cast<const uint32_t*>(x);
  alignas(64) float sums[BLOCK_ROWS * PANEL];
  Tiles tiles;
  for (long at = columns.low; at < columns.low + columns.count; at += step)
    for (long low = 0; low < rows; low += BLOCK_ROWS) {
      const long count = std::min(BLOCK_ROWS, rows - low);
      panel_product(tiles, from + low * units, count, units, columns_of(packed, units, at), step,
                    sums);
      for (long i = 0; i < count; ++i) out.put(low + i, at, sums + i * PANEL, step);
    }
}

// silu(gate) * up of n sums each, a multiple of W; up's bias lies `inner` behind the gate's.
inline void silu_sums(const float* gate, const float* up, const uint16_t* bias, long inner, long n,
                      uint16_t* to) {
  for (long i = 0; i < n; i += W) {
    vf x = load<vf>(gate + i), y = load<vf>(up + i);
    if (bias != nullptr) {
      x += Bf16::read(bias + i);
      y += Bf16::read(bias + inner + i);
    }
    Bf16::write(to + i, Bf16::round(silu(Bf16::round(x))) * Bf16::round(y));
  }
}

// The first half of an MLP: silu(gate) * up for the columns of one piece of `inner`, from weights
// that hold the gate's panels, then those of up. Values are rounded where the plain layers round.
inline void mlp_piece(const uint16_t* x, long rows, long inputs, const uint32_t* packed,
                      const uint16_t* bias, long inner, Columns columns, uint16_t* to) {
  const long units = inputs / 2, step = columns_together(rows, units, columns.count);
  const uint32_t* from = reinterpret_cast<const uint32_t*>(x);
  alignas(64) float gate[BLOCK_ROWS * PANEL], up[BLOCK_ROWS * PANEL];
  Tiles tiles;
  for (long at = columns.low; at < columns.low + columns.count; at += step)
    for (long low = 0; low < rows; low += BLOCK_ROWS) {
      const long count = std::min(BLOCK_ROWS, rows - low);
      const uint32_t* block = from + low * units;
      panel_product(tiles, block, count, units, columns_of(packed, units, at), step, gate);
      panel_product(tiles, block, count, units, columns_of(packed, units, inner + at), step, up);
      for (long i = 0; i < count; ++i)
        silu_sums(gate + i * PANEL, up + i * PANEL, bias ? bias + at : nullptr, inner, step,
                  to + (low + i) * inner + at);
    }
}

inline void pack_panel8(const float* weight, long outputs, long inputs, long panel, int8_t* packed,
                        float* scales) {
  const long padded = padded_to(inputs, GROUP), groups = padded / GROUP;
  int8_t* to = packed + panel * padded * PANEL;
  for (long group = 0; group < groups; ++group)
    for (long j = 0; j < PANEL; ++j) {
      const long row = panel * PANEL + j, low = group * GROUP;
      const long count = row < outputs ? std::min(GROUP, inputs - low) : 0;
      const float* from = weight + row * inputs + low;
      float most = 0;
      for (long i = 0; i < count; ++i) most = std::max(most, std::fabs(from[i]));
      const float scale = most / 127;
      scales[(panel * groups + group) * PANEL + j] = scale;
      for (long i = 0; i < GROUP; ++i) {
        const float value = i < count && scale > 0 ? std::nearbyint(from[i] / scale) : 0.0f;
        to[((low + i) / 2 * PANEL + j) * 2 + (low + i) % 2] = int8_t(value);
      }
    }
}

// One row of activations to int16; scales has one entry for each group of inputs.
inline void quantize_row(const uint16_t* x, long inputs, int16_t* to, float* scales) {
  for (long low = 0; low < inputs; low += GROUP) {
    const long count = std::min(GROUP, inputs - low);
    float most = 0;
    bool finite = true;
    for (long i = 0; i < count; ++i) {
      const float value = std::fabs(from_bf16(x[low + i]));
      finite = finite && std::isfinite(value);
      most = std::max(most, value);
    }
    // A scale of NaN carries what is not finite to every output of the row, as it should be.
    const float scale = finite ? most / 32767 : NAN;
    scales[low / GROUP] = scale;
    const float factor = finite && most > 0 ? 32767 / most : 0.0f;
    for (long i = 0; i < GROUP; ++i)
      to[low + i] =
          i < count && finite ? int16_t(std::nearbyint(from_bf16(x[low + i]) * factor)) : 0;
  }
}

inline vi dot16(vi sum, vu a, vs2 b) {
#if defined(__AVX512VNNI__) && defined(__AVX512BW__)
  return (vi)_mm512_dpwssd_epi32((__m512i)sum, (__m512i)a, (__m512i)b);
#else
  const vi x = (vi)a, y = (vi)b;
  return sum + ((x << 16) >> 16) * ((y << 16) >> 16) + (x >> 16) * (y >> 16);
#endif
}

template <int MB, int NB>
void tile8(const int16_t* x, const float* x_scales, long padded, const int8_t* b,
           const float* scales, float* c) {
  const long groups = padded / GROUP;
  alignas(64) float total[MB][NB * W] = {};  // in memory: the registers belong to the inner loop
  for (long group = 0; group < groups; ++group) {
    vi sum[MB][NB] = {};
    for (long unit = group * GROUP / 2; unit < (group + 1) * GROUP / 2; ++unit) {
      vs2 column[NB];
#pragma GCC unroll 8
      for (int n = 0; n < NB; ++n)
        column[n] = __builtin_convertvector(load<vb2>(b + (unit * PANEL + n * W) * 2), vs2);
#pragma GCC unroll 8
      for (int m = 0; m < MB; ++m) {
        uint32_t pair;
        std::memcpy(&pair, x + m * padded + 2 * unit, 4);
        const vu both = splat(pair);
#pragma GCC unroll 8
        for (int n = 0; n < NB; ++n) sum[m][n] = dot16(sum[m][n], both, column[n]);
      }
    }
#pragma GCC unroll 8
    for (int m = 0; m < MB; ++m)
#pragma GCC unroll 8
      for (int n = 0; n < NB; ++n)
        store(total[m] + n * W,
              load<vf>(total[m] + n * W) +
                  __builtin_convertvector(sum[m][n], vf) *
                      (load<vf>(scales + group * PANEL + n * W) * x_scales[m * groups + group]));
  }
#pragma GCC unroll 8
  for (int m = 0; m < MB; ++m) std::memcpy(c + m * PANEL, total[m], sizeof(total[m]));
}

template <int NB>
void rows8(const int16_t* x, const float* x_scales, long rows, long padded, const int8_t* b,
           const float* scales, float* c) {
  switch (rows) {
    case 1: tile8<1, NB>(x, x_scales, padded, b, scales, c); break;
    case 2: tile8<2, NB>(x, x_scales, padded, b, scales, c); break;
    case 3: tile8<3, NB>(x, x_scales, padded, b, scales, c); break;
    case 4: tile8<4, NB>(x, x_scales, padded, b, scales, c); break;
    case 5: tile8<5, NB>(x, x_scales, padded, b, scales, c); break;
    default: tile8<6, NB>(x, x_scales, padded, b, scales, c); break;
  }
}

inline void linear_piece8(const int16_t* x, const float* x_scales, long rows, long inputs,
                          const int8_t* packed, const float* scales, Columns columns,
                          const Output& out) {
  const long padded = padded_to(inputs, GROUP), groups = padded / GROUP;
  const long panel = columns.low / PANEL, blocks = (rows + MAX_MB - 1) / MAX_MB;
  alignas(64) float sums[MAX_MB * PANEL];
  for (long block = 0; block < blocks; ++block) {
    const long low = rows * block / blocks, count = rows * (block + 1) / blocks - low;
    for (long at = 0; at < columns.count;) {
      const long inside = columns.low % PANEL + at;
      const int8_t* b = packed + panel * padded * PANEL + inside * 2;
      const float* s = scales + panel * groups * PANEL + inside;
      const bool wide = at + MAX_NB * W <= columns.count;
      (wide ? rows8<MAX_NB> : rows8<2>)(x + low * padded, x_scales + low * groups, count, padded,
                                        b, s, sums + at);
      at += (wide ? MAX_NB : 2) * W;
    }
    for (long i = 0; i < count; ++i) out.put(low + i, columns.low, sums + i * PANEL, columns.count);
  }
}

}  // namespace agentrt
