// How the kernels of one warp per token split their work, and what they share. They take what the
// tiled ones do not: fp64, head_dims other than 16, 32, 64 and 128, and the largest tables of bias.
//
// A warp computes a slab of 128 channels of the result of one token. Lanes run over channels, so
// that loads coalesce, and share each dot product with shuffles. Of the bias, a block gathers one
// entry of the gradient.
#pragma once

#include <algorithm>
#include <cmath>

#include "cuda/arithmetic.cuh"
#include "problem.cuh"

namespace mmlocalattn::cuda::neighborhood {
namespace {

constexpr int kWarpsPerBlock = 4;
constexpr int kThreads = kWarpsPerBlock * kWarpSize;
constexpr int kPairs = 2;  // of channels of a result that one lane holds, 64 channels apart
constexpr int kPairStep = 2 * kWarpSize;
constexpr int kSlab = kPairs * kPairStep;

// <a, b>, the same bits in every lane.
template <typename accum_t, typename a_t, typename b_t>
__device__ __forceinline__ accum_t dot(const a_t* a, const b_t* b, int64_t head_dim) {
  accum_t sum = 0;
  for (int64_t c = lane(); c < head_dim; c += kWarpSize) {
    sum += static_cast<accum_t>(a[c]) * static_cast<accum_t>(b[c]);
  }
  return warp_sum(sum);
}

// What one warp computes: a slab of the channels of one token, `channel` being this lane's first.
struct Work {
  int64_t token, batch, y, x, head, channel;
};

template <typename query_t, typename value_t>
struct TokenProblem : Problem<query_t, value_t> {
  using accum_t = at::opmath_type<value_t>;

  MMLOCALATTN_HOST_DEVICE int64_t slabs() const { return ceil_div<int64_t>(this->head_dim, kSlab); }
  MMLOCALATTN_HOST_DEVICE int64_t work_items() const { return this->tokens() * slabs(); }

  __device__ static int64_t first_item() {
    return static_cast<int64_t>(blockIdx.x) * kWarpsPerBlock + warp();
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
            slab * kSlab + lane() * 2};
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
    return this->logsumexp[i].weight(logit(i, j, entry));
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
  __device__ void store(const Gradient<value_t>& gradient, const Problem<query_t, value_t>& problem,
                        const Work& work) const {
    const int64_t position = work.y * problem.cols.length + work.x;
#pragma unroll
    for (int pair = 0; pair < kPairs; ++pair) {
      const int64_t c = work.channel + pair * kPairStep;
      if (c < problem.head_dim) {
        gradient.store(work.token * problem.head_dim + c, position * problem.head_dim + c,
                       sum[pair][0], sum[pair][1], c + 1 < problem.head_dim);
      }
    }
  }
};

// Launches one of the kernels that loop over work items.
template <typename query_t, typename value_t, typename... Parameters, typename... Arguments>
void launch_token(void (*kernel)(TokenProblem<query_t, value_t>, Parameters...),
                  const TokenProblem<query_t, value_t>& problem, const Arguments&... arguments) {
  constexpr int64_t kMostBlocks = 1 << 20;
  const int64_t blocks = ceil_div<int64_t>(problem.work_items(), kWarpsPerBlock);
  launch(kernel, std::min(blocks, kMostBlocks), kThreads, 0, problem, arguments...);
}

}  // namespace
}  // namespace mmlocalattn::cuda::neighborhood
