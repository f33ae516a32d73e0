// Maps and constants as kernels get them: plain types, no tensors.
#pragma once

#include <cstdint>

#include "window.h"

namespace mmlocalattn::cpu {

constexpr int kVectorBytes = 64;  // the longest of any instruction set

constexpr double kLog2E = 1.44269504088896340736, kLn2 = 0.69314718055994530942;

// The bits of a bfloat16, for files that may not use the standard library.
struct BFloat16 {
  uint16_t bits;
};

// The type that a kernel computes in.
template <typename T>
struct ComputeType {
  using type = T;
};
template <>
struct ComputeType<BFloat16> {
  using type = float;
};
template <typename T>
struct ComputeType<const T> : ComputeType<T> {};
template <typename T>
using Compute = typename ComputeType<T>::type;

// Vectors of a map: that of (y, x) begins at data + y * row + columns[x] * column.
template <typename T>
struct Grid {
  T* data = nullptr;
  int64_t row = 0, column = 0;
  const int64_t* columns = nullptr;

  MMLOCALATTN_HOST_DEVICE T* at(int64_t y, int64_t x) const {
    return data + y * row + columns[x] * column;
  }
};

// A map as the kernels read or write it: factor * vector. `add`: added to what is there.
template <typename T>
struct Map {
  Grid<T> grid;
  Compute<T> factor = 1;
  bool add = false;
};

// Channels of a vector of gradients with its padding to whole SIMD vectors.
template <typename T>
MMLOCALATTN_HOST_DEVICE int64_t padded_dim(int64_t dim) {
  constexpr int64_t kMost = kVectorBytes / static_cast<int64_t>(sizeof(Compute<T>));
  return (dim + kMost - 1) / kMost * kMost;
}

// A kernel: what one piece of a problem asks for. Without scratch memory it does nothing but return
// how many values of it, aligned to kVectorBytes, it needs.
template <typename Piece, typename T>
using Kernel = int64_t (*)(const Piece&, Compute<T>* scratch);

}  // namespace mmlocalattn::cpu
