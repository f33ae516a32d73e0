// Neighborhood attention on tensors: what the operators of this folder are made of.
#pragma once

#include <tuple>

#include "cpu/runtime.h"
#include "window.h"

namespace mmlocalattn::cpu::neighborhood {

// One call. bias: (num_heads, 2 kh - 1, 2 kw - 1) of any floating dtype, or undefined.
struct Problem : AttentionMaps {
  at::Tensor bias;
  WindowAxis rows, cols;
  double scale;

  Problem(const AttentionMaps& maps, const at::Tensor& bias, at::IntArrayRef kernel_size,
          at::IntArrayRef dilation, double scale);
};

// Output like query, contiguous, and log-sum-exp (B, H, W, num_heads, 2) in the compute dtype.
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

}  // namespace mmlocalattn::cpu::neighborhood
