// Slide attention on CUDA: the problem that kernels get, and what launches them.
//
// With copies i and taps j of a window of k * k, w = weight, b = bias, r = position bias, q scaled:
//
//   s_i = sum_cj q_c k_c(x + j) w_cij + sum_c q_c (b_ci + r_i)     p_i = exp(s_i - lse)
//   B_cj = sum_i p_i w_cij           o_c = sum_j v_c(x + j) B_cj + sum_i p_i b_ci
//
//   dp_i = sum_cj do_c v_c(x + j) w_cij + sum_c do_c b_ci
//   ds_i = p_i (dp_i - sum_l p_l dp_l / sum_l p_l)
//   A_cj = sum_i ds_i w_cij          dq_c = scale (sum_j k_c(x + j) A_cj + sum_i ds_i (b_ci + r_i))
//   dk_c(x + j) += q_c A_cj          dv_c(x + j) += do_c B_cj
//   dw_cij = sum_x ds_i q_c k_c(x + j) + p_i do_c v_c(x + j), db and dr alike
//
// so that no copy is ever formed. The sum of p_l is 1 but for rounding, which the quotient does not
// see.
//
// Memory:
//   query key value output, their gradients   (batch, height, width, heads, head_dim)
//   logsumexp                                 (batch, height, width, heads, 2)
//   table                                     (head_dim padded to kTableUnit, k * k + 1, k * k
//   padded
//                                             to fours): w with copies last, and b as the last tap
// Channels of inputs are neighbors in memory, their other strides are free.
//
// The work split is in tile.cuh.
#pragma once

#include "cuda/logsumexp.cuh"

namespace mmlocalattn::cuda::slide {

constexpr int64_t kTableUnit = kCopyBytes / sizeof(at::Half);

template <typename T>
struct Problem {
  using accum_t = at::opmath_type<T>;

  int height, width, heads, head_dim;
  int64_t batch;
  accum_t scale;
  Map<const T> query, key, value;
  const accum_t* table;
  const accum_t* position_bias;  // (heads, k * k)
  Map<accum_t> logsumexp;
  Map<T> output;
  // Backward only.
  Map<const T> grad_output;
  Map<T> grad_query, grad_key, grad_value;
  accum_t* grad_table;          // (groups, head_dim, k * k + 1, k * k)
  accum_t* grad_position_bias;  // (tiles, k * k)
};

// forward.cu, for windows of 3, 5 or 7.
template <typename T>
void launch_forward(const Problem<T>& problem, int64_t kernel_size);

// Numbers of parts that launch_backward leaves of the gradients of the table and of the position
// bias: groups of tiles, and tiles.
struct BackwardParts {
  int64_t table, position_bias;
};
template <typename T>
BackwardParts backward_parts(const Problem<T>& problem, int64_t kernel_size);

// backward.cu
template <typename T>
void launch_backward(const Problem<T>& problem, int64_t kernel_size);

}  // namespace mmlocalattn::cuda::slide
