// CPU operator: sparse scan attention (SSViT), forward and backward.
//
//   inner  = NA(R query, R key, value;  local_kernel,  dilation 1)
//   output = NA(R query, R key, inner;  anchor_kernel, anchor_dilation)          R: rotary
//   embedding
//
// A kernel of 1 skips its step. The kernels rotate and scale query and key while they pack them, so
// that neither exists in memory.
#include <torch/library.h>

#include "attention.h"

namespace mmlocalattn {
namespace cpu {
namespace {

// The arguments of forward that backward gets too.
struct Scan {
  at::Tensor query, key;
  Rotary rotary;
  at::IntArrayRef local_kernel, anchor_kernel, anchor_dilation;
  double scale;

  bool has_local() const { return local_kernel[0] != 1 || local_kernel[1] != 1; }
  bool has_anchor() const { return anchor_kernel[0] != 1 || anchor_kernel[1] != 1; }
  Problem local(const at::Tensor& value) const { return problem(value, local_kernel, {1, 1}); }
  Problem anchor(const at::Tensor& value) const {
    return problem(value, anchor_kernel, anchor_dilation);
  }

 private:
  Problem problem(const at::Tensor& value, at::IntArrayRef kernel, at::IntArrayRef dilation) const {
    return {query,
            key,
            value,
            at::Tensor(),
            {query.size(1), kernel[0], dilation[0]},
            {query.size(2), kernel[1], dilation[1]},
            scale,
            rotary};
  }
};

Rotary make_rotary(const std::optional<at::Tensor>& sin, const std::optional<at::Tensor>& cos) {
  return sin ? Rotary{*sin, *cos} : Rotary{};
}

std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor> sparse_scan_attention_cpu(
    const at::Tensor& query, const at::Tensor& key, const at::Tensor& value,
    const std::optional<at::Tensor>& sin, const std::optional<at::Tensor>& cos,
    at::IntArrayRef local_kernel, at::IntArrayRef anchor_kernel, at::IntArrayRef anchor_dilation,
    double scale) {
  const Scan scan{query,           key,  make_rotary(sin, cos), local_kernel, anchor_kernel,
                  anchor_dilation, scale};
  const auto none = at::empty({0}, query.options().dtype(at::toOpMathType(query.scalar_type())));
  at::Tensor output, inner = at::empty({0}, query.options());
  at::Tensor local_logsumexp = none, anchor_logsumexp = none.clone();
  if (!scan.has_local() && !scan.has_anchor()) {
    return {value.clone(at::MemoryFormat::Contiguous), inner, local_logsumexp, anchor_logsumexp};
  }
  if (scan.has_local()) std::tie(output, local_logsumexp) = attend(scan.local(value));
  if (scan.has_anchor()) {
    if (scan.has_local()) inner = output;
    std::tie(output, anchor_logsumexp) = attend(scan.anchor(scan.has_local() ? inner : value));
  }
  return {output, inner, local_logsumexp, anchor_logsumexp};
}

std::tuple<at::Tensor, at::Tensor, at::Tensor> sparse_scan_attention_backward_cpu(
    const at::Tensor& grad_output, const at::Tensor& query, const at::Tensor& key,
    const at::Tensor& value, const std::optional<at::Tensor>& sin,
    const std::optional<at::Tensor>& cos, const at::Tensor& output, const at::Tensor& inner,
    const at::Tensor& local_logsumexp, const at::Tensor& anchor_logsumexp,
    at::IntArrayRef local_kernel, at::IntArrayRef anchor_kernel, at::IntArrayRef anchor_dilation,
    double scale) {
  const Scan scan{query,           key,  make_rotary(sin, cos), local_kernel, anchor_kernel,
                  anchor_dilation, scale};
  if (!scan.has_local() && !scan.has_anchor()) {
    return {at::zeros_like(query, at::MemoryFormat::Contiguous),
            at::zeros_like(key, at::MemoryFormat::Contiguous),
            grad_output.clone(at::MemoryFormat::Contiguous)};
  }
  Grads grads;
  if (scan.has_anchor()) {
    grads = attend_backward(scan.anchor(scan.has_local() ? inner : value), grad_output, output,
                            anchor_logsumexp);
  }
  if (scan.has_local()) {
    grads = attend_backward(scan.local(value), scan.has_anchor() ? grads.value : grad_output,
                            scan.has_anchor() ? inner : output, local_logsumexp, grads);
  }
  const auto dtype = query.scalar_type();
  return {grads.query.to(dtype), grads.key.to(dtype), grads.value.to(dtype)};
}

}  // namespace
}  // namespace cpu
}  // namespace mmlocalattn

TORCH_LIBRARY_IMPL(mmlocalattn, CPU, m) {
  m.impl("sparse_scan_attention", &mmlocalattn::cpu::sparse_scan_attention_cpu);
  m.impl("_sparse_scan_attention_backward", &mmlocalattn::cpu::sparse_scan_attention_backward_cpu);
}
