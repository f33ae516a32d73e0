// Stand-alone self-attention, forward, and the formulas of both directions.
//
//   s_ij = <q_i, k_j + r_{j-i}>     p_ij = exp(s_ij - lse_i)     o_i = sum_j p_ij v_j
//   dp_ij = <do_i, v_j>     delta_i = sum_j p_ij dp_ij / sum_j p_ij
//   ds_ij = p_ij (dp_ij - delta_i)     dq_i = sum_j ds_ij (k_j + r_{j-i})
//   dk_j = sum_i ds_ij q_i     dv_j = sum_i p_ij do_i     dr_o = sum_i ds_{i,i+o} q_i
//
// Where softmax is peaked, ds is a small difference. delta = <do_i, o_i> would have the rounding of
// o in it, and sum_j p_ij is 1 but for rounding, which the quotient does not see.
//
// The lanes of a vector are neighboring queries of a row, and a tap of all of them is one load from
// a row of keys that is packed into planes, see taps.h. A piece is worked on from top to bottom in
// bands of kRows rows of queries; only the rows of keys that a band sees are packed at a time.
//
// r is a row embedding beside a column embedding, so that its part of the logits is a number per
// row of the window plus one per column: terms. Masked columns have a term of -inf.
#if defined(MMLOCALATTN_STAND_ALONE_FORWARD_H) == defined(MMLOCALATTN_TOGGLE)
#ifdef MMLOCALATTN_STAND_ALONE_FORWARD_H
#undef MMLOCALATTN_STAND_ALONE_FORWARD_H
#else
#define MMLOCALATTN_STAND_ALONE_FORWARD_H
#endif

#include "cpu/stand_alone/tile.h"

namespace mmlocalattn::cpu::MMLOCALATTN_ISA {
namespace {

// Scratch of the forward kernel.
template <typename In, int N, typename T = Compute<In>>
struct ForwardScratch {
  Ring<T> keys, values;
  Ring<T> queries;  // of a band; its outputs take their place
  Taps<T, N> weights;
  Terms<T, N> terms;

  ForwardScratch(const Geometry<In, N>& geometry, Arena<T>& arena)
      : keys(geometry.make_ring(arena)),
        values(geometry.make_ring(arena)),
        queries(kRows, geometry.planes, /*left=*/0, geometry.columns, arena),
        weights(geometry, 0, arena),
        terms(geometry, arena) {}
};

template <int N, typename In, typename T = Compute<In>>
void forward_tile(const Tile<In, N>& tile, const ForwardScratch<In, N>& scratch) {
  const auto& piece = tile.piece;
  const auto& rows = tile.rows;
  const auto& weights = scratch.weights;
  T* queries = tile.own(scratch.queries);
  tile.fill_terms(queries, scratch.queries, scratch.terms);
  tile.template taps<true>(queries, scratch.queries, scratch.keys, scratch.terms, weights);
  Vec<T, N> factor[kRows];
  for (int t = 0; t < rows.count; ++t) {
    const Vec<T, N> most = load<N>(scratch.terms.most + t * N);
    T *weight = weights.at(t, tile.tap_row(t, rows.begin[t])),
      *end = weights.at(t, tile.tap_row(t, rows.end[t]));
    Vec<T, N> total{};
    for (; weight < end; weight += N) {
      const Vec<T, N> p = exp<N>(load<N>(weight) - most);
      store(weight, p);
      total += p;
    }
    factor[t] = T(1) / total;
    const Vec<T, N> rest = log<N>(total);
    const int64_t count = smaller(N, piece.width - tile.x);
    for (int64_t i = 0; i < count; ++i) {
      T* logsumexp = piece.logsumexp.at(rows.y + t, tile.x + i) + 2 * tile.head;
      logsumexp[0] = most[i], logsumexp[1] = rest[i];
    }
  }
  for (int64_t d = 0; d < piece.dim; d += kChannels) {
    Vec<T, N> sum[kRows][kChannels];
    tile.sums(scratch.values, weights, d, sum);
    for (int t = 0; t < rows.count; ++t) {
      for (int i = 0; i < kChannels; ++i) {
        store(queries + t * scratch.queries.row() + (d + i) * scratch.queries.plane,
              sum[t][i] * factor[t]);
      }
    }
  }
}

template <typename In>
int64_t forward(const Piece<In>& piece, Compute<In>* memory) {
  using T = Compute<In>;
  constexpr int N = kLanes<T>;
  Arena<T> arena{memory, /*clear=*/true};
  const Geometry<In, N> geometry(piece);
  const ForwardScratch<In, N> scratch(geometry, arena);
  if (!memory) return arena.used;
  int64_t packed = larger(piece.y_begin - geometry.up, geometry.begin);
  for (int64_t y = piece.y_begin; y < piece.y_end; y += kRows) {
    const Rows rows = make_rows(geometry, y, piece.y_end);
    for (; packed < rows.last(); ++packed) {
      fill_row<N>(piece, piece.key, packed, scratch.keys, packed);
      fill_row<N>(piece, piece.value, packed, scratch.values, packed);
    }
    for (int t = 0; t < rows.count; ++t) {
      fill_row<N>(piece, piece.query, y + t, scratch.queries, t);
    }
    for (int64_t x = 0; x < piece.width; x += N) {
      prefetch_rows<N>(piece, piece.key, packed, kRows, x);
      prefetch_rows<N>(piece, piece.value, packed, kRows, x);
      prefetch_rows<N>(piece, piece.query, y + kRows, kRows, x);
      prefetch_rows<N, true>(piece, piece.output, y, kRows, x);
      for (int64_t head = 0; head < piece.heads; ++head) {
        forward_tile<N>(Tile<In, N>{piece, geometry, rows, head, x}, scratch);
      }
    }
    for (int t = 0; t < rows.count; ++t) {
      write_row<N>(piece.output, y + t, piece.width, piece.channels(), scratch.queries,
                   scratch.queries.at(t, 0));
    }
  }
  return arena.used;
}

}  // namespace
}  // namespace mmlocalattn::cpu::MMLOCALATTN_ISA

#endif
