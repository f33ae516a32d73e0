// Query and attend on CUDA: the problem that kernels get, and what launches them.
//
//   p_qj[i] = exp(scores[i + j, q] - lse[i, q] + bias[q, j])
//   c_j[i] = sum_q scale[q, j] p_qj[i]            output[i] = sum_j c_j[i] values[i + j]
//
//   g_j[i] = <grad_output[i], values[i + j]>
//   delta[i, q] = sum_j p_qj[i] scale[q, j] g_j[i] / sum_j p_qj[i]
//   dvalues[x] = sum_j c_j[x - j] grad_output[x - j]
//   dscores[x, q] = sum_j p_qj[x - j] (scale[q, j] g_j[x - j] - delta[x - j, q])
//   dscale[q, j] = sum_i p_qj[i] g_j[i]
//   dbias[q, j] = sum_i p_qj[i] (scale[q, j] g_j[i] - delta[i, q])
//
// Memory:
//   scores                   (batch, height, width, num_queries, heads)
//   values                   (batch, height, width, heads, head_dim)
//   output, its gradient     (batch, height', width', heads, head_dim)
//   lse                      (batch, height', width', num_queries, heads, 2), accumulation type
//   delta                    (batch, height', width', num_queries, heads), likewise
//   bias scale               (num_queries, heads, kh, kw), accumulation type
// The sum of p_qj is 1 but for rounding, which the quotient does not see.
// The last dimension of scores, values and the gradient of the output has unit strides, their other
// strides are free.
//
// The work split is in tile.cuh.
#pragma once

#include "cuda/logsumexp.cuh"

namespace mmlocalattn::cuda::query_and_attend {

constexpr int kCols = 16, kRows = 8;  // of the threads of a block
constexpr int kThreads = kCols * kRows, kWarps = kThreads / kWarpSize;
constexpr int kChannels = 8, kQueries = 2;  // in shared memory at once
constexpr int kMostKernel = 13;

// Positions of a thread in backward, kRows rows apart.
template <typename T>
constexpr int kPositions = sizeof(T) == 8 ? 1 : 2;

template <typename T>
struct Problem {
  using accum_t = at::opmath_type<T>;

  BasicStridedAxis<int> rows, cols;
  int64_t batch;
  int heads, queries, dim;
  Map<const T> values, grad_output;
  Map<const T> scores;  // of queries as heads; the heads are their channels
  const accum_t *bias, *scale;
  const LogSumExp<accum_t>* logsumexp;  // backward only
  const accum_t* delta;                 // likewise
  Map<T> output;                        // forward only
  int kept_taps;                        // of a window in shared memory

  // Blocks of a kernel whose threads have a window each, and of one whose threads have kPositions
  // positions each, for one head.
  int64_t window_tiles() const { return tiles(rows.windows(), cols.windows(), kRows); }
  int64_t position_tiles() const { return tiles(rows.length, cols.length, kRows * kPositions<T>); }

  MMLOCALATTN_HOST_DEVICE int taps() const { return rows.kernel * cols.kernel; }
  // Than kernels take at once.
  MMLOCALATTN_HOST_DEVICE bool has_more_queries() const { return queries > kQueries; }

 private:
  int64_t tiles(int height, int width, int tile_rows) const {
    return batch * ceil_div(height, tile_rows) * ceil_div(width, kCols);
  }
};

// forward.cu
template <typename T>
void launch_forward(Problem<T> problem, LogSumExp<at::opmath_type<T>>* logsumexp);

// backward.cu. `delta` is room for that of the problem. `parts` are those of the gradients of the
// tables, (position_tiles(), num_queries, heads, 2, kh, kw): of bias and scale.
template <typename T>
void launch_backward(Problem<T> problem, at::opmath_type<T>* delta, T* grad_scores,
                     const Map<T>& grad_values, at::opmath_type<T>* parts);

}  // namespace mmlocalattn::cuda::query_and_attend
