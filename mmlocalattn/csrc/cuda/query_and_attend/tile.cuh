// How the kernels of query and attend split their work, and how a block reads the problem.
//
// A block has a tile of the windows, or of the positions, of one head of one image, and a thread
// one or two of them. The block brings what they see to shared memory, kChannels channels and
// kQueries queries at a time, as vectors, so that lanes find neighbors in neighboring banks. What a
// thread finds out about its taps, weights and products, it keeps there too, so that no exponential
// is taken again for more channels; of large windows it keeps kept_taps at a time.
// Positions gather from the windows that see them: no atomics, every sum has a fixed order. What a
// block adds to dbias and dscale it leaves as a part.
#pragma once

#include <algorithm>
#include <limits>

#include "problem.cuh"

namespace mmlocalattn::cuda::query_and_attend {
namespace {

constexpr int64_t kSharedBytes = 99 << 10;  // the least that GPUs have

// The head and the first row and column that a block works on.
struct Place {
  int head, x, y;
  int64_t b;
};

__device__ __forceinline__ Place place_of_block(int heads, int width, int height, int tile_rows) {
  const int cols = ceil_div(width, kCols), rows = ceil_div(height, tile_rows);
  const int tile = blockIdx.x / heads;
  return {static_cast<int>(blockIdx.x % heads), tile % cols * kCols, tile / cols % rows * tile_rows,
          tile / cols / rows};
}

// Part of a map of `height` x `width`: from a first row and column, which may be outside, on.
struct Area {
  int height, width, first_row, first_col, rows, cols;

  MMLOCALATTN_HOST_DEVICE int size() const { return rows * cols; }
  // Calls run(i, y, x, is_on_map) for the positions of this thread.
  template <typename Run>
  __device__ __forceinline__ void for_each(const Run& run) const {
    const float inverse = 1.0f / cols;  // exact enough for so few
    for (int i = threadIdx.x; i < size(); i += kThreads) {
      const int row = static_cast<int>((i + 0.5f) * inverse);
      const int y = first_row + row, x = first_col + i - row * cols;
      run(i, y, x, y >= 0 && y < height && x >= 0 && x < width);
    }
  }
};

// What the windows of a tile see.
template <typename T>
MMLOCALATTN_HOST_DEVICE Area input_area(const Problem<T>& problem, int y, int x) {
  const int stride = problem.rows.stride;
  return {problem.rows.length,
          problem.cols.length,
          y * stride - problem.rows.low(),
          x * stride - problem.cols.low(),
          (kRows - 1) * stride + problem.rows.kernel,
          (kCols - 1) * stride + problem.cols.kernel};
}

// First window that may see a position, and number of windows that see `count` positions.
MMLOCALATTN_HOST_DEVICE int first_window(const BasicStridedAxis<int>& axis, int position) {
  return (position + axis.low()) / axis.stride - (axis.kernel - 1) / axis.stride;
}

MMLOCALATTN_HOST_DEVICE int num_windows(const BasicStridedAxis<int>& axis, int count) {
  return (count - 1 + axis.stride - 1) / axis.stride + 1 + (axis.kernel - 1) / axis.stride;
}

// The windows that see the positions of a tile.
template <typename T>
MMLOCALATTN_HOST_DEVICE Area window_area(const Problem<T>& problem, int y, int x) {
  return {problem.rows.windows(),
          problem.cols.windows(),
          first_window(problem.rows, y),
          first_window(problem.cols, x),
          num_windows(problem.rows, kRows * kPositions<T>),
          num_windows(problem.cols, kCols)};
}

template <typename accum_t>
constexpr int kQuad = kCopyBytes / sizeof(accum_t);  // channels of a load of shared memory
template <typename accum_t>
using Quad = Channels<accum_t, kQuad<accum_t>>;

// A number of each of kQueries queries; two of them.
template <typename accum_t>
using Pair = Channels<accum_t, kQueries>;
template <typename accum_t>
struct alignas(kCopyBytes) Pairs {
  Pair<accum_t> first, second;
};

// exp(score - most) 2^bias. Of large scores the difference is exact; the sum with a bias would be
// rounded.
template <typename accum_t>
__device__ __forceinline__ accum_t power_of(accum_t score, accum_t bias, accum_t most) {
  return exp2_of((score - most) * kLog2E<accum_t> + bias);
}

// A weight, of a bias in base 2 and what read_logsumexp returned.
template <typename accum_t>
__device__ __forceinline__ accum_t weight_of(accum_t score, accum_t bias,
                                             const LogSumExp<accum_t>& logsumexp) {
  return exp2_of((score - logsumexp.most) * kLog2E<accum_t> + bias - logsumexp.rest);
}

// A log-sum-exp whose rest is in base 2.
template <typename accum_t>
__device__ __forceinline__ LogSumExp<accum_t> read_logsumexp(const LogSumExp<accum_t>& from) {
  return {from.most, from.rest * kLog2E<accum_t>};
}

// kChannels channels of a vector, 0 past `dim`.
template <typename T>
__device__ __forceinline__ void read_vector(const T* vector, bool has_chunks, int channel, int dim,
                                            at::opmath_type<T> (&out)[kChannels]) {
  constexpr int kChunk = kCopyBytes / sizeof(T);
#pragma unroll
  for (int first = 0; first < kChannels; first += kChunk) {
    at::opmath_type<T> chunk[kChunk];
    read_channels(vector, has_chunks, channel + first, dim, chunk);
#pragma unroll
    for (int i = 0; i < kChunk; ++i) out[first + i] = chunk[i];
  }
}

template <typename T>
__device__ __forceinline__ void write_vector(T* vector, bool has_chunks, int channel, int dim,
                                             const at::opmath_type<T> (&values)[kChannels]) {
  constexpr int kChunk = kCopyBytes / sizeof(T);
#pragma unroll
  for (int first = 0; first < kChannels; first += kChunk) {
    at::opmath_type<T> chunk[kChunk];
#pragma unroll
    for (int i = 0; i < kChunk; ++i) chunk[i] = values[first + i];
    write_channels(vector, has_chunks, channel + first, dim, chunk);
  }
}

// kChannels channels of an area to planes of quads, 0 outside the map.
template <typename T>
__device__ void load_vectors(const Map<const T>& map, const Area& area, const Place& place,
                             int channel, int dim, Quad<at::opmath_type<T>>* planes) {
  using accum_t = at::opmath_type<T>;
  const T* const origin = map.origin(place.b, place.head);
  area.for_each([&](int i, int y, int x, bool is_on_map) {
    accum_t channels[kChannels] = {};
    if (is_on_map) {
      read_vector(origin + map.offset(y, x), map.has_chunks, channel, dim, channels);
    }
#pragma unroll
    for (int first = 0; first < kChannels; first += kQuad<accum_t>) {
      Quad<accum_t> quad;
#pragma unroll
      for (int c = 0; c < kQuad<accum_t>; ++c) quad.of[c] = channels[first + c];
      planes[first / kQuad<accum_t> * area.size() + i] = quad;
    }
  });
}

// The dot product of a vector with one in planes plus `sum`, and its sum with a multiple of that.
template <typename accum_t>
__device__ __forceinline__ accum_t dot(const accum_t (&vector)[kChannels],
                                       const Quad<accum_t>* plane, int plane_size, accum_t sum) {
#pragma unroll
  for (int first = 0; first < kChannels; first += kQuad<accum_t>) {
    const Quad<accum_t> quad = plane[first / kQuad<accum_t> * plane_size];
#pragma unroll
    for (int c = 0; c < kQuad<accum_t>; ++c) sum += vector[first + c] * quad.of[c];
  }
  return sum;
}
template <typename accum_t>
__device__ __forceinline__ void add(accum_t (&sum)[kChannels], accum_t factor,
                                    const Quad<accum_t>* plane, int plane_size) {
#pragma unroll
  for (int first = 0; first < kChannels; first += kQuad<accum_t>) {
    const Quad<accum_t> quad = plane[first / kQuad<accum_t> * plane_size];
#pragma unroll
    for (int c = 0; c < kQuad<accum_t>; ++c) sum[first + c] += factor * quad.of[c];
  }
}

// Of every tap, bias in base 2 and scale of kQueries queries from `query` on. A query that is none
// has scale 0, so that its weights count nothing.
template <typename T>
__device__ void load_tables(const Problem<T>& problem, int query, int head,
                            Pairs<at::opmath_type<T>>* tables) {
  const int taps = problem.taps();
  for (int tap = threadIdx.x; tap < taps; tap += kThreads) {
    Pairs<at::opmath_type<T>> table{};
#pragma unroll
    for (int q = 0; q < kQueries; ++q) {
      if (query + q < problem.queries) {
        const int from = ((query + q) * problem.heads + head) * taps + tap;
        table.first.of[q] = problem.bias[from] * kLog2E<at::opmath_type<T>>;
        table.second.of[q] = problem.scale[from];
      }
    }
    tables[tap] = table;
  }
}

// Scores of kQueries queries of an image and head: 0 of those that are none.
template <typename T>
struct Scores {
  using accum_t = at::opmath_type<T>;
  static constexpr accum_t kNone = -std::numeric_limits<accum_t>::infinity();

  const T* origin[kQueries];  // null: none

  __device__ Scores(const Problem<T>& problem, const Place& place, int query) {
#pragma unroll
    for (int q = 0; q < kQueries; ++q) {
      origin[q] = query + q < problem.queries
                      ? problem.scores.origin(place.b, query + q) + place.head
                      : nullptr;
    }
  }

  // Those of a position on the map, or -inf.
  __device__ Pair<accum_t> at(int offset, bool is_on_map) const {
    Pair<accum_t> scores{kNone, kNone};
#pragma unroll
    for (int q = 0; q < kQueries && is_on_map; ++q) {
      scores.of[q] = origin[q] == nullptr ? 0 : static_cast<accum_t>(origin[q][offset]);
    }
    return scores;
  }
};

template <typename T>
__device__ void load_scores(const Problem<T>& problem, const Area& area, const Place& place,
                            int query, Pair<at::opmath_type<T>>* to) {
  const Scores<T> scores(problem, place, query);
  area.for_each([&](int i, int y, int x, bool is_on_map) {
    to[i] = scores.at(problem.scores.offset(y, x), is_on_map);
  });
}

// End of the kept taps from `begin` on.
template <typename T>
__device__ __forceinline__ int end_of_chunk(const Problem<T>& problem, int begin) {
  const int end = begin + problem.kept_taps;
  return end < problem.taps() ? end : problem.taps();
}

// Shared memory of the kernels whose threads have a window each.
template <typename accum_t>
struct WindowShared {
  static constexpr int kOffsets = (kMostKernel * kMostKernel + 3) / 4 * 4;

  int* offsets;  // of the positions of taps in the area
  Quad<accum_t>* values;
  Pairs<accum_t>* tables;
  Pair<accum_t>* scores;
  accum_t* taps;  // a number of every thread and kept tap, (kept_taps, kThreads)

  template <typename T>
  __device__ WindowShared(const Problem<T>& problem, const Area& area) {
    const int num_taps = problem.taps();
    offsets = dynamic_shared<int>();
    values = reinterpret_cast<Quad<accum_t>*>(offsets + kOffsets);
    tables = reinterpret_cast<Pairs<accum_t>*>(values + kChannels / kQuad<accum_t> * area.size());
    scores = reinterpret_cast<Pair<accum_t>*>(tables + num_taps);
    taps = reinterpret_cast<accum_t*>(scores + area.size());
    for (int tap = threadIdx.x; tap < num_taps; tap += kThreads) {
      const int row = tap / problem.cols.kernel;
      offsets[tap] = tap + row * (area.cols - problem.cols.kernel);
    }
  }
  static int64_t bytes(int area, int num_taps) {
    return sizeof(accum_t) * ((kChannels + kQueries) * area + 2 * kQueries * num_taps) +
           sizeof(int) * kOffsets;
  }

  // Calls run(tap, its offset) for taps [begin, end) of the window.
  template <typename Run>
  __device__ __forceinline__ void for_each_tap(int begin, int end, const Run& run) const {
#pragma unroll 4
    for (int tap = begin; tap < end; ++tap) run(tap, offsets[tap]);
  }
};

// Launches a kernel that needs `fixed` bytes of shared memory and `per_tap` for every kept one.
template <typename T, typename... Parameters, typename... Arguments>
void launch_tiles(void (*kernel)(Problem<T>, Parameters...), Problem<T> problem, int64_t tiles,
                  int64_t fixed, int64_t per_tap, const Arguments&... arguments) {
  problem.kept_taps =
      static_cast<int>(std::clamp<int64_t>((kSharedBytes - fixed) / per_tap, 1, problem.taps()));
  launch(kernel, tiles * problem.heads, kThreads, fixed + problem.kept_taps * per_tap, problem,
         arguments...);
}

}  // namespace
}  // namespace mmlocalattn::cuda::query_and_attend
