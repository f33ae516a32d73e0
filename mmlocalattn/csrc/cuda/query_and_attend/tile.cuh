// How the kernels of query and attend split their work, and how a block reads the problem.
//
// A block has a tile of the windows, or of the positions, of one head of one image, and a thread
// one or two of them. The block brings what they see to shared memory, kChannels channels and
// kQueries queries at a time, in planes, so that lanes find neighbors in neighboring banks.
// Positions gather from the windows that see them: no atomics, every sum has a fixed order. What a
// block adds to dbias and dscale it leaves as a part.
#pragma once

#include <limits>

#include "problem.cuh"

namespace mmlocalattn::cuda::query_and_attend {
namespace {

// The head and the first row and column that a block works on.
struct Place {
  int64_t head, x, y, b;
};

__device__ __forceinline__ Place place_of_block(int64_t heads, int64_t width, int64_t height,
                                                int tile_rows) {
  const int64_t cols = ceil_div<int64_t>(width, kCols), rows = ceil_div<int64_t>(height, tile_rows);
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
MMLOCALATTN_HOST_DEVICE Area input_area(const Problem<T>& problem, int64_t y, int64_t x) {
  const int64_t stride = problem.rows.stride;
  return {problem.rows.length,
          problem.cols.length,
          y * stride - problem.rows.low(),
          x * stride - problem.cols.low(),
          static_cast<int>((kRows - 1) * stride + problem.rows.kernel),
          static_cast<int>((kCols - 1) * stride + problem.cols.kernel)};
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
MMLOCALATTN_HOST_DEVICE Area window_area(const Problem<T>& problem, int64_t y, int64_t x) {
  return {problem.rows.windows(),
          problem.cols.windows(),
          first_window(problem.rows, y),
          first_window(problem.cols, x),
          num_windows(problem.rows, kRows * kPositions),
          num_windows(problem.cols, kCols)};
}

template <typename T>
struct alignas(kCopyBytes) Chunk {
  T values[kCopyBytes / sizeof(T)];
};

// kChannels channels from d on, 0 beyond `dim`.
template <typename T>
__device__ __forceinline__ void read_channels(const Vectors<T>& map, const T* vector, int64_t d,
                                              int64_t dim, at::opmath_type<T> (&out)[kChannels]) {
  constexpr int kChunk = kCopyBytes / sizeof(T);
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
__device__ void load_vectors(const Vectors<T>& map, const Area& area, const Place& place, int64_t d,
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
__device__ void load_tables(const Problem<T>& problem, int64_t first_query, int64_t head,
                            at::opmath_type<T>* tables) {
  const int taps = problem.taps();
  for (int i = threadIdx.x; i < kQueries * taps; i += kThreads) {
    const int64_t q = first_query + i / taps;
    if (q < problem.queries) {
      const int64_t from = (q * problem.heads + head) * taps + i % taps;
      at::opmath_type<T>* to = tables + i / taps * 2 * taps + i % taps;
      to[0] = problem.bias[from];
      to[taps] = problem.scale[from];
    }
  }
}

template <typename T>
__device__ void load_scores(const Problem<T>& problem, const Area& area, const Place& place,
                            int64_t first_query, at::opmath_type<T>* planes) {
  using accum_t = at::opmath_type<T>;
  area.for_each([&](int i, int64_t y, int64_t x, bool is_on_map) {
#pragma unroll
    for (int q = 0; q < kQueries; ++q) {
      const bool has_score = is_on_map && first_query + q < problem.queries;
      planes[q * area.size() + i] =
          has_score ? static_cast<accum_t>(
                          *(problem.scores.at(place.b, y, x, first_query + q) + place.head))
                    : -std::numeric_limits<accum_t>::infinity();
    }
  });
}

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

}  // namespace
}  // namespace mmlocalattn::cuda::query_and_attend
