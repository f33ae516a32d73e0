// Problems of stand-alone self-attention.
#pragma once

#include "cpu/stand_alone/piece.h"
#include "harness.h"

namespace mmlocalattn::cpu {
namespace {

template <typename T>
struct StandAlone : AttentionMaps<T> {
  using C = Compute<T>;
  using Piece = stand_alone::Piece<T>;

  int64_t kernel_rows, kernel_cols;
  bool zero_padding;
  C scale;
  Array<C> row_embedding, column_embedding;
  Array<C> grad_rows{row_embedding.size(), 0}, grad_columns{column_embedding.size(), 0};

  explicit StandAlone(Input& input)
      : AttentionMaps<T>(input),
        kernel_rows(input.integer()),
        kernel_cols(input.integer()),
        zero_padding(input.integer()),
        scale(static_cast<C>(input.number())),
        row_embedding(input.array<C>()),
        column_embedding(input.array<C>()) {}

  // Heads of a piece: all, or one at a time if those of other pieces would share a vector.
  int64_t group_heads() const { return this->shape.dim % 4 == 0 ? this->shape.heads : 1; }

  Piece piece(const Place& place) {
    Piece piece{};
    piece.height = this->shape.height, piece.width = this->shape.width;
    piece.kernel_rows = kernel_rows, piece.kernel_cols = kernel_cols;
    piece.zero_padding = zero_padding;
    piece.heads = group_heads(), piece.dim = this->shape.dim;
    this->fill(place, piece, scale);
    piece.row_embedding = row_embedding.data() + place.head * kernel_rows * piece.half();
    piece.column_embedding =
        column_embedding.data() + place.head * kernel_cols * (piece.dim - piece.half());
    return piece;
  }

  template <typename Body>
  void for_each(const Body& body) {
    for (const Place& place : places(this->shape)) {
      if (place.head % group_heads() > 0) continue;
      Piece piece = this->piece(place);
      for (const Range& y : ranges(piece.height, kMostRows)) {
        piece.y_begin = y.begin, piece.y_end = y.end;
        body(piece);
      }
    }
  }

  void backward(Piece piece) {
    Array<C> rows(grad_rows.size(), 0), columns(grad_columns.size(), 0);  // 0 for other heads
    piece.grad_row_embedding = rows.data() + (piece.row_embedding - row_embedding.data());
    piece.grad_column_embedding =
        columns.data() + (piece.column_embedding - column_embedding.data());
    run(stand_alone::kernels<T>().backward, piece);
    add(rows, grad_rows), add(columns, grad_columns);
  }
};

template <typename T>
void run_stand_alone(Input& input, Output& output) {
  using Piece = stand_alone::Piece<T>;
  StandAlone<T> problem(input);
  problem.for_each([](const Piece& piece) { run(stand_alone::kernels<T>().forward, piece); });
  problem.for_each([&](const Piece& piece) { problem.backward(piece); });
  output.write(problem.output, problem.grad_query, problem.grad_key, problem.grad_value,
               problem.grad_rows, problem.grad_columns);
}

}  // namespace
}  // namespace mmlocalattn::cpu
