// Problems of query_and_attend.
#pragma once

#include "cpu/query_and_attend/piece.h"
#include "harness.h"

namespace mmlocalattn::cpu {
namespace {

template <typename T>
struct QueryAndAttend {
  using C = Compute<T>;
  using Piece = query_and_attend::Piece<T>;

  Shape shape;  // of the values
  int64_t queries;
  StridedAxis rows, cols;
  Shape windows, scores_shape, window_scores_shape;
  Array<T> scores, values, grad_output;
  Array<C> tables, bias_ranges;
  std::vector<int64_t> columns = ordinals(2 * kMostCols + query_and_attend::kMostKernel);
  Array<T> output{windows.size()}, grad_scores{scores.size()}, grad_values{values.size()};
  Array<C> logsumexp{logsumexp_shape().size()}, delta{window_scores_shape.size()};
  Array<C> grad_bias{tables.size() / 4, 0}, grad_scale{tables.size() / 4, 0};

  explicit QueryAndAttend(Input& input)
      : shape(input.shape()),
        queries(input.integer()),
        rows{shape.height, input.integer(), input.integer()},
        cols{shape.width, input.integer(), rows.stride},
        windows{shape.batch, rows.windows(), cols.windows(), shape.heads, shape.dim},
        scores_shape(of_scores(shape)),
        window_scores_shape(of_scores(windows)),
        scores(input.array<T>()),
        values(input.array<T>()),
        grad_output(input.array<T>()),
        tables(input.array<C>()),
        bias_ranges(input.array<C>()) {}

  // The heads of scores are where the channels of values are, and queries where these have heads.
  Shape of_scores(const Shape& map) const {
    return {map.batch, map.height, map.width, queries, map.heads};
  }

  Shape logsumexp_shape() const { return window_scores_shape.with_dim(2 * shape.heads); }

  template <typename U, typename V>
  static query_and_attend::Vectors<U> vectors(Array<V>& map, const Shape& shape, int64_t b) {
    const int64_t column = shape.heads * shape.dim, row = shape.width * column;
    return {map.data() + b * shape.height * row, row, column, shape.dim};
  }

  Piece piece(int64_t b) {
    Piece piece{};
    piece.rows = rows, piece.cols = cols, piece.queries = queries;
    piece.heads = piece.all_heads = shape.heads, piece.dim = shape.dim;
    piece.ordinals = columns.data(), piece.tables = tables.data();
    piece.bias_ranges = bias_ranges.data();
    piece.scores = vectors<const T>(scores, scores_shape, b);
    piece.values = vectors<const T>(values, shape, b);
    piece.output = vectors<T>(output, windows, b);
    piece.logsumexp = vectors<C>(logsumexp, logsumexp_shape(), b);
    piece.grad_output = vectors<const T>(grad_output, windows, b);
    piece.delta = vectors<C>(delta, window_scores_shape, b);
    piece.grad_scores = vectors<T>(grad_scores, scores_shape, b);
    piece.grad_values = vectors<T>(grad_values, shape, b);
    return piece;
  }

  // Calls body(piece) for so many rows and columns, these from the first on.
  template <typename Body>
  void for_each(int64_t num_rows, int64_t first_col, int64_t num_cols, const Body& body) {
    for (int64_t b = 0; b < shape.batch; ++b) {
      Piece piece = this->piece(b);
      for (const Range& y : ranges(num_rows, kMostRows)) {
        for (const Range& x : ranges(num_cols, kMostCols)) {
          piece.y_begin = y.begin, piece.y_end = y.end;
          piece.x_begin = first_col + x.begin, piece.x_end = first_col + x.end;
          body(piece);
        }
      }
    }
  }

  void run_windows(Kernel<Piece, T> kernel) {
    for_each(windows.height, 0, windows.width, [&](const Piece& piece) { run(kernel, piece); });
  }

  void run_positions(Kernel<Piece, T> kernel) {
    const int64_t first = cols.low() / cols.stride,
                  last = (cols.length - 1 + cols.low()) / cols.stride;
    for_each(rows.length, first, last - first + 1, [&](Piece piece) {
      Array<C> bias(grad_bias.size()), scale(grad_scale.size());
      piece.grad_bias = bias.data(), piece.grad_scale = scale.data();
      run(kernel, piece);
      add(bias, grad_bias), add(scale, grad_scale);
    });
  }
};

template <typename T>
void run_query_and_attend(Input& input, Output& output) {
  const auto& kernels = query_and_attend::kernels<T>();
  QueryAndAttend<T> problem(input);
  problem.run_windows(kernels.forward);
  problem.run_windows(kernels.backward_windows);
  problem.run_positions(kernels.backward_positions);
  output.write(problem.output, problem.grad_scores, problem.grad_values, problem.grad_bias,
               problem.grad_scale);
}

}  // namespace
}  // namespace mmlocalattn::cpu
