// Neighborhood attention forward by tiles: see tile.cuh.
#include "tile.cuh"

namespace mmlocalattn {
namespace {

// A running maximum may lag behind by this exponent of 2 before the sums are rescaled.
constexpr float kSlack = 8;

template <typename T, int kDim>
__global__ void __launch_bounds__(Tile<T, kDim, false>::kThreads,
                                  Tile<T, kDim, false>::blocks(1, 1))
    tiled_kernel(Neighborhood<T, T> na, Tiling tiling, T* output, float* logsumexp) {
  const Tile<T, kDim, false> tile(na, tiling);
  if (tile.is_empty()) {
    return;
  }
  const auto query = tile.own(na.query, 0);
  const float scale = na.scale * kLog2E;
  // Per slot. `lowest` and not -inf, so that no difference is NaN.
  constexpr float kLowest = std::numeric_limits<float>::lowest();
  float max[2] = {kLowest, kLowest}, total[2] = {}, sum[kDim / 8][4] = {};
  tile.for_each_product(na.key, na.value, nullptr, [&](const Product<T, kDim>& product) {
    float weight[2][4];
    query.dot(weight, product.first);
    product.mask(weight);
    float high[2];
#pragma unroll
    for (int slot = 0; slot < 2; ++slot) {
      high[slot] = scale * fmaxf(fmaxf(weight[0][2 * slot], weight[0][2 * slot + 1]),
                                 fmaxf(weight[1][2 * slot], weight[1][2 * slot + 1]));
    }
    if (any(high[0] > max[0] + kSlack || high[1] > max[1] + kSlack)) {
#pragma unroll
      for (int slot = 0; slot < 2; ++slot) {
        const float new_max = fmaxf(max[slot], row_max(high[slot]));
        const float rescale = exp2_fast(max[slot] - new_max);
        max[slot] = new_max;
        total[slot] *= rescale;
#pragma unroll
        for (int part = 0; part < kDim / 8; ++part) {
          sum[part][2 * slot] *= rescale;
          sum[part][2 * slot + 1] *= rescale;
        }
      }
    }
#pragma unroll
    for (int half = 0; half < 2; ++half) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        weight[half][i] = exp2_fast(scale * weight[half][i] - max[i / 2]);
        total[i / 2] += weight[half][i];
      }
    }
    query.add(sum, weight, product.second);
  });
#pragma unroll
  for (int slot = 0; slot < 2; ++slot) {
    const float row_total = row_sum(total[slot]), factor = 1 / row_total;
    if (!tile.has_token(own_row(slot))) {
      continue;
    }
    const int64_t token = tile.token(own_row(slot));
#pragma unroll
    for (int part = 0; part < kDim / 8; ++part) {
      *reinterpret_cast<Pair<T>*>(output + token * kDim + query.channel(part)) = {
          static_cast<T>(factor * sum[part][2 * slot]),
          static_cast<T>(factor * sum[part][2 * slot + 1])};
    }
    if (lane() % 4 == 0) {
      logsumexp[token] = (max[slot] + log2f(row_total)) / kLog2E;
    }
  }
}

}  // namespace

template <typename T>
void launch_tiled(const Neighborhood<T, T>& na, T* output, float* logsumexp) {
  with_head_dim(na.head_dim, [&](auto head_dim) {
    constexpr int kDim = decltype(head_dim)::value;
    using Shape = Tile<T, kDim, false>;
    const auto [tiling, blocks] = choose_tiling(na, Shape::kWarps);
    launch(tiled_kernel<T, kDim>, blocks, Shape::kThreads, Shape::shared_bytes(1), na, tiling,
           output, logsumexp);
  });
}

template void launch_tiled(const Neighborhood<float, float>&, float*, float*);
template void launch_tiled(const Neighborhood<at::Half, at::Half>&, at::Half*, float*);
template void launch_tiled(const Neighborhood<at::BFloat16, at::BFloat16>&, at::BFloat16*, float*);

}  // namespace mmlocalattn
