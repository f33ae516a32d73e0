// Neighborhood attention, backward. The formulas are in forward.h.
#if defined(MMLOCALATTN_NEIGHBORHOOD_BACKWARD_H) == defined(MMLOCALATTN_TOGGLE)
#ifdef MMLOCALATTN_NEIGHBORHOOD_BACKWARD_H
#undef MMLOCALATTN_NEIGHBORHOOD_BACKWARD_H
#else
#define MMLOCALATTN_NEIGHBORHOOD_BACKWARD_H
#endif

#include "cpu/neighborhood/tile.h"

namespace mmlocalattn::cpu::MMLOCALATTN_ISA {
namespace {

// Scratch of the backward kernel for vectors of N queries: planar tiles, channels-last tiles, and
// the gradients of the biases of N columns, (2 * rows.kernel - 1, cols.kernel, N).
template <typename In, int N, typename T = Compute<In>>
struct BackwardScratch {
  T *query, *grad_output, *sums;
  T *query_vectors, *grad_output_vectors;
  Logits<T, N> weights, grads;
  T* grad_bias;

  BackwardScratch(const Piece<In>& piece, Arena<T>& arena)
      : query(arena.take(kRows * num_planes(piece.dim) * N)),
        grad_output(arena.take(kRows * num_planes(piece.dim) * N)),
        sums(arena.take(kRows * num_planes(piece.dim) * N)),
        query_vectors(arena.take(kRows * N * padded_dim<In>(piece.dim))),
        grad_output_vectors(arena.take(kRows * N * padded_dim<In>(piece.dim))),
        weights(piece.cols.kernel, arena),
        grads(piece.cols.kernel, arena),
        grad_bias(piece.grad_bias ? arena.take(grad_bias_size(piece)) : nullptr) {}

  static int64_t grad_bias_size(const Piece<In>& piece) {
    return (2 * piece.rows.kernel - 1) * piece.cols.kernel * N;
  }
};

// Adds what the queries of a tile give to the gradients of two neighboring keys in row u: kVectors
// SIMD vectors of channels from d on. `tap` is the place of the first key among the taps of each
// lane.
template <int kVectors, int N, typename In, typename T = Compute<In>>
MMLOCALATTN_INLINE void add_to_keys(const BackwardScratch<In, N>& scratch, const Tile<T, N>& tile,
                                    int64_t vector_step, Chunk chunk, int64_t u, const int64_t* tap,
                                    int64_t begin, int64_t end, int64_t d, T* grad) {
  constexpr int M = kLanes<T>;
  Vec<T, M> key[2][kVectors], value[2][kVectors];
  for (int j = 0; j < 2; ++j) {
    for (int c = 0; c < kVectors; ++c) {
      key[j][c] = load<M>(grad + 2 * j * vector_step + c * M);
      value[j][c] = load<M>(grad + (2 * j + 1) * vector_step + c * M);
    }
  }
  for (int t = tile.rows.visible_begin(u), last = tile.rows.visible_end(u); t < last; ++t) {
    const T *weights = scratch.weights.at(t, chunk, u), *grads = scratch.grads.at(t, chunk, u);
    for (int64_t i = begin; i < end; ++i) {
      const int64_t vector = (t * N + i) * vector_step + d;
      const T *weight = weights + tap[i], *grad_logit = grads + tap[i];
      for (int c = 0; c < kVectors; ++c) {
        Vec<T, M> query = load<M>(scratch.query_vectors + vector + c * M),
                  grad_output = load<M>(scratch.grad_output_vectors + vector + c * M);
        pin(query), pin(grad_output);
        for (int j = 0; j < 2; ++j) {
          key[j][c] += grad_logit[j * N] * query;
          value[j][c] += weight[j * N] * grad_output;
        }
      }
    }
  }
  for (int j = 0; j < 2; ++j) {
    for (int c = 0; c < kVectors; ++c) {
      store(grad + 2 * j * vector_step + c * M, key[j][c]);
      store(grad + (2 * j + 1) * vector_step + c * M, value[j][c]);
    }
  }
}

// Gradients of the keys and values of a chunk.
template <int N, typename In, typename T = Compute<In>>
void add_key_value(const Piece<In>& piece, const BackwardScratch<In, N>& scratch,
                   const Tile<T, N>& tile, Chunk chunk) {
  constexpr int M = kLanes<T>;
  const Columns<T, N>& columns = tile.columns;
  const int64_t vector_step = padded_dim<In>(piece.dim), row = piece.grad_cols() * 2 * vector_step;
  int64_t begin = 0, end = 0, tap[N];
  for (int64_t key = 0; key < columns.keys; key += 2) {
    // Lanes that see one of the keys `key` and `key` + 1.
    while (begin < columns.count && columns.source[begin] + columns.taps <= key) ++begin;
    while (end < columns.count && columns.source[end] <= key + 1) ++end;
    for (int64_t i = begin; i < end; ++i) tap[i] = (key - columns.source[i]) * N + i;
    for (int64_t u = chunk.begin; u < chunk.end; ++u) {
      T* grad = piece.grad_key_value + u * row + (columns.base + key) * 2 * vector_step;
      int64_t d = 0;
      for (; d + 2 * M <= vector_step; d += 2 * M) {
        add_to_keys<2, N, In>(scratch, tile, vector_step, chunk, u, tap, begin, end, d, grad + d);
      }
      for (; d < vector_step; d += M) {
        add_to_keys<1, N, In>(scratch, tile, vector_step, chunk, u, tap, begin, end, d, grad + d);
      }
    }
  }
}

template <int N, typename In>
MMLOCALATTN_NOINLINE int64_t backward_columns(const Piece<In>& piece, int64_t x,
                                              const Planes<Compute<In>>& keys,
                                              const Planes<Compute<In>>& values,
                                              const BackwardScratch<In, N>& scratch) {
  using T = Compute<In>;
  const Columns<T, N> columns(piece, x);
  const int64_t planes = num_planes(piece.dim), step = planes * N;
  const int64_t vector_step = padded_dim<In>(piece.dim);
  scratch.weights.clear(), scratch.grads.clear();
  if (piece.grad_bias) {
    for (int64_t i = 0; i < scratch.grad_bias_size(piece); ++i) scratch.grad_bias[i] = 0;
  }
  for (int64_t y = piece.y_begin; y < piece.y_end; y += kRows) {
    const Rows rows = make_rows(piece, y);
    const Tile<T, N> tile{columns, rows, piece.dim};
    Vec<T, N> most[kRows], rest[kRows], delta[kRows], one[kRows];
    for (int t = 0; t < kRows; ++t) one[t] = fill<N>(T(1));
    for (int t = 0; t < rows.count; ++t) {
      pack<N>(piece.query, y + t, x, x + columns.count - 1, piece.dim, planes,
              scratch.query + t * step, N);
      pack<N>(piece.grad_output, y + t, x, x + columns.count - 1, piece.dim, planes,
              scratch.grad_output + t * step, N);
      pack<N>(as_input(piece.output), y + t, x, x + columns.count - 1, piece.dim, planes,
              scratch.sums + t * step, N);
      copy_vectors(piece.query, y + t, x, columns.count, piece.dim, vector_step,
                   scratch.query_vectors + t * N * vector_step);
      copy_vectors(piece.grad_output, y + t, x, columns.count, piece.dim, vector_step,
                   scratch.grad_output_vectors + t * N * vector_step);
      delta[t] = most[t] = rest[t] = Vec<T, N>{};
      for (int64_t i = t * step; i < (t + 1) * step; i += N) {
        delta[t] += load<N>(scratch.grad_output + i) * load<N>(scratch.sums + i);
      }
      for (int64_t i = 0; i < columns.count; ++i) {
        const T* logsumexp = piece.logsumexp.at(y + t, x + i);
        most[t][i] = logsumexp[0], rest[t][i] = logsumexp[1];
      }
    }
    if (piece.rounded_grad_query.grid.data) {
      prefetch_tile<true>(piece, piece.rounded_grad_query, y, x);
    } else {
      prefetch_tile<true>(piece, piece.grad_query, y, x);
    }
    prefetch_tile(piece, piece.query, y + kRows, x);
    prefetch_tile(piece, piece.grad_output, y + kRows, x);
    prefetch_tile(piece, piece.output, y + kRows, x);
    for_each_chunk(rows, columns.taps, [&](Chunk chunk) MMLOCALATTN_LAMBDA {
      tile.products(scratch.query, keys, chunk, scratch.weights, T(1),
                    piece.bias ? &piece : nullptr);
      tile.template products<In>(scratch.grad_output, values, chunk, scratch.grads);
      for (int t = 0; t < rows.count; ++t) {
        const Chunk seen = tile.visible(t, chunk);
        for (int64_t u = seen.begin; u < seen.end; ++u) {
          T *weight = scratch.weights.at(t, chunk, u), *grad = scratch.grads.at(t, chunk, u);
          T* grad_bias = piece.grad_bias
                             ? scratch.grad_bias + tile.table_row(piece, t, u) * columns.taps * N
                             : nullptr;
          for (int64_t b = 0; b < columns.taps * N; b += N) {
            // A logit can exceed the log-sum-exp by its rounding error only.
            const Vec<T, N> p = exp<N>(load<N>(weight + b) - most[t] - rest[t]);
            const Vec<T, N> ds = p * (load<N>(grad + b) - delta[t]);
            store(weight + b, p);
            store(grad + b, ds);
            if (grad_bias) store(grad_bias + b, load<N>(grad_bias + b) + ds);
          }
        }
      }
      tile.accumulate(keys, chunk, scratch.grads, one, scratch.sums);
      add_key_value<N>(piece, scratch, tile, chunk);
    });
    for (int t = 0; t < rows.count; ++t) {
      T factor[N];
      store(factor, one[t]);
      const T* sums = scratch.sums + t * step;
      const int64_t last = x + columns.count - 1;
      if (piece.rounded_grad_query.grid.data) {
        unpack<N>(piece.rounded_grad_query, y + t, x, last, piece.dim, planes, sums, N, factor);
      } else {
        unpack<N>(piece.grad_query, y + t, x, last, piece.dim, planes, sums, N, factor);
      }
    }
  }
  if (!piece.grad_bias) return columns.count;
  for (int64_t a = 0; a < 2 * piece.rows.kernel - 1; ++a) {
    T* table = piece.grad_bias + a * (2 * columns.taps - 1);
    for (int64_t b = 0; b < columns.taps; ++b) {
      const T* grad = scratch.grad_bias + (a * columns.taps + b) * N;
      for (int64_t i = 0; i < columns.count; ++i) {
        table[piece.cols.table_column[x + i] + b] += grad[i];
      }
    }
  }
  return columns.count;
}

template <typename In>
int64_t backward(const Piece<In>& piece, Compute<In>* memory) {
  Arena<Compute<In>> arena{memory};
  const auto keys = make_planes(piece, arena), values = make_planes(piece, arena);
  if (!memory) {
    BackwardScratch<In, kLanes<Compute<In>>>(piece, arena);
    return arena.used;
  }
  fill_planes(piece, piece.key, keys);
  fill_planes(piece, piece.value, values);
  for (int64_t i = 0; i < piece.grad_size(); ++i) piece.grad_key_value[i] = 0;
  for_each_columns(piece, [&](int64_t x, auto lanes) MMLOCALATTN_LAMBDA {
    auto rest = arena;
    return backward_columns<lanes>(piece, x, keys, values, BackwardScratch<In, lanes>(piece, rest));
  });
  return arena.used;
}

template <typename Out>
void write_vectors(const Map<Out>& map, int64_t y, int64_t num, int64_t dim,
                   const Compute<Out>* vectors, int64_t step) {
  constexpr int N = kLanes<Compute<Out>>;
  for (int64_t x = 0; x < num; ++x, vectors += step) {
    for (int64_t d = 0; d < dim; d += N) write<N>(map, y, x, d, dim, load<N>(vectors + d));
  }
}

}  // namespace
}  // namespace mmlocalattn::cpu::MMLOCALATTN_ISA

#endif
