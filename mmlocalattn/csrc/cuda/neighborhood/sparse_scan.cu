// Sparse scan attention on CUDA, forward and backward. NA is neighborhood attention without bias.
//
//   q' = R query    k' = R key    inner = NA(q', k', value; local_kernel, 1)
//   output = NA(q', k', inner; anchor_kernel, anchor_dilation)
//
// R rotates adjacent channel pairs of every vector of the map by its position's angles:
//   x'[2c] = x[2c] cos[2c] - x[2c+1] sin[2c]    x'[2c+1] = x[2c+1] cos[2c+1] + x[2c] sin[2c+1]
//
// Memory:
//   query key value inner output, their gradients   (batch, height, width, heads, head_dim)
//   q' k'                                           the same, contiguous
//   sin cos                                         (height, width, head_dim), accumulation type
//   local_logsumexp anchor_logsumexp                (batch, height, width, heads, 2)
//
// Work split: one launch writes q' and k', which serve both steps: 3 launches forward, 5 backward.
// They are rounded to the type of query where the tiled kernels need that, else they have its
// accumulation type. Backward runs the steps in reverse order; the kernels of the last one add the
// gradients of q' and k' of the other and rotate the sums back.
#include <torch/library.h>

#include "cuda/arithmetic.cuh"
#include "operator.cuh"
#include "problem.cuh"

namespace mmlocalattn::cuda::neighborhood {
namespace {

using at::IntArrayRef;
using at::Tensor;

constexpr int kThreads = 256;

// kCount numbers, as vectors of at most kCopyBytes.
template <typename T, int kCount>
struct Numbers {
  static constexpr int kMost = kCopyBytes / sizeof(T), kVector = kCount < kMost ? kCount : kMost;
  Channels<T, kVector> vectors[kCount / kVector];

  __device__ explicit Numbers(const T* from) {
#pragma unroll
    for (int i = 0; i < kCount / kVector; ++i) {
      vectors[i] = reinterpret_cast<const Channels<T, kVector>*>(from)[i];
    }
  }
  __device__ T& operator[](int i) { return vectors[i / kVector].of[i % kVector]; }
};

template <typename input_t, typename output_t>
struct Rotation {
  using accum_t = at::opmath_type<input_t>;

  int positions, row, head_dim;  // of an image; channels of a position and of a head
  int blocks;                    // of an image
  Source<input_t> query, key;
  const accum_t *sin, *cos;
  output_t *rotated_query, *rotated_key;
};

// One thread per kCount channels, some pairs, of a position, of both query and key.
template <int kCount, typename input_t, typename output_t>
__global__ void __launch_bounds__(kThreads) rotate_kernel(Rotation<input_t, output_t> rotation) {
  using accum_t = at::opmath_type<input_t>;
  const int image = blockIdx.x / rotation.blocks, block = blockIdx.x % rotation.blocks;
  const int row = rotation.row / kCount, i = block * kThreads + static_cast<int>(threadIdx.x);
  const int position = i / row, channel = (i - position * row) * kCount;
  if (position >= rotation.positions) {
    return;
  }
  const int angle = position * rotation.head_dim + channel % rotation.head_dim;
  const int64_t place = static_cast<int64_t>(image) * rotation.positions + position;
  Numbers<accum_t, kCount> sin(rotation.sin + angle), cos(rotation.cos + angle);
  const auto rotate = [&](const Source<input_t>& source, output_t* to) {
    Numbers<input_t, kCount> input(source.data + place * source.step + channel);
    constexpr int kVector = Numbers<output_t, kCount>::kVector;
#pragma unroll
    for (int first = 0; first < kCount; first += kVector) {
      Channels<output_t, kVector> vector;
#pragma unroll
      for (int c = 0; c < kVector; c += 2) {
        const int even = first + c, odd = even + 1;
        const auto x = static_cast<accum_t>(input[even]), y = static_cast<accum_t>(input[odd]);
        vector.of[c] = static_cast<output_t>(x * cos[even] - y * sin[even]);
        vector.of[c + 1] = static_cast<output_t>(y * cos[odd] + x * sin[odd]);
      }
      *reinterpret_cast<Channels<output_t, kVector>*>(to + place * rotation.row + channel + first) =
          vector;
    }
  };
  rotate(rotation.query, rotation.rotated_query);
  rotate(rotation.key, rotation.rotated_key);
}

// A table of angles, in a form that kernels read.
Tensor table(const OptionalTensor& angles, const Tensor& query) {
  if (!angles) {
    return {};
  }
  TORCH_CHECK(query.dim() == 5 && query.size(4) % 2 == 0, "rotary needs an even head_dim, got ",
              query.sizes());
  check_like(*angles, {query.size(1), query.size(2), query.size(4)}, query);
  return aligned_contiguous(angles->to(at::toOpMathType(query.scalar_type())));
}

template <typename input_t, typename output_t>
void launch_rotate(const Tensor& query, const Tensor& key, const Tensor& sin, const Tensor& cos,
                   const Tensor& rotated_query, const Tensor& rotated_key) {
  using accum_t = at::opmath_type<input_t>;
  constexpr int kMost = kCopyBytes / sizeof(input_t);
  const int64_t positions = query.size(1) * query.size(2), head_dim = query.size(4),
                row = query.size(3) * head_dim;
  TORCH_CHECK(positions * row <= INT32_MAX, "an image of ", query.sizes(),
              " is too large for CUDA");
  const auto launch_with = [&](auto count) {
    constexpr int kCount = decltype(count)::value;
    const int64_t blocks = ceil_div<int64_t>(positions * row / kCount, kThreads);
    const Rotation<input_t, output_t> rotation{static_cast<int>(positions),
                                               static_cast<int>(row),
                                               static_cast<int>(head_dim),
                                               static_cast<int>(blocks),
                                               source<input_t>(query),
                                               source<input_t>(key),
                                               sin.const_data_ptr<accum_t>(),
                                               cos.const_data_ptr<accum_t>(),
                                               rotated_query.mutable_data_ptr<output_t>(),
                                               rotated_key.mutable_data_ptr<output_t>()};
    launch(rotate_kernel<kCount, input_t, output_t>, query.size(0) * blocks, kThreads, 0, rotation);
  };
  // The tiled kernels' head_dims are multiples of kMost.
  constexpr bool kIsTiled = std::is_same_v<input_t, output_t> && sizeof(input_t) == 2;
  if constexpr (kMost > 2 && !kIsTiled) {
    if (head_dim % kMost != 0) {
      launch_with(std::integral_constant<int, 2>());
      return;
    }
  }
  launch_with(std::integral_constant<int, kMost>());
}

// One call: the two steps, and query and key as both of them read them.
class Scan {
 public:
  Scan(const Tensor& query, const Tensor& key, const OptionalTensor& sin, const OptionalTensor& cos,
       IntArrayRef local_kernel, IntArrayRef anchor_kernel, IntArrayRef anchor_dilation,
       double scale)
      : has_local(takes_step(local_kernel)),
        has_anchor(takes_step(anchor_kernel)),
        query_(query),
        key_(key),
        local_kernel_(local_kernel),
        anchor_kernel_(anchor_kernel),
        anchor_dilation_(anchor_dilation),
        scale_(scale) {
    TORCH_CHECK(sin.has_value() == cos.has_value(), "rotary needs sin and cos");
    sin_ = table(sin, query);
    cos_ = table(cos, query);
    if (sin_.defined() && (has_local || has_anchor)) {
      rotate();
    }
  }

  Call local(const Tensor& value) const {
    return {query_, key_, value, {}, local_kernel_, kNoDilation, scale_};
  }
  Call anchor(const Tensor& value) const {
    return {query_, key_, value, {}, anchor_kernel_, anchor_dilation_, scale_};
  }

  // For the gradient of query or key of the last step of backward. `sum`, if it is defined, holds
  // that of the other.
  GradientTensors gradient(const Tensor& grad, const Tensor& sum) const {
    return {grad, sum, sin_, cos_};
  }

  const bool has_local, has_anchor;

 private:
  static constexpr int64_t kNoDilation[2] = {1, 1};

  // A kernel of one tap skips its step.
  static bool takes_step(IntArrayRef kernel_size) {
    return kernel_size[0] != 1 || kernel_size[1] != 1;
  }

  void rotate() {
    check_like(key_, query_.sizes(), query_);
    const Tensor query = aligned_rows(query_), key = aligned_rows(key_);
    const bool is_tiled = has_tiles(query);
    const at::ScalarType type = query.scalar_type();
    const auto options = query.options().dtype(is_tiled ? type : at::toOpMathType(type));
    query_ = at::empty(query.sizes(), options);
    key_ = at::empty(key.sizes(), options);
    AT_DISPATCH_FLOATING_TYPES_AND2(at::kHalf, at::kBFloat16, type, "sparse_scan_attention", [&] {
      if (is_tiled) {
        launch_rotate<scalar_t, scalar_t>(query, key, sin_, cos_, query_, key_);
      } else {
        launch_rotate<scalar_t, at::opmath_type<scalar_t>>(query, key, sin_, cos_, query_, key_);
      }
    });
  }

  Tensor query_, key_, sin_, cos_;
  IntArrayRef local_kernel_, anchor_kernel_, anchor_dilation_;
  double scale_;
};

std::tuple<Tensor, Tensor, Tensor, Tensor> sparse_scan_attention_cuda(
    const Tensor& query, const Tensor& key, const Tensor& value, const OptionalTensor& sin,
    const OptionalTensor& cos, IntArrayRef local_kernel, IntArrayRef anchor_kernel,
    IntArrayRef anchor_dilation, double scale) {
  const c10::cuda::CUDAGuard device_guard(query.device());
  const Scan scan(query, key, sin, cos, local_kernel, anchor_kernel, anchor_dilation, scale);
  const auto accum_options = query.options().dtype(at::toOpMathType(query.scalar_type()));
  Tensor output = value, inner = at::empty({0}, query.options());
  Tensor local_logsumexp = at::empty({0}, accum_options);
  Tensor anchor_logsumexp = at::empty({0}, accum_options);
  if (!scan.has_local && !scan.has_anchor) {
    output = value.clone(at::MemoryFormat::Contiguous);
  }
  if (scan.has_local) {
    std::tie(output, local_logsumexp) = attend(scan.local(output));
  }
  if (scan.has_anchor) {
    inner = scan.has_local ? output : inner;
    std::tie(output, anchor_logsumexp) = attend(scan.anchor(output));
  }
  return {output, inner, local_logsumexp, anchor_logsumexp};
}

std::tuple<Tensor, Tensor, Tensor> sparse_scan_attention_backward_cuda(
    const Tensor& grad_output, const Tensor& query, const Tensor& key, const Tensor& value,
    const OptionalTensor& sin, const OptionalTensor& cos, const Tensor& output, const Tensor& inner,
    const Tensor& local_logsumexp, const Tensor& anchor_logsumexp, IntArrayRef local_kernel,
    IntArrayRef anchor_kernel, IntArrayRef anchor_dilation, double scale) {
  const c10::cuda::CUDAGuard device_guard(query.device());
  const Scan scan(query, key, sin, cos, local_kernel, anchor_kernel, anchor_dilation, scale);
  if (!scan.has_local && !scan.has_anchor) {
    return {at::zeros(query.sizes(), query.options()), at::zeros(key.sizes(), key.options()),
            grad_output.clone(at::MemoryFormat::Contiguous)};
  }
  const Tensor grad_query = at::empty(query.sizes(), query.options());
  const Tensor grad_key = at::empty(key.sizes(), key.options());
  Tensor query_sum, key_sum;
  if (scan.has_local && scan.has_anchor) {
    const auto options = query.options().dtype(at::toOpMathType(query.scalar_type()));
    query_sum = at::empty(query.sizes(), options);
    key_sum = at::empty(key.sizes(), options);
  }
  const auto last_query = scan.gradient(grad_query, query_sum);
  const auto last_key = scan.gradient(grad_key, key_sum);
  Tensor grad_value = grad_output;
  if (scan.has_anchor) {
    const GradientTensors sum_query{{}, query_sum}, sum_key{{}, key_sum};
    std::tie(grad_value, std::ignore) = attend_backward(
        scan.anchor(scan.has_local ? inner : value), grad_value, output, anchor_logsumexp,
        scan.has_local ? sum_query : last_query, scan.has_local ? sum_key : last_key);
  }
  if (scan.has_local) {
    std::tie(grad_value, std::ignore) =
        attend_backward(scan.local(value), grad_value, scan.has_anchor ? inner : output,
                        local_logsumexp, last_query, last_key);
  }
  return {grad_query, grad_key, grad_value};
}

}  // namespace
}  // namespace mmlocalattn::cuda::neighborhood

TORCH_LIBRARY_IMPL(mmlocalattn, CUDA, m) {
  m.impl("sparse_scan_attention", &mmlocalattn::cuda::neighborhood::sparse_scan_attention_cuda);
  m.impl("_sparse_scan_attention_backward",
         &mmlocalattn::cuda::neighborhood::sparse_scan_attention_backward_cuda);
}
