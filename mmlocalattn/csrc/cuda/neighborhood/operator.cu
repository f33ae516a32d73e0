// Neighborhood attention on CUDA, tensors in and out: see problem.cuh.
#include <torch/library.h>

#include "operator.cuh"
#include "problem.cuh"

namespace mmlocalattn::cuda::neighborhood {
namespace {

using at::IntArrayRef;
using at::Tensor;

// Only what would corrupt memory; the public function checks for users, data_ptr checks types.
void check(const Call& call, at::TensorList others) {
  const Tensor& query = call.query;
  TORCH_CHECK(query.dim() == 5, "expected (B, H, W, num_heads, head_dim), got ", query.sizes());
  check_like(call.key, query.sizes(), query);
  check_like(call.value, query.sizes(), query);
  for (const Tensor& other : others) {
    check_like(other, query.sizes(), query);
  }
  for (int axis = 0; axis < 2; ++axis) {
    const int64_t kernel = call.kernel_size[axis], dilation = call.dilation[axis];
    TORCH_CHECK(
        kernel > 0 && kernel % 2 == 1 && dilation > 0 && kernel * dilation <= query.size(axis + 1),
        "window does not fit or is even, got kernel_size=", call.kernel_size,
        ", dilation=", call.dilation, " for ", query.sizes());
  }
  if (call.bias.defined()) {
    check_like(call.bias, {query.size(3), 2 * call.kernel_size[0] - 1, 2 * call.kernel_size[1] - 1},
               query);
  }
}

bool is_tiled(const Call& call) { return has_tiles(call.query, call.bias); }

Tensor pack(const Tensor& tensor, bool is_tiled) {
  return is_tiled ? aligned_rows(tensor) : aligned_contiguous(tensor);
}

// The call with tensors as its kernels read them.
Call pack(const Call& call) {
  const bool tiled = is_tiled(call);
  return {pack(call.query, tiled),
          pack(call.key, tiled),
          pack(call.value, tiled),
          call.bias.defined() ? call.bias.contiguous() : call.bias,
          call.kernel_size,
          call.dilation,
          call.scale};
}

// Takes a call from pack().
template <typename query_t, typename value_t>
Problem<query_t, value_t> describe(const Call& call) {
  const Tensor& query = call.query;
  Problem<query_t, value_t> problem{};
  problem.rows = {query.size(1), call.kernel_size[0], call.dilation[0]};
  problem.cols = {query.size(2), call.kernel_size[1], call.dilation[1]};
  problem.batch = query.size(0);
  problem.heads = query.size(3);
  problem.head_dim = query.size(4);
  problem.scale = static_cast<at::opmath_type<value_t>>(call.scale);
  problem.query = source<query_t>(query);
  problem.key = source<query_t>(call.key);
  problem.value = source<value_t>(call.value);
  problem.bias = call.bias.defined() ? call.bias.const_data_ptr<value_t>() : nullptr;
  return problem;
}

template <typename T>
Gradient<T> describe(const GradientTensors& tensors) {
  using accum_t = at::opmath_type<T>;
  Gradient<T> gradient{};
  if (tensors.grad.defined()) {
    gradient.grad = tensors.grad.mutable_data_ptr<T>();
  }
  if (tensors.sum.defined()) {
    gradient.sum = tensors.sum.mutable_data_ptr<accum_t>();
  }
  if (tensors.sin.defined()) {
    gradient.sin = tensors.sin.const_data_ptr<accum_t>();
    gradient.cos = tensors.cos.const_data_ptr<accum_t>();
  }
  return gradient;
}

// Calls body(query_t(), value_t()); query has the type of value or its accumulation type.
template <typename Body>
void dispatch(const Call& call, const Body& body) {
  const at::ScalarType type = call.value.scalar_type();
  AT_DISPATCH_FLOATING_TYPES_AND2(at::kHalf, at::kBFloat16, type, "neighborhood_attention", [&] {
    if (call.query.scalar_type() == type) {
      body(scalar_t(), scalar_t());
    } else {
      body(at::opmath_type<scalar_t>(), scalar_t());
    }
  });
}

}  // namespace

std::tuple<Tensor, Tensor> attend(const Call& caller) {
  check(caller, {});
  const c10::cuda::CUDAGuard device_guard(caller.query.device());
  const Call call = pack(caller);
  const Tensor output = at::empty(call.value.sizes(), call.value.options());
  const Tensor logsumexp =
      at::empty(logsumexp_sizes(call.query),
                call.query.options().dtype(at::toOpMathType(call.query.scalar_type())));
  if (output.numel() == 0) {
    return {output, logsumexp};
  }
  dispatch(call, [&](auto query_type, auto value_type) {
    using query_t = decltype(query_type);
    using value_t = decltype(value_type);
    launch_forward(describe<query_t, value_t>(call), is_tiled(call),
                   output.mutable_data_ptr<value_t>(),
                   logsumexp_of<at::opmath_type<value_t>>(logsumexp));
  });
  return {output, logsumexp};
}

std::tuple<Tensor, Tensor> attend_backward(const Call& caller, const Tensor& grad_output_,
                                           const Tensor& output_, const Tensor& logsumexp_,
                                           const GradientTensors& grad_query,
                                           const GradientTensors& grad_key) {
  check(caller, {grad_output_, output_});
  check_like(logsumexp_, logsumexp_sizes(caller.query), caller.query);
  const c10::cuda::CUDAGuard device_guard(caller.query.device());
  const Call call = pack(caller);
  const bool tiled = is_tiled(call);
  const Tensor grad_output = pack(grad_output_, tiled), output = pack(output_, tiled);
  const Tensor logsumexp = aligned_contiguous(logsumexp_);
  const Tensor grad_value = at::empty(call.value.sizes(), call.value.options());
  const Tensor grad_bias =
      call.bias.defined() ? at::empty(call.bias.sizes(), call.bias.options()) : Tensor();
  if (grad_value.numel() == 0) {
    return {grad_value, grad_bias.defined() ? grad_bias.zero_() : grad_bias};
  }
  dispatch(call, [&](auto query_type, auto value_type) {
    using query_t = decltype(query_type);
    using value_t = decltype(value_type);
    using accum_t = at::opmath_type<value_t>;
    auto problem = describe<query_t, value_t>(call);
    problem.grad_output = source<value_t>(grad_output);
    problem.output = source<value_t>(output);
    problem.logsumexp = logsumexp_of<accum_t>(logsumexp);
    const Tensor workspace = at::empty({backward_numbers(problem, tiled)}, logsumexp.options());
    launch_backward(problem, tiled, describe<value_t>(grad_query), describe<value_t>(grad_key),
                    grad_value.mutable_data_ptr<value_t>(),
                    grad_bias.defined() ? grad_bias.mutable_data_ptr<value_t>() : nullptr,
                    workspace.mutable_data_ptr<accum_t>());
  });
  return {grad_value, grad_bias};
}

namespace {

std::tuple<Tensor, Tensor> neighborhood_attention_cuda(const Tensor& query, const Tensor& key,
                                                       const Tensor& value,
                                                       const OptionalTensor& bias,
                                                       IntArrayRef kernel_size,
                                                       IntArrayRef dilation, double scale) {
  return attend({query, key, value, bias.value_or(Tensor()), kernel_size, dilation, scale});
}

std::tuple<Tensor, Tensor, Tensor, Tensor> neighborhood_attention_backward_cuda(
    const Tensor& grad_output, const Tensor& query, const Tensor& key, const Tensor& value,
    const OptionalTensor& bias, const Tensor& output, const Tensor& logsumexp,
    IntArrayRef kernel_size, IntArrayRef dilation, double scale) {
  const Tensor grad_query = at::empty(query.sizes(), query.options());
  const Tensor grad_key = at::empty(key.sizes(), key.options());
  const auto [grad_value, grad_bias] =
      attend_backward({query, key, value, bias.value_or(Tensor()), kernel_size, dilation, scale},
                      grad_output, output, logsumexp, {grad_query}, {grad_key});
  return {grad_query, grad_key, grad_value,
          grad_bias.defined() ? grad_bias : at::empty({0}, value.options())};
}

}  // namespace
}  // namespace mmlocalattn::cuda::neighborhood

TORCH_LIBRARY_IMPL(mmlocalattn, CUDA, m) {
  m.impl("neighborhood_attention", &mmlocalattn::cuda::neighborhood::neighborhood_attention_cuda);
  m.impl("_neighborhood_attention_backward",
         &mmlocalattn::cuda::neighborhood::neighborhood_attention_backward_cuda);
}
