// Stand-alone self-attention, backward. The formulas are in forward.h.
#if defined(MMLOCALATTN_STAND_ALONE_BACKWARD_H) == defined(MMLOCALATTN_TOGGLE)
#ifdef MMLOCALATTN_STAND_ALONE_BACKWARD_H
#undef MMLOCALATTN_STAND_ALONE_BACKWARD_H
#else
#define MMLOCALATTN_STAND_ALONE_BACKWARD_H
#endif

#include "cpu/stand_alone/tile.h"

namespace mmlocalattn::cpu::MMLOCALATTN_ISA {
namespace {

// Scratch of the backward kernel.
template <typename In, int N, typename T = Compute<In>>
struct BackwardScratch {
  Ring<T> keys, values;
  Ring<T> grad_keys, grad_values;  // of column x - left at column x
  Ring<T> queries, grad_outputs;   // of a band
  Ring<T> grad_queries;            // of a band
  Ring<T> logsumexps;              // of a band, two channels a head
  Taps<T, N> weights, grads;
  Terms<T, N> terms;                              // later their gradients
  T *grad_row_embedding, *grad_column_embedding;  // with N parts of each number

  BackwardScratch(const Piece<In>& piece, const Geometry<In, N>& geometry, Arena<T>& arena)
      : keys(geometry.make_ring(arena)),
        values(geometry.make_ring(arena)),
        grad_keys(geometry.make_ring(arena)),
        grad_values(geometry.make_ring(arena)),
        queries(geometry.make_band(geometry.planes, arena)),
        grad_outputs(geometry.make_band(geometry.planes, arena)),
        grad_queries(geometry.make_band(geometry.planes, arena)),
        logsumexps(geometry.make_band(2 * piece.heads, arena)),
        weights(geometry, round_up(2 * geometry.left, N), arena),
        grads(geometry, round_up(2 * geometry.left, N), arena),
        terms(geometry, arena),
        grad_row_embedding(arena.take(piece.heads * geometry.rows * piece.half() * N)),
        grad_column_embedding(
            arena.take(piece.heads * geometry.cols * (piece.dim - piece.half()) * N)) {}
};

// Turns the products in `scratch` into the weights and the gradients of the logits, and adds the
// latter up for the terms.
template <int N, typename In, typename T = Compute<In>>
void backward_logits(const Tile<In, N>& tile, const BackwardScratch<In, N>& scratch) {
  const auto& geometry = tile.geometry;
  const auto &weights = scratch.weights, &grads = scratch.grads;
  for (int t = 0; t < tile.rows.count; ++t) {
    const Vec<T, N> most = load<N>(scratch.logsumexps.at(t, 2 * tile.head) + tile.x),
                    rest = load<N>(scratch.logsumexps.at(t, 2 * tile.head + 1) + tile.x);
    const int64_t begin = tile.tap_row(t, tile.rows.begin[t]),
                  end = tile.tap_row(t, tile.rows.end[t]);
    T *weight = weights.at(t, begin), *grad = grads.at(t, begin);
    // Not 0 where all taps are masked, past the last column.
    Vec<T, N> total = fill<N>(T(1e-30)), delta{};
    for (T* last = weights.at(t, end); weight < last; weight += weights.step, grad += grads.step) {
      // A logit can exceed the log-sum-exp by its rounding error only.
      const Vec<T, N> p = exp<N>(load<N>(weight) - most - rest);
      store(weight, p);
      total += p;
      delta += p * load<N>(grad);
    }
    delta /= total;
    T *row_terms = scratch.terms.rows + t * geometry.rows * N,
      *col_terms = scratch.terms.cols + t * geometry.cols * N;
    for (int64_t i = 0; i < geometry.rows * N; ++i) row_terms[i] = 0;
    for (int64_t i = 0; i < geometry.cols * N; ++i) col_terms[i] = 0;
    weight = weights.at(t, begin), grad = grads.at(t, begin);
    for (int64_t a = begin; a < end; ++a) {
      Vec<T, N> sum{};
      for (int64_t b = 0; b < geometry.cols; ++b, weight += weights.step, grad += grads.step) {
        const Vec<T, N> ds = load<N>(weight) * (load<N>(grad) - delta);
        store(grad, ds);
        store(col_terms + b * N, load<N>(col_terms + b * N) + ds);
        sum += ds;
      }
      store(row_terms + a * N, sum);
    }
  }
}

// What `count` terms of a row of queries give to the gradients of the queries and embeddings, in
// `dim` channels.
template <int N, typename T>
void backward_terms(const T* grad_terms, const T* queries, const T* embedding, int64_t count,
                    int64_t dim, int64_t plane, T* grad_queries, T* grad_embedding) {
  for (int64_t d = 0; d < dim; ++d, queries += plane, grad_queries += plane) {
    const Vec<T, N> query = load<N>(queries);
    Vec<T, N> sum = load<N>(grad_queries);
    for (int64_t a = 0; a < count; ++a) {
      const Vec<T, N> grad = load<N>(grad_terms + a * N);
      T* to = grad_embedding + (a * dim + d) * N;
      sum += grad * embedding[a * dim + d];
      store(to, load<N>(to) + grad * query);
    }
    store(grad_queries, sum);
  }
}

// Gradients of the queries of a tile and of the embeddings, which get those of the piece alone.
template <int N, typename In, typename T = Compute<In>>
void backward_queries(const Tile<In, N>& tile, const BackwardScratch<In, N>& scratch) {
  const auto& piece = tile.piece;
  const auto& rows = tile.rows;
  const int64_t half = piece.half(), rest = piece.dim - half;
  const int64_t row_table = tile.head * piece.kernel_rows * half,
                column_table = tile.head * piece.kernel_cols * rest;
  T *queries = tile.own(scratch.queries), *grads = tile.own(scratch.grad_queries);
  const int64_t plane = scratch.queries.plane, row = scratch.queries.row();
  for (int64_t d = 0; d < piece.dim; d += kChannels) {
    Vec<T, N> sum[kRows][kChannels];
    tile.sums(scratch.keys, scratch.grads, d, sum);
    for (int t = 0; t < rows.count; ++t) {
      for (int i = 0; i < kChannels; ++i) store(grads + t * row + (d + i) * plane, sum[t][i]);
    }
  }
  for (int t = 0; t < rows.count; ++t, queries += row, grads += row) {
    if (rows.y + t < piece.y_begin || rows.y + t >= piece.y_end) continue;
    backward_terms<N>(scratch.terms.rows + t * piece.kernel_rows * N, queries,
                      piece.row_embedding + row_table, piece.kernel_rows, half, plane, grads,
                      scratch.grad_row_embedding + row_table * N);
    backward_terms<N>(scratch.terms.cols + t * piece.kernel_cols * N, queries + half * plane,
                      piece.column_embedding + column_table, piece.kernel_cols, rest, plane,
                      grads + half * plane, scratch.grad_column_embedding + column_table * N);
  }
}

// grads[a][x] += sum_b weights[a][b][x - b] vectors[x - b] for kNumTaps rows of keys.
template <int kNumTaps, int N, typename T>
MMLOCALATTN_INLINE void add_to_keys(const T* weights, int64_t row, int64_t step, int64_t cols,
                                    const T* vectors, int64_t plane, T* const* grads, int64_t d) {
  Vec<T, N> sum[kNumTaps][kChannels];
  for (int a = 0; a < kNumTaps; ++a) {
    for (int i = 0; i < kChannels; ++i) sum[a][i] = load<N>(grads[a] + (d + i) * plane);
  }
  vectors += d * plane;
  for (int64_t b = 0; b < cols; ++b, weights += step - 1, --vectors) {
    Vec<T, N> vector[kChannels];
    for (int i = 0; i < kChannels; ++i) vector[i] = load<N>(vectors + i * plane);
    for (int a = 0; a < kNumTaps; ++a) {
      Vec<T, N> weight = load<N>(weights + a * row);
      pin(weight);
      for (int i = 0; i < kChannels; ++i) sum[a][i] += weight * vector[i];
    }
  }
  for (int a = 0; a < kNumTaps; ++a) {
    for (int i = 0; i < kChannels; ++i) store(grads[a] + (d + i) * plane, sum[a][i]);
  }
}

// Gradients of keys, or of values, from a tile and the `keep` queries before it: of N columns that
// no later query sees, in the rows of the piece.
template <int N, typename In, typename T = Compute<In>>
void backward_keys(const Tile<In, N>& tile, const Taps<T, N>& weights, const Ring<T>& vectors,
                   const Ring<T>& grads) {
  const auto& piece = tile.piece;
  for (int t = 0; t < tile.rows.count; ++t) {
    int64_t u = larger(tile.rows.begin[t], piece.y_begin);
    const int64_t end = smaller(tile.rows.end[t], piece.y_end);
    const T* row = vectors.at(t, tile.channel()) + tile.x;
    for (int64_t blocks = (end - u + kTaps - 1) / kTaps; u < end; --blocks) {
      const int64_t size = (end - u + blocks - 1) / blocks;
      T* to[kTaps];
      for (int64_t i = 0; i < size; ++i) to[i] = grads.at(u + i, tile.channel()) + tile.x;
      with_constant<kTaps>(size, [&](auto num_taps) MMLOCALATTN_LAMBDA {
        for (int64_t d = 0; d < piece.dim; d += kChannels) {
          add_to_keys<num_taps, N>(weights.at(t, tile.tap_row(t, u)), weights.row, weights.step,
                                   piece.kernel_cols, row, vectors.plane, to, d);
        }
      });
      u += size;
    }
  }
}

// Packs a row of queries and what belongs to it as row t of a band.
template <int N, typename In, typename T = Compute<In>>
void fill_band(const Piece<In>& piece, const BackwardScratch<In, N>& scratch, int64_t y, int t) {
  fill_row<N>(piece, piece.query, y, scratch.queries, t);
  fill_row<N>(piece, piece.grad_output, y, scratch.grad_outputs, t);
  for (int64_t i = 0; i < 2 * piece.heads; ++i) {
    T* logsumexps = scratch.logsumexps.at(t, i);
    for (int64_t x = 0; x < piece.width; ++x) logsumexps[x] = piece.logsumexp.at(y, x)[i];
  }
}

// One head of a band.
template <int N, typename In, typename T = Compute<In>>
void backward_band(const Piece<In>& piece, const Geometry<In, N>& geometry, const Rows& rows,
                   int64_t head, const BackwardScratch<In, N>& scratch) {
  const auto &weights = scratch.weights, &grads = scratch.grads;
  weights.clear(0), grads.clear(0);
  // Gradients of keys lag behind: the last ones come after the last queries.
  for (int64_t x = 0; x < piece.width + geometry.left; x += N) {
    const Tile<In, N> tile{piece, geometry, rows, head, x};
    if (x < piece.width) {
      const T *queries = tile.own(scratch.queries), *grad_outputs = tile.own(scratch.grad_outputs);
      tile.fill_terms(queries, scratch.queries, scratch.terms);
      tile.template taps<true>(queries, scratch.queries, scratch.keys, scratch.terms, weights);
      tile.template taps<false>(grad_outputs, scratch.grad_outputs, scratch.values, scratch.terms,
                                grads);
      backward_logits<N>(tile, scratch);
      backward_queries<N>(tile, scratch);
    } else {
      weights.clear(weights.keep), grads.clear(grads.keep);
    }
    backward_keys<N>(tile, grads, scratch.queries, scratch.grad_keys);
    backward_keys<N>(tile, weights, scratch.grad_outputs, scratch.grad_values);
    weights.advance(), grads.advance();
  }
}

// N parts of each number to their sums.
template <int N, typename T>
void sum_parts(const T* parts, int64_t count, T* out) {
  for (int64_t i = 0; i < count; ++i) {
    out[i] = sum_lanes<T, N>(load<N>(parts + i * N));
  }
}

template <typename In>
int64_t backward(const Piece<In>& piece, Compute<In>* memory) {
  using T = Compute<In>;
  constexpr int N = kLanes<T>;
  Arena<T> arena{memory, /*clear=*/true};
  const Geometry<In, N> geometry(piece);
  const BackwardScratch<In, N> scratch(piece, geometry, arena);
  if (!memory) return arena.used;
  // Rows of queries that see the keys of the piece, or belong to it.
  const int64_t y_begin = larger(piece.y_begin - geometry.up, 0),
                y_end = smaller(piece.y_end + geometry.up, piece.height);
  int64_t packed = larger(y_begin - geometry.up, geometry.begin), written = piece.y_begin;
  for (int64_t y = y_begin; y < y_end; y += kRows) {
    const Rows rows = make_rows(geometry, y, y_end);
    for (; packed < rows.last(); ++packed) {
      fill_row<N>(piece, piece.key, packed, scratch.keys, packed);
      fill_row<N>(piece, piece.value, packed, scratch.values, packed);
    }
    for (int t = 0; t < rows.count; ++t) fill_band<N>(piece, scratch, y + t, t);
    for (int64_t head = 0; head < piece.heads; ++head) {
      backward_band<N>(piece, geometry, rows, head, scratch);
    }
    const auto write =
        [&](const Map<In>& map, int64_t y, const Ring<T>& ring, T* in)
            MMLOCALATTN_LAMBDA { write_row<N>(map, y, piece.width, piece.channels(), ring, in); };
    for (int t = 0; t < rows.count; ++t) {
      if (y + t < piece.y_begin || y + t >= piece.y_end) continue;
      write(piece.grad_query, y + t, scratch.grad_queries, scratch.grad_queries.at(t, 0));
    }
    // Rows of keys that no later query sees; their places are used again.
    const int64_t seen = y + rows.count == y_end ? piece.height : y + rows.count - geometry.up;
    for (; written < smaller(seen, piece.y_end); ++written) {
      for (const auto* ring : {&scratch.grad_keys, &scratch.grad_values}) {
        T* row = ring->at(written, 0);
        write(ring == &scratch.grad_keys ? piece.grad_key : piece.grad_value, written, *ring,
              row + geometry.left);
        for (int64_t i = 0; i < ring->row(); ++i) row[i - ring->left] = 0;
      }
    }
  }
  const int64_t half = piece.half(), rest = piece.dim - half;
  sum_parts<N>(scratch.grad_row_embedding, piece.heads * geometry.rows * half,
               piece.grad_row_embedding);
  sum_parts<N>(scratch.grad_column_embedding, piece.heads * geometry.cols * rest,
               piece.grad_column_embedding);
  return arena.used;
}

}  // namespace
}  // namespace mmlocalattn::cpu::MMLOCALATTN_ISA

#endif
