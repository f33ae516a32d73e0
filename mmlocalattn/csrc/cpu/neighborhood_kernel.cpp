// CPU operator: neighborhood attention, forward and backward.
//
//   output[b, i, n] = sum_j softmax_j(scale <query[b, i, n], key[b, j, n]> + bias[n, j - i])
//   value[b, j, n]
//
// query, key, value, output: (B, H, W, num_heads, head_dim); logsumexp: (B, H, W, num_heads) in the
// compute dtype.
#include <torch/library.h>

#include "attention.h"

namespace mmlocalattn {
namespace cpu {

namespace {

Problem make_problem(const at::Tensor& query, const at::Tensor& key, const at::Tensor& value,
                     const std::optional<at::Tensor>& bias, at::IntArrayRef kernel_size,
                     at::IntArrayRef dilation, double scale) {
  return {query,
          key,
          value,
          bias ? *bias : at::Tensor(),
          {query.size(1), kernel_size[0], dilation[0]},
          {query.size(2), kernel_size[1], dilation[1]},
          scale};
}

std::tuple<at::Tensor, at::Tensor> neighborhood_attention_cpu(
    const at::Tensor& query, const at::Tensor& key, const at::Tensor& value,
    const std::optional<at::Tensor>& bias, at::IntArrayRef kernel_size, at::IntArrayRef dilation,
    double scale) {
  return attend(make_problem(query, key, value, bias, kernel_size, dilation, scale));
}

std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor> neighborhood_attention_backward_cpu(
    const at::Tensor& grad_output, const at::Tensor& query, const at::Tensor& key,
    const at::Tensor& value, const std::optional<at::Tensor>& bias, const at::Tensor& output,
    const at::Tensor& logsumexp, at::IntArrayRef kernel_size, at::IntArrayRef dilation,
    double scale) {
  const auto grads =
      attend_backward(make_problem(query, key, value, bias, kernel_size, dilation, scale),
                      grad_output, output, logsumexp, /*rounded=*/true);
  const auto dtype = query.scalar_type();
  return {grads.query.to(dtype), grads.key.to(dtype), grads.value.to(dtype),
          bias ? grads.bias.to(bias->scalar_type()) : at::empty({0}, query.options())};
}

}  // namespace
}  // namespace cpu
}  // namespace mmlocalattn

TORCH_LIBRARY_IMPL(mmlocalattn, CPU, m) {
  m.impl("neighborhood_attention", &mmlocalattn::cpu::neighborhood_attention_cpu);
  m.impl("_neighborhood_attention_backward",
         &mmlocalattn::cpu::neighborhood_attention_backward_cpu);
}
