// Neighborhood attention of tensors, for the operators that are built of it.
#pragma once

#include <ATen/ATen.h>

#include <tuple>

namespace mmlocalattn::cuda::neighborhood {

// Whether the tiled kernels take a problem: head_dim 16, 32, 64 and 128, a bias whose table fits
// into shared memory several times, fp32 and, on tensor cores, fp16 and bf16. They read 16 bytes at
// once.
inline bool has_tiles(const at::Tensor& query, const at::Tensor& bias = {}) {
  constexpr int64_t kMostEntries = 4096;
  const int64_t head_dim = query.size(4);
  return query.scalar_type() != at::kDouble &&
         (!bias.defined() || bias.size(1) * bias.size(2) <= kMostEntries) &&
         (head_dim == 16 || head_dim == 32 || head_dim == 64 || head_dim == 128);
}

// One call of neighborhood attention, its tensors as the caller has them. An undefined bias is
// none. Without tiles, query and key may have the accumulation type of a 16 bit value.
struct Call {
  at::Tensor query, key, value, bias;
  at::IntArrayRef kernel_size, dilation;
  double scale;
};

// Returns output and logsumexp.
std::tuple<at::Tensor, at::Tensor> attend(const Call& call);

// Gradient as tensors: see there. `sum`, `sin` and `cos` have the accumulation type.
struct GradientTensors {
  at::Tensor grad, sum, sin, cos;
};

// Returns the gradients of value and of the bias, that of an undefined bias undefined.
std::tuple<at::Tensor, at::Tensor> attend_backward(const Call& call, const at::Tensor& grad_output,
                                                   const at::Tensor& output,
                                                   const at::Tensor& logsumexp,
                                                   const GradientTensors& grad_query,
                                                   const GradientTensors& grad_key);

}  // namespace mmlocalattn::cuda::neighborhood
