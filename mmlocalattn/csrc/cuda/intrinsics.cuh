// All that the kernels ask of the hardware and of the CUDA runtime: the warp, asynchronous copies,
// tensor cores, shared memory and the launch. Nothing else in this package is specific to a GPU, so
// that a host compiler can run the kernels with another implementation of this header.
#pragma once

#include <ATen/ATen.h>

#include <cstdint>

#include "window.h"

namespace mmlocalattn {

// Blocks as a grid has them: a GPU takes no more, and a cast would drop those past 2^32 unsaid.
inline unsigned grid_of(int64_t blocks) {
  TORCH_CHECK(blocks <= INT32_MAX, "the batch is too large for one launch on CUDA, ", blocks,
              " blocks of ", INT32_MAX, " at most: split it");
  return static_cast<unsigned>(blocks);
}

}  // namespace mmlocalattn

#ifdef MMLOCALATTN_CUDA_EMULATION
#include "emulation_intrinsics.h"
#else

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include "pytorch_cuda_helper.hpp"

#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ < 800
#error "mmlocalattn needs GPUs of compute capability 8.0 or newer, see TORCH_CUDA_ARCH_LIST"
#endif

namespace mmlocalattn {

constexpr int kWarpSize = 32;

// The warp. All of its lanes must call these together.

template <typename T>
__device__ __forceinline__ T shuffle_xor(T value, int lane_mask) {
  return __shfl_xor_sync(0xffffffff, value, lane_mask);
}

template <typename T>
__device__ __forceinline__ T shuffle(T value, int source_lane) {
  return __shfl_sync(0xffffffff, value, source_lane);
}

// Whether the predicate holds in one of the lanes.
__device__ __forceinline__ bool any(bool predicate) {
  return __any_sync(0xffffffff, predicate) != 0;
}

__device__ __forceinline__ void sync_warp() { __syncwarp(); }

__device__ __forceinline__ void sync_block() { __syncthreads(); }

// The shared memory whose size the launch gives, aligned to 16 bytes.
template <typename T>
__device__ __forceinline__ T* dynamic_shared() {
  extern __shared__ __align__(16) unsigned char dynamic_shared_memory[];
  return reinterpret_cast<T*>(dynamic_shared_memory);
}

__device__ __forceinline__ uint32_t shared_address(const void* shared) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(shared));
}

// Copies 16 bytes, or writes zeros if not `valid`. Both addresses are multiples of 16.
__device__ __forceinline__ void copy_async_16(void* shared, const void* global, bool valid) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;\n" ::"r"(shared_address(shared)),
               "l"(global), "r"(valid ? 16 : 0)
               : "memory");
}

// Ends a group of copies.
__device__ __forceinline__ void copy_async_commit() {
  asm volatile("cp.async.commit_group;\n" ::: "memory");
}

// Waits until at most kPending groups of this thread are under way.
template <int kPending>
__device__ __forceinline__ void copy_async_wait() {
  asm volatile("cp.async.wait_group %0;\n" ::"n"(kPending) : "memory");
}

// Two numbers as one register of a matrix fragment.
template <typename half_t>
__device__ __forceinline__ uint32_t pack_pair(float low, float high) {
  uint32_t pair;
  if constexpr (std::is_same_v<half_t, at::Half>) {
    asm("cvt.rn.f16x2.f32 %0, %1, %2;\n" : "=r"(pair) : "f"(high), "f"(low));
  } else {
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;\n" : "=r"(pair) : "f"(high), "f"(low));
  }
  return pair;
}

// d += a b with the fragments of mma.m16n8k16.row.col, which the PTX manual defines. Volatile, like
// all that a warp does together: else the compiler may move it to where only some lanes take part.
template <typename half_t>
__device__ __forceinline__ void mma_16x8x16(float (&d)[4], const uint32_t (&a)[4],
                                            const uint32_t (&b)[2]) {
  if constexpr (std::is_same_v<half_t, at::Half>) {
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 "
        "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};\n"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
  } else {
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 "
        "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};\n"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
  }
}

// Four 8x8 matrices of 16 bit numbers. Lane 8 m + i gives the address of row i of matrix m, and
// gets columns 2 (lane % 4) and the next of row lane / 4 of every matrix.
__device__ __forceinline__ void load_matrix_x4(uint32_t (&r)[4], const void* shared_row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];\n"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(shared_address(shared_row))
               : "memory");
}

// The same of the transposed matrices: rows 2 (lane % 4) and the next of column lane / 4.
__device__ __forceinline__ void load_matrix_x4_transposed(uint32_t (&r)[4],
                                                          const void* shared_row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];\n"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(shared_address(shared_row))
               : "memory");
}

// 2^x to about 22 bits; subnormal results are zero.
__device__ __forceinline__ float exp2_fast(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;\n" : "=f"(y) : "f"(x));
  return y;
}

// A product that is rounded, also where a fused operation could take it as it is.
__device__ __forceinline__ float multiply_rounded(float a, float b) { return __fmul_rn(a, b); }
__device__ __forceinline__ double multiply_rounded(double a, double b) { return __dmul_rn(a, b); }

// Multiprocessors of the current GPU, and the bytes of shared memory of one of them.
inline int multiprocessors() { return at::cuda::getCurrentDeviceProperties()->multiProcessorCount; }
inline int shared_bytes() {
  return static_cast<int>(at::cuda::getCurrentDeviceProperties()->sharedMemPerMultiprocessor);
}

// Runs a kernel on the current stream, if there is anything to run.
template <typename... Parameters, typename... Arguments>
void launch(void (*kernel)(Parameters...), int64_t blocks, int threads, int64_t shared_bytes,
            const Arguments&... arguments) {
  const unsigned grid = grid_of(blocks);
  if (grid == 0) {
    return;
  }
  constexpr int64_t kAlwaysAllowed = 48 * 1024;
  if (shared_bytes > kAlwaysAllowed) {
    C10_CUDA_CHECK(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                        static_cast<int>(shared_bytes)));
  }
  // clang-format off
  kernel<<<grid, threads, shared_bytes, at::cuda::getCurrentCUDAStream()>>>(arguments...);
  // clang-format on
  C10_CUDA_KERNEL_LAUNCH_CHECK();
}

}  // namespace mmlocalattn

#endif  // MMLOCALATTN_CUDA_EMULATION
