// Slide attention forward: see problem.cuh and tile.cuh.
#include <cmath>
#include <limits>

#include "tile.cuh"

namespace mmlocalattn::cuda::slide {
namespace {

// Positions of a thread. Three copies of them must fit in its registers.
template <typename T>
constexpr int positions_of(int kernel) {
  return (kernel == 3 ? 4 : kernel == 5 ? 2 : 1) / (sizeof(T) == 8 && kernel < 7 ? 2 : 1);
}

template <typename T, int kKernel>
struct ForwardTile
    : TileBase<T, kKernel, /*kCols=*/16, /*kThreads=*/128, positions_of<T>(kKernel), 0> {
  using Base = TileBase<T, kKernel, 16, 128, positions_of<T>(kKernel), 0>;
  using typename Base::accum_t;
  // A load of them fills 32 bytes, the unit of the memory.
  static constexpr int kChannels = 32 / sizeof(T);
  static constexpr int kChunk = kCopyBytes / sizeof(T);
  static constexpr int kSharedBytes = kChannels * Base::kPlane * static_cast<int>(sizeof(accum_t));

  using Base::Base;
};

// kQuad channels from `channel` on of the output of the positions of this thread, whose values are
// in `plane`.
template <typename Tile>
__device__ __forceinline__ void mix_values(
    const Tile& tile, int channel, const typename Tile::Quad* plane,
    const typename Tile::accum_t (&weight)[Tile::kPositions][Tile::kTaps],
    typename Tile::Quad (&sum)[Tile::kPositions]) {
  using accum_t = typename Tile::accum_t;
  constexpr int kPositions = Tile::kPositions;
  const typename Tile::Quad* const tap = plane + tile.row(0) * Tile::kPitch + tile.col();
#pragma unroll
  for (int c = 0; c < Tile::kQuad; ++c) {
    accum_t mixed[kPositions];
    tile.mix_copies(weight, tile.table(channel + c, Tile::kTaps), mixed);
#pragma unroll
    for (int p = 0; p < kPositions; ++p) sum[p].of[c] = mixed[p];
  }
#pragma unroll 1
  for (int a = 0; a < Tile::kKernel; ++a) {
#pragma unroll(Tile::kUnrolled)
    for (int b = 0; b < Tile::kKernel; ++b) {
      typename Tile::Quad value[kPositions];
#pragma unroll
      for (int p = 0; p < kPositions; ++p) {
        value[p] = tap[(p * Tile::kRowStep + a) * Tile::kPitch + b];
      }
#pragma unroll
      for (int c = 0; c < Tile::kQuad; ++c) {
        accum_t mixed[kPositions];
        tile.mix_copies(weight, tile.table(channel + c, a * Tile::kKernel + b), mixed);
#pragma unroll
        for (int p = 0; p < kPositions; ++p) sum[p].of[c] += mixed[p] * value[p].of[c];
      }
    }
  }
}

template <typename T, int kKernel>
__global__ void __launch_bounds__(ForwardTile<T, kKernel>::kThreads)
    slide_kernel(Problem<T> problem) {
  using Tile = ForwardTile<T, kKernel>;
  using accum_t = typename Tile::accum_t;
  constexpr int kTaps = Tile::kTaps, kPositions = Tile::kPositions, kQuad = Tile::kQuad;
  const Tile tile(problem, blockIdx.x);
  auto* const taps = dynamic_shared<typename Tile::Quad>();
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
      accum_t* const logsumexp = tile.at(problem.logsumexp, tile.row(p), tile.col());
      logsumexp[0] = high;
      logsumexp[1] = std::log(total);
    }
  }
  for (int channel = 0; channel < problem.head_dim; channel += Tile::kChannels) {
    sync_block();
    tile.template load<Tile::kChannels, Tile::kRadius>(problem.value, channel, 1, taps,
                                                       Tile::kPlane);
    sync_block();
#pragma unroll 1
    for (int first = 0; first < Tile::kChannels && channel + first < problem.head_dim;
         first += Tile::kChunk) {
      accum_t output[kPositions][Tile::kChunk];
#pragma unroll
      for (int c = 0; c < Tile::kChunk; c += kQuad) {
        typename Tile::Quad sum[kPositions];
        mix_values(tile, channel + first + c, taps + (first + c) / kQuad * Tile::kPlane, weight,
                   sum);
#pragma unroll
        for (int p = 0; p < kPositions; ++p) {
#pragma unroll
          for (int i = 0; i < kQuad; ++i) output[p][c + i] = sum[p].of[i];
        }
      }
#pragma unroll
      for (int p = 0; p < kPositions; ++p) {
        if (tile.inside(tile.row(p), tile.col())) {
          write_channels(tile.at(problem.output, tile.row(p), tile.col()),
                         problem.output.has_chunks, channel + first, problem.head_dim, output[p]);
        }
      }
    }
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
