// Query and attend for the CUDA sources: the problem that kernels get, and how a block reads it.
//
//   p_qj[i] = exp(scores[i + j, q] + bias[q, j] - lse[i, q])     c_j[i] = sum_q scale[q, j] p_qj[i]
//   output[i] = sum_j c_j[i] values[i + j]                       g_j[i] = <grad_output[i], v[i +
//   j]> delta[i, q] = sum_j p_qj[i] scale[q, j] g_j[i] dvalues[x] = sum_j c_j[x - j] grad_output[x
//   - j] dscores[x, q] = sum_j p_qj[x - j] (scale[q, j] g_j[x - j] - delta[x - j, q]) dscale[q, j]
//   = sum_i p_qj[i] g_j[i] dbias[q, j] = sum_i p_qj[i] (scale[q, j] g_j[i] - delta[i, q])
//
// Memory, of every head: scores (B, H, W, num_queries, num_heads); values (B, H, W, num_heads,
// head_dim), both of any strides but unit ones of channels; bias, scale (num_queries, num_heads,
// kh, kw); output and its gradient (B, H', W', num_heads, head_dim); lse, delta (B, H', W',
// num_queries, num_heads). Of these bias, scale, lse and delta have the accumulation type.
//
// Work split: a block has a tile of the windows, or of the positions, of one head of one image, and
// a thread one or two of them. The block brings what they see to shared memory, kChannels channels
// and kQueries queries at a time, in planes, so that lanes find neighbors in neighboring banks.
// Positions gather from the windows that see them: no atomics, every sum has a fixed order. What a
// block adds to dbias and dscale it leaves as a part.
#pragma once

#include <ATen/OpMathType.h>

#include <cmath>
#include <limits>
#include <vector>

#include "intrinsics.cuh"

namespace mmlocalattn {
namespace {

using at::IntArrayRef;
using at::Tensor;

constexpr int kCols = 16, kRows = 8;  // of the threads of a block
constexpr int kThreads = kCols * kRows, kWarps = kThreads / kWarpSize;
constexpr int kChannels = 8, kQueries = 2;
constexpr int kPositions = 2;  // of a thread, kRows rows apart
constexpr int kMostKernel = 13;

// A map of which an item, that of a head, has `dim` channels.
template <typename T>
struct Source {
  const T* data;
  int64_t image, row, column, head;
  bool has_chunks;  // of kChannels channels, each aligned to kChunkBytes

  __device__ const T* at(int64_t b, int64_t y, int64_t x, int64_t item) const {
    return data + b * image + y * row + x * column + item * head;
  }
};

template <typename T>
struct Problem {
  using accum_t = at::opmath_type<T>;

  StridedAxis rows, cols;
  int64_t batch, heads, queries, dim;
  Source<T> values, grad_output;
  Source<T> scores;  // item: query; the heads are its channels
  const accum_t *bias, *scale;
  const accum_t *logsumexp, *delta;  // backward only

  MMLOCALATTN_HOST_DEVICE int taps() const { return static_cast<int>(rows.kernel * cols.kernel); }
  __device__ int64_t window(int64_t b, int64_t y, int64_t x) const {
    return (b * rows.windows() + y) * cols.windows() + x;
  }
};

// The head and the first row and column that a block works on.
struct Place {
  int64_t head, x, y, b;
};

MMLOCALATTN_HOST_DEVICE int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

__device__ __forceinline__ Place place_of_block(int64_t heads, int64_t width, int64_t height,
                                                int tile_rows) {
  const int64_t cols = ceil_div(width, kCols), rows = ceil_div(height, tile_rows);
  const int64_t tile = blockIdx.x / heads;
  return {blockIdx.x % heads, tile % cols * kCols, tile / cols % rows * tile_rows,
          tile / cols / rows};
}

// Part of a map of `height` x `width`: from a first row and column, which may be outside, on.
struct Area {
  int64_t height, width, first_row, first_col;
  int rows, cols;

  MMLOCALATTN_HOST_DEVICE int size() const { return rows * cols; }
  // Calls run(i, y, x, is_on_map) for the positions of this thread.
  template <typename Run>
  __device__ __forceinline__ void for_each(const Run& run) const {
    for (int i = threadIdx.x; i < size(); i += kThreads) {
      const int64_t y = first_row + i / cols, x = first_col + i % cols;
      run(i, y, x, y >= 0 && y < height && x >= 0 && x < width);
    }
  }
};

// What the windows of a tile see.
template <typename T>
MMLOCALATTN_HOST_DEVICE Area input_area(const Problem<T>& p, int64_t y, int64_t x) {
  const int64_t stride = p.rows.stride;
  return {p.rows.length,
          p.cols.length,
          y * stride - p.rows.low(),
          x * stride - p.cols.low(),
          static_cast<int>((kRows - 1) * stride + p.rows.kernel),
          static_cast<int>((kCols - 1) * stride + p.cols.kernel)};
}

// First window that may see a position, and number of windows that see `count` positions.
MMLOCALATTN_HOST_DEVICE int64_t first_window(const StridedAxis& axis, int64_t position) {
  return (position + axis.low()) / axis.stride - (axis.kernel - 1) / axis.stride;
}

MMLOCALATTN_HOST_DEVICE int num_windows(const StridedAxis& axis, int count) {
  return static_cast<int>((count - 1 + axis.stride - 1) / axis.stride + 1 +
                          (axis.kernel - 1) / axis.stride);
}

// The windows that see the positions of a tile.
template <typename T>
MMLOCALATTN_HOST_DEVICE Area window_area(const Problem<T>& p, int64_t y, int64_t x) {
  return {p.rows.windows(),
          p.cols.windows(),
          first_window(p.rows, y),
          first_window(p.cols, x),
          num_windows(p.rows, kRows * kPositions),
          num_windows(p.cols, kCols)};
}

constexpr int kChunkBytes = 16;

template <typename T>
struct alignas(kChunkBytes) Chunk {
  T values[kChunkBytes / sizeof(T)];
};

// kChannels channels from d on, 0 beyond `dim`.
template <typename T>
__device__ __forceinline__ void read_channels(const Source<T>& map, const T* vector, int64_t d,
                                              int64_t dim, at::opmath_type<T> (&out)[kChannels]) {
  constexpr int kChunk = kChunkBytes / sizeof(T);
  if (map.has_chunks) {
#pragma unroll
    for (int i = 0; i < kChannels; i += kChunk) {
      const auto chunk = *reinterpret_cast<const Chunk<T>*>(vector + d + i);
#pragma unroll
      for (int j = 0; j < kChunk; ++j) {
        out[i + j] = static_cast<at::opmath_type<T>>(chunk.values[j]);
      }
    }
    return;
  }
#pragma unroll
  for (int i = 0; i < kChannels; ++i) {
    out[i] = d + i < dim ? static_cast<at::opmath_type<T>>(vector[d + i]) : 0;
  }
}

// kChannels channels of an area to planes, 0 outside the map.
template <typename T>
__device__ void load_vectors(const Source<T>& map, const Area& area, const Place& place, int64_t d,
                             int64_t dim, at::opmath_type<T>* planes) {
  area.for_each([&](int i, int64_t y, int64_t x, bool is_on_map) {
    at::opmath_type<T> channels[kChannels] = {};
    if (is_on_map) {
      read_channels(map, map.at(place.b, y, x, place.head), d, dim, channels);
    }
#pragma unroll
    for (int c = 0; c < kChannels; ++c) {
      planes[c * area.size() + i] = channels[c];
    }
  });
}

// kQueries tables from a query on: entries (kQueries, 2, taps) of bias and scale.
template <typename T>
__device__ void load_tables(const Problem<T>& p, int64_t first_query, int64_t head,
                            at::opmath_type<T>* tables) {
  const int taps = p.taps();
  for (int i = threadIdx.x; i < kQueries * taps; i += kThreads) {
    const int64_t q = first_query + i / taps;
    if (q < p.queries) {
      const int64_t from = (q * p.heads + head) * taps + i % taps;
      at::opmath_type<T>* to = tables + i / taps * 2 * taps + i % taps;
      to[0] = p.bias[from];
      to[taps] = p.scale[from];
    }
  }
}

template <typename T>
__device__ void load_scores(const Problem<T>& p, const Area& area, const Place& place,
                            int64_t first_query, at::opmath_type<T>* planes) {
  using accum_t = at::opmath_type<T>;
  area.for_each([&](int i, int64_t y, int64_t x, bool is_on_map) {
#pragma unroll
    for (int q = 0; q < kQueries; ++q) {
      const bool has_score = is_on_map && first_query + q < p.queries;
      planes[q * area.size() + i] =
          has_score
              ? static_cast<accum_t>(*(p.scores.at(place.b, y, x, first_query + q) + place.head))
              : -std::numeric_limits<accum_t>::infinity();
    }
  });
}

__device__ __forceinline__ float exp_of(float x) { return exp2_fast(x * 1.44269504088896340736f); }
__device__ __forceinline__ double exp_of(double x) { return std::exp(x); }

// Calls run(tap, offset of its position in the area of the input).
template <typename Run>
__device__ __forceinline__ void for_each_tap(const StridedAxis& rows, const StridedAxis& cols,
                                             int area_cols, const Run& run) {
  int tap = 0;
  for (int row = 0; row < rows.kernel; ++row) {
    for (int col = 0; col < cols.kernel; ++col) {
      run(tap++, row * area_cols + col);
    }
  }
}

template <typename accum_t>
struct ForwardShared {
  accum_t *values, *scores, *tables;

  __device__ ForwardShared(int area, int taps) {
    values = dynamic_shared<accum_t>();
    scores = values + kChannels * area;
    tables = scores + kQueries * area;
  }
  static int64_t bytes(int area, int taps) {
    return sizeof(accum_t) * ((kChannels + kQueries) * area + kQueries * 2 * taps);
  }
};

// Unit strides where the kernels need them: of the channels of a vector, or of the heads of scores.
Tensor ready(const Tensor& map) { return map.stride(-1) == 1 ? map : map.contiguous(); }

template <typename T>
Source<T> source(const Tensor& map) {
  bool has_chunks = map.size(4) % kChannels == 0 &&
                    reinterpret_cast<uintptr_t>(map.const_data_ptr()) % kChunkBytes == 0;
  for (int axis = 0; axis < 4; ++axis) {
    has_chunks = has_chunks && map.stride(axis) * map.element_size() % kChunkBytes == 0;
  }
  return {map.const_data_ptr<T>(), map.stride(0), map.stride(1),
          map.stride(2),           map.stride(3), has_chunks};
}

struct Call {
  Tensor scores, values, bias, scale;  // ready for the kernels
  StridedAxis rows, cols;

  std::vector<int64_t> window_sizes(const Tensor& like) const {
    return {values.size(0), rows.windows(), cols.windows(), like.size(3), like.size(4)};
  }
  int64_t tiles(int64_t height, int64_t width, int tile_rows) const {
    return values.size(0) * ceil_div(height, tile_rows) * ceil_div(width, kCols);
  }
};

// The public function checks its arguments and says what is wrong; this only keeps direct calls of
// the operator from touching memory that is not theirs.
Call make_call(const Tensor& scores, const Tensor& values, const std::optional<Tensor>& bias,
               const std::optional<Tensor>& scale, IntArrayRef kernel_size, int64_t stride) {
  TORCH_CHECK(scores.dim() == 5 && values.dim() == 5 &&
                  scores.sizes().slice(0, 3) == values.sizes().slice(0, 3) &&
                  scores.size(4) == values.size(3) && values.size(1) > 0 && values.size(2) > 0 &&
                  scores.scalar_type() == values.scalar_type() &&
                  scores.device() == values.device(),
              "scores and values must have one map, num_heads, dtype and device, got ",
              scores.sizes(), " and ", values.sizes());
  TORCH_CHECK(stride == 1 || stride == 2, "cannot use stride ", stride);
  for (const int64_t kernel : kernel_size) {
    TORCH_CHECK(kernel > 0 && kernel % 2 == 1 && kernel <= kMostKernel, "cannot use a window of ",
                kernel, " positions");
  }
  const std::vector<int64_t> sizes{scores.size(3), scores.size(4), kernel_size[0], kernel_size[1]};
  const auto options = values.options().dtype(at::toOpMathType(values.scalar_type()));
  const auto table_of = [&](const std::optional<Tensor>& table, double otherwise) {
    if (!table) {
      return at::full(sizes, otherwise, options);
    }
    TORCH_CHECK(table->sizes() == sizes && table->device() == values.device(),
                "a table must have shape ", IntArrayRef(sizes), " on ", values.device(), ", got ",
                table->sizes(), " on ", table->device());
    return table->to(options).contiguous();
  };
  return {ready(scores),
          ready(values),
          table_of(bias, 0),
          table_of(scale, 1),
          {values.size(1), kernel_size[0], stride},
          {values.size(2), kernel_size[1], stride}};
}

template <typename T>
Problem<T> describe(const Call& call) {
  using accum_t = at::opmath_type<T>;
  Problem<T> p{};
  p.rows = call.rows, p.cols = call.cols;
  p.batch = call.values.size(0), p.heads = call.values.size(3);
  p.queries = call.scores.size(3), p.dim = call.values.size(4);
  p.values = source<T>(call.values);
  p.scores = source<T>(call.scores);
  p.bias = call.bias.const_data_ptr<accum_t>();
  p.scale = call.scale.const_data_ptr<accum_t>();
  return p;
}

template <typename Body>
void dispatch(const Tensor& values, const Body& body) {
  AT_DISPATCH_FLOATING_TYPES_AND2(at::kHalf, at::kBFloat16, values.scalar_type(),
                                  "query_and_attend_cuda", [&] { body(scalar_t()); });
}

}  // namespace
}  // namespace mmlocalattn
