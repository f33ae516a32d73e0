// Neighborhood attention on planar maps: what the CPU operators are made of.
//
// A planar map is (B, num_heads, H, head_dim, plane) in the compute dtype (fp32, or fp64 for fp64),
// see neighborhood.h; a log-sum-exp is (B, num_heads, H, plane).
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
// planar.
at::Tensor pack(const at::Tensor& map, double factor = 1,
                const std::optional<Rotary>& rotary = std::nullopt);

// The way back: factor * planar, rotated, contiguous, in the shape and dtype of `like`.
at::Tensor unpack(const at::Tensor& planar, const at::Tensor& like, double factor = 1,
                  const std::optional<Rotary>& rotary = std::nullopt);

// (B, H, W, num_heads) <-> (B, num_heads, H, plane).
at::Tensor pack_heads(const at::Tensor& logsumexp, int64_t plane);
at::Tensor unpack_heads(const at::Tensor& planar, int64_t width);

// query is multiplied by the scale already; bias is (num_heads, 2 kh - 1, 2 kw - 1) of any floating
// dtype, or undefined. Returns the planar output and log-sum-exp.
std::tuple<at::Tensor, at::Tensor> attend(const at::Tensor& query, const at::Tensor& key,
                                          const at::Tensor& value, const at::Tensor& bias,
                                          WindowAxis rows, WindowAxis cols);

// Gradients of the planar query, key and value, and of the bias in the compute dtype (undefined
// without one).
std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor> attend_backward(
    const at::Tensor& grad_output, const at::Tensor& query, const at::Tensor& key,
    const at::Tensor& value, const at::Tensor& bias, const at::Tensor& output,
    const at::Tensor& logsumexp, WindowAxis rows, WindowAxis cols);

}  // namespace cpu
}  // namespace mmlocalattn
