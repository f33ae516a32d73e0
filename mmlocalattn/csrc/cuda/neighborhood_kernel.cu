// Neighborhood attention on CUDA: the operator, and kernels for all that the tiled ones do not
// take: fp64, head_dims other than 16, 32, 64 and 128, bias, and a scale that is not positive.
//
// Work split here: one warp per token and slab of 128 channels of its result. Lanes run over
// channels, so that loads coalesce, and share each dot product with shuffles. A block gathers one
// entry of grad_bias.
#include <torch/library.h>

#include <cmath>

#include "neighborhood.cuh"

namespace mmlocalattn {
namespace {

using at::IntArrayRef;
using at::Tensor;

constexpr int kWarpsPerBlock = 4;
constexpr int kThreads = kWarpsPerBlock * kWarpSize;
constexpr int kPairs = 2;  // of channels of a result that one lane holds, 64 channels apart
constexpr int kPairStep = 2 * kWarpSize;
constexpr int kSlab = kPairs * kPairStep;

// <a, b>, the same bits in every lane.
template <typename accum_t, typename a_t, typename b_t>
__device__ __forceinline__ accum_t dot(const a_t* a, const b_t* b, int64_t head_dim) {
  accum_t sum = 0;
  for (int64_t c = threadIdx.x % kWarpSize; c < head_dim; c += kWarpSize) {
    sum += static_cast<accum_t>(a[c]) * static_cast<accum_t>(b[c]);
  }
#pragma unroll
  for (int offset = kWarpSize / 2; offset > 0; offset /= 2) {
    sum += shuffle_xor(sum, offset);
  }
  return sum;
}

// What one warp computes: a slab of the channels of one token, `channel` being this lane's first.
struct Work {
  int64_t token, batch, y, x, head, channel;
};

template <typename query_t, typename value_t>
struct TokenNeighborhood : Neighborhood<query_t, value_t> {
  using accum_t = at::opmath_type<value_t>;

  MMLOCALATTN_HOST_DEVICE int64_t slabs() const { return (this->head_dim + kSlab - 1) / kSlab; }
  MMLOCALATTN_HOST_DEVICE int64_t work_items() const { return this->tokens() * slabs(); }

  __device__ static int64_t first_item() {
    return static_cast<int64_t>(blockIdx.x) * kWarpsPerBlock + threadIdx.x / kWarpSize;
  }
  __device__ static int64_t item_step() { return static_cast<int64_t>(gridDim.x) * kWarpsPerBlock; }

  __device__ Work work(int64_t item) const {
    const int64_t token = item / slabs(), slab = item % slabs();
    const int64_t position = token / this->heads, line = position / this->cols.length;
    return {token,
            line / this->rows.length,
            line % this->rows.length,
            position % this->cols.length,
            token % this->heads,
            slab * kSlab + threadIdx.x % kWarpSize * 2};
  }

  __device__ int64_t bias_index(int64_t head, int64_t row, int64_t col) const {
    return (head * (2 * this->rows.kernel - 1) + row) * (2 * this->cols.kernel - 1) + col;
  }

  // s_ij; `entry` is its place in the bias.
  __device__ accum_t logit(int64_t i, int64_t j, int64_t entry) const {
    const accum_t product = dot<accum_t>(this->query.data + i * this->head_dim,
                                         this->key.data + j * this->head_dim, this->head_dim);
    const accum_t offset = this->bias == nullptr ? 0 : static_cast<accum_t>(this->bias[entry]);
    return this->scale * product + offset;
  }

  // p_ij
  __device__ accum_t weight(int64_t i, int64_t j, int64_t entry) const {
    return std::exp(logit(i, j, entry) - this->logsumexp[i]);
  }

  // ds_ij
  __device__ accum_t grad_logit(int64_t i, int64_t j, accum_t weight, accum_t delta) const {
    const accum_t grad_weight = dot<accum_t>(this->grad_output.data + i * this->head_dim,
                                             this->value.data + j * this->head_dim, this->head_dim);
    return weight * (grad_weight - delta);
  }
};

// This lane's channels of a slab of a result.
template <typename accum_t>
struct Channels {
  accum_t sum[kPairs][2] = {};

  // Adds factor * vector.
  template <typename T>
  __device__ void add(accum_t factor, const T* vector, int64_t channel, int64_t head_dim) {
#pragma unroll
    for (int pair = 0; pair < kPairs; ++pair) {
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        const int64_t c = channel + pair * kPairStep + i;
        if (c < head_dim) {
          sum[pair][i] += factor * static_cast<accum_t>(vector[c]);
        }
      }
    }
  }

  __device__ void scale(accum_t factor) {
#pragma unroll
    for (int pair = 0; pair < kPairs; ++pair) {
      sum[pair][0] *= factor;
      sum[pair][1] *= factor;
    }
  }

  template <typename T>
  __device__ void store(T* vector, int64_t channel, int64_t head_dim) const {
#pragma unroll
    for (int pair = 0; pair < kPairs; ++pair) {
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        const int64_t c = channel + pair * kPairStep + i;
        if (c < head_dim) {
          vector[c] = static_cast<T>(sum[pair][i]);
        }
      }
    }
  }

  template <typename query_t, typename value_t>
  __device__ void store(const Gradient<value_t>& gradient, const Neighborhood<query_t, value_t>& na,
                        const Work& work) const {
    const int64_t position = work.y * na.cols.length + work.x;
#pragma unroll
    for (int pair = 0; pair < kPairs; ++pair) {
      const int64_t c = work.channel + pair * kPairStep;
      if (c < na.head_dim) {
        gradient.store(work.token * na.head_dim + c, position * na.head_dim + c, sum[pair][0],
                       sum[pair][1], c + 1 < na.head_dim);
      }
    }
  }
};

template <typename query_t, typename value_t>
__global__ void __launch_bounds__(kThreads)
    token_kernel(TokenNeighborhood<query_t, value_t> na, value_t* output,
                 at::opmath_type<value_t>* logsumexp) {
  using accum_t = at::opmath_type<value_t>;
  for (int64_t item = na.first_item(); item < na.work_items(); item += na.item_step()) {
    const Work query = na.work(item);
    const int64_t y = na.rows.start(query.y), x = na.cols.start(query.x);
    const int64_t row = na.rows.first_offset(query.y), col = na.cols.first_offset(query.x);
    // `lowest` and not -inf: a bias of -inf masks its tap instead of making NaN.
    accum_t max = std::numeric_limits<accum_t>::lowest(), total = 0;
    Channels<accum_t> result;
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
        result.scale(rescale);
        result.add(weight, na.value.data + key * na.head_dim, query.channel, na.head_dim);
      }
    }
    result.scale(1 / total);
    result.store(output + query.token * na.head_dim, query.channel, na.head_dim);
    if (query.channel == 0) {
      logsumexp[query.token] = max + std::log(total);
    }
  }
}

// Gradient of query, and delta for the two kernels below.
template <typename query_t, typename value_t>
__global__ void __launch_bounds__(kThreads)
    token_backward_query_kernel(TokenNeighborhood<query_t, value_t> na,
                                Gradient<value_t> grad_query, at::opmath_type<value_t>* delta) {
  using accum_t = at::opmath_type<value_t>;
  for (int64_t item = na.first_item(); item < na.work_items(); item += na.item_step()) {
    const Work query = na.work(item);
    const int64_t y = na.rows.start(query.y), x = na.cols.start(query.x);
    const int64_t row = na.rows.first_offset(query.y), col = na.cols.first_offset(query.x);
    const int64_t offset = query.token * na.head_dim;
    const accum_t query_delta =
        dot<accum_t>(na.grad_output.data + offset, na.output.data + offset, na.head_dim);
    Channels<accum_t> result;
    for (int64_t a = 0; a < na.rows.kernel; ++a) {
      for (int64_t b = 0; b < na.cols.kernel; ++b) {
        const int64_t key =
            na.token(query.batch, y + a * na.rows.dilation, x + b * na.cols.dilation, query.head);
        const accum_t weight =
            na.weight(query.token, key, na.bias_index(query.head, row + a, col + b));
        const accum_t grad = na.grad_logit(query.token, key, weight, query_delta);
        result.add(grad, na.key.data + key * na.head_dim, query.channel, na.head_dim);
      }
    }
    result.scale(na.scale);
    result.store(grad_query, na, query);
    if (query.channel == 0) {
      delta[query.token] = query_delta;
    }
  }
}

// Gradients of key and value: every key gathers from the queries whose windows hold it.
template <typename query_t, typename value_t>
__global__ void __launch_bounds__(kThreads)
    token_backward_key_value_kernel(TokenNeighborhood<query_t, value_t> na,
                                    const at::opmath_type<value_t>* delta,
                                    Gradient<value_t> grad_key, value_t* grad_value) {
  using accum_t = at::opmath_type<value_t>;
  for (int64_t item = na.first_item(); item < na.work_items(); item += na.item_step()) {
    const Work key = na.work(item);
    const int64_t y = na.rows.inverse_start(key.y), x = na.cols.inverse_start(key.x);
    const int64_t count_y = na.rows.inverse_count(key.y), count_x = na.cols.inverse_count(key.x);
    // Bias entry of the first query. The others follow it, so that their entries go down.
    const int64_t row = (key.y - y) / na.rows.dilation + na.rows.kernel - 1;
    const int64_t col = (key.x - x) / na.cols.dilation + na.cols.kernel - 1;
    Channels<accum_t> key_result, value_result;
    for (int64_t a = 0; a < count_y; ++a) {
      for (int64_t b = 0; b < count_x; ++b) {
        const int64_t query =
            na.token(key.batch, y + a * na.rows.dilation, x + b * na.cols.dilation, key.head);
        const accum_t weight =
            na.weight(query, key.token, na.bias_index(key.head, row - a, col - b));
        const accum_t grad = na.grad_logit(query, key.token, weight, delta[query]);
        key_result.add(grad, na.query.data + query * na.head_dim, key.channel, na.head_dim);
        value_result.add(weight, na.grad_output.data + query * na.head_dim, key.channel,
                         na.head_dim);
      }
    }
    key_result.scale(na.scale);
    key_result.store(grad_key, na, key);
    value_result.store(grad_value + key.token * na.head_dim, key.channel, na.head_dim);
  }
}

// Gradient of the bias: one block per entry. Its warps share the lines of the maps; their sums are
// added in order.
template <typename T>
__global__ void __launch_bounds__(kThreads)
    token_backward_bias_kernel(TokenNeighborhood<T, T> na, const at::opmath_type<T>* delta,
                               T* grad_bias) {
  using accum_t = at::opmath_type<T>;
  __shared__ accum_t partial[kWarpsPerBlock];
  const int warp = threadIdx.x / kWarpSize;
  const int64_t table_rows = 2 * na.rows.kernel - 1, table_cols = 2 * na.cols.kernel - 1;
  const int64_t entry = blockIdx.x, head = entry / table_cols / table_rows;
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
  sync_block();
  if (threadIdx.x == 0) {
    for (int other = 1; other < kWarpsPerBlock; ++other) {
      sum += partial[other];
    }
    grad_bias[entry] = static_cast<T>(sum);
  }
}

// Launches one of the kernels that loop over work items.
template <typename query_t, typename value_t, typename... Parameters, typename... Arguments>
void launch_token(void (*kernel)(TokenNeighborhood<query_t, value_t>, Parameters...),
                  const TokenNeighborhood<query_t, value_t>& na, const Arguments&... arguments) {
  constexpr int64_t kMostBlocks = 1 << 20;
  const int64_t blocks = (na.work_items() + kWarpsPerBlock - 1) / kWarpsPerBlock;
  launch(kernel, std::min(blocks, kMostBlocks), kThreads, 0, na, arguments...);
}

// Only what would corrupt memory; the public function checks for users, data_ptr checks types.
void check(const Attention& call, at::TensorList others) {
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

bool is_tiled(const Attention& call) {
  return has_tiles(call.query, call.bias.defined(), call.scale);
}

Tensor pack(const Tensor& tensor, bool is_tiled) {
  return is_tiled ? aligned_rows(tensor) : aligned_contiguous(tensor);
}

// The call with tensors as its kernels read them.
Attention pack(const Attention& call) {
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
TokenNeighborhood<query_t, value_t> describe(const Attention& call) {
  const Tensor& query = call.query;
  TokenNeighborhood<query_t, value_t> na{};
  na.rows = {query.size(1), call.kernel_size[0], call.dilation[0]};
  na.cols = {query.size(2), call.kernel_size[1], call.dilation[1]};
  na.batch = query.size(0);
  na.heads = query.size(3);
  na.head_dim = query.size(4);
  na.scale = static_cast<at::opmath_type<value_t>>(call.scale);
  na.query = source<query_t>(query);
  na.key = source<query_t>(call.key);
  na.value = source<value_t>(call.value);
  na.bias = call.bias.defined() ? call.bias.const_data_ptr<value_t>() : nullptr;
  return na;
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
void dispatch(const Attention& call, const Body& body) {
  const at::ScalarType type = call.value.scalar_type();
  AT_DISPATCH_FLOATING_TYPES_AND2(at::kHalf, at::kBFloat16, type, "neighborhood_attention", [&] {
    if (call.query.scalar_type() == type) {
      body(scalar_t(), scalar_t());
    } else {
      body(at::opmath_type<scalar_t>(), scalar_t());
    }
  });
}

// Whether there are tiled kernels for the types.
template <typename query_t, typename value_t>
constexpr bool kTiledTypes = std::is_same_v<query_t, value_t> && !std::is_same_v<value_t, double>;

}  // namespace

std::tuple<Tensor, Tensor> attend(const Attention& caller) {
  check(caller, {});
  const c10::cuda::CUDAGuard device_guard(caller.query.device());
  const Attention call = pack(caller);
  const Tensor output = at::empty(call.value.sizes(), call.value.options());
  const Tensor logsumexp =
      at::empty(call.query.sizes().slice(0, 4),
                call.query.options().dtype(at::toOpMathType(call.query.scalar_type())));
  dispatch(call, [&](auto query_type, auto value_type) {
    using query_t = decltype(query_type);
    using value_t = decltype(value_type);
    const auto na = describe<query_t, value_t>(call);
    auto* outputs = output.mutable_data_ptr<value_t>();
    auto* logsumexps = logsumexp.mutable_data_ptr<at::opmath_type<value_t>>();
    if constexpr (kTiledTypes<query_t, value_t>) {
      if (is_tiled(call)) {
        launch_tiled<value_t>(na, outputs, logsumexps);
        return;
      }
    }
    launch_token(token_kernel<query_t, value_t>, na, outputs, logsumexps);
  });
  return {output, logsumexp};
}

std::tuple<Tensor, Tensor> attend_backward(const Attention& caller, const Tensor& grad_output_,
                                           const Tensor& output_, const Tensor& logsumexp_,
                                           const GradientTensors& grad_query,
                                           const GradientTensors& grad_key) {
  check(caller, {grad_output_, output_});
  check_like(logsumexp_, caller.query.sizes().slice(0, 4), caller.query);
  const c10::cuda::CUDAGuard device_guard(caller.query.device());
  const Attention call = pack(caller);
  const bool tiled = is_tiled(call);
  const Tensor grad_output = pack(grad_output_, tiled), output = pack(output_, tiled);
  const Tensor logsumexp = logsumexp_.contiguous();
  const Tensor grad_value = at::empty(call.value.sizes(), call.value.options());
  const Tensor grad_bias =
      call.bias.defined() ? at::empty(call.bias.sizes(), call.bias.options()) : Tensor();
  const Tensor workspace = at::empty({logsumexp.numel() * (tiled ? 4 : 1)}, logsumexp.options());
  dispatch(call, [&](auto query_type, auto value_type) {
    using query_t = decltype(query_type);
    using value_t = decltype(value_type);
    using accum_t = at::opmath_type<value_t>;
    auto na = describe<query_t, value_t>(call);
    na.grad_output = source<value_t>(grad_output);
    na.output = source<value_t>(output);
    na.logsumexp = logsumexp.const_data_ptr<accum_t>();
    const auto query_gradient = describe<value_t>(grad_query);
    const auto key_gradient = describe<value_t>(grad_key);
    auto* value_grads = grad_value.mutable_data_ptr<value_t>();
    auto* delta = workspace.mutable_data_ptr<accum_t>();
    if constexpr (kTiledTypes<query_t, value_t>) {
      if (tiled) {
        launch_tiled_backward<value_t>(na, query_gradient, key_gradient, value_grads, delta);
        return;
      }
    }
    launch_token(token_backward_query_kernel<query_t, value_t>, na, query_gradient, delta);
    launch_token(token_backward_key_value_kernel<query_t, value_t>, na, delta, key_gradient,
                 value_grads);
    if constexpr (std::is_same_v<query_t, value_t>) {
      if (grad_bias.defined() && grad_output.numel() > 0) {
        launch(token_backward_bias_kernel<value_t>, grad_bias.numel(), kThreads, 0, na, delta,
               grad_bias.mutable_data_ptr<value_t>());
      }
    }
  });
  return {grad_value, grad_bias};
}

namespace {

std::tuple<Tensor, Tensor> neighborhood_attention_cuda(const Tensor& query, const Tensor& key,
                                                       const Tensor& value,
                                                       const std::optional<Tensor>& bias,
                                                       IntArrayRef kernel_size,
                                                       IntArrayRef dilation, double scale) {
  return attend({query, key, value, bias.value_or(Tensor()), kernel_size, dilation, scale});
}

std::tuple<Tensor, Tensor, Tensor, Tensor> neighborhood_attention_backward_cuda(
    const Tensor& grad_output, const Tensor& query, const Tensor& key, const Tensor& value,
    const std::optional<Tensor>& bias, const Tensor& output, const Tensor& logsumexp,
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
}  // namespace mmlocalattn

TORCH_LIBRARY_IMPL(mmlocalattn, CUDA, m) {
  m.impl("neighborhood_attention", &mmlocalattn::neighborhood_attention_cuda);
  m.impl("_neighborhood_attention_backward", &mmlocalattn::neighborhood_attention_backward_cuda);
}
