// CPU operator: sparse scan attention (SSViT), forward and backward.
//
//   inner  = NA(R query, R key, value;  local_kernel,  dilation 1)
//   output = NA(R query, R key, inner;  anchor_kernel, anchor_dilation)          R: rotary
//   embedding
//
// A kernel of 1 skips its step. Query and key are rotated once for both steps, and their gradients
// once for both back.
#include <torch/library.h>

#include "attention.h"

namespace mmlocalattn {
namespace cpu {
namespace {

bool has_step(at::IntArrayRef kernel) { return kernel[0] != 1 || kernel[1] != 1; }

// The problems of both steps, which share the rotated query and key.
class Scan {
 public:
  Scan(const at::Tensor& query, const at::Tensor& key, const at::Tensor& value,
       const Rotary& rotary, at::IntArrayRef local_kernel, at::IntArrayRef anchor_kernel,
       at::IntArrayRef anchor_dilation, double scale)
      : query_(rotary.rotate(query)),
        key_(rotary.rotate(key)),
        value_(value.to(query_.scalar_type())),
        local_kernel_(local_kernel),
        anchor_kernel_(anchor_kernel),
        anchor_dilation_(anchor_dilation),
        scale_(scale) {}

  Problem local() const { return problem(value_, local_kernel_, {1, 1}); }
  Problem anchor(const at::Tensor& inner) const {
    return problem(has_step(local_kernel_) ? inner.to(value_.scalar_type()) : value_,
                   anchor_kernel_, anchor_dilation_);
  }

 private:
  Problem problem(const at::Tensor& value, at::IntArrayRef kernel, at::IntArrayRef dilation) const {
    return {query_,
            key_,
            value,
            at::Tensor(),
            {query_.size(1), kernel[0], dilation[0]},
            {query_.size(2), kernel[1], dilation[1]},
            scale_};
  }

  at::Tensor query_, key_, value_;
  at::IntArrayRef local_kernel_, anchor_kernel_, anchor_dilation_;
  double scale_;
};

Rotary make_rotary(const std::optional<at::Tensor>& sin, const std::optional<at::Tensor>& cos) {
  return sin ? Rotary{*sin, *cos} : Rotary{};
}

std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor> sparse_scan_attention_cpu(
    const at::Tensor& query, const at::Tensor& key, const at::Tensor& value,
    const std::optional<at::Tensor>& sin, const std::optional<at::Tensor>& cos,
    at::IntArrayRef local_kernel, at::IntArrayRef anchor_kernel, at::IntArrayRef anchor_dilation,
    double scale) {
  const auto none = at::empty({0}, query.options().dtype(at::toOpMathType(query.scalar_type())));
  at::Tensor output, inner = at::empty({0}, query.options());
  at::Tensor local_logsumexp = none, anchor_logsumexp = none.clone();
  const bool has_local = has_step(local_kernel), has_anchor = has_step(anchor_kernel);
  if (!has_local && !has_anchor) {
    return {value.clone(at::MemoryFormat::Contiguous), inner, local_logsumexp, anchor_logsumexp};
  }
  const Scan scan(query, key, value, make_rotary(sin, cos), local_kernel, anchor_kernel,
                  anchor_dilation, scale);
  if (has_local) std::tie(output, local_logsumexp) = attend(scan.local());
  if (has_anchor) {
    if (has_local) inner = output;
    std::tie(output, anchor_logsumexp) = attend(scan.anchor(inner));
  }
  const auto dtype = query.scalar_type();
  return {output.to(dtype), inner.to(dtype), local_logsumexp, anchor_logsumexp};
}

std::tuple<at::Tensor, at::Tensor, at::Tensor> sparse_scan_attention_backward_cpu(
    const at::Tensor& grad_output, const at::Tensor& query, const at::Tensor& key,
    const at::Tensor& value, const std::optional<at::Tensor>& sin,
    const std::optional<at::Tensor>& cos, const at::Tensor& output, const at::Tensor& inner,
    const at::Tensor& local_logsumexp, const at::Tensor& anchor_logsumexp,
    at::IntArrayRef local_kernel, at::IntArrayRef anchor_kernel, at::IntArrayRef anchor_dilation,
    double scale) {
  const bool has_local = has_step(local_kernel), has_anchor = has_step(anchor_kernel);
  if (!has_local && !has_anchor) {
    return {at::zeros_like(query, at::MemoryFormat::Contiguous),
            at::zeros_like(key, at::MemoryFormat::Contiguous),
            grad_output.clone(at::MemoryFormat::Contiguous)};
  }
  const Rotary rotary = make_rotary(sin, cos);
  const Scan scan(query, key, value, rotary, local_kernel, anchor_kernel, anchor_dilation, scale);
  Grads grads;
  if (has_anchor) {
    grads = attend_backward(scan.anchor(inner), grad_output, output, anchor_logsumexp,
                            /*rounded=*/false);
  }
  if (has_local) {
    grads = attend_backward(scan.local(), has_anchor ? grads.value : grad_output,
                            has_anchor ? inner : output, local_logsumexp, /*rounded=*/false, grads);
  }
  const auto dtype = query.scalar_type();
  return {rotary.rotate_back(grads.query, dtype), rotary.rotate_back(grads.key, dtype),
          grads.value.to(dtype)};
}

}  // namespace
}  // namespace cpu
}  // namespace mmlocalattn

TORCH_LIBRARY_IMPL(mmlocalattn, CPU, m) {
  m.impl("sparse_scan_attention", &mmlocalattn::cpu::sparse_scan_attention_cpu);
  m.impl("_sparse_scan_attention_backward", &mmlocalattn::cpu::sparse_scan_attention_backward_cpu);
}
