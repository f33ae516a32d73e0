// Neighborhood attention on packed maps: what the CPU operators are made of.
//
// A packed map is (B, num_heads, H, W, padded head_dim), contiguous, in the compute dtype (fp32, or
// fp64 for fp64): every tap is one aligned run of whole vectors, whatever the dtype, head_dim and
// strides of the input.
#pragma once

#include <ATen/ATen.h>

#include <optional>
#include <tuple>

#include "window.h"

namespace mmlocalattn {
namespace cpu {

// Tables (H, W, head_dim) that rotate adjacent channel pairs: x cos + (-x[1], x[0], ...) sin.
struct Rotary {
  at::Tensor sin, cos;

  // For gradients.
  Rotary transposed() const {
    return {sin.unflatten(-1, {-1, 2}).flip({-1}).flatten(-2).neg(), cos};
  }
};

// factor * map, rotated: (B, H, W, num_heads, head_dim) of any floating dtype and strides ->
// packed.
at::Tensor pack(const at::Tensor& map, double factor = 1,
                const std::optional<Rotary>& rotary = std::nullopt);

// The way back: factor * packed, rotated, contiguous, in the shape and dtype of `like`.
at::Tensor unpack(const at::Tensor& packed, const at::Tensor& like, double factor = 1,
                  const std::optional<Rotary>& rotary = std::nullopt);

// query is multiplied by the scale already; bias is (num_heads, 2 kh - 1, 2 kw - 1) of any floating
// dtype, or undefined. Returns the packed output and the log-sum-exp (B, num_heads, H, W).
std::tuple<at::Tensor, at::Tensor> attend(const at::Tensor& query, const at::Tensor& key,
                                          const at::Tensor& value, const at::Tensor& bias,
                                          WindowAxis rows, WindowAxis cols);

// Gradients of the packed query, key and value, and of the bias in the compute dtype (undefined
// without one).
std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor> attend_backward(
    const at::Tensor& grad_output, const at::Tensor& query, const at::Tensor& key,
    const at::Tensor& value, const at::Tensor& bias, const at::Tensor& output,
    const at::Tensor& logsumexp, WindowAxis rows, WindowAxis cols);

// (B, num_heads, H, W) <-> (B, H, W, num_heads), contiguous.
inline at::Tensor heads_last(const at::Tensor& logsumexp) {
  return logsumexp.permute({0, 2, 3, 1}).contiguous();
}
inline at::Tensor heads_first(const at::Tensor& logsumexp) {
  return logsumexp.permute({0, 3, 1, 2}).contiguous();
}

}  // namespace cpu
}  // namespace mmlocalattn
