// What the kernels of slide attention share: keys and values in planes, copies of them, and
// mixtures of the weights that make copies. The formulas are in forward.h.
#if defined(MMLOCALATTN_SLIDE_TILE_H) == defined(MMLOCALATTN_TOGGLE)
#ifdef MMLOCALATTN_SLIDE_TILE_H
#undef MMLOCALATTN_SLIDE_TILE_H
#else
#define MMLOCALATTN_SLIDE_TILE_H
#endif

#include "cpu/simd/layout.h"
#include "cpu/slide/piece.h"

namespace mmlocalattn::cpu::MMLOCALATTN_ISA {
namespace {

using slide::Piece;
using slide::Reach;

// Vectors that share the weights that they load. AVX-512 multiplies by a number in memory.
constexpr int kVectorsAtOnce = MMLOCALATTN_VECTOR_BYTES == 64 ? 1 : 2;
// Sums that stay in registers beside their taps and a weight, and of products of vectors.
constexpr int kMostSums = MMLOCALATTN_VECTOR_BYTES == 64 ? 26 : 12;
constexpr int kMostProducts = MMLOCALATTN_VECTOR_BYTES == 64 ? 28 : 12;

// Calls body(begin, size) with constants, for blocks of about equal size, at most kMost, that cover
// kCount.
template <int kCount, int kMost, int kBegin = 0, typename Body>
MMLOCALATTN_INLINE void for_each_block(const Body& body) {
  constexpr int kRest = kCount - kBegin, kBlocks = (kRest + kMost - 1) / kMost;
  constexpr int kSize = (kRest + kBlocks - 1) / kBlocks;
  body(std::integral_constant<int, kBegin>(), std::integral_constant<int, kSize>());
  if constexpr (kBlocks > 1) for_each_block<kCount, kMost, kBegin + kSize>(body);
}

// Calls body(vector, count) for all vectors of a row, as many at once as share weights. The count
// is a constant.
template <typename Body>
MMLOCALATTN_INLINE void for_each_vectors(int64_t vectors, const Body& body) {
  constexpr int kCount = kVectorsAtOnce;
  int64_t i = 0;
  for (; i + kCount <= vectors; i += kCount) body(i, std::integral_constant<int, kCount>());
  if (kCount > 1 && i < vectors) body(i, std::integral_constant<int, 1>());
}

// Calls run(kernel) with the kernel of a piece as a constant.
template <typename In, typename Run>
MMLOCALATTN_INLINE int64_t with_kernel(const Piece<In>& piece, const Run& run) {
  if (piece.kernel == 3) return run(std::integral_constant<int, 3>());
  if (piece.kernel == 5) return run(std::integral_constant<int, 5>());
  return run(std::integral_constant<int, 7>());
}

// Channels of a rectangle of positions: channel d of (row, x), counted from its corner, is
// data[d * plane + row * line + x].
template <typename T>
struct Rectangle {
  T* data;
  int64_t rows, line, plane;

  // Whole vectors may begin at any of `cols` columns. Planes are an odd number of cache lines, so
  // that those of a position spread over the sets of a cache.
  Rectangle(int64_t dim, int64_t rows, int64_t cols, Arena<T>& arena) : rows(rows) {
    constexpr int64_t kLine = kVectorBytes / static_cast<int64_t>(sizeof(T));
    line = round_up(cols, kLine) + kLine;
    plane = (rows * line / kLine | 1) * kLine;
    data = arena.take(dim * plane);
  }
  MMLOCALATTN_INLINE T* at(int64_t row, int64_t x) const { return data + row * line + x; }
};

// Fills row `row` of a rectangle whose corner is (y, x) with positions of a map, 0 outside the map.
template <typename In, typename T = Compute<In>>
void fill_row(const Map<const In>& map, const Piece<In>& piece, int64_t row, int64_t y, int64_t x,
              int64_t cols, const Rectangle<T>& out) {
  constexpr int N = kLanes<T>;
  const bool inside = y + row >= 0 && y + row < piece.height;
  const int64_t begin = larger(x, 0), end = smaller(x + cols, piece.width);
  const int64_t first = inside ? begin - x : cols, last = inside ? end - x : cols;
  for (int64_t d = 0; d < piece.dim; ++d) {  // whole vectors: positions overwrite what is theirs
    T* line = out.at(row, 0) + d * out.plane;
    for (int64_t i = 0; i < first; i += N) store(line + i, Vec<T, N>{});
  }
  for (int64_t i = begin; inside && i < end; i += N) {
    pack<N>(map, y + row, i, end - 1, piece.dim, piece.dim, out.at(row, i - x), out.plane);
  }
  for (int64_t d = 0; d < piece.dim; ++d) {
    T* line = out.at(row, 0) + d * out.plane;
    store(line + last, Vec<T, N>{});
    for (int64_t i = round_up(last, N); i < out.line; i += N) store(line + i, Vec<T, N>{});
  }
}

// Calls use(i, v, b_ci + sum_j w_cij map_c(x + j)) for the copies i of a channel at kVectors
// vectors v of positions of row y. `map` is their first tap.
template <int kKernel, int kVectors, typename In, typename T = Compute<In>, typename Use>
MMLOCALATTN_INLINE void form_copies(const Piece<In>& piece, int64_t y, int64_t channel,
                                    const T* map, int64_t line, const Use& use) {
  constexpr int N = kLanes<T>, kTaps = kKernel * kKernel, kRadius = kKernel / 2;
  const int first = larger(kRadius - y, 0),  // rows of taps on the map
      last = smaller(piece.height + kRadius - y, kKernel);
  const T *table = piece.weight + channel * kTaps * kTaps, *bias = piece.bias + channel * kTaps;
  for_each_block<kTaps, kMostSums / kVectors>([&](auto begin, auto size) MMLOCALATTN_LAMBDA {
    constexpr int kSize = size;
    Vec<T, N> sum[kSize][kVectors];
#pragma GCC unroll 32
    for (int i = 0; i < kSize; ++i) {
      for (int v = 0; v < kVectors; ++v) sum[i][v] = fill<N>(bias[begin + i]);
    }
    for (int a = first; a < last; ++a) {
      const T *taps = map + a * line, *weights = table + begin * kTaps + a * kKernel;
#pragma GCC unroll 1  // or the compiler loads so many weights ahead that sums leave the registers
      for (int b = 0; b < kKernel; ++b) {
        Vec<T, N> tap[kVectors];
        for (int v = 0; v < kVectors; ++v) tap[v] = load<N>(taps + v * N + b);
        for (int v = 0; v < kVectors; ++v) pin(tap[v]);
#pragma GCC unroll 32
        for (int i = 0; i < kSize; ++i) {
          for (int v = 0; v < kVectors; ++v) sum[i][v] += tap[v] * weights[i * kTaps + b];
        }
      }
    }
#pragma GCC unroll 32
    for (int i = 0; i < kSize; ++i) {
      for (int v = 0; v < kVectors; ++v) use(begin + i, v, sum[i][v]);
    }
  });
}

// out[v, i] = sum_c q_c (b_ci + sum_j w_cij k_c(x + j)) of kVectors vectors of positions of row y;
// `keys` is their first tap.
template <int kKernel, int kVectors, typename In, typename T = Compute<In>>
void multiply_copies(const Piece<In>& piece, int64_t y, const T* query, int64_t query_plane,
                     const T* keys, const Rectangle<T>& shape, T* out) {
  constexpr int N = kLanes<T>, kTaps = kKernel * kKernel;
  for (int i = 0; i < kVectors * kTaps; ++i) store(out + i * N, Vec<T, N>{});
  for (int64_t d = 0; d < piece.dim; ++d, query += query_plane, keys += shape.plane) {
    Vec<T, N> own[kVectors];
    for (int v = 0; v < kVectors; ++v) own[v] = load<N>(query + v * N);
    form_copies<kKernel, kVectors>(piece, y, d, keys, shape.line,
                                   [&](int i, int v, Vec<T, N> copy) MMLOCALATTN_LAMBDA {
                                     T* sum = out + (v * kTaps + i) * N;
                                     store(sum, load<N>(sum) + own[v] * copy);
                                   });
  }
}

// Calls use(j, v, sum_i weights[v, i] w_cij) for all taps j, and the bias as tap k * k.
template <int kKernel, int kVectors, bool kBias, typename In, typename T = Compute<In>,
          typename Use>
MMLOCALATTN_INLINE void mix_copies(const Piece<In>& piece, int64_t channel, const T* weights,
                                   const Use& use) {
  constexpr int N = kLanes<T>, kTaps = kKernel * kKernel;
  const T *table = piece.weight + channel * kTaps * kTaps, *bias = piece.bias + channel * kTaps;
  for_each_block<kTaps + kBias, kMostSums / kVectors>(
      [&](auto begin, auto size) MMLOCALATTN_LAMBDA {
        constexpr int kSize = size;
        Vec<T, N> sum[kSize][kVectors];
        for (int j = 0; j < kSize; ++j) {
          for (int v = 0; v < kVectors; ++v) sum[j][v] = Vec<T, N>{};
        }
#pragma GCC unroll 1
        for (int i = 0; i < kTaps; ++i) {
          Vec<T, N> weight[kVectors];
          for (int v = 0; v < kVectors; ++v) weight[v] = load<N>(weights + (v * kTaps + i) * N);
          for (int v = 0; v < kVectors; ++v) pin(weight[v]);
#pragma GCC unroll 32
          for (int j = 0; j < kSize; ++j) {
            const T factor = begin + j < kTaps ? table[i * kTaps + begin + j] : bias[i];
            for (int v = 0; v < kVectors; ++v) sum[j][v] += weight[v] * factor;
          }
        }
#pragma GCC unroll 32
        for (int j = 0; j < kSize; ++j) {
          for (int v = 0; v < kVectors; ++v) use(begin + j, v, sum[j][v]);
        }
      });
}

// What forward and backward share: keys and values of the positions from (y, x) on, for whole
// vectors of queries.
template <int kKernel, typename In, typename T = Compute<In>>
struct Windows {
  static constexpr int N = kLanes<T>, kTaps = kKernel * kKernel, kRadius = kKernel / 2;

  const Piece<In>& piece;
  int64_t y, x, rows, vectors;
  Rectangle<T> keys, values;

  Windows(const Piece<In>& piece, int64_t y_begin, int64_t y_end, int64_t x_begin, int64_t x_end,
          Arena<T>& arena)
      : piece(piece),
        y(y_begin),
        x(x_begin),
        rows(y_end - y_begin),
        vectors((x_end - x_begin + N - 1) / N),
        keys(piece.dim, rows + 2 * kRadius, vectors * N + 2 * kRadius, arena),
        values(piece.dim, rows + 2 * kRadius, vectors * N + 2 * kRadius, arena) {}

  // Fills a row of keys and values, counted from the first tap of the first row.
  void fill(int64_t row) const {
    const int64_t cols = vectors * N + 2 * kRadius;
    fill_row(piece.key, piece, row, y - kRadius, x - kRadius, cols, keys);
    fill_row(piece.value, piece, row, y - kRadius, x - kRadius, cols, values);
  }

  // Prefetches of some columns what the row after `row` needs and that one has not. Inline: GCC
  // takes a call that only prefetches for one that does nothing.
  MMLOCALATTN_INLINE void prefetch_next(int64_t row, int64_t i, int64_t count) const {
    if (row + 1 >= rows) return;
    const int64_t next = y + row + 1, below = next + kRadius;
    count = smaller(count, piece.width - x - i);
    prefetch(piece.query, next, x + i, count, piece.dim);
    if (below >= piece.height) return;
    prefetch(piece.key, below, x + i, count, piece.dim);
    prefetch(piece.value, below, x + i, count, piece.dim);
  }
};

}  // namespace
}  // namespace mmlocalattn::cpu::MMLOCALATTN_ISA

#endif
