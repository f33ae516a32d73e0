// Slide attention forward on CUDA: see slide.cuh.
#include <torch/library.h>

#include <cmath>
#include <limits>

#include "slide.cuh"

namespace mmlocalattn {
namespace {

using at::Tensor;

template <typename T, int kKernel>
struct ForwardTile : SlideTile<T, kKernel, /*kCols=*/16, /*kThreads=*/128, /*kMargin=*/0> {
  using Base = SlideTile<T, kKernel, 16, 128, 0>;
  using typename Base::accum_t;
  // A load of them fills 32 bytes, the unit of the memory.
  static constexpr int kChannels = sizeof(T) == 2 ? 16 : 8;
  static constexpr int kSharedBytes =
      kChannels * (Base::kPlane + Base::kOwnPlane) * static_cast<int>(sizeof(accum_t));

  using Base::Base;
};

template <typename T, int kKernel>
__global__ void __launch_bounds__(ForwardTile<T, kKernel>::kThreads) slide_kernel(Slide<T> slide) {
  using Tile = ForwardTile<T, kKernel>;
  using accum_t = typename Tile::accum_t;
  constexpr int kTaps = Tile::kTaps;
  const Tile tile(slide, blockIdx.x);
  accum_t* const taps = dynamic_shared<accum_t>();
  accum_t* const results = taps + Tile::kChannels * Tile::kPlane;
  accum_t weight[kPositions][kTaps], channels[kPositions];
  tile.template multiply_copies<Tile::kChannels>(slide.query, slide.scale, slide.key, taps, weight,
                                                 channels);
#pragma unroll
  for (int p = 0; p < kPositions; ++p) {
    accum_t high = -std::numeric_limits<accum_t>::infinity(), total = 0;
#pragma unroll
    for (int i = 0; i < kTaps; ++i) {
      weight[p][i] += channels[p] * slide.position_bias[tile.head * kTaps + i];
      high = weight[p][i] > high ? weight[p][i] : high;
    }
#pragma unroll
    for (int i = 0; i < kTaps; ++i) {
      weight[p][i] = std::exp(weight[p][i] - high);
      total += weight[p][i];
    }
#pragma unroll
    for (int i = 0; i < kTaps; ++i) weight[p][i] /= total;
    if (tile.inside(tile.row(p), tile.col())) {
      *tile.at(slide.logsumexp, tile.row(p), tile.col()) = high + std::log(total);
    }
  }
  for (int channel = 0; channel < slide.head_dim; channel += Tile::kChannels) {
    sync_block();
    tile.template load<Tile::kChannels, Tile::kRadius>(slide.value, channel, taps, Tile::kPlane);
    sync_block();
    for (int c = 0; c < Tile::kChannels && channel + c < slide.head_dim; ++c) {
      accum_t sum[kPositions];
      tile.mix_copies(weight, tile.table(channel + c, kTaps), sum);
#pragma unroll 1
      for (int j = 0; j < kTaps; ++j) {
        accum_t mixed[kPositions];
        tile.mix_copies(weight, tile.table(channel + c, j), mixed);
        const accum_t* tap =
            taps + c * Tile::kPlane + (j / kKernel) * Tile::kPitch + j % kKernel + tile.col();
#pragma unroll
        for (int p = 0; p < kPositions; ++p) sum[p] += mixed[p] * tap[tile.row(p) * Tile::kPitch];
      }
#pragma unroll
      for (int p = 0; p < kPositions; ++p) {
        results[c * Tile::kOwnPlane + tile.row(p) * Tile::kCols + tile.col()] = sum[p];
      }
    }
    sync_block();
    tile.template store<Tile::kChannels>(results, 1, channel, slide.output);
  }
}

std::tuple<Tensor, Tensor> slide_attention_cuda(const Tensor& query, const Tensor& key,
                                                const Tensor& value, const Tensor& weight,
                                                const std::optional<Tensor>& bias,
                                                const std::optional<Tensor>& position_bias,
                                                double scale) {
  const SlideCall call{
      query, key, value, weight, bias.value_or(Tensor()), position_bias.value_or(Tensor()), scale};
  check(call);
  const c10::cuda::CUDAGuard device_guard(query.device());
  const Tensor output = at::empty(query.sizes(), query.options());
  const Tensor logsumexp = at::empty(query.sizes().slice(0, 4), call.accumulate());
  if (query.numel() == 0) {
    return {output, logsumexp};
  }
  const SlideInputs inputs(call);
  dispatch_slide(call, [&](auto type, auto kernel) {
    using T = decltype(type);
    using Tile = ForwardTile<T, decltype(kernel)::value>;
    auto slide = inputs.describe<T>(call, logsumexp.unsqueeze(4));
    slide.output = slide_result<T>(output);
    launch(slide_kernel<T, decltype(kernel)::value>, Tile::tiles(slide), Tile::kThreads,
           Tile::kSharedBytes, slide);
  });
  return {output, logsumexp};
}

}  // namespace
}  // namespace mmlocalattn

TORCH_LIBRARY_IMPL(mmlocalattn, CUDA, m) {
  m.impl("slide_attention", &mmlocalattn::slide_attention_cuda);
}
