// The values of a piece and what forward makes of them: weighted sums, and the output. There are
// two ways to lay them out with the same interface.
#if defined(MMLOCALATTN_NEIGHBORHOOD_VALUES_H) == defined(MMLOCALATTN_TOGGLE)
#ifdef MMLOCALATTN_NEIGHBORHOOD_VALUES_H
#undef MMLOCALATTN_NEIGHBORHOOD_VALUES_H
#else
#define MMLOCALATTN_NEIGHBORHOOD_VALUES_H
#endif

#include "cpu/neighborhood/tile.h"

namespace mmlocalattn::cpu::MMLOCALATTN_ISA {
namespace {

// In planes, as the keys: the lanes of a sum are queries.
template <typename In, typename T = Compute<In>>
struct PlanarValues {
  Planes<T> planes;

  PlanarValues(const Piece<In>& piece, Arena<T>& arena) : planes(make_planes(piece, arena)) {}

  // Sums of one query.
  static int64_t step(int64_t dim) { return num_planes(dim); }

  void pack_piece(const Piece<In>& piece) const {
    fill_planes(piece, piece.value, planes);
    if constexpr (has_pairs<In>) {
      for (int64_t u = 0; u < piece.key_rows(); ++u) {
        pair_columns<kLanes<T>>(planes.data + u * planes.row, num_planes(piece.dim), planes.plane,
                                piece.key_cols());
      }
    }
  }

  template <int N, bool kPairs>
  void accumulate(const Tile<T, N, kPairs>& tile, Chunk chunk, const Logits<T, N>& weights,
                  const Vec<T, N> (&factor)[kRows], T* sums) const {
    tile.accumulate(planes, chunk, weights, factor, sums);
  }

  // Row t of a tile, times `factor`, to the output.
  template <int N, bool kPairs>
  static void write_row(const Piece<In>& piece, const Tile<T, N, kPairs>& tile, int t,
                        const T (&factor)[N], const T* sums) {
    const Columns<T, N>& columns = tile.columns;
    unpack<N>(piece.output, tile.rows.y + t, columns.x, columns.x + columns.count - 1, tile.dim,
              num_planes(tile.dim), sums + t * step(tile.dim) * N, N, factor);
  }
};

// As in the map, vector by vector: the lanes of a sum are channels. Nothing is transposed, no load
// crosses a cache line, and at borders no tap is permuted. But each weight is a load of its own.
template <typename In, typename T = Compute<In>>
struct VectorValues {
  static constexpr int M = kLanes<T>;
  T* data;
  int64_t vector, row;  // values from one column, and row, to the next

  VectorValues(const Piece<In>& piece, Arena<T>& arena)
      : vector(step(piece.dim)), row(piece.key_cols() * vector) {
    data = arena.take(piece.key_rows() * row);
  }

  static int64_t step(int64_t dim) { return round_up(dim, M); }

  void pack_piece(const Piece<In>& piece) const {
    const int64_t first = piece.first_col(), cols = piece.key_cols(), rows = piece.key_rows();
    for (int64_t u = 0; u < rows; ++u) {
      const int64_t y = piece.first_row() + u;
      if (u + 1 < rows) prefetch(piece.value, y + 1, first, cols, piece.dim);
      copy_vectors(piece.value, y, first, cols, piece.dim, vector, data + u * row);
    }
  }

  // sums[t, i] = factor[t, i] * sums[t, i] + the taps of a chunk, weighted; sums is (kRows, N,
  // step). The first chunk finds no sums yet.
  template <int N>
  void accumulate(const Tile<T, N>& tile, Chunk chunk, const Logits<T, N>& weights,
                  const Vec<T, N> (&factor)[kRows], T* sums) const {
    for (int64_t d = 0; d < vector; d += kChannels * M) {
      with_constant<kChannels>((vector - d) / M, [&](auto vectors) MMLOCALATTN_LAMBDA {
        for (int64_t i = 0; i < tile.columns.count; ++i) {
          accumulate_lane<vectors>(tile, chunk, weights, factor, i, d, sums + i * vector + d);
        }
      });
    }
  }

  // For the queries of lane i, kVectors SIMD vectors of channels from d on.
  template <int kVectors, int N>
  MMLOCALATTN_INLINE void accumulate_lane(const Tile<T, N>& tile, Chunk chunk,
                                          const Logits<T, N>& weights,
                                          const Vec<T, N> (&factor)[kRows], int64_t i, int64_t d,
                                          T* sums) const {
    const Rows& rows = tile.rows;
    const int64_t x = tile.columns.base + tile.columns.source[i];
    Vec<T, M> sum[kRows][kVectors];
    for (int t = 0; t < kRows; ++t) {
      for (int c = 0; c < kVectors; ++c) {
        sum[t][c] = Vec<T, M>{};
        if (chunk.begin > rows.first())
          sum[t][c] = load<M>(sums + t * N * vector + c * M) * factor[t][i];
      }
    }
    for (int64_t u = chunk.begin; u < chunk.end; ++u) {
      with_visible(rows, u, [&](auto begin, auto end) MMLOCALATTN_LAMBDA {
        const T *weight = weights.at(0, chunk, u) + i, *value = data + u * row + x * vector + d;
        for (int64_t b = 0; b < tile.columns.taps; ++b, weight += N, value += vector) {
          Vec<T, M> weight_of[kRows];
          for (int t = begin; t < end; ++t) weight_of[t] = fill<M>(weight[t * weights.tile_row]);
          for (int c = 0; c < kVectors; ++c) {
            Vec<T, M> tap = load<M>(value + c * M);
            if (end - begin > 1) pin(tap);
            for (int t = begin; t < end; ++t) sum[t][c] += weight_of[t] * tap;
          }
        }
      });
    }
    for (int t = 0; t < kRows; ++t) {
      for (int c = 0; c < kVectors; ++c) store(sums + t * N * vector + c * M, sum[t][c]);
    }
  }

  template <int N>
  static void write_row(const Piece<In>& piece, const Tile<T, N>& tile, int t, const T (&factor)[N],
                        const T* sums) {
    for (int64_t i = 0; i < tile.columns.count; ++i) {
      const T* from = sums + (t * N + i) * step(tile.dim);
      for (int64_t d = 0; d < tile.dim; d += M) {
        write<M>(piece.output, tile.rows.y + t, tile.columns.x + i, d, tile.dim,
                 load<M>(from + d) * factor[i]);
      }
    }
  }
};

// Vectors are faster with AVX2 and have not been tried with other vectors; pairs need planes.
template <typename In>
using Values =
    std::conditional_t<MMLOCALATTN_VECTOR_BYTES == 32, VectorValues<In>, PlanarValues<In>>;

}  // namespace
}  // namespace mmlocalattn::cpu::MMLOCALATTN_ISA

#endif
