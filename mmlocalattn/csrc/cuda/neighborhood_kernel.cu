// Neighborhood attention on CUDA, forward and backward.
//
//   s_ij = scale <q_i, k_j> + bias[j - i]    p_ij = exp(s_ij - lse_i)    o_i = sum_j p_ij v_j
//   delta_i = <do_i, o_i>                    ds_ij = p_ij (<do_i, v_j> - delta_i)
//   dq_i = scale sum_j ds_ij k_j             dk_j = scale sum_i ds_ij q_i
//   dv_j = sum_i p_ij do_i                   dbias[r] = sum over j - i = r of ds_ij
//
// Memory, all contiguous; a token is one (batch, y, x, head):
//   query key value output, their gradients   (batch, height, width, heads, head_dim)
//   logsumexp delta                           (batch, height, width, heads): one per token
//   bias grad_bias                            (heads, 2 kh - 1, 2 kw - 1)
//
// Work split: one warp per token and slab of 128 channels of its result. Lanes run over channels,
// so that loads coalesce, and share each dot product with shuffles. Softmax is online, p is
// recomputed in backward: nothing of the size of the attention matrix is stored. Keys gather from
// the queries that see them, and a block gathers one entry of grad_bias: no atomics, every sum has
// a fixed order.
#include <torch/library.h>

#include <cmath>
#include <limits>

#include "neighborhood.cuh"

namespace mmlocalattn {
namespace {

using at::IntArrayRef;
using at::Tensor;

constexpr int kChunks = 4;  // channels of a result that one lane holds
constexpr int kSlab = kChunks * kWarpSize;

// <a, b>, the same bits in every lane.
template <typename accum_t, typename a_t, typename b_t>
__device__ __forceinline__ accum_t dot(const a_t* a, const b_t* b, int64_t head_dim) {
  accum_t sum = 0;
  for (int64_t c = threadIdx.x % kWarpSize; c < head_dim; c += kWarpSize) {
    sum += static_cast<accum_t>(a[c]) * static_cast<accum_t>(b[c]);
  }
  return warp_sum(sum);
}

// What one warp computes: channels `channel`, `channel` + 32, ... of one token, `channel` being
// this lane's first.
struct Work {
  int64_t token, batch, y, x, head, channel;
};

// One attention problem.
template <typename query_t, typename value_t>
struct Neighborhood {
  using accum_t = at::opmath_type<value_t>;

  WindowAxis rows, cols;
  int64_t batch, heads, head_dim;
  accum_t scale;
  const query_t* query;
  const query_t* key;
  const value_t* value;
  const value_t* bias;  // or null
  // Backward only.
  const value_t* grad_output;
  const value_t* output;
  const accum_t* logsumexp;

  MMLOCALATTN_HOST_DEVICE int64_t slabs() const { return (head_dim + kSlab - 1) / kSlab; }
  MMLOCALATTN_HOST_DEVICE int64_t work_items() const {
    return batch * rows.length * cols.length * heads * slabs();
  }

  __device__ Work work(int64_t item) const {
    const int64_t token = item / slabs(), slab = item % slabs();
    const int64_t position = token / heads, line = position / cols.length;
    return {token,
            line / rows.length,
            line % rows.length,
            position % cols.length,
            token % heads,
            slab * kSlab + threadIdx.x % kWarpSize};
  }

  __device__ int64_t token(int64_t n, int64_t y, int64_t x, int64_t head) const {
    return ((n * rows.length + y) * cols.length + x) * heads + head;
  }

  __device__ int64_t bias_index(int64_t head, int64_t row, int64_t col) const {
    return (head * (2 * rows.kernel - 1) + row) * (2 * cols.kernel - 1) + col;
  }

  // s_ij; `entry` is its place in the bias.
  __device__ accum_t logit(int64_t i, int64_t j, int64_t entry) const {
    const accum_t product = dot<accum_t>(query + i * head_dim, key + j * head_dim, head_dim);
    return scale * product + (bias == nullptr ? accum_t(0) : static_cast<accum_t>(bias[entry]));
  }

  // p_ij
  __device__ accum_t weight(int64_t i, int64_t j, int64_t entry) const {
    return std::exp(logit(i, j, entry) - logsumexp[i]);
  }

  // ds_ij
  __device__ accum_t grad_logit(int64_t i, int64_t j, accum_t weight, accum_t delta) const {
    return weight *
           (dot<accum_t>(grad_output + i * head_dim, value + j * head_dim, head_dim) - delta);
  }
};

// sum += factor * vector, this lane's channels of a slab.
template <typename accum_t, typename T>
__device__ __forceinline__ void add(accum_t (&sum)[kChunks], accum_t factor, const T* vector,
                                    int64_t channel, int64_t head_dim) {
#pragma unroll
  for (int chunk = 0; chunk < kChunks; ++chunk) {
    const int64_t c = channel + chunk * kWarpSize;
    if (c < head_dim) {
      sum[chunk] += factor * static_cast<accum_t>(vector[c]);
    }
  }
}

// vector = factor * sum, this lane's channels of a slab.
template <typename accum_t, typename T>
__device__ __forceinline__ void store(const accum_t (&sum)[kChunks], accum_t factor, T* vector,
                                      int64_t channel, int64_t head_dim) {
#pragma unroll
  for (int chunk = 0; chunk < kChunks; ++chunk) {
    const int64_t c = channel + chunk * kWarpSize;
    if (c < head_dim) {
      vector[c] = static_cast<T>(factor * sum[chunk]);
    }
  }
}

template <typename query_t, typename value_t>
__global__ void __launch_bounds__(kThreads)
    neighborhood_attention_kernel(Neighborhood<query_t, value_t> na, value_t* output,
                                  at::opmath_type<value_t>* logsumexp) {
  using accum_t = at::opmath_type<value_t>;
  for (int64_t item = grid_warp(); item < na.work_items(); item += grid_warps()) {
    const Work query = na.work(item);
    const int64_t y = na.rows.start(query.y), x = na.cols.start(query.x);
    const int64_t row = na.rows.first_offset(query.y), col = na.cols.first_offset(query.x);
    // `lowest` and not -inf: a bias of -inf masks its tap instead of making NaN.
    accum_t max = std::numeric_limits<accum_t>::lowest(), total = 0, sum[kChunks] = {};
    for (int64_t a = 0; a < na.rows.kernel; ++a) {
      for (int64_t b = 0; b < na.cols.kernel; ++b) {
        const int64_t key =
            na.token(query.batch, y + a * na.rows.dilation, x + b * na.cols.dilation, query.head);
        const accum_t logit =
            na.logit(query.token, key, na.bias_index(query.head, row + a, col + b));
        const accum_t new_max = logit > max ? logit : max;
        const accum_t rescale = std::exp(max - new_max), weight = std::exp(logit - new_max);
        max = new_max;
        total = total * rescale + weight;
#pragma unroll
        for (int chunk = 0; chunk < kChunks; ++chunk) {
          sum[chunk] *= rescale;
        }
        add(sum, weight, na.value + key * na.head_dim, query.channel, na.head_dim);
      }
    }
    store(sum, 1 / total, output + query.token * na.head_dim, query.channel, na.head_dim);
    if (query.channel == 0) {
      logsumexp[query.token] = max + std::log(total);
    }
  }
}

// Gradient of query, and delta for the two kernels below.
template <typename query_t, typename value_t>
__global__ void __launch_bounds__(kThreads)
    neighborhood_attention_backward_query_kernel(Neighborhood<query_t, value_t> na,
                                                 query_t* grad_query,
                                                 at::opmath_type<value_t>* delta) {
  using accum_t = at::opmath_type<value_t>;
  for (int64_t item = grid_warp(); item < na.work_items(); item += grid_warps()) {
    const Work query = na.work(item);
    const int64_t y = na.rows.start(query.y), x = na.cols.start(query.x);
    const int64_t row = na.rows.first_offset(query.y), col = na.cols.first_offset(query.x);
    const int64_t offset = query.token * na.head_dim;
    const accum_t query_delta =
        dot<accum_t>(na.grad_output + offset, na.output + offset, na.head_dim);
    accum_t sum[kChunks] = {};
    for (int64_t a = 0; a < na.rows.kernel; ++a) {
      for (int64_t b = 0; b < na.cols.kernel; ++b) {
        const int64_t key =
            na.token(query.batch, y + a * na.rows.dilation, x + b * na.cols.dilation, query.head);
        const accum_t weight =
            na.weight(query.token, key, na.bias_index(query.head, row + a, col + b));
        const accum_t grad = na.grad_logit(query.token, key, weight, query_delta);
        add(sum, grad, na.key + key * na.head_dim, query.channel, na.head_dim);
      }
    }
    store(sum, na.scale, grad_query + offset, query.channel, na.head_dim);
    if (query.channel == 0) {
      delta[query.token] = query_delta;
    }
  }
}

// Gradients of key and value: every key gathers from the queries whose windows hold it.
template <typename query_t, typename value_t>
__global__ void __launch_bounds__(kThreads)
    neighborhood_attention_backward_key_value_kernel(Neighborhood<query_t, value_t> na,
                                                     const at::opmath_type<value_t>* delta,
                                                     query_t* grad_key, value_t* grad_value) {
  using accum_t = at::opmath_type<value_t>;
  for (int64_t item = grid_warp(); item < na.work_items(); item += grid_warps()) {
    const Work key = na.work(item);
    const int64_t y = na.rows.inverse_start(key.y), x = na.cols.inverse_start(key.x);
    const int64_t count_y = na.rows.inverse_count(key.y), count_x = na.cols.inverse_count(key.x);
    // Bias entry of the first query. The others follow it, so that their entries go down.
    const int64_t row = (key.y - y) / na.rows.dilation + na.rows.kernel - 1;
    const int64_t col = (key.x - x) / na.cols.dilation + na.cols.kernel - 1;
    accum_t key_sum[kChunks] = {}, value_sum[kChunks] = {};
    for (int64_t a = 0; a < count_y; ++a) {
      for (int64_t b = 0; b < count_x; ++b) {
        const int64_t query =
            na.token(key.batch, y + a * na.rows.dilation, x + b * na.cols.dilation, key.head);
        const accum_t weight =
            na.weight(query, key.token, na.bias_index(key.head, row - a, col - b));
        const accum_t grad = na.grad_logit(query, key.token, weight, delta[query]);
        add(key_sum, grad, na.query + query * na.head_dim, key.channel, na.head_dim);
        add(value_sum, weight, na.grad_output + query * na.head_dim, key.channel, na.head_dim);
      }
    }
    store(key_sum, na.scale, grad_key + key.token * na.head_dim, key.channel, na.head_dim);
    store(value_sum, accum_t(1), grad_value + key.token * na.head_dim, key.channel, na.head_dim);
  }
}

// Gradient of the bias: one block per entry. Its warps share the lines of the maps; their sums are
// added in order.
template <typename query_t, typename value_t>
__global__ void __launch_bounds__(kThreads)
    neighborhood_attention_backward_bias_kernel(Neighborhood<query_t, value_t> na,
                                                const at::opmath_type<value_t>* delta,
                                                value_t* grad_bias) {
  using accum_t = at::opmath_type<value_t>;
  __shared__ accum_t partial[kWarpsPerBlock];
  const int warp = threadIdx.x / kWarpSize;
  const int64_t table_rows = 2 * na.rows.kernel - 1, table_cols = 2 * na.cols.kernel - 1;
  for (int64_t entry = blockIdx.x; entry < na.heads * table_rows * table_cols; entry += gridDim.x) {
    const int64_t head = entry / table_cols / table_rows;
    const int64_t row = entry / table_cols % table_rows, col = entry % table_cols;
    accum_t sum = 0;
    for (int64_t line = warp; line < na.batch * na.rows.length; line += kWarpsPerBlock) {
      const int64_t n = line / na.rows.length, y = line % na.rows.length;
      // Taps (a, b) of the windows of row y and column x that use this entry, if any.
      const int64_t a = row - na.rows.first_offset(y);
      if (a < 0 || a >= na.rows.kernel) {
        continue;
      }
      const int64_t key_y = na.rows.start(y) + a * na.rows.dilation;
      for (int64_t x = 0; x < na.cols.length; ++x) {
        const int64_t b = col - na.cols.first_offset(x);
        if (b < 0 || b >= na.cols.kernel) {
          continue;
        }
        const int64_t query = na.token(n, y, x, head);
        const int64_t key = na.token(n, key_y, na.cols.start(x) + b * na.cols.dilation, head);
        sum += na.grad_logit(query, key, na.weight(query, key, entry), delta[query]);
      }
    }
    if (threadIdx.x % kWarpSize == 0) {
      partial[warp] = sum;
    }
    __syncthreads();
    if (threadIdx.x == 0) {
      for (int other = 1; other < kWarpsPerBlock; ++other) {
        sum += partial[other];
      }
      grad_bias[entry] = static_cast<value_t>(sum);
    }
    __syncthreads();
  }
}

// Only what would corrupt memory; the public function checks for users, data_ptr checks types.
void check(const Tensor& query, at::TensorList others, const Tensor& bias, IntArrayRef kernel_size,
           IntArrayRef dilation) {
  TORCH_CHECK(query.dim() == 5, "expected (B, H, W, num_heads, head_dim), got ", query.sizes());
  for (const Tensor& other : others) {
    check_like(other, query.sizes(), query);
  }
  for (int axis = 0; axis < 2; ++axis) {
    TORCH_CHECK(kernel_size[axis] > 0 && kernel_size[axis] % 2 == 1 && dilation[axis] > 0 &&
                    kernel_size[axis] * dilation[axis] <= query.size(axis + 1),
                "window does not fit or is even, got kernel_size=", kernel_size,
                ", dilation=", dilation, " for ", query.sizes());
  }
  if (bias.defined()) {
    check_like(bias, {query.size(3), 2 * kernel_size[0] - 1, 2 * kernel_size[1] - 1}, query);
  }
}

// Takes contiguous tensors.
template <typename query_t, typename value_t>
Neighborhood<query_t, value_t> describe(const Tensor& query, const Tensor& key, const Tensor& value,
                                        const Tensor& bias, IntArrayRef kernel_size,
                                        IntArrayRef dilation, double scale) {
  Neighborhood<query_t, value_t> na{};
  na.rows = {query.size(1), kernel_size[0], dilation[0]};
  na.cols = {query.size(2), kernel_size[1], dilation[1]};
  na.batch = query.size(0);
  na.heads = query.size(3);
  na.head_dim = query.size(4);
  na.scale = static_cast<at::opmath_type<value_t>>(scale);
  na.query = query.const_data_ptr<query_t>();
  na.key = key.const_data_ptr<query_t>();
  na.value = value.const_data_ptr<value_t>();
  na.bias = bias.defined() ? bias.const_data_ptr<value_t>() : nullptr;
  return na;
}

// Calls body(query_t(), value_t()); query has the type of value or its accumulation type.
template <typename Body>
void dispatch(const Tensor& query, const Tensor& value, const Body& body) {
  const at::ScalarType type = value.scalar_type();
  AT_DISPATCH_FLOATING_TYPES_AND2(at::kHalf, at::kBFloat16, type, "neighborhood_attention", [&] {
    if (query.scalar_type() == type) {
      body(scalar_t(), scalar_t());
    } else {
      body(at::opmath_type<scalar_t>(), scalar_t());
    }
  });
}

}  // namespace

std::tuple<Tensor, Tensor> neighborhood_attention_cuda(const Tensor& query_, const Tensor& key_,
                                                       const Tensor& value_,
                                                       const std::optional<Tensor>& bias_,
                                                       IntArrayRef kernel_size,
                                                       IntArrayRef dilation, double scale) {
  const Tensor bias = bias_ ? bias_->contiguous() : Tensor();
  check(query_, {key_, value_}, bias, kernel_size, dilation);
  const c10::cuda::CUDAGuard device_guard(query_.device());
  const Tensor query = query_.contiguous(), key = key_.contiguous(), value = value_.contiguous();
  const Tensor output = at::empty(value.sizes(), value.options());
  const Tensor logsumexp = at::empty(query.sizes().slice(0, 4),
                                     query.options().dtype(at::toOpMathType(query.scalar_type())));
  dispatch(query, value, [&](auto query_type, auto value_type) {
    using query_t = decltype(query_type);
    using value_t = decltype(value_type);
    const auto na =
        describe<query_t, value_t>(query, key, value, bias, kernel_size, dilation, scale);
    launch(neighborhood_attention_kernel<query_t, value_t>, na.work_items() * kWarpSize, na,
           output.mutable_data_ptr<value_t>(),
           logsumexp.mutable_data_ptr<at::opmath_type<value_t>>());
  });
  return {output, logsumexp};
}

std::tuple<Tensor, Tensor, Tensor, Tensor> neighborhood_attention_backward_cuda(
    const Tensor& grad_output_, const Tensor& query_, const Tensor& key_, const Tensor& value_,
    const std::optional<Tensor>& bias_, const Tensor& output_, const Tensor& logsumexp_,
    IntArrayRef kernel_size, IntArrayRef dilation, double scale) {
  const Tensor bias = bias_ ? bias_->contiguous() : Tensor();
  check(query_, {key_, value_, grad_output_, output_}, bias, kernel_size, dilation);
  check_like(logsumexp_, query_.sizes().slice(0, 4), query_);
  const c10::cuda::CUDAGuard device_guard(query_.device());
  const Tensor query = query_.contiguous(), key = key_.contiguous(), value = value_.contiguous();
  const Tensor grad_output = grad_output_.contiguous(), output = output_.contiguous();
  const Tensor logsumexp = logsumexp_.contiguous();
  const Tensor grad_query = at::empty(query.sizes(), query.options());
  const Tensor grad_key = at::empty(key.sizes(), key.options());
  const Tensor grad_value = at::empty(value.sizes(), value.options());
  const Tensor grad_bias =
      bias.defined() ? at::empty(bias.sizes(), bias.options()) : at::empty({0}, value.options());
  const Tensor delta = at::empty(logsumexp.sizes(), logsumexp.options());
  dispatch(query, value, [&](auto query_type, auto value_type) {
    using query_t = decltype(query_type);
    using value_t = decltype(value_type);
    using accum_t = at::opmath_type<value_t>;
    auto na = describe<query_t, value_t>(query, key, value, bias, kernel_size, dilation, scale);
    na.grad_output = grad_output.const_data_ptr<value_t>();
    na.output = output.const_data_ptr<value_t>();
    na.logsumexp = logsumexp.const_data_ptr<accum_t>();
    launch(neighborhood_attention_backward_query_kernel<query_t, value_t>,
           na.work_items() * kWarpSize, na, grad_query.mutable_data_ptr<query_t>(),
           delta.mutable_data_ptr<accum_t>());
    launch(neighborhood_attention_backward_key_value_kernel<query_t, value_t>,
           na.work_items() * kWarpSize, na, delta.const_data_ptr<accum_t>(),
           grad_key.mutable_data_ptr<query_t>(), grad_value.mutable_data_ptr<value_t>());
    if (bias.defined()) {
      launch(neighborhood_attention_backward_bias_kernel<query_t, value_t>, bias.numel() * kThreads,
             na, delta.const_data_ptr<accum_t>(), grad_bias.mutable_data_ptr<value_t>());
    }
  });
  return {grad_query, grad_key, grad_value, grad_bias};
}

}  // namespace mmlocalattn

TORCH_LIBRARY_IMPL(mmlocalattn, CUDA, m) {
  m.impl("neighborhood_attention", &mmlocalattn::neighborhood_attention_cuda);
  m.impl("_neighborhood_attention_backward", &mmlocalattn::neighborhood_attention_backward_cuda);
}
