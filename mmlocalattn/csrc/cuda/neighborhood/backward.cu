// Neighborhood attention backward: see problem.cuh, tile.cuh and token.cuh.
#include <cmath>

#include "tile.cuh"
#include "token.cuh"

namespace mmlocalattn::cuda::neighborhood {
namespace {

// What the tiled kernels need of a query: its log-sum-exp in base 2, and delta.
template <typename T>
__device__ __forceinline__ Float4 query_statistics(const LogSumExp<float>& logsumexp, float delta) {
  const auto [most, rest] = in_base_2<T>(logsumexp);
  return {most, rest, delta, 0};
}

template <typename T>
__device__ __forceinline__ float weight_of(float logit, const Float4& query) {
  return weight_in_base_2<T>(logit, query.at[0], query.at[1]);
}

template <typename T, int kDim>
using QueryLimits = Limits<T, kDim, Kind::kQueryGradient>;
template <typename T, int kDim>
using KeyValueLimits = Limits<T, kDim, Kind::kKeyValueGradient>;

// Gradient of query, the statistics for the kernel below and, unless null, the gradient of the bias
// of every block: (blocks, entries).
template <typename T, int kDim, bool kHasBias>
__global__ void __launch_bounds__(QueryLimits<T, kDim>::kThreads, QueryLimits<T, kDim>::kBlocks)
    tiled_backward_query_kernel(Problem<T, T> problem, Tiling tiling, Gradient<T> grad_query,
                                Float4* statistics, float* grad_bias) {
  const Scale problem_scale(problem.scale);
  const Tile<T, kDim, Kind::kQueryGradient, kHasBias> tile(problem, tiling,
                                                           problem_scale.magnitude);
  float* const grad_bias_of_block =
      kHasBias && grad_bias != nullptr ? grad_bias + blockIdx.x * problem.bias_entries() : nullptr;
  if (tile.is_empty()) {
    if (grad_bias_of_block != nullptr) {
      tile.store_bias_gradient(grad_bias_of_block);
    }
    return;
  }
  if (grad_bias_of_block != nullptr) {
    tile.bias_gradient().clear();
  }
  const auto query = tile.own(problem.query, problem_scale.sign);
  const auto grad_output = tile.second_own(problem.grad_output, 1);
  const float scale = problem_scale.magnitude * kLog2E<float>;
  Float4 of_query[2];
  float sum[kDim / 8][4] = {};
#pragma unroll
  for (int slot = 0; slot < 2; ++slot) {
    const int64_t token = tile.token(own_row(slot));
    const T* grads = tile.vector(problem.grad_output, own_row(slot));
    const T* outputs = tile.vector(problem.output, own_row(slot));
    float delta = 0;
#pragma unroll
    for (int part = 0; part < kDim / 8; ++part) {
      const int channel = query.channel(part);
      const auto grad = *reinterpret_cast<const Pair<T>*>(grads + channel);
      const auto out = *reinterpret_cast<const Pair<T>*>(outputs + channel);
      delta += static_cast<float>(grad.even) * static_cast<float>(out.even);
      delta += static_cast<float>(grad.odd) * static_cast<float>(out.odd);
    }
    of_query[slot] = query_statistics<T>(problem.logsumexp[token], row_sum(delta));
    if (lane() % 4 == 0 && tile.has_token(own_row(slot))) {
      statistics[token] = of_query[slot];
    }
  }
  tile.for_each_product(problem.key, problem.value, nullptr, [&](const Product<T, kDim>& product) {
    float grad[2][4], grad_weight[2][4] = {};
    product.start(grad);
    query.dot(grad, product.first());
    grad_output.dot(grad_weight, product.second());
    product.mask(grad);
#pragma unroll
    for (int half = 0; half < 2; ++half) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        grad[half][i] = weight_of<T>(scale * grad[half][i], of_query[i / 2]) *
                        (grad_weight[half][i] - of_query[i / 2].at[2]);
      }
    }
    query.add(sum, grad, product.first());
    if (grad_bias_of_block != nullptr) {
      tile.bias_gradient().add(product, grad);
    }
  });
  if (grad_bias_of_block != nullptr) {
    tile.store_bias_gradient(grad_bias_of_block);
  }
#pragma unroll
  for (int slot = 0; slot < 2; ++slot) {
    const int i = own_row(slot);
    if (!tile.has_token(i)) {
      continue;
    }
#pragma unroll
    for (int part = 0; part < kDim / 8; ++part) {
      const int channel = query.channel(part);
      grad_query.store(tile.token(i) * kDim + channel, tile.map_position(i) * kDim + channel,
                       problem.scale * sum[part][2 * slot],
                       problem.scale * sum[part][2 * slot + 1]);
    }
  }
}

// Gradients of key and value. The own tokens are keys, their partners the queries that see them.
template <typename T, int kDim, bool kHasBias>
__global__ void __launch_bounds__(KeyValueLimits<T, kDim>::kThreads,
                                  KeyValueLimits<T, kDim>::kBlocks)
    tiled_backward_key_value_kernel(Problem<T, T> problem, Tiling tiling, const Float4* statistics,
                                    Gradient<T> grad_key, T* grad_value) {
  const Scale problem_scale(problem.scale);
  const Tile<T, kDim, Kind::kKeyValueGradient, kHasBias> tile(problem, tiling,
                                                              problem_scale.magnitude);
  if (tile.is_empty()) {
    return;
  }
  const auto key = tile.own(problem.key, problem_scale.sign);
  const auto value = tile.second_own(problem.value, 1);
  const float scale = problem_scale.magnitude * kLog2E<float>;
  float key_sum[kDim / 8][4] = {}, value_sum[kDim / 8][4] = {};
  tile.for_each_product(
      problem.query, problem.grad_output, statistics, [&](const Product<T, kDim>& product) {
        float weight[2][4], grad[2][4] = {};
        product.start(weight);
        key.dot(weight, product.first());
        value.dot(grad, product.second());
        product.mask(weight);
#pragma unroll
        for (int half = 0; half < 2; ++half) {
#pragma unroll
          for (int i = 0; i < 2; ++i) {
            const Float4& query = product.statistics(partner_column(half, i));
#pragma unroll
            for (int slot = 0; slot < 2; ++slot) {
              float& p = weight[half][2 * slot + i];
              p = weight_of<T>(scale * p, query);
              grad[half][2 * slot + i] = p * (grad[half][2 * slot + i] - query.at[2]);
            }
          }
        }
        key.add(value_sum, weight, product.second());
        key.add(key_sum, grad, product.first());
      });
#pragma unroll
  for (int slot = 0; slot < 2; ++slot) {
    const int i = own_row(slot);
    if (!tile.has_token(i)) {
      continue;
    }
#pragma unroll
    for (int part = 0; part < kDim / 8; ++part) {
      const int channel = key.channel(part);
      const int64_t index = tile.token(i) * kDim + channel;
      grad_key.store(index, tile.map_position(i) * kDim + channel,
                     problem.scale * key_sum[part][2 * slot],
                     problem.scale * key_sum[part][2 * slot + 1]);
      *reinterpret_cast<Pair<T>*>(grad_value + index) = {
          static_cast<T>(value_sum[part][2 * slot]), static_cast<T>(value_sum[part][2 * slot + 1])};
    }
  }
}

// Gradient of query, and delta for the two kernels below.
template <typename query_t, typename value_t>
__global__ void __launch_bounds__(kThreads)
    token_backward_query_kernel(TokenProblem<query_t, value_t> problem,
                                Gradient<value_t> grad_query, at::opmath_type<value_t>* delta) {
  using accum_t = at::opmath_type<value_t>;
  for (int64_t item = problem.first_item(); item < problem.work_items();
       item += problem.item_step()) {
    const Work query = problem.work(item);
    const int64_t y = problem.rows.start(query.y), x = problem.cols.start(query.x);
    const int64_t row = problem.rows.first_offset(query.y),
                  col = problem.cols.first_offset(query.x);
    const int64_t offset = query.token * problem.head_dim;
    const accum_t query_delta = dot<accum_t>(problem.grad_output.data + offset,
                                             problem.output.data + offset, problem.head_dim);
    Channels<accum_t> result;
    for (int64_t a = 0; a < problem.rows.kernel; ++a) {
      for (int64_t b = 0; b < problem.cols.kernel; ++b) {
        const int64_t key = problem.token(query.batch, y + a * problem.rows.dilation,
                                          x + b * problem.cols.dilation, query.head);
        const accum_t weight =
            problem.weight(query.token, key, problem.bias_index(query.head, row + a, col + b));
        const accum_t grad = problem.grad_logit(query.token, key, weight, query_delta);
        result.add(grad, problem.key.data + key * problem.head_dim, query.channel,
                   problem.head_dim);
      }
    }
    result.scale(problem.scale);
    result.store(grad_query, problem, query);
    if (query.channel == 0) {
      delta[query.token] = query_delta;
    }
  }
}

// Gradients of key and value: every key gathers from the queries whose windows hold it.
template <typename query_t, typename value_t>
__global__ void __launch_bounds__(kThreads)
    token_backward_key_value_kernel(TokenProblem<query_t, value_t> problem,
                                    const at::opmath_type<value_t>* delta,
                                    Gradient<value_t> grad_key, value_t* grad_value) {
  using accum_t = at::opmath_type<value_t>;
  for (int64_t item = problem.first_item(); item < problem.work_items();
       item += problem.item_step()) {
    const Work key = problem.work(item);
    const int64_t y = problem.rows.inverse_start(key.y), x = problem.cols.inverse_start(key.x);
    const int64_t count_y = problem.rows.inverse_count(key.y),
                  count_x = problem.cols.inverse_count(key.x);
    // Bias entry of the first query. The others follow it, so that their entries go down.
    const int64_t row = (key.y - y) / problem.rows.dilation + problem.rows.kernel - 1;
    const int64_t col = (key.x - x) / problem.cols.dilation + problem.cols.kernel - 1;
    Channels<accum_t> key_result, value_result;
    for (int64_t a = 0; a < count_y; ++a) {
      for (int64_t b = 0; b < count_x; ++b) {
        const int64_t query = problem.token(key.batch, y + a * problem.rows.dilation,
                                            x + b * problem.cols.dilation, key.head);
        const accum_t weight =
            problem.weight(query, key.token, problem.bias_index(key.head, row - a, col - b));
        const accum_t grad = problem.grad_logit(query, key.token, weight, delta[query]);
        key_result.add(grad, problem.query.data + query * problem.head_dim, key.channel,
                       problem.head_dim);
        value_result.add(weight, problem.grad_output.data + query * problem.head_dim, key.channel,
                         problem.head_dim);
      }
    }
    key_result.scale(problem.scale);
    key_result.store(grad_key, problem, key);
    value_result.store(grad_value + key.token * problem.head_dim, key.channel, problem.head_dim);
  }
}

// Gradient of the bias: one block per entry. Its warps share the lines of the maps; their sums are
// added in order.
template <typename T>
__global__ void __launch_bounds__(kThreads)
    token_backward_bias_kernel(TokenProblem<T, T> problem, const at::opmath_type<T>* delta,
                               T* grad_bias) {
  using accum_t = at::opmath_type<T>;
  __shared__ accum_t partial[kWarpsPerBlock];
  const int64_t table_rows = 2 * problem.rows.kernel - 1, table_cols = 2 * problem.cols.kernel - 1;
  const int64_t entry = blockIdx.x, head = entry / table_cols / table_rows;
  const int64_t row = entry / table_cols % table_rows, col = entry % table_cols;
  accum_t sum = 0;
  for (int64_t line = warp(); line < problem.batch * problem.rows.length; line += kWarpsPerBlock) {
    const int64_t n = line / problem.rows.length, y = line % problem.rows.length;
    // Taps (a, b) of the windows of row y and column x that use this entry, if any.
    const int64_t a = row - problem.rows.first_offset(y);
    if (a < 0 || a >= problem.rows.kernel) {
      continue;
    }
    const int64_t key_y = problem.rows.start(y) + a * problem.rows.dilation;
    for (int64_t x = 0; x < problem.cols.length; ++x) {
      const int64_t b = col - problem.cols.first_offset(x);
      if (b < 0 || b >= problem.cols.kernel) {
        continue;
      }
      const int64_t query = problem.token(n, y, x, head);
      const int64_t key =
          problem.token(n, key_y, problem.cols.start(x) + b * problem.cols.dilation, head);
      sum += problem.grad_logit(query, key, problem.weight(query, key, entry), delta[query]);
    }
  }
  if (lane() == 0) {
    partial[warp()] = sum;
  }
  sync_block();
  if (threadIdx.x == 0) {
    for (int other = 1; other < kWarpsPerBlock; ++other) {
      sum += partial[other];
    }
    grad_bias[entry] = static_cast<T>(sum);
  }
}

// Gradient of the bias from those of the blocks, of which every `heads`-th is of a head. A block
// adds 32 entries, its warps every kReduceWarps-th part; the sums of the warps are added in order.
constexpr int kReduceWarps = 16;
template <typename T>
__global__ void __launch_bounds__(kReduceWarps* kWarpSize)
    reduce_bias_kernel(const float* parts, int64_t blocks, int64_t heads, int64_t entries,
                       T* grad_bias) {
  __shared__ float partial[kReduceWarps][kWarpSize];
  const int64_t slices = ceil_div<int64_t>(entries, kWarpSize);
  const int64_t head = blockIdx.x / slices, entry = blockIdx.x % slices * kWarpSize + lane();
  float sum = 0;
  if (entry < entries) {
    for (int64_t block = head + warp() * heads; block < blocks; block += kReduceWarps * heads) {
      sum += parts[block * entries + entry];
    }
  }
  partial[warp()][lane()] = sum;
  sync_block();
  if (warp() == 0 && entry < entries) {
    for (int other = 1; other < kReduceWarps; ++other) {
      sum += partial[other][lane()];
    }
    grad_bias[head * entries + entry] = static_cast<T>(sum);
  }
}

// Numbers of a workspace.
template <typename T>
int64_t statistics_numbers(const Problem<T, T>& problem) {
  return problem.tokens() * static_cast<int64_t>(sizeof(Float4) / sizeof(float));
}

template <typename T>
void launch_tiled(const Problem<T, T>& problem, const Gradient<T>& grad_query,
                  const Gradient<T>& grad_key, T* grad_value, T* grad_bias, float* workspace) {
  auto* statistics = reinterpret_cast<Float4*>(workspace);
  float* parts = grad_bias == nullptr ? nullptr : workspace + statistics_numbers(problem);
  const bool has_bias = problem.bias != nullptr;
  with_instance<T>(problem.head_dim, has_bias, [&](auto head_dim, auto bias) {
    constexpr int kDim = decltype(head_dim)::value;
    constexpr bool kHasBias = decltype(bias)::value;
    Launch shape = Tile<T, kDim, Kind::kQueryGradient, kHasBias>::launch_for(problem, has_bias);
    launch(tiled_backward_query_kernel<T, kDim, kHasBias>, shape.blocks, shape.threads,
           shape.shared_bytes, problem, shape.tiling, grad_query, statistics, parts);
    if (grad_bias != nullptr) {
      const int64_t entries = problem.bias_entries();
      launch(reduce_bias_kernel<T>, problem.heads * ceil_div<int64_t>(entries, kWarpSize),
             kReduceWarps * kWarpSize, 0, parts, shape.blocks, problem.heads, entries, grad_bias);
    }
    shape = Tile<T, kDim, Kind::kKeyValueGradient, kHasBias>::launch_for(problem);
    launch(tiled_backward_key_value_kernel<T, kDim, kHasBias>, shape.blocks, shape.threads,
           shape.shared_bytes, problem, shape.tiling, statistics, grad_key, grad_value);
  });
}

}  // namespace

template <typename query_t, typename value_t>
int64_t backward_numbers(const Problem<query_t, value_t>& problem, bool is_tiled) {
  if constexpr (kTiledTypes<query_t, value_t>) {
    if (is_tiled) {
      int64_t numbers = statistics_numbers(problem);
      if (problem.bias != nullptr) {
        with_head_dim(problem.head_dim, [&](auto head_dim) {
          using BiasTile = Tile<value_t, decltype(head_dim)::value, Kind::kQueryGradient, true>;
          numbers += BiasTile::launch_for(problem, true).blocks * problem.bias_entries();
        });
      }
      return numbers;
    }
  }
  return problem.tokens();
}

template <typename query_t, typename value_t>
void launch_backward(const Problem<query_t, value_t>& problem, bool is_tiled,
                     const Gradient<value_t>& grad_query, const Gradient<value_t>& grad_key,
                     value_t* grad_value, value_t* grad_bias, at::opmath_type<value_t>* workspace) {
  if constexpr (kTiledTypes<query_t, value_t>) {
    if (is_tiled) {
      launch_tiled(problem, grad_query, grad_key, grad_value, grad_bias, workspace);
      return;
    }
  }
  auto* delta = workspace;
  launch_token(token_backward_query_kernel<query_t, value_t>, {problem}, grad_query, delta);
  launch_token(token_backward_key_value_kernel<query_t, value_t>, {problem}, delta, grad_key,
               grad_value);
  if constexpr (std::is_same_v<query_t, value_t>) {
    if (grad_bias != nullptr) {
      const int64_t entries =
          problem.heads * (2 * problem.rows.kernel - 1) * (2 * problem.cols.kernel - 1);
      launch(token_backward_bias_kernel<value_t>, entries, kThreads, 0,
             TokenProblem<value_t, value_t>{problem}, delta, grad_bias);
    }
  }
}

template int64_t backward_numbers(const Problem<double, double>&, bool);
template void launch_backward(const Problem<double, double>&, bool, const Gradient<double>&,
                              const Gradient<double>&, double*, double*, double*);
template int64_t backward_numbers(const Problem<float, float>&, bool);
template void launch_backward(const Problem<float, float>&, bool, const Gradient<float>&,
                              const Gradient<float>&, float*, float*, float*);
template int64_t backward_numbers(const Problem<at::Half, at::Half>&, bool);
template void launch_backward(const Problem<at::Half, at::Half>&, bool, const Gradient<at::Half>&,
                              const Gradient<at::Half>&, at::Half*, at::Half*, float*);
template int64_t backward_numbers(const Problem<at::BFloat16, at::BFloat16>&, bool);
template void launch_backward(const Problem<at::BFloat16, at::BFloat16>&, bool,
                              const Gradient<at::BFloat16>&, const Gradient<at::BFloat16>&,
                              at::BFloat16*, at::BFloat16*, float*);
template int64_t backward_numbers(const Problem<float, at::Half>&, bool);
template void launch_backward(const Problem<float, at::Half>&, bool, const Gradient<at::Half>&,
                              const Gradient<at::Half>&, at::Half*, at::Half*, float*);
template int64_t backward_numbers(const Problem<float, at::BFloat16>&, bool);
template void launch_backward(const Problem<float, at::BFloat16>&, bool,
                              const Gradient<at::BFloat16>&, const Gradient<at::BFloat16>&,
                              at::BFloat16*, at::BFloat16*, float*);

}  // namespace mmlocalattn::cuda::neighborhood
