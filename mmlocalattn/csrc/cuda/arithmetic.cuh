// Arithmetic that kernels of several operators share.
#pragma once

#include <cmath>

#include "intrinsics.cuh"

namespace mmlocalattn::cuda {

template <typename T>
constexpr T kLog2E = 1.44269504088896340736;

template <typename T>
MMLOCALATTN_HOST_DEVICE T ceil_div(T a, T b) {
  return (a + b - 1) / b;
}

// Place of the thread in its warp, and of the warp in its block.
__device__ __forceinline__ int lane() { return threadIdx.x % kWarpSize; }
__device__ __forceinline__ int warp() { return threadIdx.x / kWarpSize; }

// The sum over a warp, the same bits in every lane.
template <typename T>
__device__ __forceinline__ T warp_sum(T value) {
#pragma unroll
  for (int mask = kWarpSize / 2; mask > 0; mask /= 2) {
    value += shuffle_xor(value, mask);
  }
  return value;
}

// The sums of four values over a warp; lane 8 i has that of value i.
template <typename T>
__device__ __forceinline__ T warp_sum_of_four(const T (&values)[4]) {
  const bool high = lane() & 16, odd = lane() & 8;
  const T first = (high ? values[2] : values[0]) + shuffle_xor(high ? values[0] : values[2], 16);
  const T second = (high ? values[3] : values[1]) + shuffle_xor(high ? values[1] : values[3], 16);
  T sum = (odd ? second : first) + shuffle_xor(odd ? first : second, 8);
#pragma unroll
  for (int mask = 4; mask > 0; mask /= 2) sum += shuffle_xor(sum, mask);
  return sum;
}

// The larger of two numbers; of NaN and a number that.
__device__ __forceinline__ float larger(float a, float b) { return fmaxf(a, b); }
__device__ __forceinline__ double larger(double a, double b) { return fmax(a, b); }

__device__ __forceinline__ float exp2_of(float x) { return exp2_fast(x); }
__device__ __forceinline__ double exp2_of(double x) { return exp2(x); }

}  // namespace mmlocalattn::cuda
