// Matrix products on the processor's tile registers, where it has them (AMX).
//
// A tile of the second operand is 16 rows of 16 pairs of bfloat16: rows of the packed layouts as they
// are. Every row of a product is summed in the same order whatever the number of rows, so a
// sequence's values do not depend on how many others are in its batch.
#pragma once

#include <algorithm>

#include "simd.h"

#if defined(__AMX_BF16__) && defined(__AMX_TILE__) && defined(__AVX512BW__) && defined(__linux__)
#define AGENTRT_AMX 1
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace agentrt {

#if defined(AGENTRT_AMX)

constexpr long TILE = 16;  // rows of a tile, columns of a result, and units (pairs) of a step

// Linux gives a process the tiles' state only if it asks; threads made later have it, too.
inline bool tiles_allowed() {
  static const bool allowed = [] {
    constexpr long REQUEST = 0x1023, TILE_DATA = 18;
    return syscall(SYS_arch_prctl, REQUEST, TILE_DATA) == 0;
  }();
  return allowed;
}

struct alignas(64) TileConfig {
  uint8_t palette = 1, start = 0, reserved[14] = {};
  uint16_t bytes[16] = {};
  uint8_t rows[16] = {};
};

// The tile registers of a thread, from the first product until this goes out of scope. Tiles 0 .. 3
// are results; 4 and 5 hold rows of the first operand where there are two blocks of them, 4 alone
// where there is one; the rest hold the second operand.
class Tiles {
 public:
  Tiles() = default;
  Tiles(const Tiles&) = delete;
  Tiles& operator=(const Tiles&) = delete;
  ~Tiles() {
    if (rows_) _tile_release();
  }

  // Be ready for `rows` <= 32 rows of the first operand.
  void shape(long rows) {
    if (rows == rows_) return;
    rows_ = rows;
    const long first = std::min(rows, TILE), second = rows > TILE ? rows - TILE : first;
    const long held[8] = {first, first, second, second, first, rows > TILE ? second : TILE, TILE, TILE};
    TileConfig config;
    for (int i = 0; i < 8; ++i) {
      config.bytes[i] = 64;
      config.rows[i] = uint8_t(held[i]);
    }
    _tile_loadconfig(&config);
  }

 private:
  long rows_ = 0;
};

// The four results begin as what is there, or as zero.
inline void begin_sums(const float* c0, const float* c1, const float* c2, const float* c3, long ldc,
                       bool add) {
  if (add) {
    _tile_loadd(0, c0, ldc * 4);
    _tile_loadd(1, c1, ldc * 4);
    _tile_loadd(2, c2, ldc * 4);
    _tile_loadd(3, c3, ldc * 4);
  } else {
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
  }
}

inline void end_sums(float* c0, float* c1, float* c2, float* c3, long ldc) {
  _tile_stored(0, c0, ldc * 4);
  _tile_stored(1, c1, ldc * 4);
  _tile_stored(2, c2, ldc * 4);
  _tile_stored(3, c3, ldc * 4);
}

// Two blocks of rows by 32 columns: four products for four loads.
inline void tiles_two(const uint32_t* a, long lda, const uint32_t* b, long ldb, float* c, long ldc,
                      long k, bool add) {
  const uint32_t* below = a + TILE * lda;
  float* under = c + TILE * ldc;
  begin_sums(c, c + TILE, under, under + TILE, ldc, add);
  for (long i = 0; i < k; i += TILE) {
    _tile_loadd(4, a + i, lda * 4);
    _tile_loadd(6, b + i * ldb, ldb * 4);
    _tile_dpbf16ps(0, 4, 6);
    _tile_loadd(7, b + i * ldb + TILE, ldb * 4);
    _tile_dpbf16ps(1, 4, 7);
    _tile_loadd(5, below + i, lda * 4);
    _tile_dpbf16ps(2, 5, 6);
    _tile_dpbf16ps(3, 5, 7);
  }
  end_sums(c, c + TILE, under, under + TILE, ldc);
}

// Ask for a tile of the second operand that comes AHEAD steps later. A product of few rows only
// waits for memory, and tiles are read in an order that the processor does not foresee.
inline void ask_ahead(const uint32_t* b, long ldb) {
  constexpr long AHEAD = 2;
  for (long i = 0; i < TILE; ++i) __builtin_prefetch(b + (AHEAD * TILE + i) * ldb, 0, 2);
}

// One block of rows by 64 columns: what is read of the second operand lies side by side.
inline void tiles_one(const uint32_t* a, long lda, const uint32_t* b, long ldb, float* c, long ldc,
                      long k, bool add) {
  begin_sums(c, c + TILE, c + 2 * TILE, c + 3 * TILE, ldc, add);
  for (long i = 0; i < k; i += TILE) {
    const uint32_t* from = b + i * ldb;
    _tile_loadd(4, a + i, lda * 4);
    _tile_loadd(5, from, ldb * 4);
    ask_ahead(from, ldb);
    _tile_dpbf16ps(0, 4, 5);
    _tile_loadd(6, from + TILE, ldb * 4);
    ask_ahead(from + TILE, ldb);
    _tile_dpbf16ps(1, 4, 6);
    _tile_loadd(7, from + 2 * TILE, ldb * 4);
    ask_ahead(from + 2 * TILE, ldb);
    _tile_dpbf16ps(2, 4, 7);
    _tile_loadd(5, from + 3 * TILE, ldb * 4);
    ask_ahead(from + 3 * TILE, ldb);
    _tile_dpbf16ps(3, 4, 5);
  }
  end_sums(c, c + TILE, c + 2 * TILE, c + 3 * TILE, ldc);
}

// The columns that are left where fewer than 64 or 32 are: one block of rows by 16.
inline void tiles_narrow(const uint32_t* a, long lda, const uint32_t* b, long ldb, float* c,
                         long ldc, long k, bool add) {
  if (add) _tile_loadd(0, c, ldc * 4);
  else _tile_zero(0);
  for (long i = 0; i < k; i += TILE) {
    _tile_loadd(4, a + i, lda * 4);
    _tile_loadd(6, b + i * ldb, ldb * 4);
    _tile_dpbf16ps(0, 4, 6);
  }
  _tile_stored(0, c, ldc * 4);
}

// At most 32 rows.
inline void tiles_rows(Tiles& tiles, const uint32_t* a, long lda, const uint32_t* b, long ldb,
                       float* c, long ldc, long m, long n, long k, bool add) {
  tiles.shape(m);
  long column = 0;
  if (m > TILE)
    for (; column + 2 * TILE <= n; column += 2 * TILE)
      tiles_two(a, lda, b + column, ldb, c + column, ldc, k, add);
  else
    for (; column + 4 * TILE <= n; column += 4 * TILE)
      tiles_one(a, lda, b + column, ldb, c + column, ldc, k, add);
  if (column == n) return;
  for (long low = 0; low < m; low += TILE) {
    tiles.shape(std::min(m - low, TILE));
    for (long at = column; at < n; at += TILE)
      tiles_narrow(a + low * lda, lda, b + at, ldb, c + low * ldc + at, ldc, k, add);
  }
}

// c[m, n] (+)= a[m, k units] . b[k units, n]; n and k are multiples of 16.
inline void tiles_product(Tiles& tiles, const uint32_t* a, long lda, const uint32_t* b, long ldb,
                          float* c, long ldc, long m, long n, long k, bool add) {
  for (long low = 0; low < m; low += 2 * TILE)
    tiles_rows(tiles, a + low * lda, lda, b, ldb, c + low * ldc, ldc, std::min(m - low, 2 * TILE),
               n, k, add);
}

#else

class Tiles {};

inline bool tiles_allowed() { return false; }

#endif

}  // namespace agentrt
