// Slide attention on CUDA, tensors in and out: see problem.cuh.
#include <torch/library.h>

#include "problem.cuh"

namespace mmlocalattn::cuda::slide {
namespace {

using at::Tensor;

// One call of the operator, its tensors as the caller has them. Undefined biases are none.
struct Call {
  Tensor query, key, value, weight, bias, position_bias;
  double scale;

  int64_t kernel_size() const { return weight.size(3); }
  int64_t taps() const { return weight.size(1); }
  at::TensorOptions accumulate() const {
    return query.options().dtype(at::toOpMathType(query.scalar_type()));
  }
};

// The public function checks its arguments; this only keeps direct calls from corrupting memory.
void check(const Call& call) {
  const Tensor& query = call.query;
  TORCH_CHECK(query.dim() == 5, "expected (B, H, W, num_heads, head_dim), got ", query.sizes());
  for (const Tensor& other : {call.key, call.value}) {
    check_like(other, query.sizes(), query);
    TORCH_CHECK(other.scalar_type() == query.scalar_type(),
                "query, key and value must have one dtype");
  }
  const int64_t dim = query.size(4), k = call.weight.size(-1);
  TORCH_CHECK(k == 3 || k == 5 || k == 7, "the kernel size must be 3, 5 or 7, got ", k);
  check_like(call.weight, {dim, k * k, k, k}, query);
  if (call.bias.defined()) {
    check_like(call.bias, {dim, k * k}, query);
  }
  if (call.position_bias.defined()) {
    check_like(call.position_bias, {query.size(3), k, k}, query);
  }
}

// The inputs as the kernels read them.
struct Inputs {
  Tensor query, key, value, table, position_bias;

  explicit Inputs(const Call& call)
      : query(unit_channels(call.query)),
        key(unit_channels(call.key)),
        value(unit_channels(call.value)) {
    const auto options = call.accumulate();
    const int64_t dim = query.size(4), taps = call.taps();
    const Tensor weight = call.weight.to(options.dtype()).reshape({dim, taps, taps});
    const Tensor bias = call.bias.defined() ? call.bias.to(options.dtype()).unsqueeze(1)
                                            : at::zeros({dim, 1, taps}, options);
    const Tensor rows = at::cat({weight.transpose(1, 2), bias}, 1);
    const auto padding = [](int64_t size, int64_t unit) { return (unit - size % unit) % unit; };
    table = at::constant_pad_nd(rows, {0, padding(taps, 4), 0, 0, 0, padding(dim, kTableUnit)})
                .contiguous();
    position_bias = call.position_bias.defined()
                        ? call.position_bias.to(options.dtype()).contiguous()
                        : at::zeros({query.size(3), taps}, options);
  }

  template <typename T>
  Problem<T> describe(const Call& call, const Tensor& logsumexp) const {
    using accum_t = at::opmath_type<T>;
    Problem<T> problem{};
    problem.height = query.size(1);
    problem.width = query.size(2);
    problem.heads = query.size(3);
    problem.head_dim = query.size(4);
    problem.batch = query.size(0);
    problem.scale = static_cast<accum_t>(call.scale);
    problem.query = input_map<T>(query);
    problem.key = input_map<T>(key);
    problem.value = input_map<T>(value);
    problem.table = table.const_data_ptr<accum_t>();
    problem.position_bias = position_bias.const_data_ptr<accum_t>();
    problem.logsumexp = result_map<accum_t>(logsumexp);
    return problem;
  }
};

// Calls body(T()) with the dtype.
template <typename Body>
void dispatch(const Tensor& query, const Body& body) {
  AT_DISPATCH_FLOATING_TYPES_AND2(at::kHalf, at::kBFloat16, query.scalar_type(), "slide_attention",
                                  [&] { body(scalar_t()); });
}

std::tuple<Tensor, Tensor> slide_attention_cuda(const Tensor& query, const Tensor& key,
                                                const Tensor& value, const Tensor& weight,
                                                const OptionalTensor& bias,
                                                const OptionalTensor& position_bias, double scale) {
  const Call call{
      query, key, value, weight, bias.value_or(Tensor()), position_bias.value_or(Tensor()), scale};
  check(call);
  const c10::cuda::CUDAGuard device_guard(query.device());
  const Tensor output = at::empty(query.sizes(), query.options());
  const Tensor logsumexp = at::empty(logsumexp_sizes(query), call.accumulate());
  if (query.numel() == 0) {
    return {output, logsumexp};
  }
  const Inputs inputs(call);
  dispatch(query, [&](auto type) {
    using T = decltype(type);
    auto problem = inputs.describe<T>(call, logsumexp);
    problem.output = result_map<T>(output);
    launch_forward(problem, call.kernel_size());
  });
  return {output, logsumexp};
}

using SixTensors = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor>;

SixTensors slide_attention_backward_cuda(const Tensor& grad_output_, const Tensor& query,
                                         const Tensor& key, const Tensor& value,
                                         const Tensor& weight, const OptionalTensor& bias,
                                         const OptionalTensor& position_bias,
                                         const Tensor& logsumexp_, double scale) {
  const Call call{
      query, key, value, weight, bias.value_or(Tensor()), position_bias.value_or(Tensor()), scale};
  check(call);
  check_like(grad_output_, query.sizes(), query);
  check_like(logsumexp_, logsumexp_sizes(query), query);
  const c10::cuda::CUDAGuard device_guard(query.device());
  const auto options = call.accumulate();
  const int64_t dim = query.size(4), heads = query.size(3), taps = call.taps();
  const Tensor grad_query = at::empty(query.sizes(), query.options());
  const Tensor grad_key = at::empty(key.sizes(), key.options());
  const Tensor grad_value = at::empty(value.sizes(), value.options());
  Tensor grad_table = at::zeros({1, dim, taps + 1, taps}, options);
  Tensor grad_position_bias = at::zeros({heads, taps}, options);
  if (query.numel() > 0) {
    const Inputs inputs(call);
    const Tensor logsumexp = logsumexp_.contiguous();
    const Tensor grad_output = unit_channels(grad_output_.to(query.scalar_type()));
    dispatch(query, [&](auto type) {
      using T = decltype(type);
      using accum_t = at::opmath_type<T>;
      auto problem = inputs.describe<T>(call, logsumexp);
      const BackwardParts parts = backward_parts(problem, call.kernel_size());
      grad_table = at::empty({parts.table, dim, taps + 1, taps}, options);
      grad_position_bias = at::empty({parts.position_bias, taps}, options);
      problem.grad_output = input_map<T>(grad_output);
      problem.grad_query = result_map<T>(grad_query);
      problem.grad_key = result_map<T>(grad_key);
      problem.grad_value = result_map<T>(grad_value);
      problem.grad_table = grad_table.mutable_data_ptr<accum_t>();
      problem.grad_position_bias = grad_position_bias.mutable_data_ptr<accum_t>();
      launch_backward(problem, call.kernel_size());
    });
  }
  const Tensor table = grad_table.sum(0);  // (head_dim, taps + 1, taps)
  const auto own = [](const Tensor& part, const Tensor& like) {
    return part.reshape(like.sizes()).to(like.scalar_type()).clone(at::MemoryFormat::Contiguous);
  };
  const Tensor none = at::empty({0}, query.options());
  return {grad_query,
          grad_key,
          grad_value,
          own(table.narrow(1, 0, taps).transpose(1, 2), weight),
          bias ? own(table.select(1, taps), *bias) : none,
          position_bias ? own(grad_position_bias.view({-1, heads, taps}).sum(0), *position_bias)
                        : at::empty_like(none)};
}

}  // namespace
}  // namespace mmlocalattn::cuda::slide

TORCH_LIBRARY_IMPL(mmlocalattn, CUDA, m) {
  m.impl("slide_attention", &mmlocalattn::cuda::slide::slide_attention_cuda);
  m.impl("_slide_attention_backward", &mmlocalattn::cuda::slide::slide_attention_backward_cuda);
}
