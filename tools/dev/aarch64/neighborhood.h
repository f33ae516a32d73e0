// Problems of neighborhood attention.
#pragma once

#include "cpu/neighborhood/piece.h"
#include "harness.h"

namespace mmlocalattn::cpu {
namespace {

// The columns of all dilation groups side by side, see ColumnAxis.
struct ColumnSet {
  std::vector<int64_t> column, first_tap, table_column;

  explicit ColumnSet(const WindowAxis& cols) {
    for (int64_t group = 0; group < cols.dilation; ++group) {
      const WindowAxis axis{cols.group_length(group), cols.kernel, 1};
      const int64_t first = static_cast<int64_t>(column.size());
      for (int64_t x = 0; x < axis.length; ++x) {
        column.push_back(group + x * cols.dilation);
        first_tap.push_back(first + axis.start(x));
        table_column.push_back(axis.first_offset(x));
      }
    }
  }
};

// Neighborhood attention. Gradients of maps are kRounded to T, or in the compute type.
template <typename T, bool kRounded>
struct Neighborhood {
  using C = Compute<T>;
  using G = std::conditional_t<kRounded, T, C>;
  using Piece = neighborhood::Piece<T>;

  const neighborhood::Kernels<T>& kernels = neighborhood::kernels<T>();
  Shape shape;
  WindowAxis rows, cols;
  ColumnSet set;
  C scale;
  Array<T> query, key, value, grad_output;
  Array<C> bias;  // and a vector of values behind it; or empty
  Array<T> output;
  Array<C> logsumexp, grad_bias;
  Array<G> grad_query, grad_key, grad_value;

  explicit Neighborhood(Input& input)
      : shape(input.shape()),
        rows{shape.height, input.integer(), input.integer()},
        cols{shape.width, input.integer(), input.integer()},
        set(cols),
        scale(static_cast<C>(input.number())),
        query(input.array<T>()),
        key(input.array<T>()),
        value(input.array<T>()),
        grad_output(input.array<T>()),
        bias(input.array<C>()),
        output(shape.size()),
        logsumexp(shape.with_dim(2).size()),
        grad_bias(bias.size() ? shape.heads * table_size() : 0, 0),
        grad_query(shape.size()),
        grad_key(shape.size()),
        grad_value(shape.size()) {}

  int64_t table_size() const { return (2 * rows.kernel - 1) * (2 * cols.kernel - 1); }

  // Of dilation group gy of the rows.
  template <typename U>
  Grid<U> group_grid(U* data, const Shape& shape, int64_t b, int64_t head, int64_t gy) {
    auto result = grid(data, shape, b, head, set.column);
    result.data += gy * result.row;
    result.row *= rows.dilation;
    return result;
  }

  Piece piece(int64_t b, int64_t head, int64_t gy) {
    const auto input = [&](Array<T>& map, C factor) {
      return Map<const T>{group_grid<const T>(map.data(), shape, b, head, gy), factor};
    };
    Piece piece{};
    piece.rows = {rows.group_length(gy), rows.kernel, 1};
    piece.cols = {cols.length, cols.kernel, set.column.data(), set.first_tap.data(),
                  set.table_column.data()};
    piece.dim = shape.dim;
    piece.query = input(query, scale);
    piece.key = input(key, 1), piece.value = input(value, 1);
    piece.grad_output = input(grad_output, 1);
    if (bias.size()) {
      piece.bias = bias.data() + head * table_size();
      piece.grad_bias = grad_bias.data() + head * table_size();
    }
    piece.output = {group_grid(output.data(), shape, b, head, gy)};
    piece.logsumexp = group_grid(logsumexp.data(), shape.with_dim(2), b, head, gy);
    const Map<G> grad{group_grid(grad_query.data(), shape, b, head, gy), scale};
    if constexpr (kRounded) {
      piece.rounded_grad_query = grad;
    } else {
      piece.grad_query = grad;
    }
    return piece;
  }

  // Calls body(piece) for the pieces of a group of rows.
  template <typename Body>
  void for_each(Piece piece, const Body& body) {
    for (const Range& y : ranges(piece.rows.length, kMostRows)) {
      for (const Range& x : ranges(cols.length, kMostCols)) {
        piece.y_begin = y.begin, piece.y_end = y.end, piece.x_begin = x.begin, piece.x_end = x.end;
        kernels.prefetch(piece);
        body(piece);
      }
    }
  }

  // What the pieces of a group of rows give to the gradients of keys and values together, (rows,
  // width, 2, padded_dim).
  std::vector<C> backward(const Piece& whole) {
    const int64_t step = 2 * padded_dim<T>(shape.dim), line = cols.length * step;
    std::vector<C> sums(whole.rows.length * line);
    for_each(whole, [&](Piece piece) {
      Array<C> part(piece.grad_size());
      piece.grad_key_value = part.data();
      run(kernels.backward, piece);
      for (int64_t u = 0; u < piece.key_rows(); ++u) {
        C* to = sums.data() + (piece.first_row() + u) * line + piece.first_col() * step;
        const C* from = part.data() + u * piece.grad_cols() * step;
        for (int64_t i = 0; i < piece.key_cols() * step; ++i) to[i] += from[i];
      }
    });
    return sums;
  }

  void write(const Map<G>& map, const Piece& whole, const C* vectors) {
    const int64_t step = 2 * padded_dim<T>(shape.dim);
    for (int64_t y = 0; y < whole.rows.length; ++y, vectors += cols.length * step) {
      if constexpr (kRounded) {
        kernels.write_rounded(map, y, cols.length, shape.dim, vectors, step);
      } else {
        kernels.write(map, y, cols.length, shape.dim, vectors, step);
      }
    }
  }

  void run_all() {
    for (const Place& place : places(shape)) {
      for (int64_t gy = 0; gy < rows.dilation; ++gy) {
        const Piece whole = piece(place.b, place.head, gy);
        for_each(whole, [&](const Piece& piece) { run(kernels.forward, piece); });
        const auto sums = backward(whole);
        const auto grad = [&](Array<G>& map) {
          return Map<G>{group_grid(map.data(), shape, place.b, place.head, gy)};
        };
        write(grad(grad_key), whole, sums.data());
        write(grad(grad_value), whole, sums.data() + padded_dim<T>(shape.dim));
      }
    }
  }
};

template <typename T>
void run_neighborhood(Input& input, Output& output) {
  Neighborhood<T, true> problem(input);
  problem.run_all();
  output.write(problem.output, problem.grad_query, problem.grad_key, problem.grad_value,
               problem.grad_bias);
}

// A map rotated by tables (H, W, head_dim), or back.
template <typename In, typename T>
Array<T> rotate(Array<In>& map, const Shape& shape, Array<Compute<T>>& sin, Array<Compute<T>>& cos,
                void (*kernel)(const neighborhood::RotaryRow<In, T>&), bool transpose) {
  Array<T> result(shape.size());
  const auto columns = ordinals(shape.width);
  for (const Place& place : places(shape)) {
    const auto in = grid<const In>(map.data(), shape, place.b, place.head, columns);
    const auto out = grid(result.data(), shape, place.b, place.head, columns);
    for (int64_t y = 0; y < shape.height; ++y) {
      const int64_t table = y * shape.width * shape.dim;
      kernel({in.at(y, 0), out.at(y, 0), in.column, out.column, sin.data() + table,
              cos.data() + table, shape.width, shape.dim, transpose});
    }
  }
  return result;
}

// Neighborhood attention to rotated keys, as in sparse scan attention.
template <typename T>
void run_rotary(Input& input, Output& output) {
  Neighborhood<T, false> problem(input);
  auto sin = input.array<Compute<T>>(), cos = input.array<Compute<T>>();
  const auto& kernels = problem.kernels;
  const auto turn = [&](auto& map, auto kernel, bool transpose) {
    return rotate<std::decay_t<decltype(*map.data())>, T>(map, problem.shape, sin, cos, kernel,
                                                          transpose);
  };
  problem.query = turn(problem.query, kernels.rotate, false);
  problem.key = turn(problem.key, kernels.rotate, false);
  problem.run_all();
  auto grad_query = turn(problem.grad_query, kernels.rotate_gradient, true),
       grad_key = turn(problem.grad_key, kernels.rotate_gradient, true);
  output.write(problem.output, grad_query, grad_key, problem.grad_value);
}

}  // namespace
}  // namespace mmlocalattn::cpu
