// The host's side of csrc/cuda/intrinsics.cuh, with which g++ compiles the CUDA kernels. Every lane
// of a block is a fiber; emulator.cpp runs the fibers of one block after the other on one thread,
// block after block. What a warp does together happens when all its lanes have asked for it.
#pragma once

#include <c10/util/BFloat16.h>
#include <c10/util/Half.h>

#include <cmath>
#include <cstdint>
#include <cstring>
#include <functional>

#define __global__ __attribute__((noinline))  // the symbol names the kernel
#define __device__
#define __host__
#define __shared__ static
#define __forceinline__ inline __attribute__((always_inline))
#define __launch_bounds__(...)
#define __align__(bytes) __attribute__((aligned(bytes)))

// Registers the kernels beside the operators of the package, for CPU tensors. A source includes
// <torch/library.h> before its own headers, so that this replaces what that defines.
#undef TORCH_LIBRARY_IMPL
#define TORCH_LIBRARY_IMPL(library, key, m) \
  _TORCH_LIBRARY_IMPL(mmlocalattn_emulated, CPU, m, C10_UID)

struct EmulatedIndex {
  unsigned x, y, z;
};
extern EmulatedIndex threadIdx, blockIdx, blockDim, gridDim;

namespace c10::cuda {

struct CUDAGuard {
  template <typename Device>
  explicit CUDAGuard(const Device&) {}
};

}  // namespace c10::cuda

namespace mmlocalattn {

constexpr int kWarpSize = 32;

unsigned grid_of(int64_t blocks);  // of intrinsics.cuh

namespace emulation {

// Runs `lane` for every thread of the grid. Throws std::runtime_error if the kernel does what a GPU
// forbids or leaves undefined.
void run(const void* kernel, unsigned blocks, int threads, int64_t shared_bytes,
         const std::function<void()>& lane);

// Waits until all lanes of the warp ask for the same at the same place of the program; then
// `perform` gets the `mine` of each.
void warp_together(const char* operation, void* mine, void (*perform)(void* const* lanes));
void sync_warp();
void sync_block();

void* dynamic_shared();
void copy_async_16(void* shared, const void* global, bool valid);
void copy_async_commit();
void copy_async_wait(int pending);
// Checks an address that an instruction reads, and takes note of the read.
void read_shared(const void* address, int bytes);

template <typename Lane>
void warp_together(const char* operation, Lane& mine) {
  warp_together(operation, &mine, [](void* const* lanes) {
    Lane* warp[kWarpSize];
    for (int lane = 0; lane < kWarpSize; ++lane) {
      warp[lane] = static_cast<Lane*>(lanes[lane]);
    }
    Lane::perform(warp);
  });
}

template <typename T>
struct Shuffle {
  T value;
  int source;
  T result;

  static void perform(Shuffle* const* warp) {
    for (int lane = 0; lane < kWarpSize; ++lane) {
      warp[lane]->result = warp[warp[lane]->source % kWarpSize]->value;
    }
  }
};

struct Vote {
  bool predicate;
  bool result;

  static void perform(Vote* const* warp) {
    bool result = false;
    for (int lane = 0; lane < kWarpSize; ++lane) {
      result |= warp[lane]->predicate;
    }
    for (int lane = 0; lane < kWarpSize; ++lane) {
      warp[lane]->result = result;
    }
  }
};

// Which numbers a GPU may get where IEEE 754 leaves no choice to a CPU. With
// MMLOCALATTN_GPU_ARITHMETIC they are as bad as a GPU's, see emulator.py.
#ifdef MMLOCALATTN_GPU_ARITHMETIC
// Up to two units in the last place off, which way the argument decides.
inline float exp2_of(float x) {
  const float y = std::exp2(x);
  if (x == 0 || !std::isnormal(y)) {
    return y;
  }
  uint32_t seed, bits;
  std::memcpy(&seed, &x, sizeof(x));
  std::memcpy(&bits, &y, sizeof(y));
  bits += static_cast<int>((seed * 2654435761u >> 16) % 5) - 2;
  float result;
  std::memcpy(&result, &bits, sizeof(bits));
  return result;
}

// sum + the products of eight pairs. A tensor core keeps of every term what is worth the last bit
// of the largest one or more.
inline float add_products(float sum, const float (&products)[8]) {
  float largest = std::fabs(sum);
  for (const float product : products) {
    largest = std::fmax(largest, std::fabs(product));
  }
  if (largest == 0 || !std::isfinite(largest)) {
    for (const float product : products) {
      sum += product;
    }
    return sum;
  }
  int exponent;
  std::frexp(largest, &exponent);
  const double unit = std::ldexp(1.0, exponent - 24);
  double units = std::trunc(sum / unit);
  for (const float product : products) {
    units += std::trunc(product / unit);
  }
  const auto total = static_cast<float>(units * unit);
  return std::fabs(total) > std::fabs(units * unit) ? std::nextafter(total, 0.0f) : total;
}
#else
inline float exp2_of(float x) { return std::exp2(x); }

inline float add_products(float sum, const float (&products)[8]) {
  for (const float product : products) {
    sum += product;
  }
  return sum;
}
#endif

// The fragments of PTX's mma.m16n8k16 with 16 bit factors: in both factors, a register holds a pair
// along k.
template <typename half_t>
struct Mma {
  float (*d)[4];
  const uint32_t (*a)[4];
  const uint32_t (*b)[2];

  static float half_of(uint32_t pair, int which) {
    half_t halves[2];
    std::memcpy(halves, &pair, sizeof(pair));
    return static_cast<float>(halves[which]);
  }

  static void perform(Mma* const* warp) {
    float a[16][16], b[16][8];
    for (int lane = 0; lane < kWarpSize; ++lane) {
      const int group = lane / 4, pair = lane % 4 * 2;
      for (int i = 0; i < 2; ++i) {
        for (int reg = 0; reg < 4; ++reg) {
          a[group + reg % 2 * 8][pair + reg / 2 * 8 + i] = half_of((*warp[lane]->a)[reg], i);
        }
        for (int reg = 0; reg < 2; ++reg) {
          b[pair + reg * 8 + i][group] = half_of((*warp[lane]->b)[reg], i);
        }
      }
    }
    for (int lane = 0; lane < kWarpSize; ++lane) {
      for (int reg = 0; reg < 4; ++reg) {
        const int row = lane / 4 + reg / 2 * 8, col = lane % 4 * 2 + reg % 2;
        float& sum = (*warp[lane]->d)[reg];
        for (int first = 0; first < 16; first += 8) {
          float products[8];
          for (int k = 0; k < 8; ++k) {
            products[k] = a[row][first + k] * b[first + k][col];
          }
          sum = add_products(sum, products);
        }
      }
    }
  }
};

// PTX's ldmatrix.x4: four 8x8 matrices of 16 bit numbers.
template <bool kTransposed>
struct LoadMatrix {
  uint32_t (*result)[4];
  const void* row;

  static void perform(LoadMatrix* const* warp) {
    for (int lane = 0; lane < kWarpSize; ++lane) {
      for (int matrix = 0; matrix < 4; ++matrix) {
        uint16_t pair[2];
        for (int i = 0; i < 2; ++i) {
          const int line = lane / 4, along = lane % 4 * 2 + i;
          const int row = kTransposed ? along : line, col = kTransposed ? line : along;
          const void* address = warp[8 * matrix + row]->row;
          std::memcpy(&pair[i], static_cast<const uint16_t*>(address) + col, sizeof(uint16_t));
        }
        std::memcpy(&(*warp[lane]->result)[matrix], pair, sizeof(pair));
      }
    }
  }
};

}  // namespace emulation

template <typename T>
T shuffle_xor(T value, int lane_mask) {
  const int lane = threadIdx.x % kWarpSize;
  emulation::Shuffle<T> mine{value, lane ^ lane_mask, value};
  emulation::warp_together("shuffle_xor", mine);
  return mine.result;
}

template <typename T>
T shuffle(T value, int source_lane) {
  emulation::Shuffle<T> mine{value, source_lane, value};
  emulation::warp_together("shuffle", mine);
  return mine.result;
}

inline bool any(bool predicate) {
  emulation::Vote mine{predicate, false};
  emulation::warp_together("any", mine);
  return mine.result;
}

template <typename T>
T multiply_rounded(T a, T b) {
  volatile T product = a * b;  // no part of a fused operation
  return product;
}

inline void sync_warp() { emulation::sync_warp(); }

inline void sync_block() { emulation::sync_block(); }

template <typename T>
T* dynamic_shared() {
  return static_cast<T*>(emulation::dynamic_shared());
}

inline void copy_async_16(void* shared, const void* global, bool valid) {
  emulation::copy_async_16(shared, global, valid);
}

inline void copy_async_commit() { emulation::copy_async_commit(); }

template <int kPending>
void copy_async_wait() {
  emulation::copy_async_wait(kPending);
}

template <typename half_t>
uint32_t pack_pair(float low, float high) {
  const half_t halves[2] = {low, high};
  uint32_t pair;
  std::memcpy(&pair, halves, sizeof(pair));
  return pair;
}

template <typename half_t>
void mma_16x8x16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  emulation::Mma<half_t> mine{&d, &a, &b};
  emulation::warp_together("mma_16x8x16", mine);
}

inline void load_matrix_x4(uint32_t (&r)[4], const void* shared_row) {
  emulation::read_shared(shared_row, 16);
  emulation::LoadMatrix<false> mine{&r, shared_row};
  emulation::warp_together("load_matrix_x4", mine);
}

inline void load_matrix_x4_transposed(uint32_t (&r)[4], const void* shared_row) {
  emulation::read_shared(shared_row, 16);
  emulation::LoadMatrix<true> mine{&r, shared_row};
  emulation::warp_together("load_matrix_x4_transposed", mine);
}

inline float exp2_fast(float x) {
  const float y = emulation::exp2_of(x);
  return std::fpclassify(y) == FP_SUBNORMAL ? 0 : y;
}

// A GPU whose multiprocessors have the least shared memory of compute capability 8.0 and newer.
inline int multiprocessors() { return 132; }
inline int shared_bytes() { return 100 << 10; }

template <typename... Parameters, typename... Arguments>
void launch(void (*kernel)(Parameters...), int64_t blocks, int threads, int64_t shared_bytes,
            const Arguments&... arguments) {
  emulation::run(reinterpret_cast<const void*>(kernel), grid_of(blocks), threads, shared_bytes,
                 [&] { kernel(arguments...); });
}

}  // namespace mmlocalattn

inline void __syncthreads() { mmlocalattn::sync_block(); }
inline void __syncwarp() { mmlocalattn::sync_warp(); }
