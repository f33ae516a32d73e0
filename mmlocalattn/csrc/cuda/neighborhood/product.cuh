// What the tiled kernels of neighborhood attention compute at once: 16 own tokens of a warp with 16
// partners of one row.
#pragma once

#include <limits>

#include "cuda/fragments.cuh"

namespace mmlocalattn::cuda::neighborhood {

// Positions begin, ..., end - 1 along one axis of a group.
struct Span {
  int begin, end;

  __device__ bool contains(int i) const {
    return static_cast<unsigned>(i - begin) < static_cast<unsigned>(end - begin);
  }
  __device__ int size() const { return end - begin; }
  __device__ Span operator&(Span other) const {
    const int first = begin > other.begin ? begin : other.begin;
    const int last = end < other.end ? end : other.end;
    return {first, last < first ? first : last};
  }
};

// What a tiled kernel computes with 16 partners of one row.
template <typename T, int kDim>
struct Product {
  const T* data;  // of the first partner
  int last, row, col;
  bool is_full;      // all are partners of all own tokens
  unsigned visible;  // bit 4 half + i: whether entry [half][i] belongs to a partner
  bool has_bias;
  const float* bias[2];  // of the lane's first column and a slot
  int bias_step;         // to the next column

  __device__ Partners<T, kDim> first() const { return {data, last}; }
  __device__ Partners<T, kDim> second() const { return {data + kDim, last}; }
  __device__ const Float4& statistics(int column) const {
    return *reinterpret_cast<const Float4*>(first()[column] + 2 * kDim);
  }

  // What products of vectors are added to.
  __device__ void start(float (&logits)[2][4]) const {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        logits[half][i] = has_bias ? bias[i / 2][(8 * half + i % 2) * bias_step] : 0;
      }
    }
  }

  // Hides from an own token what is not its partner.
  __device__ void mask(float (&logits)[2][4]) const {
    if (is_full) {
      return;
    }
#pragma unroll
    for (int half = 0; half < 2; ++half) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        if ((visible >> (4 * half + i) & 1) == 0) {
          logits[half][i] = -std::numeric_limits<float>::infinity();
        }
      }
    }
  }
};

// A scale of any sign: logits are magnitude * <sign * own vector, partner> + bias.
struct Scale {
  float magnitude, sign;

  __device__ explicit Scale(float scale)
      : magnitude(scale == 0 ? 1 : fabsf(scale)),
        sign(scale < 0    ? -1
             : scale == 0 ? 0
                          : 1) {}
};

}  // namespace mmlocalattn::cuda::neighborhood
