// The operators' loops over plain memory, for a sharer: a Pool, or a Member of a team.
#pragma once

#include "attention.h"
#include "linear.h"
#include "small.h"
#include "team.h"

namespace agentrt {

// A packed bfloat16 layer.
struct Packed {
  const uint32_t* panels;
  const uint16_t* bias;
  long inputs, outputs;
};

// Run f(first row, rows, piece of the outputs) over all of a layer, rows that stay in a core's cache
// at a time.
template <class S, class F>
void share_pieces(S& sharer, long rows, long inputs, long outputs, const F& f) {
  const long threads = sharer.threads(), count = pieces(outputs, threads);
  const long some = rows_together(inputs), chunks = (rows + some - 1) / some;
  sharer.share(count * chunks, [&](long i) {
    const long low = i / count * some;
    f(low, std::min(some, rows - low), piece(i % count, outputs, threads));
  });
}

template <class S>
void linear_all(S& sharer, const uint16_t* x, long rows, const Packed& layer, const Output& out) {
  share_pieces(sharer, rows, layer.inputs, layer.outputs, [&](long low, long count, Columns some) {
    linear_piece(x + low * layer.inputs, count, layer.inputs, layer.panels, some, out.from(low));
  });
}

// silu(gate) * up of x, [rows, outputs / 2]; half of the outputs is a multiple of PANEL.
template <class S>
void mlp_all(S& sharer, const uint16_t* x, long rows, const Packed& layer, uint16_t* to) {
  const long inner = layer.outputs / 2;
  share_pieces(sharer, rows, layer.inputs, inner, [&](long low, long count, Columns some) {
    mlp_piece(x + low * layer.inputs, count, layer.inputs, layer.panels, layer.bias, inner, some,
              to + low * inner);
  });
}

// x [rows, n] += delta, if there is one; out is x normed.
template <class K, class S>
void add_norm_all(S& sharer, typename K::Value* x, const typename K::Value* delta, long rows, long n,
                  const typename K::Value* weight, float eps, typename K::Value* out) {
  sharer.share_rows(rows, n, [&](long low, long high) {
    for (long t = low; t < high; ++t) {
      if (delta != nullptr) add_row<K>(x + t * n, delta + t * n, n);
      norm_row<K>(x + t * n, weight, n, eps, out + t * n);
    }
  });
}

// Pages of one layer, `[pages, kv heads, page, dim]`; a value lies `values` behind its key.
template <class K>
struct LayerPages {
  typename K::Value* keys;
  long values, kv_heads, page, dim;

  typename K::Value* at(int64_t slot, long head) const {
    return keys + ((slot / page * kv_heads + head) * page + slot % page) * dim;
  }
};

// What norms and rotates a head: weights [query + kv heads, dim] or none, cosines, sines [rows, dim/2].
template <class K>
struct Turn {
  const typename K::Value* norm;
  float eps;
  const float *cos, *sin;
};

// Norm and rotate the queries and keys of `heads [rows, query + 2 kv heads, dim]`; queries stay
// there, keys and values go to their slots.
template <class K, class S>
void rotate_store_all(S& sharer, typename K::Value* heads, long rows, long all,
                      const LayerPages<K>& pages, const int64_t* slots, const Turn<K>& turn) {
  typedef typename K::Value Value;
  const long dim = pages.dim, queries = all - 2 * pages.kv_heads;
  sharer.share_rows(rows, all * dim, [&](long low, long high) {
    static thread_local Buffer<Value> scratch;
    Value* normed = scratch.fit(dim);
    for (long t = low; t < high; ++t) {
      Value* x = heads + t * all * dim;
      const float *cos = turn.cos + t * dim / 2, *sin = turn.sin + t * dim / 2;
      for (long h = 0; h < all; ++h, x += dim) {
        const long head = (h - queries) % pages.kv_heads;
        Value* to = h < queries ? x : pages.at(slots[t], head);
        if (h >= queries + pages.kv_heads) {
          std::memcpy(to + pages.values, x, dim * sizeof(Value));
          continue;
        }
        if (turn.norm != nullptr) norm_row<K>(x, turn.norm + h * dim, dim, turn.eps, normed);
        else std::memcpy(normed, x, dim * sizeof(Value));
        rotate_head<K>(normed, cos, sin, dim, to);
      }
    }
  });
}

// How many kv heads a unit takes. Reading whole pages is faster where reading is what takes the time
// (few rows), as long as there remain units enough to share.
inline long heads_together(const Work& first, long works, long heads, long threads) {
  if (first.rows > 1) return 1;
  return std::clamp<long>(works * heads / (4 * threads), 1, heads);
}

template <class K, class S>
void attend_all(S& sharer, const Attention<K>& a, long works) {
  const long heads = a.shape.kv_heads;
  const long step = heads_together(a.work[0], works, heads, sharer.threads());
  sharer.share(works * ((heads + step - 1) / step), [&](long i) {
    static thread_local Scratch scratch;
    // Backwards: a slice's later tiles see more keys, and the long ones had better come first.
    const long low = i / works * step;
    a.unit(works - 1 - i % works, low, std::min(low + step, heads), scratch);
  });
}

}  // namespace agentrt
