// What the CPU operators share: the instruction set, dtypes, threads, scratch memory.
#pragma once

#include <ATen/ATen.h>
#include <ATen/Dispatch.h>
#include <ATen/OpMathType.h>
#include <ATen/Parallel.h>

#include <algorithm>
#include <atomic>
#include <type_traits>
#include <vector>

#include "maps.h"

namespace mmlocalattn {
namespace cpu {

enum class InstructionSet { kPortable, kAvx2, kAvx512, kAvx512Bf16 };

// The best one of this machine, or the one that the environment variable MMLOCALATTN_CPU_ISA asks
// for.
InstructionSet instruction_set();

template <typename T>
T* data_of(const at::Tensor& tensor) {
  return static_cast<T*>(tensor.data_ptr());
}

// Scratch memory of this thread, aligned to kVectorBytes. It is kept for the next call: its pages
// would cost more than the attention of a small map.
void* scratch_bytes(int64_t bytes);

template <typename T>
T* scratch(int64_t size) {
  return static_cast<T*>(scratch_bytes(size * sizeof(T)));
}

// The dtype of the maps that the kernels get: fp32 for fp16.
inline at::ScalarType kernel_type(at::ScalarType dtype) {
  return dtype == at::kHalf ? at::kFloat : dtype;
}

// A map as the kernels need it: in their dtype, with unit stride of channels.
inline at::Tensor ready(const at::Tensor& tensor) {
  const auto typed = tensor.to(kernel_type(tensor.scalar_type()));
  return typed.stride(-1) == 1 ? typed : typed.contiguous();
}

// Calls body(T()) with the type of the kernels for a dtype.
template <typename Body>
void dispatch(at::ScalarType dtype, const Body& body) {
  AT_DISPATCH_FLOATING_TYPES_AND2(at::kHalf, at::kBFloat16, dtype, "mmlocalattn_cpu", [&] {
    if constexpr (std::is_same_v<scalar_t, at::BFloat16>) {
      body(BFloat16());
    } else {
      body(at::opmath_type<scalar_t>());
    }
  });
}

// Where the pieces of `length` positions begin, and its end: multiples of `step`, about equally far
// apart and not much more than `most`.
std::vector<int64_t> cuts(int64_t length, int64_t most, int64_t step);

// Calls run(begin, end) for all of [0, count), in parallel. Threads take a few neighbors at a time,
// so that none waits for the others at the end.
template <typename Run>
void run_in_turns(int64_t count, const Run& run) {
  const int64_t threads = at::get_num_threads();
  const int64_t turn = std::max<int64_t>(1, count / (8 * threads));
  std::atomic<int64_t> next_turn{0};
  at::parallel_for(0, threads, 1, [&](int64_t, int64_t) {
    for (int64_t begin; (begin = next_turn++ * turn) < count;) {
      run(begin, std::min(begin + turn, count));
    }
  });
}

}  // namespace cpu
}  // namespace mmlocalattn
