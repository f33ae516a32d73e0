// CPU operator: sparse scan attention (SSViT), forward and backward.
//
//   inner  = NA(R query, R key, value;  local_kernel,  dilation 1)
//   output = NA(R query, R key, inner;  anchor_kernel, anchor_dilation)          R: rotary
//   embedding
//
// A kernel of 1 skips its step. query and key are rotated, scaled and packed once for both steps.
#include <torch/library.h>

#include "planar.h"

namespace mmlocalattn {
namespace cpu {
namespace {

struct Step {
  WindowAxis rows, cols;
  bool runs;

  Step(const at::Tensor& query, at::IntArrayRef kernel, at::IntArrayRef dilation)
      : rows{query.size(1), kernel[0], dilation[0]},
        cols{query.size(2), kernel[1], dilation[1]},
        runs(kernel[0] != 1 || kernel[1] != 1) {}
};

std::optional<Rotary> make_rotary(const std::optional<at::Tensor>& sin,
                                  const std::optional<at::Tensor>& cos) {
  return sin ? std::optional<Rotary>(Rotary{*sin, *cos}) : std::nullopt;
}

at::Tensor empty(const at::Tensor& like) { return at::empty({0}, like.options()); }

std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor> sparse_scan_attention_cpu(
    const at::Tensor& query, const at::Tensor& key, const at::Tensor& value,
    const std::optional<at::Tensor>& sin, const std::optional<at::Tensor>& cos,
    at::IntArrayRef local_kernel, at::IntArrayRef anchor_kernel, at::IntArrayRef anchor_dilation,
    double scale) {
  const Step local(query, local_kernel, {1, 1}), anchor(query, anchor_kernel, anchor_dilation);
  const auto rotary = make_rotary(sin, cos);
  auto output = pack(value);
  auto inner = empty(query), local_logsumexp = empty(output), anchor_logsumexp = empty(output);
  if (!local.runs && !anchor.runs) {
    return {value.clone(at::MemoryFormat::Contiguous), inner, local_logsumexp, anchor_logsumexp};
  }
  const auto packed_query = pack(query, scale, rotary), packed_key = pack(key, 1, rotary);
  if (local.runs) {
    at::Tensor logsumexp;
    std::tie(output, logsumexp) =
        attend(packed_query, packed_key, output, {}, local.rows, local.cols);
    local_logsumexp = unpack_heads(logsumexp, query.size(2));
  }
  if (anchor.runs) {
    if (local.runs) inner = unpack(output, query);
    at::Tensor logsumexp;
    std::tie(output, logsumexp) =
        attend(packed_query, packed_key, output, {}, anchor.rows, anchor.cols);
    anchor_logsumexp = unpack_heads(logsumexp, query.size(2));
  }
  return {unpack(output, query), inner, local_logsumexp, anchor_logsumexp};
}

std::tuple<at::Tensor, at::Tensor, at::Tensor> sparse_scan_attention_backward_cpu(
    const at::Tensor& grad_output, const at::Tensor& query, const at::Tensor& key,
    const at::Tensor& value, const std::optional<at::Tensor>& sin,
    const std::optional<at::Tensor>& cos, const at::Tensor& output, const at::Tensor& inner,
    const at::Tensor& local_logsumexp, const at::Tensor& anchor_logsumexp,
    at::IntArrayRef local_kernel, at::IntArrayRef anchor_kernel, at::IntArrayRef anchor_dilation,
    double scale) {
  const Step local(query, local_kernel, {1, 1}), anchor(query, anchor_kernel, anchor_dilation);
  if (!local.runs && !anchor.runs) {
    return {at::zeros_like(query, at::MemoryFormat::Contiguous),
            at::zeros_like(key, at::MemoryFormat::Contiguous),
            grad_output.clone(at::MemoryFormat::Contiguous)};
  }
  const auto rotary = make_rotary(sin, cos);
  const auto packed_query = pack(query, scale, rotary), packed_key = pack(key, 1, rotary);
  at::Tensor grad_query, grad_key, grad_value = pack(grad_output), step_output = pack(output);
  if (anchor.runs) {
    const auto step_value = pack(local.runs ? inner : value);
    std::tie(grad_query, grad_key, grad_value, std::ignore) = attend_backward(
        grad_value, packed_query, packed_key, step_value, {}, step_output,
        pack_heads(anchor_logsumexp, packed_query.size(4)), anchor.rows, anchor.cols);
    step_output = step_value;
  }
  if (local.runs) {
    const auto [local_grad_query, local_grad_key, local_grad_value, unused] =
        attend_backward(grad_value, packed_query, packed_key, pack(value), {}, step_output,
                        pack_heads(local_logsumexp, packed_query.size(4)), local.rows, local.cols);
    grad_query = anchor.runs ? grad_query.add_(local_grad_query) : local_grad_query;
    grad_key = anchor.runs ? grad_key.add_(local_grad_key) : local_grad_key;
    grad_value = local_grad_value;
  }
  const auto transposed = rotary ? std::optional<Rotary>(rotary->transposed()) : std::nullopt;
  return {unpack(grad_query, query, scale, transposed), unpack(grad_key, key, 1, transposed),
          unpack(grad_value, value)};
}

}  // namespace
}  // namespace cpu
}  // namespace mmlocalattn

TORCH_LIBRARY_IMPL(mmlocalattn, CPU, m) {
  m.impl("sparse_scan_attention", &mmlocalattn::cpu::sparse_scan_attention_cpu);
  m.impl("_sparse_scan_attention_backward", &mmlocalattn::cpu::sparse_scan_attention_backward_cpu);
}
