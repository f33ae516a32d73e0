// Sparse scan attention on CUDA, forward and backward. NA is neighborhood attention without bias.
//
//   q' = R query    k' = R key    inner = NA(q', k', value; local_kernel, 1)
//   output = NA(q', k', inner; anchor_kernel, anchor_dilation)
//
// R rotates adjacent channel pairs of every vector of the map by its position's angles:
//   x'[2c] = x[2c] cos[2c] - x[2c+1] sin[2c]    x'[2c+1] = x[2c+1] cos[2c+1] + x[2c] sin[2c+1]
//
// Memory, all contiguous:
//   query key value inner output, their gradients   (batch, height, width, heads, head_dim)
//   q' k', their gradients                          the same; accumulation type if rotated
//   sin cos                                         (height, width, head_dim), accumulation type
//   local_logsumexp anchor_logsumexp                (batch, height, width, heads)
//
// Work split: q' and k' are written once, one thread per channel pair, and serve both steps, which
// are the kernels of neighborhood_kernel.cu. Backward runs the steps in reverse order, adds up the
// gradients of q' and k', and rotates them back once.
#include <torch/library.h>

#include "neighborhood.cuh"

namespace mmlocalattn {
namespace {

using at::Tensor;

// output = R input or, for gradients, its transpose. `positions` is height * width.
template <typename input_t, typename output_t>
__global__ void __launch_bounds__(kThreads)
    rotate_pairs_kernel(int64_t pairs, int64_t positions, int64_t heads, int64_t head_dim,
                        bool transpose, const input_t* input, const at::opmath_type<input_t>* sin,
                        const at::opmath_type<input_t>* cos, output_t* output) {
  using accum_t = at::opmath_type<input_t>;
  for (int64_t pair = grid_thread(); pair < pairs; pair += grid_threads()) {
    const int64_t token = pair / (head_dim / 2), channel = pair % (head_dim / 2) * 2;
    const int64_t angle = token / heads % positions * head_dim + channel;
    const accum_t even = static_cast<accum_t>(input[2 * pair]);
    const accum_t odd = static_cast<accum_t>(input[2 * pair + 1]);
    const accum_t from_odd = transpose ? sin[angle + 1] : -sin[angle];
    const accum_t from_even = transpose ? -sin[angle] : sin[angle + 1];
    output[2 * pair] = static_cast<output_t>(even * cos[angle] + odd * from_odd);
    output[2 * pair + 1] = static_cast<output_t>(odd * cos[angle + 1] + even * from_even);
  }
}

template <typename input_t, typename output_t>
void launch_rotate_pairs(bool transpose, const Tensor& input, const Tensor& sin, const Tensor& cos,
                         const Tensor& output) {
  using accum_t = at::opmath_type<input_t>;
  const int64_t positions = input.size(1) * input.size(2), pairs = input.numel() / 2;
  launch(rotate_pairs_kernel<input_t, output_t>, pairs, pairs, positions, input.size(3),
         input.size(4), transpose, input.const_data_ptr<input_t>(), sin.const_data_ptr<accum_t>(),
         cos.const_data_ptr<accum_t>(), output.mutable_data_ptr<output_t>());
}

// The rotation of all the tensors of one call, or nothing.
class Rotary {
 public:
  Rotary(const Tensor& query, const std::optional<Tensor>& sin, const std::optional<Tensor>& cos)
      : dtype_(query.scalar_type()),
        accum_dtype_(at::toOpMathType(dtype_)),
        enabled_(sin.has_value()) {
    TORCH_CHECK(sin.has_value() == cos.has_value(), "rotary needs sin and cos");
    if (enabled_) {
      TORCH_CHECK(query.dim() == 5 && query.size(4) % 2 == 0, "rotary needs an even head_dim, got ",
                  query.sizes());
      check_like(*sin, {query.size(1), query.size(2), query.size(4)}, query);
      check_like(*cos, sin->sizes(), query);
      sin_ = sin->to(accum_dtype_).contiguous();
      cos_ = cos->to(accum_dtype_).contiguous();
    }
  }

  // Query or key, ready for both steps.
  Tensor rotate(const Tensor& tensor) const {
    return enabled_ ? run(false, tensor, accum_dtype_) : tensor;
  }

  // Gradient of what rotate() got from the gradient of what it returned.
  Tensor rotate_back(const Tensor& grad) const { return enabled_ ? run(true, grad, dtype_) : grad; }

 private:
  Tensor run(bool transpose, const Tensor& tensor, at::ScalarType dtype) const {
    const Tensor input = tensor.contiguous();
    const Tensor output = at::empty(input.sizes(), input.options().dtype(dtype));
    AT_DISPATCH_FLOATING_TYPES_AND2(
        at::kHalf, at::kBFloat16, dtype_, "sparse_scan_attention_cuda", [&] {
          using accum_t = at::opmath_type<scalar_t>;
          if (transpose) {
            launch_rotate_pairs<accum_t, scalar_t>(transpose, input, sin_, cos_, output);
          } else {
            launch_rotate_pairs<scalar_t, accum_t>(transpose, input, sin_, cos_, output);
          }
        });
    return output;
  }

  at::ScalarType dtype_, accum_dtype_;
  bool enabled_;
  Tensor sin_, cos_;
};

// A kernel of one tap skips its step.
bool has_step(at::IntArrayRef kernel_size) { return kernel_size[0] != 1 || kernel_size[1] != 1; }

}  // namespace

std::tuple<Tensor, Tensor, Tensor, Tensor> sparse_scan_attention_cuda(
    const Tensor& query, const Tensor& key, const Tensor& value, const std::optional<Tensor>& sin,
    const std::optional<Tensor>& cos, at::IntArrayRef local_kernel, at::IntArrayRef anchor_kernel,
    at::IntArrayRef anchor_dilation, double scale) {
  const c10::cuda::CUDAGuard device_guard(query.device());
  const bool has_local = has_step(local_kernel), has_anchor = has_step(anchor_kernel);
  const auto accum_options = query.options().dtype(at::toOpMathType(query.scalar_type()));
  Tensor output, inner = at::empty({0}, query.options());
  Tensor local_logsumexp = at::empty({0}, accum_options);
  Tensor anchor_logsumexp = at::empty({0}, accum_options);
  if (!has_local && !has_anchor) {
    return {value.clone(at::MemoryFormat::Contiguous), inner, local_logsumexp, anchor_logsumexp};
  }
  const Rotary rotary(query, sin, cos);
  const Tensor rotated_query = rotary.rotate(query), rotated_key = rotary.rotate(key);
  if (has_local) {
    std::tie(output, local_logsumexp) = neighborhood_attention_cuda(
        rotated_query, rotated_key, value, std::nullopt, local_kernel, {1, 1}, scale);
  }
  if (has_anchor) {
    inner = has_local ? output : inner;
    std::tie(output, anchor_logsumexp) =
        neighborhood_attention_cuda(rotated_query, rotated_key, has_local ? inner : value,
                                    std::nullopt, anchor_kernel, anchor_dilation, scale);
  }
  return {output, inner, local_logsumexp, anchor_logsumexp};
}

std::tuple<Tensor, Tensor, Tensor> sparse_scan_attention_backward_cuda(
    const Tensor& grad_output, const Tensor& query, const Tensor& key, const Tensor& value,
    const std::optional<Tensor>& sin, const std::optional<Tensor>& cos, const Tensor& output,
    const Tensor& inner, const Tensor& local_logsumexp, const Tensor& anchor_logsumexp,
    at::IntArrayRef local_kernel, at::IntArrayRef anchor_kernel, at::IntArrayRef anchor_dilation,
    double scale) {
  const c10::cuda::CUDAGuard device_guard(query.device());
  const bool has_local = has_step(local_kernel), has_anchor = has_step(anchor_kernel);
  if (!has_local && !has_anchor) {
    return {at::zeros(query.sizes(), query.options()), at::zeros(key.sizes(), key.options()),
            grad_output.clone(at::MemoryFormat::Contiguous)};
  }
  const Rotary rotary(query, sin, cos);
  const Tensor rotated_query = rotary.rotate(query), rotated_key = rotary.rotate(key);
  Tensor grad_query, grad_key, grad_value = grad_output;
  if (has_anchor) {
    std::tie(grad_query, grad_key, grad_value, std::ignore) = neighborhood_attention_backward_cuda(
        grad_value, rotated_query, rotated_key, has_local ? inner : value, std::nullopt, output,
        anchor_logsumexp, anchor_kernel, anchor_dilation, scale);
  }
  if (has_local) {
    const Tensor anchor_grad_query = grad_query, anchor_grad_key = grad_key;
    std::tie(grad_query, grad_key, grad_value, std::ignore) = neighborhood_attention_backward_cuda(
        grad_value, rotated_query, rotated_key, value, std::nullopt, has_anchor ? inner : output,
        local_logsumexp, local_kernel, {1, 1}, scale);
    if (has_anchor) {
      grad_query += anchor_grad_query;
      grad_key += anchor_grad_key;
    }
  }
  return {rotary.rotate_back(grad_query), rotary.rotate_back(grad_key), grad_value};
}

}  // namespace mmlocalattn

TORCH_LIBRARY_IMPL(mmlocalattn, CUDA, m) {
  m.impl("sparse_scan_attention", &mmlocalattn::sparse_scan_attention_cuda);
  m.impl("_sparse_scan_attention_backward", &mmlocalattn::sparse_scan_attention_backward_cuda);
}
