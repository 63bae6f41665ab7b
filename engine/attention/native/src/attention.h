// Attention over pages in place: any mix of slices, one pass of running softmax per unit of work.
//
// A unit is a tile of a slice's query tokens x one kv head x a range of keys. The query heads that
// share a kv head are folded into the tile's rows, so keys and values are read once for all of them.
// A slice whose tile would walk many keys alone is cut along the keys; whoever finishes the last
// part of a (slice, head) merges all of them by their log-sum-exp, in fp32. How a slice is cut
// depends on this slice alone: its rows are the same bits whatever else is in the batch.
#pragma once

#include <algorithm>
#include <atomic>
#include <vector>

#include "amx.h"
#include "simd.h"

namespace agentrt {

constexpr long BLOCK = 128;      // keys that are scored at a time
constexpr long TILE_ROWS = 96;   // most folded rows of a tile: packing a block is paid once for them
constexpr long SPLIT_ROWS = 64;  // a slice of more rows has tiles enough, and is not cut along keys
constexpr long KEY_CHUNK = 256;  // keys of a part, where a slice is cut along the keys
constexpr float NOTHING = -1.0e30f;
constexpr float SLACK = 8.0f;

struct Slice {
  int64_t start, count, first_row, table;  // table: where its page ids begin
};

struct Work {
  int64_t slice, row, rows, key_low, key_high, part, parts, partial;  // partial: of the slice, in rows
};

// c[m, n] (+)= a . b as product() does it, on the tile registers where that pays: many rows.
template <class K>
inline void multiply(Tiles& tiles, const uint32_t* a, long lda, const uint32_t* b, long ldb,
                     float* c, long ldc, long m, long n, long k, bool add) {
#if defined(AGENTRT_AMX)
  constexpr long ENOUGH = 8;
  if (K::PER_UNIT == 2 && m >= ENOUGH && k % TILE == 0 && tiles_allowed()) {
    tiles_product(tiles, a, lda, b, ldb, c, ldc, m, n, k, add);
    return;
  }
#endif
  product<K>(a, lda, b, ldb, c, ldc, m, n, k, add);
}

struct Shape {
  long kv_heads, group, dim, padded, page;
};

// Cut slices into work. `window` is how many tokens back a token sees; 0 for all.
// Returns the number of rows of partial results that the work needs for one kv head.
inline long cut(const Slice* slices, long count, long group, long window, std::vector<Work>& out) {
  const long tile = std::max<long>(1, TILE_ROWS / group);
  long partial_rows = 0;
  for (long index = 0; index < count; ++index) {
    const Slice& s = slices[index];
    for (long row = 0; row < s.count; row += tile) {
      const long rows = std::min(tile, long(s.count) - row);
      const long oldest = s.start + row;
      const long low = window ? std::max<long>(0, oldest - window + 1) / BLOCK * BLOCK : 0;
      const long high = s.start + row + rows;
      const long parts = s.count * group <= SPLIT_ROWS ? (high - low + KEY_CHUNK - 1) / KEY_CHUNK : 1;
      const long step = parts > 1 ? KEY_CHUNK : high - low;
      for (long part = 0; part < parts; ++part) {
        const long from = low + part * step;
        out.push_back({index, row, rows, from, std::min(high, from + step), part, parts,
                       parts > 1 ? partial_rows : -1});
      }
      if (parts > 1) partial_rows += parts * rows * group;
    }
  }
  return partial_rows;
}

// Lines to ask for before they are needed, a few at a time between other work: a processor has few
// misses in flight, so asking for many at once only waits, and pages lie where no hardware guesses.
class Ahead {
 public:
  void add(const void* from, long bytes) {
    if (spans_ < MAX) span_[spans_++] = {static_cast<const char*>(from), bytes};
  }

  void some(long lines) {
    for (; lines > 0 && at_ < spans_; ++at_, done_ = 0)
      for (; done_ < span_[at_].bytes; done_ += 64) {
        if (lines-- <= 0) return;
        __builtin_prefetch(span_[at_].from + done_, 0, 2);
      }
  }

  void rest() { some(1L << 30); }

  void clear() { spans_ = at_ = done_ = 0; }

 private:
  static constexpr long MAX = 2 * BLOCK;
  struct Span {
    const char* from;
    long bytes;
  };
  Span span_[MAX];
  long spans_ = 0, at_ = 0, done_ = 0;
};

struct Scratch {
  Buffer<uint32_t> units, zeros;
  Buffer<float> floats;
  uint32_t *q, *k, *v, *p, *zero;
  float *s, *o, *m, *l;  // scores, outputs, and of each row the largest score and W partial sums
  Ahead ahead;

  // `rows` of one kv head, and state for `heads` of them.
  void fit(long rows, long heads, long dim_units, long dim, long padded) {
    uint32_t* at = units.fit(rows * (heads * dim_units + BLOCK) + BLOCK * (dim_units + padded));
    k = at;
    v = k + BLOCK * dim_units;
    p = v + BLOCK * padded;
    q = p + rows * BLOCK;
    zero = zeros.fit(dim + W);
    s = floats.fit(rows * (BLOCK + heads * (padded + W + 1)));
    o = s + rows * BLOCK;
    l = o + rows * heads * padded;
    m = l + rows * heads * W;
  }
};

// Part of a unit that belongs to one kv head: where its state begins in the scratch.
struct Head {
  long head;
  uint32_t* q;
  float *o, *m, *l;
};

template <class K>
struct Attention {
  typedef typename K::Value Value;

  Shape shape;
  const Value* pages;  // keys of one layer [pages, kv heads, page, dim]
  long values;         // distance from a key to its value
  const int64_t* table;
  const Slice* slices;
  const Work* work;
  const Value* q;
  long q_stride;  // between tokens
  Value* out;     // [tokens, kv heads * group * dim]
  long window;
  float scale;
  float* partial;       // [kv heads, partial rows, padded + 2]
  long partial_rows;
  std::atomic<int32_t>* arrived;  // [works, kv heads], zero before and after

  // Work `index` for kv heads [low, high). Heads take turns at each block of keys: theirs lie side
  // by side in a page.
  void unit(long index, long low, long high, Scratch& scratch) const {
    const Work& w = work[index];
    const Slice& slice = slices[w.slice];
    const long rows = w.rows * shape.group, heads = high - low;
    scratch.fit(rows, heads, units(), shape.dim, shape.padded);
    std::fill_n(scratch.o, heads * rows * shape.padded, 0.0f);
    std::fill_n(scratch.m, heads * rows, NOTHING);
    std::fill_n(scratch.l, heads * rows * W, 0.0f);
    Tiles tiles;
    for (long head = low; head < high; ++head)
      gather_queries(w, slice, state(scratch, rows, head, low));
    for (long key = w.key_low; key < w.key_high; key += BLOCK)
      for (long head = low; head < high; ++head) {
        const bool last = head + 1 == high;
        plan_ahead(slice, last ? low : head + 1, last ? key + BLOCK : key, w.key_high, scratch);
        block(tiles, w, slice, state(scratch, rows, head, low), key,
              std::min(BLOCK, long(w.key_high) - key), scratch);
      }
    for (long head = low; head < high; ++head) {
      const Head h = state(scratch, rows, head, low);
      if (w.parts == 1) finish(w, slice, h);
      else hand_in(index, w, slice, h);
    }
  }

 private:
  long units() const { return shape.dim / K::PER_UNIT; }

  Head state(const Scratch& s, long rows, long head, long low) const {
    const long at = (head - low) * rows;
    return {head, s.q + at * units(), s.o + at * shape.padded, s.m + at, s.l + at * W};
  }

  void gather_queries(const Work& w, const Slice& slice, const Head& h) const {
    const long wide = shape.group * shape.dim;
    for (long row = 0; row < w.rows; ++row)
      std::memcpy(h.q + row * shape.group * units(),
                  q + (slice.first_row + w.row + row) * q_stride + h.head * wide,
                  wide * sizeof(Value));
  }

  void block(Tiles& tiles, const Work& w, const Slice& slice, const Head& h, long key, long keys,
             Scratch& s) const {
    const long units = this->units(), padded = shape.padded;
    const long rows = w.rows * shape.group, wide = (keys + W - 1) / W * W;
    const uint32_t* from[BLOCK];
    locate(slice, h.head, key, keys, from);
    std::fill(from + keys, from + wide, s.zero);
    // Half of what comes next is asked for while keys are packed, half while values are.
    const long lines = 2 * BLOCK * shape.dim * long(sizeof(Value)) / 64;
    for (long i = 0; i < wide; i += W) {
      for (long unit = 0; unit < units; unit += 16) {
        transpose(from + i, unit, std::min<long>(16, units - unit), s.k + unit * BLOCK + i, BLOCK);
        s.ahead.some(lines * 16 / (2 * (wide / W) * std::max<long>(16, units)));
      }
    }
    multiply<K>(tiles, h.q, units, s.k, BLOCK, s.s, BLOCK, rows, wide, units, false);
    softmax(w, slice, h, key, keys, wide, s);
    for (long i = 0; i < wide; i += K::PER_UNIT) {
      pack_values(from, i, keys, s.v + i / K::PER_UNIT * padded);
      s.ahead.some(lines * K::PER_UNIT / (2 * wide));
    }
    s.ahead.rest();
    multiply<K>(tiles, s.p, BLOCK / K::PER_UNIT, s.v, padded, h.o, padded, rows, padded,
                wide / K::PER_UNIT, true);
  }

  void locate(const Slice& slice, long head, long key, long keys, const uint32_t** from) const {
    long page = key / shape.page, offset = key % shape.page;
    for (long i = 0; i < keys; ++page, offset = 0) {
      const Value* row = at(slice, head, page) + offset * shape.dim;
      for (; i < keys && offset < shape.page; ++i, ++offset, row += shape.dim)
        from[i] = reinterpret_cast<const uint32_t*>(row);
    }
  }

  const Value* at(const Slice& slice, long head, long page) const {
    return pages + (table[slice.table + page] * shape.kv_heads + head) * shape.page * shape.dim;
  }

  void plan_ahead(const Slice& slice, long head, long key, long high, Scratch& s) const {
    const long last = std::min(key + BLOCK, high);
    s.ahead.clear();
    for (long side = 0; side < 2; ++side)
      for (long at_key = key; at_key < last; at_key = (at_key / shape.page + 1) * shape.page) {
        const long offset = at_key % shape.page;
        const long count = std::min(shape.page - offset, last - at_key) * shape.dim;
        s.ahead.add(at(slice, head, at_key / shape.page) + offset * shape.dim + side * values,
                    count * long(sizeof(Value)));
      }
  }

  void pack_values(const uint32_t* const* from, long i, long keys, uint32_t* to) const {
    const Value* rows[2];
    for (int j = 0; j < K::PER_UNIT; ++j)
      rows[j] = reinterpret_cast<const Value*>(from[i + j]) + (i + j < keys ? values : 0);
    pack_pair(rows, shape.dim, to);
    std::fill(to + shape.dim, to + shape.padded, 0u);
  }

  static void pack_pair(const uint16_t* const* rows, long dim, uint32_t* to) {
    interleave(rows[0], rows[1], dim, to);
  }
  static void pack_pair(const float* const* rows, long dim, uint32_t* to) {
    std::memcpy(to, rows[0], dim * 4);
  }

  void softmax(const Work& w, const Slice& slice, const Head& h, long key, long keys, long wide,
               Scratch& s) const {
    const long first = slice.start + w.row;
    const bool whole = keys == wide && key + keys <= first + 1 &&
                       (!window || key > first + w.rows - 1 - window);
    for (long row = 0; row < w.rows * shape.group; ++row) {
      float* scores = s.s + row * BLOCK;
      Value* weights = reinterpret_cast<Value*>(s.p) + row * BLOCK;
      const long position = first + row / shape.group;
      const long high = whole ? wide : std::min(keys, position + 1 - key);
      const long low = whole || !window ? 0 : std::max<long>(0, position - window + 1 - key);
      float *sum = h.l + row * W, *o = h.o + row * shape.padded;
      if (whole) softmax_row<true>(scores, weights, wide, low, high, h.m[row], sum, o);
      else softmax_row<false>(scores, weights, wide, low, high, h.m[row], sum, o);
    }
  }

  // Powers of two: `most` is about the largest score so far times LOG2_E, and what is summed is
  // relative to it. It is raised only where more than SLACK is missing: sums that are 2^SLACK times
  // too large are as exact, and scaling what was summed before takes longer than the block's own
  // exponents. The sum is kept in W parts.
  template <bool WHOLE>
  void softmax_row(float* scores, Value* weights, long wide, long low, long high, float& most,
                   float* sum, float* o) const {
    const float factor = scale * LOG2_E;
    vf peak = splat(NOTHING);
    for (long i = 0; i < wide; i += W) {
      vf x = load<vf>(scores + i);
      if (!WHOLE) {
        x = seen(i, low, high) ? x : splat(NOTHING);
        store(scores + i, x);
      }
      peak = vmax(peak, x);
    }
    vf total = load<vf>(sum);
    const float now = lanes_max(peak) * factor;
    if (now > most + SLACK) {
      if (most > NOTHING) {
        const float fade = vexp2(splat(most - now))[0];
        total *= fade;
        for (long i = 0; i < shape.padded; i += W) store(o + i, load<vf>(o + i) * fade);
      }
      most = now;
    }
    for (long i = 0; i < wide; i += W) {
      vf p = K::power(load<vf>(scores + i) * factor - most);
      if (!WHOLE) p = seen(i, low, high) ? p : vf{};
      total += p;
      K::write(weights + i, p);
    }
    store(sum, total);
  }

  static vi seen(long at, long low, long high) {
    vi lane;
    for (int i = 0; i < W; ++i) lane[i] = i;
    lane += int32_t(at);
    return (lane >= int32_t(low)) & (lane < int32_t(high));
  }

  void finish(const Work& w, const Slice& slice, const Head& h) const {
    for (long row = 0; row < w.rows * shape.group; ++row)
      write(w, slice, h.head, row, h.o + row * shape.padded, 1.0f / sum(h, row));
  }

  void write(const Work& w, const Slice& slice, long head, long row, const float* o,
             float factor) const {
    const long token = slice.first_row + w.row + row / shape.group;
    const long place = head * shape.group + row % shape.group;
    Value* to = out + (token * shape.kv_heads * shape.group + place) * shape.dim;
    long i = 0;
    for (; i + W <= shape.dim; i += W) K::write(to + i, load<vf>(o + i) * factor);
    for (; i < shape.dim; ++i) K::write1(to + i, o[i] * factor);
  }

  static float sum(const Head& h, long row) { return lanes_sum(load<vf>(h.l + row * W)); }

  float* part(const Work& w, long head, long number) const {
    const long rows = w.rows * shape.group;
    return partial + (head * partial_rows + w.partial + number * rows) * (shape.padded + 2);
  }

  void hand_in(long index, const Work& w, const Slice& slice, const Head& h) const {
    const long rows = w.rows * shape.group, padded = shape.padded;
    float* mine = part(w, h.head, w.part);
    for (long row = 0; row < rows; ++row, mine += padded + 2) {
      mine[0] = h.m[row];
      mine[1] = sum(h, row);
      std::memcpy(mine + 2, h.o + row * padded, padded * sizeof(float));
    }
    std::atomic<int32_t>& count = arrived[(index - w.part) * shape.kv_heads + h.head];
    if (count.fetch_add(1, std::memory_order_acq_rel) + 1 < w.parts) return;
    count.store(0, std::memory_order_relaxed);
    for (long row = 0; row < rows; ++row) merge(w, slice, h.head, row, h.o);
  }

  void merge(const Work& w, const Slice& slice, long head, long row, float* o) const {
    float most = NOTHING, sum = 0;
    for (long i = 0; i < w.parts; ++i) most = std::max(most, at_row(w, head, i, row)[0]);
    std::fill_n(o, shape.padded, 0.0f);
    for (long i = 0; i < w.parts; ++i) {
      const float* one = at_row(w, head, i, row);
      const float weight = one[1] == 0 ? 0 : vexp2(splat(one[0] - most))[0];
      sum += weight * one[1];
      for (long d = 0; d < shape.padded; d += W)
        store(o + d, load<vf>(o + d) + load<vf>(one + 2 + d) * weight);
    }
    write(w, slice, head, row, o, 1.0f / sum);
  }

  const float* at_row(const Work& w, long head, long number, long row) const {
    return part(w, head, number) + row * (shape.padded + 2);
  }
};

}  // namespace agentrt
