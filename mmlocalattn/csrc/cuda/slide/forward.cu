// Slide attention forward: see problem.cuh and tile.cuh.
#include <cmath>
#include <limits>

#include "tile.cuh"

namespace mmlocalattn::cuda::slide {
namespace {

template <typename T, int kKernel>
struct ForwardTile : TileBase<T, kKernel, /*kCols=*/16, /*kThreads=*/128, /*kMargin=*/0> {
  using Base = TileBase<T, kKernel, 16, 128, 0>;
  using typename Base::accum_t;
  // A load of them fills 32 bytes, the unit of the memory.
  static constexpr int kChannels = sizeof(T) == 2 ? 16 : 8;
  static constexpr int kSharedBytes =
      kChannels * (Base::kPlane + Base::kOwnPlane) * static_cast<int>(sizeof(accum_t));

  using Base::Base;
};

template <typename T, int kKernel>
__global__ void __launch_bounds__(ForwardTile<T, kKernel>::kThreads)
    slide_kernel(Problem<T> problem) {
  using Tile = ForwardTile<T, kKernel>;
  using accum_t = typename Tile::accum_t;
  constexpr int kTaps = Tile::kTaps;
  const Tile tile(problem, blockIdx.x);
  accum_t* const taps = dynamic_shared<accum_t>();
  accum_t* const results = taps + Tile::kChannels * Tile::kPlane;
  accum_t weight[kPositions][kTaps], channels[kPositions];
  tile.template multiply_copies<Tile::kChannels>(problem.query, problem.scale, problem.key, taps,
                                                 weight, channels);
#pragma unroll
  for (int p = 0; p < kPositions; ++p) {
    accum_t high = -std::numeric_limits<accum_t>::infinity(), total = 0;
#pragma unroll
    for (int i = 0; i < kTaps; ++i) {
      weight[p][i] += channels[p] * problem.position_bias[tile.head * kTaps + i];
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
      *tile.at(problem.logsumexp, tile.row(p), tile.col()) = high + std::log(total);
    }
  }
  for (int channel = 0; channel < problem.head_dim; channel += Tile::kChannels) {
    sync_block();
    tile.template load<Tile::kChannels, Tile::kRadius>(problem.value, channel, taps, Tile::kPlane);
    sync_block();
    for (int c = 0; c < Tile::kChannels && channel + c < problem.head_dim; ++c) {
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
    tile.template store<Tile::kChannels>(results, 1, channel, problem.output);
  }
}

}  // namespace

template <typename T>
void launch_forward(const Problem<T>& problem, int64_t kernel_size) {
  with_kernel_size(kernel_size, [&](auto kernel) {
    using Tile = ForwardTile<T, decltype(kernel)::value>;
    launch(slide_kernel<T, decltype(kernel)::value>, Tile::tiles(problem), Tile::kThreads,
           Tile::kSharedBytes, problem);
  });
}

template void launch_forward(const Problem<double>&, int64_t);
template void launch_forward(const Problem<float>&, int64_t);
template void launch_forward(const Problem<at::Half>&, int64_t);
template void launch_forward(const Problem<at::BFloat16>&, int64_t);

}  // namespace mmlocalattn::cuda::slide
