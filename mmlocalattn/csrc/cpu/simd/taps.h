// The tile micro-kernel of windowed attention: products of a tile of queries with the taps of their
// windows, and weighted sums of those taps.
//
//   products: sum[t][j] = sum_d own[t, d] tap[j, d]
//   sums:     sum[t][i] = sum_j weight[t, j] tap[j, i]
//
// A tile is kRows rows of N queries, whose lanes are neighbors in a row. Keys and values lie in
// planes of one row and channel each. The windows of the lanes are one window shifted, so a tap of
// all of them is one load from a plane, or a load and a permutation, which the rows of the tile
// share. Accumulators of kRows x kTaps (or kChannels) vectors stay in registers.
#if defined(MMLOCALATTN_SIMD_TAPS_H) == defined(MMLOCALATTN_TOGGLE)
#ifdef MMLOCALATTN_SIMD_TAPS_H
#undef MMLOCALATTN_SIMD_TAPS_H
#else
#define MMLOCALATTN_SIMD_TAPS_H
#endif

#include "cpu/simd/pairs.h"

namespace mmlocalattn::cpu::MMLOCALATTN_ISA {
namespace {

// The shape of a tile, for the registers of each instruction set.
#if MMLOCALATTN_VECTOR_BYTES == 64  // 32 of them
constexpr int kRows = 4, kTaps = 6, kChannels = 4;
#elif MMLOCALATTN_VECTOR_BYTES == 32  // 16: 3 x 4 sums, one vector of each row, a tap
constexpr int kRows = 3, kTaps = 4, kChannels = 4;
#else
constexpr int kRows = 2, kTaps = 6, kChannels = 4;
#endif

// Rows of a tile with the rows of keys that they see.
struct Rows {
  int64_t y, count;
  int64_t begin[kRows], end[kRows];  // nondecreasing; nobody looks at rows past the count

  MMLOCALATTN_INLINE int64_t first() const { return begin[0]; }
  MMLOCALATTN_INLINE int64_t last() const { return end[count - 1]; }

  // The rows that see u are [visible_begin, visible_end).
  MMLOCALATTN_INLINE int visible_begin(int64_t u) const {
    int t = 0;
    while (end[t] <= u) ++t;
    return t;
  }
  MMLOCALATTN_INLINE int visible_end(int64_t u) const {
    int t = static_cast<int>(count);
    while (begin[t - 1] > u) --t;
    return t;
  }
};

// Calls body(first, num_rows, b, num_taps) for blocks of the taps of row u of the keys, of which
// there are `taps`: rows [first, first + num_rows) of a tile see num_taps taps from tap b on. Both
// numbers are constants.
template <typename Body>
MMLOCALATTN_INLINE void for_each_block(const Rows& rows, int64_t u, int64_t taps,
                                       const Body& body) {
  const int first = rows.visible_begin(u);
  with_constant<kRows>(rows.visible_end(u) - first, [&](auto num_rows) MMLOCALATTN_LAMBDA {
    int64_t blocks = (taps + kTaps - 1) / kTaps;
    for (int64_t b = 0; blocks > 0; --blocks) {
      const int64_t size = (taps - b + blocks - 1) / blocks;
      with_constant<kTaps>(
          size, [&](auto num_taps) MMLOCALATTN_LAMBDA { body(first, num_rows, b, num_taps); });
      b += size;
    }
  });
}

// Calls body(begin, end) with the first row of a tile that sees row u of the keys and the one after
// the last, as constants.
template <typename Body>
MMLOCALATTN_INLINE void with_visible(const Rows& rows, int64_t u, const Body& body) {
  const int first = rows.visible_begin(u), last = rows.visible_end(u);
  with_constant<kRows>(last, [&](auto end) MMLOCALATTN_LAMBDA {
    with_constant<end>(first + 1, [&](auto after) MMLOCALATTN_LAMBDA {
      body(std::integral_constant<int, after - 1>(), end);
    });
  });
}

// Planes of `channels` channels (pairs of them, if kPairs) that are `plane` values apart. Rows of a
// tile are `row` apart.
template <typename T>
struct TilePlanes {
  const T* data;
  int64_t row, plane, channels;
};

// Products of kNumRows rows of a tile with kNumTaps taps of one row of keys, whose planes are as
// many. start(sum) sets the sums and finish(sum) gets them: Vec<T, N> sum[kNumRows][kNumTaps]. With
// kPermute lane i of a tap is lane source[i] of what is loaded.
template <int kNumRows, int kNumTaps, bool kPermute, bool kPairs, int N, typename T, typename Start,
          typename Finish>
MMLOCALATTN_INLINE void multiply_taps(const TilePlanes<T>& own, const T* keys, int64_t plane,
                                      Index<T, N> source, const Start& start,
                                      const Finish& finish) {
  Vec<T, N> sum[kNumRows][kNumTaps];
  start(sum);
  const T* vectors = own.data;
  for (int64_t d = 0; d < own.channels; ++d, vectors += own.plane, keys += plane) {
    Vec<T, N> query[kNumRows];
    for (int t = 0; t < kNumRows; ++t) query[t] = load<N>(vectors + t * own.row);
    for (int j = 0; j < kNumTaps; ++j) {
      Vec<T, N> tap = load<N>(keys + j);
      if (kPermute) tap = permute<T, N>(tap, source);
      if (kNumRows > 1) pin(tap);
      for (int t = 0; t < kNumRows; ++t) {
        sum[t][j] = multiply_add<kPairs, N>(sum[t][j], query[t], tap);
      }
    }
  }
  finish(sum);
}

// Weights of the taps of one row of keys: those of the next tap are `step` values on, those of the
// next row of the tile `row`.
template <typename T>
struct TapWeights {
  const T* data;
  int64_t row, step;
};

// Adds kChannels planes from `row` on of the `taps` taps of one row of keys, weighted, to rows
// [kBegin, kEnd) of a tile. Pairs are those of two taps.
template <int kBegin, int kEnd, bool kPermute, bool kPairs, int N, typename T>
MMLOCALATTN_INLINE void add_taps(const T* row, int64_t plane, Index<T, N> source, int64_t taps,
                                 const TapWeights<T>& weights, Vec<T, N> (&sum)[kRows][kChannels]) {
  constexpr int kStep = kPairs ? 2 : 1;
  const T* weight = weights.data;
  for (int64_t b = 0; b < taps; b += kStep, row += kStep, weight += weights.step) {
    Vec<T, N> factor[kRows];
    for (int t = kBegin; t < kEnd; ++t) factor[t] = load<N>(weight + t * weights.row);
    for (int i = 0; i < kChannels; ++i) {
      Vec<T, N> tap = load<N>(row + i * plane);
      if (kPermute) tap = permute<T, N>(tap, source);
      if (kEnd - kBegin > 1) pin(tap);
      for (int t = kBegin; t < kEnd; ++t) {
        sum[t][i] = multiply_add<kPairs, N>(sum[t][i], factor[t], tap);
      }
    }
  }
}

}  // namespace
}  // namespace mmlocalattn::cpu::MMLOCALATTN_ISA

#endif
