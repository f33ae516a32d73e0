// The gradient of the bias in the tiled kernels of neighborhood attention.
#pragma once

#include "product.cuh"

namespace mmlocalattn::cuda::neighborhood {

// What a warp adds of the gradient of its head: a table in shared memory, and as scratch memory a
// place for the gradients of the logits of one product.
struct BiasGradient {
  static constexpr int kPitch = kTokens + 1;
  static constexpr int kScratchBytes = kTokens * kPitch * sizeof(float);

  float *table, *scratch;
  int last_offset_y, last_offset_x;  // of a query and a key, along one axis
  int own_cols_log2, y, x;           // the own tokens of the warp: columns, and the first
  bool has_token[2];                 // of a slot

  __device__ void clear() const {
    const int entries = (2 * last_offset_y + 1) * (2 * last_offset_x + 1);
    for (int i = lane(); i < entries; i += kWarpSize) {
      table[i] = 0;
    }
    sync_warp();
  }

  // Adds the gradients of the logits of a product whose own tokens are queries.
  template <typename T, int kDim>
  __device__ void add(const Product<T, kDim>& product, const float (&grad)[2][4]) const {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        scratch[own_row(i / 2) * kPitch + partner_column(half, i % 2)] =
            has_token[i / 2] ? grad[half][i] : 0;
      }
    }
    sync_warp();
    // Own tokens of a row and partners that are as many columns further have one entry, and no two
    // of these sums have the same.
    const int own_cols = 1 << own_cols_log2, sums = kTokens - 1 + own_cols;
    int own = 0, sum = lane();
    while (true) {
      while (sum >= sums) {
        sum -= sums;
        ++own;
      }
      if (own >= kTokens >> own_cols_log2) {
        break;
      }
      const int column = sum + 1 - own_cols;  // of the partner of the first own token
      float total = 0;
      for (int i = 0; i < own_cols; ++i) {
        if (static_cast<unsigned>(column + i) < kTokens) {
          total += scratch[(own * own_cols + i) * kPitch + column + i];
        }
      }
      const int row = product.row - y - own + last_offset_y;
      const int col = product.col + column - x + last_offset_x;
      if (Span{0, 2 * last_offset_y + 1}.contains(row) &&
          Span{0, 2 * last_offset_x + 1}.contains(col)) {
        table[row * (2 * last_offset_x + 1) + col] += total;
      }
      sum += kWarpSize;
    }
    sync_warp();
  }
};

}  // namespace mmlocalattn::cuda::neighborhood
