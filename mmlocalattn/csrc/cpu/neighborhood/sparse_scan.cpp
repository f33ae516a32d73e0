// CPU operator: sparse scan attention (SSViT), forward and backward.
//
//   inner  = NA(R query, R key, value;  local_kernel,  dilation 1)
//   output = NA(R query, R key, inner;  anchor_kernel, anchor_dilation)      R: rotary tables
//
// A kernel of 1 skips its step. Query and key are rotated once for both steps, and their gradients
// once for both back.
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <ATen/ops/zeros_like.h>
#include <torch/library.h>

#include <tuple>
#include <vector>

#include "cpu/neighborhood/operator.h"
#include "cpu/neighborhood/piece.h"

namespace mmlocalattn::cpu::neighborhood {
namespace {

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

// Rotates `input` to `output`, both (B, H, W, num_heads, head_dim) with unit stride of channels.
template <typename In, typename Out>
void rotate_map(const at::Tensor& input, const at::Tensor& output, const Rotary& rotary,
                void (*kernel)(const RotaryRow<In, Out>&), bool transpose) {
  const auto sin = rotary.sin.to(at::toOpMathType(input.scalar_type())).contiguous(),
             cos = rotary.cos.to(sin.scalar_type()).contiguous();
  const std::vector<int64_t> table{input.size(1), input.size(2), input.size(4)};
  TORCH_CHECK(sin.sizes() == table && cos.sizes() == table && table[2] % 2 == 0,
              "rotary tables must have shape ", at::IntArrayRef(table), " with an even head_dim");
  const int64_t height = table[0], heads = input.size(3);
  at::parallel_for(0, input.size(0) * height * heads, 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const int64_t head = i % heads, y = i / heads % height, b = i / heads / height;
      const auto row = [&](auto* data, const at::Tensor& map) {
        return data + b * map.stride(0) + y * map.stride(1) + head * map.stride(3);
      };
      kernel({row(data_of<const In>(input), input), row(data_of<Out>(output), output),
              input.stride(2), output.stride(2),
              data_of<const Compute<In>>(sin) + y * sin.stride(0),
              data_of<const Compute<In>>(cos) + y * cos.stride(0), table[1], table[2], transpose});
    }
  });
}

at::Tensor Rotary::rotate(const at::Tensor& map) const {
  if (!sin.defined()) return map;
  at::Tensor output;
  dispatch(map.scalar_type(), [&](auto type) {
    using T = decltype(type);
    const auto input = ready(map);
    output = at::empty_like(input.permute({0, 3, 1, 2, 4}), at::MemoryFormat::Contiguous)
                 .permute({0, 2, 3, 1, 4});
    rotate_map<T, T>(input, output, *this, kernels<T>().rotate, /*transpose=*/false);
  });
  return output;
}

at::Tensor Rotary::rotate_back(const at::Tensor& grad, at::ScalarType dtype) const {
  if (!sin.defined()) return grad.to(dtype);
  at::Tensor output;
  dispatch(dtype, [&](auto type) {
    using T = decltype(type);
    output = at::empty(grad.sizes(), grad.options().dtype(kernel_type(dtype)));
    rotate_map<Compute<T>, T>(grad, output, *this, kernels<T>().rotate_gradient,
                              /*transpose=*/true);
  });
  return output.to(dtype);
}

bool has_step(at::IntArrayRef kernel) { return kernel[0] != 1 || kernel[1] != 1; }

// The problems of both steps, which share the rotated query and key.
class Scan {
 public:
  Scan(const at::Tensor& query, const at::Tensor& key, const at::Tensor& value,
       const Rotary& rotary, at::IntArrayRef local_kernel, at::IntArrayRef anchor_kernel,
       at::IntArrayRef anchor_dilation, double scale)
      : query_(rotary.rotate(query)),
        key_(rotary.rotate(key)),
        value_(in_dtype(value, query_.scalar_type())),
        local_kernel_(local_kernel),
        anchor_kernel_(anchor_kernel),
        anchor_dilation_(anchor_dilation),
        scale_(scale) {}

  Problem local() const { return problem(value_, local_kernel_, {1, 1}); }
  Problem anchor(const at::Tensor& inner) const {
    return problem(has_step(local_kernel_) ? in_dtype(inner, value_.scalar_type()) : value_,
                   anchor_kernel_, anchor_dilation_);
  }

 private:
  Problem problem(const at::Tensor& value, at::IntArrayRef kernel, at::IntArrayRef dilation) const {
    return {{query_, key_, value}, at::Tensor(), kernel, dilation, scale_};
  }

  at::Tensor query_, key_, value_;
  at::IntArrayRef local_kernel_, anchor_kernel_, anchor_dilation_;
  double scale_;
};

Rotary make_rotary(const OptionalTensor& sin, const OptionalTensor& cos) {
  return sin ? Rotary{*sin, *cos} : Rotary{};
}

std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor> sparse_scan_attention_cpu(
    const at::Tensor& query, const at::Tensor& key, const at::Tensor& value,
    const OptionalTensor& sin, const OptionalTensor& cos, at::IntArrayRef local_kernel,
    at::IntArrayRef anchor_kernel, at::IntArrayRef anchor_dilation, double scale) {
  const auto dtype = query.scalar_type();
  at::Tensor output, inner, local_logsumexp, anchor_logsumexp;
  if (has_step(local_kernel) || has_step(anchor_kernel)) {
    const Scan scan(query, key, value, make_rotary(sin, cos), local_kernel, anchor_kernel,
                    anchor_dilation, scale);
    if (has_step(local_kernel)) std::tie(output, local_logsumexp) = attend(scan.local());
    if (has_step(anchor_kernel)) {
      inner = output;
      std::tie(output, anchor_logsumexp) = attend(scan.anchor(inner));
    }
  } else {
    output = make_empty(value.sizes(), dtype).copy_(value);
  }
  const auto or_none = [](const at::Tensor& tensor, at::ScalarType dtype) {
    return tensor.defined() ? in_dtype(tensor, dtype) : make_empty({0}, dtype);
  };
  return {in_dtype(output, dtype), or_none(inner, dtype),
          or_none(local_logsumexp, at::toOpMathType(dtype)),
          or_none(anchor_logsumexp, at::toOpMathType(dtype))};
}

std::tuple<at::Tensor, at::Tensor, at::Tensor> sparse_scan_attention_backward_cpu(
    const at::Tensor& grad_output, const at::Tensor& query, const at::Tensor& key,
    const at::Tensor& value, const OptionalTensor& sin, const OptionalTensor& cos,
    const at::Tensor& output, const at::Tensor& inner, const at::Tensor& local_logsumexp,
    const at::Tensor& anchor_logsumexp, at::IntArrayRef local_kernel, at::IntArrayRef anchor_kernel,
    at::IntArrayRef anchor_dilation, double scale) {
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
}  // namespace mmlocalattn::cpu::neighborhood

TORCH_LIBRARY_IMPL(mmlocalattn, CPU, m) {
  m.impl("sparse_scan_attention", &mmlocalattn::cpu::neighborhood::sparse_scan_attention_cpu);
  m.impl("_sparse_scan_attention_backward",
         &mmlocalattn::cpu::neighborhood::sparse_scan_attention_backward_cpu);
}
