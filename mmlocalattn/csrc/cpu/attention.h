// Neighborhood attention on tensors: what the CPU operators are made of.
#pragma once

#include <ATen/ATen.h>
#include <ATen/OpMathType.h>

#include <tuple>

#include "window.h"

namespace mmlocalattn {
namespace cpu {

// One attention problem. query, key, value: (B, H, W, num_heads, head_dim) of one floating dtype
// and any strides; bias: (num_heads, 2 kh - 1, 2 kw - 1) of any floating dtype, or undefined.
struct Problem {
  at::Tensor query, key, value, bias;
  WindowAxis rows, cols;
  double scale;
};

// Output like query, contiguous, and log-sum-exp (B, H, W, num_heads) in the compute dtype.
std::tuple<at::Tensor, at::Tensor> attend(const Problem& problem);

// Gradients, contiguous.
struct Grads {
  at::Tensor query, key, value;
  at::Tensor bias;  // undefined without bias
};

// Gradients of a problem, in the compute dtype, or those of query, key and value in the dtype of
// query (fp32 for fp16) if they are `rounded`. Those of query and key are added to `grads` where it
// has some.
Grads attend_backward(const Problem& problem, const at::Tensor& grad_output,
                      const at::Tensor& output, const at::Tensor& logsumexp, bool rounded,
                      Grads grads = {});

// Tables (H, W, head_dim) that rotate adjacent channel pairs of the vectors of a map: x cos +
// (-x[1], x[0], ...) sin. Undefined tables rotate nothing.
struct Rotary {
  at::Tensor sin, cos;

  // A map (B, H, W, num_heads, head_dim), rotated, in its dtype (fp32 for fp16). The positions of a
  // head are neighbors in memory.
  at::Tensor rotate(const at::Tensor& map) const;

  // Gradient of what rotate() got from the gradient of what it returned, contiguous, in `dtype`.
  at::Tensor rotate_back(const at::Tensor& grad, at::ScalarType dtype) const;
};

}  // namespace cpu
}  // namespace mmlocalattn
