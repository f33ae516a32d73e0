// Stand-alone self-attention on CUDA: the problem that kernels get, and what launches them.
//
//   s_ij = scale <q_i, k_j + r_{j-i}>    p_ij = exp(s_ij - lse_i)    o_i = sum_j p_ij v_j
//   dp_ij = <do_i, v_j>                  delta_i = sum_j p_ij dp_ij / sum_j p_ij
//   ds_ij = p_ij (dp_ij - delta_i)       dq_i = scale sum_j ds_ij (k_j + r_{j-i})
//   dk_j = scale sum_i ds_ij q_i         dv_j = sum_i p_ij do_i
//   dr_o = scale sum_i ds_{i,i+o} q_i
//
// r_(a,b) is row embedding a in the first half of the channels and column embedding b in the rest.
// Where softmax is peaked, ds is a small difference. delta = <do_i, o_i> would have the rounding of
// o in it, and sum_j p_ij is 1 but for rounding, which the quotient does not see.
//
// Memory, all contiguous but for gaps between the positions of inputs (Source):
//   query key value output, their gradients   (batch, height, width, heads, head_dim)
//   logsumexp                                 (batch, height, width, heads, 2)
//   delta                                     (batch, height, width, heads)
//   row_embedding column_embedding            (heads, rows, half), (heads, cols, head_dim - half)
//
// The work split is in tile.cuh.
#pragma once

#include "cuda/logsumexp.cuh"

namespace mmlocalattn::cuda::stand_alone {

constexpr int kPart = 8;  // channels of a lane
constexpr int kMostTaps = 11;

template <typename T>
struct Problem {
  using accum_t = at::opmath_type<T>;

  int64_t batch;
  int height, width, heads, head_dim;
  int rows, cols;   // of a window
  bool has_chunks;  // vectors are whole chunks of kCopyBytes
  bool zero_padding;
  accum_t scale;
  Source<T> query, key, value;
  const accum_t *row_embedding, *column_embedding;
  // Backward only.
  Source<T> grad_output;
  const LogSumExp<accum_t>* logsumexp;

  int lanes_log2;   // of a position
  int staged_rows;  // of a map in shared memory

  MMLOCALATTN_HOST_DEVICE int64_t positions() const { return batch * height * width; }
  // Of a head of the gradient's terms: rows, columns, and as much room as rows take for a while.
  MMLOCALATTN_HOST_DEVICE int terms() const { return rows + (rows > cols ? rows : cols); }
  MMLOCALATTN_HOST_DEVICE int lanes() const { return 1 << lanes_log2; }
  MMLOCALATTN_HOST_DEVICE int columns() const { return kWarpSize >> lanes_log2; }
  MMLOCALATTN_HOST_DEVICE int staged_columns() const { return columns() + cols - 1; }
  // Values of a row of one map in shared memory, and of the tables of embeddings.
  MMLOCALATTN_HOST_DEVICE int staged_row() const { return lanes() * kPart * staged_columns(); }
  MMLOCALATTN_HOST_DEVICE int tables() const { return (rows + cols) * lanes() * kPart; }
};

// forward.cu
template <typename T>
void launch_forward(const Problem<T>& problem, T* output, LogSumExp<at::opmath_type<T>>* logsumexp);

// What launch_backward leaves, and room for what its kernels tell each other.
template <typename T>
struct Gradients {
  using accum_t = at::opmath_type<T>;

  T *query, *key, *value;
  accum_t* delta;
  accum_t* terms;  // zeros, (heads, terms(), batch, height, width)
  accum_t* parts;  // of both embeddings: (splits, heads, rows half + cols rest)
  int64_t splits;  // of the positions
};

// backward.cu
template <typename T>
void launch_backward(const Problem<T>& problem, const Gradients<T>& gradients);

}  // namespace mmlocalattn::cuda::stand_alone
