// CPU operator: neighborhood attention, forward and backward.
//
//   output[b, i, n] = sum_j softmax_j(scale <query[b, i, n], key[b, j, n]> + bias[n, j - i])
//   value[b, j, n]
//
// query, key, value, output: (B, H, W, num_heads, head_dim); logsumexp: (B, H, W, num_heads) in the
// compute dtype.
#include <torch/library.h>

#include "planar.h"

namespace mmlocalattn {
namespace cpu {

namespace {

WindowAxis window_axis(const at::Tensor& query, at::IntArrayRef kernel_size,
                       at::IntArrayRef dilation, int axis) {
  return {query.size(1 + axis), kernel_size[axis], dilation[axis]};
}

at::Tensor bias_or_undefined(const std::optional<at::Tensor>& bias) {
  return bias ? *bias : at::Tensor();
}

std::tuple<at::Tensor, at::Tensor> neighborhood_attention_cpu(
    const at::Tensor& query, const at::Tensor& key, const at::Tensor& value,
    const std::optional<at::Tensor>& bias, at::IntArrayRef kernel_size, at::IntArrayRef dilation,
    double scale) {
  const auto [output, logsumexp] = attend(
      pack(query, scale), pack(key), pack(value), bias_or_undefined(bias),
      window_axis(query, kernel_size, dilation, 0), window_axis(query, kernel_size, dilation, 1));
  return {unpack(output, query), unpack_heads(logsumexp, query.size(2))};
}

std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor> neighborhood_attention_backward_cpu(
    const at::Tensor& grad_output, const at::Tensor& query, const at::Tensor& key,
    const at::Tensor& value, const std::optional<at::Tensor>& bias, const at::Tensor& output,
    const at::Tensor& logsumexp, at::IntArrayRef kernel_size, at::IntArrayRef dilation,
    double scale) {
  const auto packed_query = pack(query, scale);
  const auto [grad_query, grad_key, grad_value, grad_bias] = attend_backward(
      pack(grad_output), packed_query, pack(key), pack(value), bias_or_undefined(bias),
      pack(output), pack_heads(logsumexp, packed_query.size(4)),
      window_axis(query, kernel_size, dilation, 0), window_axis(query, kernel_size, dilation, 1));
  return {
      unpack(grad_query, query, scale), unpack(grad_key, key), unpack(grad_value, value),
      grad_bias.defined() ? grad_bias.to(bias->scalar_type()) : at::empty({0}, query.options())};
}

}  // namespace
}  // namespace cpu
}  // namespace mmlocalattn

TORCH_LIBRARY_IMPL(mmlocalattn, CPU, m) {
  m.impl("neighborhood_attention", &mmlocalattn::cpu::neighborhood_attention_cpu);
  m.impl("_neighborhood_attention_backward",
         &mmlocalattn::cpu::neighborhood_attention_backward_cpu);
}
