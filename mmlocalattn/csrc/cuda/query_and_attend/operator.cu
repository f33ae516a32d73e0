// Query and attend on CUDA, tensors in and out: see problem.cuh.
#include <torch/library.h>

#include <vector>

#include "problem.cuh"

namespace mmlocalattn::cuda::query_and_attend {
namespace {

using at::IntArrayRef;
using at::Tensor;

struct Call {
  Tensor scores, values, bias, scale;  // ready for the kernels
  StridedAxis rows, cols;

  std::vector<int64_t> window_sizes(const Tensor& like) const {
    return {values.size(0), rows.windows(), cols.windows(), like.size(3), like.size(4)};
  }
  std::vector<int64_t> logsumexp_sizes() const {
    auto sizes = window_sizes(scores);
    sizes.push_back(2);
    return sizes;
  }
};

// The public function checks its arguments and says what is wrong; this only keeps direct calls of
// the operator from touching memory that is not theirs.
Call make_call(const Tensor& scores, const Tensor& values, const OptionalTensor& bias,
               const OptionalTensor& scale, IntArrayRef kernel_size, int64_t stride) {
  TORCH_CHECK(scores.dim() == 5 && values.dim() == 5 &&
                  scores.sizes().slice(0, 3) == values.sizes().slice(0, 3) &&
                  scores.size(4) == values.size(3) && values.size(1) > 0 && values.size(2) > 0 &&
                  scores.size(3) > 0 && values.size(4) > 0 &&
                  scores.scalar_type() == values.scalar_type() &&
                  scores.device() == values.device(),
              "scores and values must have one map, num_heads, dtype and device, got ",
              scores.sizes(), " and ", values.sizes());
  TORCH_CHECK(stride == 1 || stride == 2, "cannot use stride ", stride);
  for (const int64_t kernel : kernel_size) {
    TORCH_CHECK(kernel > 0 && kernel % 2 == 1 && kernel <= kMostKernel, "cannot use a window of ",
                kernel, " positions");
  }
  const std::vector<int64_t> sizes{scores.size(3), scores.size(4), kernel_size[0], kernel_size[1]};
  const auto options = values.options().dtype(at::toOpMathType(values.scalar_type()));
  const auto table_of = [&](const OptionalTensor& table, double otherwise) {
    if (!table) {
      return at::full(sizes, otherwise, options);
    }
    TORCH_CHECK(table->sizes() == sizes && table->device() == values.device(),
                "a table must have shape ", IntArrayRef(sizes), " on ", values.device(), ", got ",
                table->sizes(), " on ", table->device());
    return table->to(options).contiguous();
  };
  return {unit_channels(scores),
          unit_channels(values),
          table_of(bias, 0),
          table_of(scale, 1),
          {values.size(1), kernel_size[0], stride},
          {values.size(2), kernel_size[1], stride}};
}

BasicStridedAxis<int> to_int(const StridedAxis& axis) {
  return {static_cast<int>(axis.length), static_cast<int>(axis.kernel),
          static_cast<int>(axis.stride)};
}

template <typename T>
Problem<T> describe(const Call& call) {
  using accum_t = at::opmath_type<T>;
  Problem<T> problem{};
  problem.rows = to_int(call.rows);
  problem.cols = to_int(call.cols);
  problem.batch = call.values.size(0);
  problem.heads = call.values.size(3);
  problem.queries = call.scores.size(3);
  problem.dim = call.values.size(4);
  problem.values = input_map<T>(call.values);
  problem.scores = input_map<T>(call.scores);
  problem.bias = call.bias.const_data_ptr<accum_t>();
  problem.scale = call.scale.const_data_ptr<accum_t>();
  return problem;
}

// Calls body(T()) with the dtype.
template <typename Body>
void dispatch(const Tensor& values, const Body& body) {
  AT_DISPATCH_FLOATING_TYPES_AND2(at::kHalf, at::kBFloat16, values.scalar_type(),
                                  "query_and_attend_cuda", [&] { body(scalar_t()); });
}

std::tuple<Tensor, Tensor> query_and_attend_cuda(const Tensor& scores, const Tensor& values,
                                                 const OptionalTensor& bias,
                                                 const OptionalTensor& scale,
                                                 IntArrayRef kernel_size, int64_t stride) {
  const c10::cuda::CUDAGuard guard(values.device());
  const Call call = make_call(scores, values, bias, scale, kernel_size, stride);
  const Tensor output = at::empty(call.window_sizes(values), values.options());
  const Tensor logsumexp = at::empty(call.logsumexp_sizes(), call.bias.options());
  dispatch(values, [&](auto type) {
    using T = decltype(type);
    auto problem = describe<T>(call);
    problem.output = result_map<T>(output);
    launch_forward(problem, logsumexp_of<at::opmath_type<T>>(logsumexp));
  });
  return {output, logsumexp};
}

std::tuple<Tensor, Tensor, Tensor, Tensor> query_and_attend_backward_cuda(
    const Tensor& grad_output, const Tensor& scores, const Tensor& values,
    const OptionalTensor& bias, const OptionalTensor& scale, const Tensor& logsumexp,
    IntArrayRef kernel_size, int64_t stride) {
  const c10::cuda::CUDAGuard guard(values.device());
  const Call call = make_call(scores, values, bias, scale, kernel_size, stride);
  TORCH_CHECK(grad_output.sizes() == call.window_sizes(values) &&
                  logsumexp.sizes() == call.logsumexp_sizes() &&
                  grad_output.device() == values.device() && logsumexp.device() == values.device(),
              "grad_output and logsumexp must belong to scores and values");
  const Tensor ready_grad = unit_channels(grad_output.to(values.options())),
               ready_logsumexp = aligned_contiguous(logsumexp.to(call.bias.options()));
  const Tensor delta = at::empty(call.window_sizes(scores), call.bias.options());
  const Tensor grad_scores = at::empty(scores.sizes(), scores.options()),
               grad_values = at::empty(values.sizes(), values.options());
  Tensor parts;
  dispatch(values, [&](auto type) {
    using T = decltype(type);
    using accum_t = at::opmath_type<T>;
    auto problem = describe<T>(call);
    problem.grad_output = input_map<T>(ready_grad);
    problem.logsumexp = logsumexp_of<accum_t>(ready_logsumexp);
    parts = at::empty({problem.position_tiles(), problem.queries, problem.heads, 2, kernel_size[0],
                       kernel_size[1]},
                      call.bias.options());
    launch_backward(problem, delta.mutable_data_ptr<accum_t>(), grad_scores.mutable_data_ptr<T>(),
                    result_map<T>(grad_values), parts.mutable_data_ptr<accum_t>());
  });
  const Tensor grad_tables = parts.sum(0);
  const auto of_table = [&](const OptionalTensor& table, int64_t index) {
    return table ? grad_tables.select(2, index).to(table->scalar_type()).contiguous()
                 : at::empty({0}, values.options());
  };
  return {grad_scores, grad_values, of_table(bias, 0), of_table(scale, 1)};
}

}  // namespace
}  // namespace mmlocalattn::cuda::query_and_attend

TORCH_LIBRARY_IMPL(mmlocalattn, CUDA, m) {
  m.impl("query_and_attend", &mmlocalattn::cuda::query_and_attend::query_and_attend_cuda);
  m.impl("_query_and_attend_backward",
         &mmlocalattn::cuda::query_and_attend::query_and_attend_backward_cuda);
}
