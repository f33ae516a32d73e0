// Problems of slide attention.
#pragma once

#include "cpu/slide/piece.h"
#include "harness.h"

namespace mmlocalattn::cpu {
namespace {

template <typename T>
struct Slide : AttentionMaps<T> {
  using C = Compute<T>;
  using Piece = slide::Piece<T>;

  int64_t kernel;
  C scale;
  Array<C> weight, bias, position_bias;
  Array<C> grad_weight{weight.size() + bias.size(), 0}, grad_position_bias{position_bias.size(), 0};

  explicit Slide(Input& input)
      : AttentionMaps<T>(input),
        kernel(input.integer()),
        scale(static_cast<C>(input.number())),
        weight(input.array<C>()),
        bias(input.array<C>()),
        position_bias(input.array<C>()) {}

  Piece piece(const Place& place) {
    Piece piece{};
    piece.height = this->shape.height, piece.width = this->shape.width;
    piece.dim = this->shape.dim, piece.kernel = kernel;
    this->fill(place, piece, scale);
    piece.weight = weight.data(), piece.bias = bias.data();
    piece.position_bias = position_bias.data() + place.head * kernel * kernel;
    piece.grad_weight = grad_weight.data();
    piece.grad_position_bias = grad_position_bias.data() + place.head * kernel * kernel;
    return piece;
  }

  void run_all(Kernel<Piece, T> run_kernel, int64_t radius) {
    const auto reach = [&](const Range& own, int64_t length) {
      return slide::Reach{own.begin, own.end, std::max<int64_t>(0, own.begin - radius),
                          std::min(own.end + radius, length)};
    };
    for (const Place& place : places(this->shape)) {
      Piece piece = this->piece(place);
      for (const Range& y : ranges(piece.height, kMostRows)) {
        for (const Range& x : ranges(piece.width, kMostCols)) {
          piece.rows = reach(y, piece.height), piece.cols = reach(x, piece.width);
          run(run_kernel, piece);
        }
      }
    }
  }
};

template <typename T>
void run_slide(Input& input, Output& output) {
  Slide<T> problem(input);
  problem.run_all(slide::kernels<T>().forward, /*radius=*/0);
  problem.run_all(slide::kernels<T>().backward, problem.kernel / 2);
  output.write(problem.output, problem.grad_query, problem.grad_key, problem.grad_value,
               problem.grad_weight, problem.grad_position_bias);
}

}  // namespace
}  // namespace mmlocalattn::cpu
