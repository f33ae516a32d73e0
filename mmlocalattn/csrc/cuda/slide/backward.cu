// Slide attention backward: see problem.cuh and tile.cuh.
#include <algorithm>
#include <cmath>

#include "tile.cuh"

namespace mmlocalattn::cuda::slide {
namespace {

constexpr int kMostGroups = 128;  // of tiles, each with a part of the gradient of the weights

template <typename T, int kKernel>
struct BackwardTile : TileBase<T, kKernel, /*kCols=*/32, /*kThreads=*/256, kKernel / 2> {
  using Base = TileBase<T, kKernel, 32, 256, kKernel / 2>;
  using typename Base::accum_t;
  static constexpr bool kIsDouble = sizeof(accum_t) == 8;
  static constexpr int kChannels = kIsDouble ? 1 : 4;
  // Copies whose ds and p lie in shared memory for the sums of dw.
  static constexpr int kCopies = kKernel == 3 && !kIsDouble ? 9 : kKernel;
  // A thread sums some dw over every kSplits-th own row.
  static constexpr int kSums = kChannels * (Base::kTaps + 1);
  static constexpr int kSplits = kSums < Base::kThreads ? Base::kThreads / kSums : 1;
  static constexpr int kPartnerSize = 2 * kChannels * Base::kPlane;
  static constexpr int kOwnSize = 5 * kChannels * Base::kOwnPlane;
  static constexpr int kSharedBytes =
      (kPartnerSize + kOwnSize + 2 * kCopies * Base::kSize) * static_cast<int>(sizeof(accum_t));
  static_assert(kSharedBytes <= 99 << 10, "GPUs of compute capability 8.6 have 99 KB");

  using Base::Base;
};

// Shared memory of backward: of the channels of a chunk, planes of the keys and values around the
// tile, of query and grad_output, and of the sums of the gradients of query, key and value; of some
// copies, ds and p of every position, (kSize, 2, kCopies).
template <typename Tile>
struct BackwardShared {
  using accum_t = typename Tile::accum_t;
  accum_t *key, *value, *query, *grad_output, *grad_query, *grad_key, *grad_value, *factors;

  __device__ BackwardShared() {
    constexpr int kOwn = Tile::kChannels * Tile::kOwnPlane;
    key = dynamic_shared<accum_t>();
    value = key + Tile::kChannels * Tile::kPlane;
    query = value + Tile::kChannels * Tile::kPlane;
    grad_output = query + kOwn;
    grad_query = grad_output + kOwn;
    grad_key = grad_query + kOwn;
    grad_value = grad_key + kOwn;
    factors = grad_value + kOwn;
  }
};

// What a thread knows of its positions: p and ds, 0 outside the map, and sum_i ds_i r_i.
template <typename Tile>
struct Weighed {
  using accum_t = typename Tile::accum_t;
  accum_t weight[kPositions][Tile::kTaps], grad[kPositions][Tile::kTaps], position[kPositions];
};

// Fills `weighed`, and leaves the tile's part of dr.
template <typename Tile, typename T>
__device__ void weigh(const Tile& tile, int64_t index, Weighed<Tile>& weighed) {
  using accum_t = typename Tile::accum_t;
  constexpr int kTaps = Tile::kTaps, kWarps = Tile::kThreads / kWarpSize;
  const Problem<T>& problem = tile.problem;
  accum_t* const shared = dynamic_shared<accum_t>();
  accum_t channels[kPositions], unused[kPositions];
  tile.template multiply_copies<Tile::kChannels>(problem.query, problem.scale, problem.key, shared,
                                                 weighed.weight, channels);
  tile.template multiply_copies<Tile::kChannels>(problem.grad_output, 1, problem.value, shared,
                                                 weighed.grad, unused);
#pragma unroll
  for (int p = 0; p < kPositions; ++p) {
    const bool inside = tile.inside(tile.row(p), tile.col());
    const accum_t logsumexp =
        inside ? *tile.at(problem.logsumexp, tile.row(p), tile.col()) : accum_t(0);
    accum_t delta = 0;
#pragma unroll
    for (int i = 0; i < kTaps; ++i) {
      const accum_t bias = problem.position_bias[tile.head * kTaps + i];
      accum_t& weight = weighed.weight[p][i];
      weight = inside ? std::exp(weight + channels[p] * bias - logsumexp) : accum_t(0);
      delta += weight * weighed.grad[p][i];
    }
    weighed.position[p] = 0;
#pragma unroll
    for (int i = 0; i < kTaps; ++i) {
      weighed.grad[p][i] = weighed.weight[p][i] * (weighed.grad[p][i] - delta);
      weighed.position[p] += weighed.grad[p][i] * problem.position_bias[tile.head * kTaps + i];
    }
    if (!tile.owns(tile.row(p), tile.col())) channels[p] = 0;
  }
  sync_block();
#pragma unroll
  for (int i = 0; i < kTaps; ++i) {
    accum_t sum = 0;
#pragma unroll
    for (int p = 0; p < kPositions; ++p) sum += channels[p] * weighed.grad[p][i];
    sum = warp_sum(sum);
    if (lane() == 0) shared[warp() * kTaps + i] = sum;
  }
  sync_block();
  for (int i = threadIdx.x; i < kTaps; i += Tile::kThreads) {
    accum_t sum = 0;
    for (int warp = 0; warp < kWarps; ++warp) sum += shared[warp * kTaps + i];
    problem.grad_position_bias[index * kTaps + i] = sum;
  }
}

// dq, dk and dv of the own positions, for `count` channels from `channel` on whose inputs are in
// shared memory.
template <typename Tile, typename T>
__device__ void give(const Tile& tile, const BackwardShared<Tile>& shared,
                     const Weighed<Tile>& weighed, int channel, int count) {
  using accum_t = typename Tile::accum_t;
  constexpr int kTaps = Tile::kTaps, kKernel = Tile::kKernel, kRadius = Tile::kRadius;
  for (int c = 0; c < count; ++c) {
    accum_t mixed[kPositions];
    tile.mix_copies(weighed.grad, tile.table(channel + c, kTaps), mixed);
#pragma unroll
    for (int p = 0; p < kPositions; ++p) {
      const int place = c * Tile::kOwnPlane + tile.row(p) * Tile::kCols + tile.col();
      shared.grad_query[place] = mixed[p] + weighed.position[p];
      shared.grad_key[place] = shared.grad_value[place] = 0;
    }
  }
#pragma unroll 1
  for (int j = 0; j < kTaps; ++j) {
    const int a = j / kKernel, b = j % kKernel;
    sync_block();
    for (int c = 0; c < count; ++c) {
      accum_t keys[kPositions], values[kPositions];
      tile.mix_copies(weighed.grad, tile.table(channel + c, j), keys);
      tile.mix_copies(weighed.weight, tile.table(channel + c, j), values);
#pragma unroll
      for (int p = 0; p < kPositions; ++p) {
        const int row = tile.row(p), col = tile.col();
        const int place = c * Tile::kOwnPlane + row * Tile::kCols + col;
        shared.grad_query[place] +=
            keys[p] * shared.key[c * Tile::kPlane + (row + a) * Tile::kPitch + col + b];
        if (tile.owns(row + a - kRadius, col + b - kRadius)) {
          const int target = place + (a - kRadius) * Tile::kCols + b - kRadius;
          shared.grad_key[target] += keys[p] * tile.problem.scale * shared.query[place];
          shared.grad_value[target] += values[p] * shared.grad_output[place];
        }
      }
    }
  }
  sync_block();
  tile.template store<Tile::kChannels>(shared.grad_query, tile.problem.scale, channel,
                                       tile.problem.grad_query);
  tile.template store<Tile::kChannels>(shared.grad_key, 1, channel, tile.problem.grad_key);
  tile.template store<Tile::kChannels>(shared.grad_value, 1, channel, tile.problem.grad_value);
}

// Adds the tile's dw of the same channels to the part of this block, whose first tile it may be.
template <typename Tile, typename T>
__device__ void sum_grad_table(const Tile& tile, const BackwardShared<Tile>& shared,
                               const Weighed<Tile>& weighed, int channel, int count,
                               bool is_first) {
  using accum_t = typename Tile::accum_t;
  constexpr int kTaps = Tile::kTaps, kKernel = Tile::kKernel, kCopies = Tile::kCopies;
  const Problem<T>& problem = tile.problem;
#pragma unroll
  for (int begin = 0; begin < kTaps; begin += kCopies) {
    sync_block();
#pragma unroll
    for (int p = 0; p < kPositions; ++p) {
      const bool owns = tile.owns(tile.row(p), tile.col());
      accum_t* factors = shared.factors + (tile.row(p) * Tile::kCols + tile.col()) * 2 * kCopies;
#pragma unroll
      for (int i = 0; i < kCopies; ++i) {
        factors[i] = owns ? problem.scale * weighed.grad[p][begin + i] : accum_t(0);
        factors[kCopies + i] = owns ? weighed.weight[p][begin + i] : accum_t(0);
      }
    }
    sync_block();
    for (int task = threadIdx.x; task < Tile::kSums * Tile::kSplits; task += Tile::kThreads) {
      const int split = task / Tile::kSums, c = task % Tile::kSums / (kTaps + 1);
      const int j = task % (kTaps + 1);
      if (c >= count) continue;
      accum_t sum[kCopies] = {};
      for (int row = Tile::kMargin + split; row < Tile::kRows - Tile::kMargin;
           row += Tile::kSplits) {
        for (int col = Tile::kMargin; col < Tile::kCols - Tile::kMargin; ++col) {
          const int own = c * Tile::kOwnPlane + row * Tile::kCols + col;
          const int tap = c * Tile::kPlane + (row + j / kKernel) * Tile::kPitch + col + j % kKernel;
          const accum_t keys = shared.query[own] * (j < kTaps ? shared.key[tap] : accum_t(1));
          const accum_t values =
              shared.grad_output[own] * (j < kTaps ? shared.value[tap] : accum_t(1));
          const accum_t* factors = shared.factors + (row * Tile::kCols + col) * 2 * kCopies;
#pragma unroll
          for (int i = 0; i < kCopies; ++i) {
            sum[i] += factors[i] * keys + factors[kCopies + i] * values;
          }
        }
      }
      const int64_t part = static_cast<int64_t>(blockIdx.x) * Tile::kSplits + split;
      accum_t* to = problem.grad_table +
                    ((part * problem.head_dim + channel + c) * (kTaps + 1) + j) * kTaps + begin;
#pragma unroll
      for (int i = 0; i < kCopies; ++i) to[i] = is_first ? sum[i] : to[i] + sum[i];
    }
  }
}

template <typename T, int kKernel>
__global__ void __launch_bounds__(BackwardTile<T, kKernel>::kThreads)
    slide_backward_kernel(Problem<T> problem, int64_t tiles) {
  using Tile = BackwardTile<T, kKernel>;
  constexpr int kChannels = Tile::kChannels;
  const BackwardShared<Tile> shared;
  const int64_t first = blockIdx.x * tiles / gridDim.x, end = (blockIdx.x + 1) * tiles / gridDim.x;
  for (int64_t index = first; index < end; ++index) {
    const Tile tile(problem, index);
    Weighed<Tile> weighed;
    weigh<Tile, T>(tile, index, weighed);
    for (int channel = 0; channel < problem.head_dim; channel += kChannels) {
      sync_block();
      tile.template load<kChannels, Tile::kRadius>(problem.key, channel, shared.key, Tile::kPlane);
      tile.template load<kChannels, Tile::kRadius>(problem.value, channel, shared.value,
                                                   Tile::kPlane);
      tile.template load<kChannels, 0>(problem.query, channel, shared.query, Tile::kOwnPlane);
      tile.template load<kChannels, 0>(problem.grad_output, channel, shared.grad_output,
                                       Tile::kOwnPlane);
      const int rest = problem.head_dim - channel, count = rest < kChannels ? rest : kChannels;
      give<Tile, T>(tile, shared, weighed, channel, count);
      sum_grad_table<Tile, T>(tile, shared, weighed, channel, count, index == first);
    }
    sync_block();
  }
}

// Groups of tiles, one a block.
int64_t groups_of(int64_t tiles) { return std::min<int64_t>(tiles, kMostGroups); }

}  // namespace

template <typename T>
BackwardParts backward_parts(const Problem<T>& problem, int64_t kernel_size) {
  return with_kernel_size(kernel_size, [&](auto kernel) {
    using Tile = BackwardTile<T, decltype(kernel)::value>;
    const int64_t tiles = Tile::tiles(problem);
    return BackwardParts{groups_of(tiles) * Tile::kSplits, tiles};
  });
}

template <typename T>
void launch_backward(const Problem<T>& problem, int64_t kernel_size) {
  with_kernel_size(kernel_size, [&](auto kernel) {
    using Tile = BackwardTile<T, decltype(kernel)::value>;
    const int64_t tiles = Tile::tiles(problem);
    launch(slide_backward_kernel<T, decltype(kernel)::value>, groups_of(tiles), Tile::kThreads,
           Tile::kSharedBytes, problem, tiles);
  });
}

template BackwardParts backward_parts(const Problem<double>&, int64_t);
template BackwardParts backward_parts(const Problem<float>&, int64_t);
template BackwardParts backward_parts(const Problem<at::Half>&, int64_t);
template BackwardParts backward_parts(const Problem<at::BFloat16>&, int64_t);
template void launch_backward(const Problem<double>&, int64_t);
template void launch_backward(const Problem<float>&, int64_t);
template void launch_backward(const Problem<at::Half>&, int64_t);
template void launch_backward(const Problem<at::BFloat16>&, int64_t);

}  // namespace mmlocalattn::cuda::slide
