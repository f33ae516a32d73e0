// Slide attention backward: see problem.cuh and tile.cuh.
#include <algorithm>
#include <cmath>

#include "tile.cuh"

namespace mmlocalattn::cuda::slide {
namespace {

constexpr int kMostGroups = 128;  // of tiles, each with a part of the gradient of the weights

// The shape of a tile. The registers of a thread must hold p and ds of its positions.
template <typename T, int kKernel>
struct Shape {
  static constexpr bool kIsSmall = sizeof(T) < 8 && kKernel == 3;
  static constexpr int kCols = kIsSmall ? 32 : 16, kPositions = kIsSmall ? 2 : 1;
  using Base = TileBase<T, kKernel, kCols, /*kThreads=*/256, kPositions, /*kMargin=*/kKernel / 2>;
};

template <typename T, int kKernel>
struct BackwardTile : Shape<T, kKernel>::Base {
  using Base = typename Shape<T, kKernel>::Base;
  using typename Base::accum_t;
  using typename Base::Quad;
  static constexpr int kChannels = Base::kQuad;
  // Copies whose ds and p lie in shared memory for the sums of dw, and numbers that they take.
  static constexpr int kCopies = kKernel == 3 ? 9 : kKernel;
  static constexpr int kFactors = (2 * kCopies + 3) / 4 * 4;
  // A thread sums the dw of a tap over every kSplits-th own position.
  static constexpr int kTasks = Base::kTaps + 1, kSplits = Base::kThreads / kTasks;
  static_assert(kSplits * kTasks * kCopies <= kFactors * Base::kSize, "sums replace the factors");
  static constexpr int kSharedBytes =
      (2 * Base::kPlane + 4 * Base::kOwnPlane) * static_cast<int>(sizeof(Quad)) +
      kFactors * Base::kSize * static_cast<int>(sizeof(accum_t));
  static_assert(kSharedBytes <= 99 << 10, "GPUs of compute capability 8.6 have 99 KB");

  using Base::Base;

  // Place of a position of this thread in an own plane.
  __device__ static int own(int p) { return Base::row(p) * Base::kCols + Base::col(); }
};

// Shared memory of backward: of the channels of a chunk, planes of the keys and values around the
// tile, of query, times scale, and grad_output, and of the sums of the gradients of key and value;
// of some copies, ds and p of every position, (kSize, kFactors).
template <typename Tile>
struct BackwardShared {
  using Quad = typename Tile::Quad;
  Quad *key, *value, *query, *grad_output, *grad_key, *grad_value;
  typename Tile::accum_t* factors;

  __device__ BackwardShared() {
    key = dynamic_shared<Quad>();
    value = key + Tile::kPlane;
    query = value + Tile::kPlane;
    grad_output = query + Tile::kOwnPlane;
    grad_key = grad_output + Tile::kOwnPlane;
    grad_value = grad_key + Tile::kOwnPlane;
    factors = reinterpret_cast<typename Tile::accum_t*>(grad_value + Tile::kOwnPlane);
  }
};

// What a thread knows of its positions: p and ds, 0 outside the map, and sum_i ds_i r_i.
template <typename Tile>
struct Weighed {
  using accum_t = typename Tile::accum_t;
  static constexpr int kPositions = Tile::kPositions;
  accum_t weight[kPositions][Tile::kTaps], grad[kPositions][Tile::kTaps], position[kPositions];
};

// Fills `weighed`, and leaves the tile's part of dr.
template <typename Tile, typename T>
__device__ void weigh(const Tile& tile, int64_t index, Weighed<Tile>& weighed) {
  using accum_t = typename Tile::accum_t;
  constexpr int kTaps = Tile::kTaps, kWarps = Tile::kThreads / kWarpSize;
  constexpr int kPositions = Tile::kPositions;
  const Problem<T>& problem = tile.problem;
  auto* const planes = dynamic_shared<typename Tile::Quad>();
  accum_t* const shared = dynamic_shared<accum_t>();
  const accum_t* const position_bias = problem.position_bias + tile.head * kTaps;
  accum_t channels[kPositions], unused[kPositions];
  tile.template multiply_copies<Tile::kChannels>(problem.query, problem.scale, problem.key, planes,
                                                 weighed.weight, channels);
  tile.template multiply_copies<Tile::kChannels>(problem.grad_output, 1, problem.value, planes,
                                                 weighed.grad, unused);
#pragma unroll
  for (int p = 0; p < kPositions; ++p) {
    const bool inside = tile.inside(tile.row(p), tile.col());
    LogSumExp<accum_t> logsumexp{};
    if (inside) {
      const accum_t* const numbers = tile.at(problem.logsumexp, tile.row(p), tile.col());
      logsumexp = {numbers[0], numbers[1]};
    }
    accum_t delta = 0, total = 0;
#pragma unroll
    for (int i = 0; i < kTaps; ++i) {
      accum_t& weight = weighed.weight[p][i];
      weight = inside ? logsumexp.weight(weight + channels[p] * position_bias[i]) : accum_t(0);
      total += weight;
      delta += weight * weighed.grad[p][i];
    }
    delta = inside ? delta / total : accum_t(0);
    weighed.position[p] = 0;
#pragma unroll
    for (int i = 0; i < kTaps; ++i) {
      weighed.grad[p][i] = weighed.weight[p][i] * (weighed.grad[p][i] - delta);
      weighed.position[p] += weighed.grad[p][i] * position_bias[i];
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

// What the positions of this thread give through tap (a, b): to dq, which it keeps, and to dk and
// dv of the positions there, in shared memory.
template <typename Tile>
__device__ __forceinline__ void give_tap(
    const Tile& tile, const BackwardShared<Tile>& shared, const Weighed<Tile>& weighed, int channel,
    int a, int b, typename Tile::accum_t (&grad_query)[Tile::kPositions][Tile::kQuad]) {
  using accum_t = typename Tile::accum_t;
  using Quad = typename Tile::Quad;
  constexpr int kPositions = Tile::kPositions, kQuad = Tile::kQuad, kRadius = Tile::kRadius;
  accum_t keys[kQuad][kPositions], values[kQuad][kPositions];
#pragma unroll
  for (int c = 0; c < kQuad; ++c) {
    const accum_t* const weights = tile.table(channel + c, a * Tile::kKernel + b);
    tile.mix_copies(weighed.grad, weights, keys[c]);
    tile.mix_copies(weighed.weight, weights, values[c]);
  }
  sync_block();
#pragma unroll
  for (int p = 0; p < kPositions; ++p) {
    const int row = tile.row(p), col = tile.col();
    const Quad key = shared.key[(row + a) * Tile::kPitch + col + b];
#pragma unroll
    for (int c = 0; c < kQuad; ++c) grad_query[p][c] += keys[c][p] * key.of[c];
    if (!tile.owns(row + a - kRadius, col + b - kRadius)) continue;
    const int target = tile.own(p) + (a - kRadius) * Tile::kCols + b - kRadius;
    const Quad query = shared.query[tile.own(p)], grad_output = shared.grad_output[tile.own(p)];
    Quad grad_key = shared.grad_key[target], grad_value = shared.grad_value[target];
#pragma unroll
    for (int c = 0; c < kQuad; ++c) {
      grad_key.of[c] += keys[c][p] * query.of[c];
      grad_value.of[c] += values[c][p] * grad_output.of[c];
    }
    shared.grad_key[target] = grad_key;
    shared.grad_value[target] = grad_value;
  }
}

// dq, dk and dv of the own positions, for the channels from `channel` on whose inputs are in shared
// memory.
template <typename Tile, typename T>
__device__ void give(const Tile& tile, const BackwardShared<Tile>& shared,
                     const Weighed<Tile>& weighed, int channel) {
  using accum_t = typename Tile::accum_t;
  constexpr int kPositions = Tile::kPositions, kQuad = Tile::kQuad;
  const Problem<T>& problem = tile.problem;
  accum_t grad_query[kPositions][kQuad];
#pragma unroll
  for (int c = 0; c < kQuad; ++c) {
    accum_t mixed[kPositions];
    tile.mix_copies(weighed.grad, tile.table(channel + c, Tile::kTaps), mixed);
#pragma unroll
    for (int p = 0; p < kPositions; ++p) grad_query[p][c] = mixed[p] + weighed.position[p];
  }
#pragma unroll
  for (int p = 0; p < kPositions; ++p) {
    shared.grad_key[tile.own(p)] = shared.grad_value[tile.own(p)] = {};
  }
#pragma unroll 1
  for (int a = 0; a < Tile::kKernel; ++a) {
#pragma unroll(Tile::kUnrolled)
    for (int b = 0; b < Tile::kKernel; ++b) {
      give_tap(tile, shared, weighed, channel, a, b, grad_query);
    }
  }
  sync_block();
#pragma unroll
  for (int p = 0; p < kPositions; ++p) {
    const int row = tile.row(p), col = tile.col();
    if (!tile.owns(row, col)) continue;
    const auto write = [&](const Map<T>& map, const accum_t(&values)[kQuad]) {
      write_channels(tile.at(map, row, col), map.has_chunks, channel, problem.head_dim, values);
    };
#pragma unroll
    for (int c = 0; c < kQuad; ++c) grad_query[p][c] *= problem.scale;
    write(problem.grad_query, grad_query[p]);
    write(problem.grad_key, shared.grad_key[tile.own(p)].of);
    write(problem.grad_value, shared.grad_value[tile.own(p)].of);
  }
}

// Adds the tile's dw of the same channels to the part of this block, whose first tile it may be. A
// thread has one tap and every kSplits-th position.
template <typename Tile, typename T>
__device__ void sum_grad_table(const Tile& tile, const BackwardShared<Tile>& shared,
                               const Weighed<Tile>& weighed, int channel, bool is_first) {
  using accum_t = typename Tile::accum_t;
  using Quad = typename Tile::Quad;
  constexpr int kTaps = Tile::kTaps, kCopies = Tile::kCopies, kQuad = Tile::kQuad;
  constexpr int kTasks = Tile::kTasks, kSplits = Tile::kSplits, kFactors = Tile::kFactors;
  const Problem<T>& problem = tile.problem;
  const int j = threadIdx.x % kTasks, split = threadIdx.x / kTasks;
  const int tap = j / Tile::kKernel * Tile::kPitch + j % Tile::kKernel;
#pragma unroll 1
  for (int begin = 0; begin < kTaps; begin += kCopies) {
    sync_block();
#pragma unroll
    for (int p = 0; p < Tile::kPositions; ++p) {
      const bool owns = tile.owns(tile.row(p), tile.col());
      accum_t* const factors = shared.factors + tile.own(p) * kFactors;
#pragma unroll
      for (int i = 0; i < kTaps; ++i) {
        if (i >= begin && i < begin + kCopies) {
          factors[i - begin] = owns ? weighed.grad[p][i] : accum_t(0);
          factors[kCopies + i - begin] = owns ? weighed.weight[p][i] : accum_t(0);
        }
      }
    }
    sync_block();
    accum_t sum[kQuad][kCopies] = {};
    for (int place = split; place < Tile::kOwnRows * Tile::kOwnCols && split < kSplits;
         place += kSplits) {
      const int row = place / Tile::kOwnCols + Tile::kMargin;
      const int col = place % Tile::kOwnCols + Tile::kMargin, own = row * Tile::kCols + col;
      Quad keys = shared.query[own], values = shared.grad_output[own];
      if (j < kTaps) {
        const Quad key = shared.key[row * Tile::kPitch + col + tap];
        const Quad value = shared.value[row * Tile::kPitch + col + tap];
#pragma unroll
        for (int c = 0; c < kQuad; ++c) keys.of[c] *= key.of[c], values.of[c] *= value.of[c];
      }
      accum_t factors[kFactors];
#pragma unroll
      for (int i = 0; i < kFactors; i += 4) {
        const auto four =
            *reinterpret_cast<const WeightQuad<accum_t>*>(shared.factors + own * kFactors + i);
#pragma unroll
        for (int k = 0; k < 4; ++k) factors[i + k] = four.of[k];
      }
#pragma unroll
      for (int c = 0; c < kQuad; ++c) {
#pragma unroll
        for (int i = 0; i < kCopies; ++i) {
          sum[c][i] += factors[i] * keys.of[c];
          sum[c][i] += factors[kCopies + i] * values.of[c];
        }
      }
    }
    accum_t* const part =
        problem.grad_table +
        (static_cast<int64_t>(blockIdx.x) * problem.head_dim + channel) * kTasks * kTaps + begin;
#pragma unroll
    for (int c = 0; c < kQuad; ++c) {
      sync_block();
      if (split < kSplits) {
#pragma unroll
        for (int i = 0; i < kCopies; ++i) {
          shared.factors[static_cast<int>(threadIdx.x) * kCopies + i] = sum[c][i];
        }
      }
      sync_block();
      for (int number = threadIdx.x; number < kTasks * kCopies && channel + c < problem.head_dim;
           number += Tile::kThreads) {
        accum_t total = 0;
        for (int other = 0; other < kSplits; ++other) {
          total += shared.factors[other * kTasks * kCopies + number];
        }
        accum_t& to = part[(c * kTasks + number / kCopies) * kTaps + number % kCopies];
        to = is_first ? total : to + total;
      }
    }
  }
}

template <typename T, int kKernel>
__global__ void __launch_bounds__(BackwardTile<T, kKernel>::kThreads, 1)
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
      tile.template load<kChannels, Tile::kRadius>(problem.key, channel, 1, shared.key,
                                                   Tile::kPlane);
      tile.template load<kChannels, Tile::kRadius>(problem.value, channel, 1, shared.value,
                                                   Tile::kPlane);
      tile.template load<kChannels, 0>(problem.query, channel, problem.scale, shared.query,
                                       Tile::kOwnPlane);
      tile.template load<kChannels, 0>(problem.grad_output, channel, 1, shared.grad_output,
                                       Tile::kOwnPlane);
      give<Tile, T>(tile, shared, weighed, channel);
      sum_grad_table<Tile, T>(tile, shared, weighed, channel, index == first);
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
    return BackwardParts{groups_of(tiles), tiles};
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
