// What the CPU operators share: the maps of a call, dtypes, threads, scratch memory.
//
// Each has a Problem, which is one call, checked; Pieces<T>, its maps as the kernels need them and
// where to cut them; and Piece<T>, what a kernel gets of them (piece.h).
#pragma once

#include <ATen/Dispatch.h>
#include <ATen/OpMathType.h>
#include <ATen/Parallel.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty_cpu_dispatch.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <type_traits>
#include <vector>

#include "cpu/isa.h"
#include "cpu/maps.h"
#include "optional_tensor.h"

namespace mmlocalattn::cpu {

// The maps of a call of attention, (B, H, W, num_heads, head_dim) of one dtype and any strides.
struct AttentionMaps {
  at::Tensor query, key, value;

  int64_t batch() const { return query.size(0); }
  int64_t height() const { return query.size(1); }
  int64_t width() const { return query.size(2); }
  int64_t heads() const { return query.size(3); }
  int64_t dim() const { return query.size(4); }
  std::array<int64_t, 5> logsumexp_sizes() const {
    return {batch(), height(), width(), heads(), 2};
  }

  // The public functions check their arguments and say what is wrong; this and the checks of each
  // operator only keep direct calls from touching memory that is not theirs.
  void check() const;
};

// Checks that a tensor is on the CPU and has five axes.
void check_map(const at::Tensor& tensor, const char* axes);

template <typename T>
T* data_of(const at::Tensor& tensor) {
  return static_cast<T*>(tensor.data_ptr());
}

// The vectors of one image and head of a map (B, H, W, num_heads, ...).
template <typename T>
Grid<T> grid_of(const at::Tensor& map, int64_t b, int64_t head,
                const std::vector<int64_t>& columns) {
  const auto strides = map.strides();  // stride(i) checks i, for every map of every piece
  return {data_of<T>(map) + b * strides[0] + head * strides[3], strides[1], strides[2],
          columns.data()};
}

// The dtype of the maps that the kernels get: fp32 for fp16.
inline at::ScalarType kernel_type(at::ScalarType dtype) {
  return dtype == at::kHalf ? at::kFloat : dtype;
}

// A tensor in a dtype, itself where that is its own: to() would ask the dispatcher, which takes as
// long as the attention of a small map.
inline at::Tensor in_dtype(const at::Tensor& tensor, at::ScalarType dtype) {
  return tensor.scalar_type() == dtype ? tensor : tensor.to(dtype);
}

// A contiguous tensor without values; at::empty would ask the dispatcher twice.
inline at::Tensor make_empty(at::IntArrayRef sizes, at::ScalarType dtype) {
  return at::cpu::empty(sizes, dtype);
}

// A map for results of the kernels.
inline at::Tensor make_result(const at::Tensor& map) {
  return make_empty(map.sizes(), kernel_type(map.scalar_type()));
}

// A map as the kernels need it: in their dtype, with unit stride of channels.
inline at::Tensor ready(const at::Tensor& tensor) {
  const auto typed = in_dtype(tensor, kernel_type(tensor.scalar_type()));
  return typed.strides().back() == 1 ? typed : typed.contiguous();
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

// 0, 1, ... length - 1: the columns of a Grid that leaves none out.
std::vector<int64_t> ordinals(int64_t length);

// Scratch memory of this thread, aligned to kVectorBytes. It is kept for the next call: its pages
// would cost more than the attention of a small map.
void* scratch_bytes(int64_t bytes);

template <typename T>
T* scratch(int64_t size) {
  return static_cast<T*>(scratch_bytes(size * static_cast<int64_t>(sizeof(T))));
}

// Runs a kernel with the scratch memory that it asks for.
template <typename Piece, typename C>
void run(int64_t (*kernel)(const Piece&, C*), const Piece& piece) {
  kernel(piece, scratch<C>(kernel(piece, nullptr)));
}

// Calls run(begin, end) for all of [0, count), in parallel. Threads take a few neighbors at a time,
// so that none waits for the others at the end.
template <typename Run>
void run_in_turns(int64_t count, const Run& run) {
  const int64_t threads = at::get_num_threads();
  const int64_t turn = std::max<int64_t>(1, count / (8 * threads));
  std::atomic<int64_t> next_turn{0};
  at::parallel_for(0, std::min(threads, count), 1, [&](int64_t, int64_t) {
    for (int64_t begin; (begin = next_turn++ * turn) < count;) {
      run(begin, std::min(begin + turn, count));
    }
  });
}

}  // namespace mmlocalattn::cpu
