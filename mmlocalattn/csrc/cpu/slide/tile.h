// What the kernels of slide attention share: keys and values in planes, and the products of copies
// with their weights. The formulas are in forward.h.
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

// Sums that stay in registers, of products with scalars and of products of vectors.
constexpr int kMostSums = MMLOCALATTN_VECTOR_BYTES == 64 ? 26 : 13;
constexpr int kMostProducts = MMLOCALATTN_VECTOR_BYTES == 64 ? 28 : 12;

// Calls body(begin, size) with constants, for blocks of about equal size that cover kCount.
template <int kCount, int kBegin = 0, typename Body>
MMLOCALATTN_INLINE void for_each_block(const Body& body) {
  constexpr int kRest = kCount - kBegin, kBlocks = (kRest + kMostSums - 1) / kMostSums;
  constexpr int kSize = (kRest + kBlocks - 1) / kBlocks;
  body(std::integral_constant<int, kBegin>(), std::integral_constant<int, kSize>());
  if constexpr (kBlocks > 1) for_each_block<kCount, kBegin + kSize>(body);
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

// Fills a rectangle whose corner is (y, x) with positions of a map, 0 outside the map.
template <typename In, typename T = Compute<In>>
void fill_rectangle(const Map<const In>& map, const Piece<In>& piece, int64_t y, int64_t x,
                    int64_t cols, const Rectangle<T>& out) {
  constexpr int N = kLanes<T>;
  const int64_t begin = larger(x, 0), end = smaller(x + cols, piece.width);
  for (int64_t row = 0; row < out.rows; ++row) {
    const bool inside = y + row >= 0 && y + row < piece.height;
    const int64_t first = inside ? begin - x : cols, last = inside ? end - x : cols;
    for (int64_t d = 0; d < piece.dim; ++d) {  // whole vectors: positions overwrite what is theirs
      T* line = out.at(row, 0) + d * out.plane;
      for (int64_t i = 0; i < first; i += N) store(line + i, Vec<T, N>{});
    }
    for (int64_t i = begin; inside && i < end; i += N) {
      if (y + row + 1 < piece.height) prefetch(map, y + row + 1, i, smaller(N, end - i), piece.dim);
      pack<N>(map, y + row, i, end - 1, piece.dim, piece.dim, out.at(row, i - x), out.plane);
    }
    for (int64_t d = 0; d < piece.dim; ++d) {
      T* line = out.at(row, 0) + d * out.plane;
      store(line + last, Vec<T, N>{});
      for (int64_t i = round_up(last, N); i < out.line; i += N) store(line + i, Vec<T, N>{});
    }
  }
}

// out[i] = sum_cj q_c keys_c(j) w_cij + sum_c q_c b_ci of N positions of row y of the map; `keys`
// is their first tap.
template <int kKernel, typename In, typename T = Compute<In>>
void multiply_copies(const Piece<In>& piece, int64_t y, const T* query, int64_t query_plane,
                     const T* keys, const Rectangle<T>& shape, T* out) {
  constexpr int N = kLanes<T>, kTaps = kKernel * kKernel, kRadius = kKernel / 2;
  const int first = larger(kRadius - y, 0),  // rows of taps on the map
      last = smaller(piece.height + kRadius - y, kKernel);
  for_each_block<kTaps>([&](auto begin, auto size) MMLOCALATTN_LAMBDA {
    constexpr int kSize = size;
    Vec<T, N> sum[kSize];
    for (int i = 0; i < kSize; ++i) sum[i] = Vec<T, N>{};
    const T *q = query, *k = keys, *weights = piece.weight + begin * kTaps,
            *biases = piece.bias + begin;
    for (int64_t d = 0; d < piece.dim; ++d, q += query_plane, k += shape.plane) {
      const Vec<T, N> own = load<N>(q);
      for (int a = first; a < last; ++a) {
        for (int b = 0; b < kKernel; ++b) {
          const Vec<T, N> product = own * load<N>(k + a * shape.line + b);
          const T* weight = weights + a * kKernel + b;
#pragma GCC unroll 32
          for (int i = 0; i < kSize; ++i) sum[i] += product * weight[i * kTaps];
        }
      }
#pragma GCC unroll 32
      for (int i = 0; i < kSize; ++i) sum[i] += own * biases[i];
      weights += kTaps * kTaps, biases += kTaps;
    }
    for (int i = 0; i < kSize; ++i) store(out + (begin + i) * N, sum[i]);
  });
}

// Calls use(j, sum_i weights_i w_cij) for all taps j of N positions, and the bias as tap k * k.
template <int kKernel, bool kBias, typename In, typename T = Compute<In>, typename Use>
MMLOCALATTN_INLINE void mix_copies(const Piece<In>& piece, int64_t channel, const T* weights,
                                   const Use& use) {
  constexpr int N = kLanes<T>, kTaps = kKernel * kKernel;
  const T *table = piece.weight + channel * kTaps * kTaps, *bias = piece.bias + channel * kTaps;
  for_each_block<kTaps + kBias>([&](auto begin, auto size) MMLOCALATTN_LAMBDA {
    constexpr int kSize = size;
    Vec<T, N> sum[kSize];
    for (int j = 0; j < kSize; ++j) sum[j] = Vec<T, N>{};
#pragma GCC unroll 1
    for (int i = 0; i < kTaps; ++i) {
      Vec<T, N> weight = load<N>(weights + i * N);
      pin(weight);
#pragma GCC unroll 32
      for (int j = 0; j < kSize; ++j) {
        sum[j] += weight * (begin + j < kTaps ? table[i * kTaps + begin + j] : bias[i]);
      }
    }
#pragma GCC unroll 32
    for (int j = 0; j < kSize; ++j) use(begin + j, sum[j]);
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

  void fill_keys_values() const {
    const int64_t cols = vectors * N + 2 * kRadius;
    fill_rectangle(piece.key, piece, y - kRadius, x - kRadius, cols, keys);
    fill_rectangle(piece.value, piece, y - kRadius, x - kRadius, cols, values);
  }
};

}  // namespace
}  // namespace mmlocalattn::cpu::MMLOCALATTN_ISA

#endif
