// Neighborhood attention backward by tiles: see tile.cuh.
#include "tile.cuh"

namespace mmlocalattn {
namespace {

// What the gradients of key and value need of a query: the logarithm to the base 2 of the sum of
// exponentials, and delta.
__device__ __forceinline__ Float4 query_statistics(float logsumexp2, float delta) {
  return {logsumexp2, delta, 0, 0};
}

// Gradient of query, and the statistics for the kernel below.
template <typename T, int kDim>
__global__ void __launch_bounds__(Tile<T, kDim, false>::kThreads,
                                  Tile<T, kDim, false>::blocks(2, 1))
    tiled_backward_query_kernel(Neighborhood<T, T> na, Tiling tiling, Gradient<T> grad_query,
                                Float4* statistics) {
  const Tile<T, kDim, false> tile(na, tiling);
  if (tile.is_empty()) {
    return;
  }
  const auto query = tile.own(na.query, 0), grad_output = tile.own(na.grad_output, 1);
  const float scale = na.scale * kLog2E;
  float logsumexp[2], delta[2], sum[kDim / 8][4] = {};
#pragma unroll
  for (int slot = 0; slot < 2; ++slot) {
    const int64_t token = tile.token(own_row(slot));
    const T* grads = tile.vector(na.grad_output, own_row(slot));
    const T* outputs = tile.vector(na.output, own_row(slot));
    logsumexp[slot] = na.logsumexp[token] * kLog2E;
    delta[slot] = 0;
#pragma unroll
    for (int part = 0; part < kDim / 8; ++part) {
      const int channel = query.channel(part);
      const auto grad = *reinterpret_cast<const Pair<T>*>(grads + channel);
      const auto out = *reinterpret_cast<const Pair<T>*>(outputs + channel);
      delta[slot] += static_cast<float>(grad.even) * static_cast<float>(out.even);
      delta[slot] += static_cast<float>(grad.odd) * static_cast<float>(out.odd);
    }
    delta[slot] = row_sum(delta[slot]);
    if (lane() % 4 == 0 && tile.has_token(own_row(slot))) {
      statistics[token] = query_statistics(logsumexp[slot], delta[slot]);
    }
  }
  tile.for_each_product(na.key, na.value, nullptr, [&](const Product<T, kDim>& product) {
    float grad[2][4], grad_weight[2][4];
    query.dot(grad, product.first);
    grad_output.dot(grad_weight, product.second);
    product.mask(grad);
#pragma unroll
    for (int half = 0; half < 2; ++half) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        grad[half][i] = exp2_fast(scale * grad[half][i] - logsumexp[i / 2]) *
                        (grad_weight[half][i] - delta[i / 2]);
      }
    }
    query.add(sum, grad, product.first);
  });
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
                       na.scale * sum[part][2 * slot], na.scale * sum[part][2 * slot + 1]);
    }
  }
}

// Gradients of key and value. The own tokens are keys, their partners the queries that see them.
template <typename T, int kDim>
__global__ void __launch_bounds__(Tile<T, kDim, true>::kThreads, Tile<T, kDim, true>::blocks(2, 2))
    tiled_backward_key_value_kernel(Neighborhood<T, T> na, Tiling tiling, const Float4* statistics,
                                    Gradient<T> grad_key, T* grad_value) {
  const Tile<T, kDim, true> tile(na, tiling);
  if (tile.is_empty()) {
    return;
  }
  const auto key = tile.own(na.key, 0), value = tile.own(na.value, 1);
  const float scale = na.scale * kLog2E;
  float key_sum[kDim / 8][4] = {}, value_sum[kDim / 8][4] = {};
  tile.for_each_product(na.query, na.grad_output, statistics, [&](const Product<T, kDim>& product) {
    float weight[2][4], grad[2][4];
    key.dot(weight, product.first);
    value.dot(grad, product.second);
    product.mask(weight);
#pragma unroll
    for (int half = 0; half < 2; ++half) {
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        const int column = partner_column(half, i), last = product.first.last;
        const Float4 query = product.statistics[column < last ? column : last];
#pragma unroll
        for (int slot = 0; slot < 2; ++slot) {
          float& p = weight[half][2 * slot + i];
          p = exp2_fast(scale * p - query.at[0]);
          grad[half][2 * slot + i] = p * (grad[half][2 * slot + i] - query.at[1]);
        }
      }
    }
    key.add(value_sum, weight, product.second);
    key.add(key_sum, grad, product.first);
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
                     na.scale * key_sum[part][2 * slot], na.scale * key_sum[part][2 * slot + 1]);
      *reinterpret_cast<Pair<T>*>(grad_value + index) = {
          static_cast<T>(value_sum[part][2 * slot]), static_cast<T>(value_sum[part][2 * slot + 1])};
    }
  }
}

}  // namespace

template <typename T>
void launch_tiled_backward(const Neighborhood<T, T>& na, const Gradient<T>& grad_query,
                           const Gradient<T>& grad_key, T* grad_value, float* workspace) {
  auto* statistics = reinterpret_cast<Float4*>(workspace);
  with_head_dim(na.head_dim, [&](auto head_dim) {
    constexpr int kDim = decltype(head_dim)::value;
    using Shape = Tile<T, kDim, false>;
    const auto [tiling, blocks] = choose_tiling(na, Shape::kWarps);
    launch(tiled_backward_query_kernel<T, kDim>, blocks, Shape::kThreads, Shape::shared_bytes(2),
           na, tiling, grad_query, statistics);
    launch(tiled_backward_key_value_kernel<T, kDim>, blocks, Shape::kThreads,
           Shape::shared_bytes(2), na, tiling, statistics, grad_key, grad_value);
  });
}

template void launch_tiled_backward(const Neighborhood<float, float>&, const Gradient<float>&,
                                    const Gradient<float>&, float*, float*);
template void launch_tiled_backward(const Neighborhood<at::Half, at::Half>&,
                                    const Gradient<at::Half>&, const Gradient<at::Half>&, at::Half*,
                                    float*);
template void launch_tiled_backward(const Neighborhood<at::BFloat16, at::BFloat16>&,
                                    const Gradient<at::BFloat16>&, const Gradient<at::BFloat16>&,
                                    at::BFloat16*, float*);

}  // namespace mmlocalattn
