// How the kernels of stand-alone self-attention split their work, and how a block reads its
// problem.
//
// A warp has kWarpSize / lanes columns of kRows positions, each lane kPart channels of them; a
// block has kWarps of those below each other. The maps around it pass through shared memory, some
// rows at a time, as fours of channels: [row][four][column]. Every value that is read there serves
// all the rows of a lane. Softmax is online. Keys gather from the queries that see them: no
// atomics, every sum has a fixed order.
#pragma once

#include <algorithm>

#include "cuda/arithmetic.cuh"
#include "problem.cuh"

namespace mmlocalattn::cuda::stand_alone {
namespace {

constexpr int kWarps = 4, kThreads = kWarps * kWarpSize;
constexpr int64_t kSharedBytes = 48 * 1024;

template <typename T>
struct alignas(sizeof(T) > 4 ? 16 : 4 * sizeof(T)) Four {
  T values[4];
};

// The channels of one lane.
template <typename accum_t>
struct Vector {
  accum_t values[kPart] = {};

  __device__ accum_t dot(const Vector& other) const {
    accum_t sum = 0;
#pragma unroll
    for (int i = 0; i < kPart; ++i) sum += values[i] * other.values[i];
    return sum;
  }
  __device__ void add(accum_t factor, const Vector& other) {
#pragma unroll
    for (int i = 0; i < kPart; ++i) values[i] += factor * other.values[i];
  }
  __device__ void scale(accum_t factor) {
#pragma unroll
    for (int i = 0; i < kPart; ++i) values[i] *= factor;
  }
};

// The place of a thread and of its block in the problem; kRows positions below each other are its
// own.
template <typename T, int kRows>
struct Place {
  using accum_t = at::opmath_type<T>;

  const Problem<T>& problem;
  int64_t image, head, top, left;  // of the block
  int column, part, row;           // of the lane, from there
  accum_t* shared;

  __device__ explicit Place(const Problem<T>& problem) : problem(problem) {
    const int columns = problem.columns();
    const int64_t across = ceil_div<int64_t>(problem.width, columns);
    const int64_t down = ceil_div<int64_t>(problem.height, kRows * kWarps);
    int64_t block = blockIdx.x;
    head = block % problem.heads;
    block /= problem.heads;
    left = block % across * columns;
    block /= across;
    top = block % down * (kRows * kWarps);
    image = block / down;
    column = lane() % columns;
    part = lane() / columns;
    row = warp() * kRows;
    shared = dynamic_shared<accum_t>();
  }

  __device__ int64_t y(int t) const { return top + row + t; }
  __device__ int64_t x() const { return left + column; }
  __device__ bool is_inside(int t) const { return y(t) < problem.height && x() < problem.width; }
  __device__ int64_t position(int64_t y, int64_t x) const {
    return (image * problem.height + y) * problem.width + x;
  }
  __device__ int64_t token(int t) const { return position(y(t), x()) * problem.heads + head; }

  // Rows that those of the block see, or that see them: those on the map, or all.
  __device__ int64_t first_row(bool all) const {
    const int64_t row = top - problem.rows / 2;
    return row < 0 && !all ? 0 : row;
  }
  __device__ int64_t end_row(bool all) const {
    const int64_t bottom = top + kRows * kWarps;
    const int64_t row = (bottom < problem.height ? bottom : problem.height) + problem.rows / 2;
    return row > problem.height && !all ? problem.height : row;
  }

  // Channels of own position t of a map; zeros past the borders.
  __device__ Vector<accum_t> load(const Source<T>& map, int t) const {
    Vector<accum_t> vector;
    if (is_inside(t)) {
      const T* data = map.data + position(y(t), x()) * map.step + head * problem.head_dim;
#pragma unroll
      for (int i = 0; i < kPart; ++i) {
        const int64_t channel = part * kPart + i;
        vector.values[i] =
            channel < problem.head_dim ? static_cast<accum_t>(data[channel]) : accum_t(0);
      }
    }
    return vector;
  }

  __device__ void store(T* map, int t, const Vector<accum_t>& vector) const {
    if (is_inside(t)) {
#pragma unroll
      for (int i = 0; i < kPart; ++i) {
        const int64_t channel = part * kPart + i;
        if (channel < problem.head_dim) {
          map[token(t) * problem.head_dim + channel] = static_cast<T>(vector.values[i]);
        }
      }
    }
  }

  // The sum over the lanes of a position.
  __device__ accum_t sum_parts(accum_t value) const {
    for (int mask = problem.columns(); mask < kWarpSize; mask *= 2)
      value += shuffle_xor(value, mask);
    return value;
  }

  // Copies the embeddings of the head to shared memory: rows, then columns, with zeros in the other
  // half of the channels.
  __device__ void stage_tables() const {
    const int dim = problem.lanes * kPart;
    const int64_t half = problem.head_dim / 2, rest = problem.head_dim - half;
    for (int i = threadIdx.x; i < problem.tables(); i += kThreads) {
      const int64_t tap = i / dim, channel = i % dim;
      accum_t value = 0;
      if (tap < problem.rows) {
        if (channel < half) {
          value = problem.row_embedding[(head * problem.rows + tap) * half + channel];
        }
      } else if (channel >= half && channel < problem.head_dim) {
        value = problem.column_embedding[(head * problem.cols + tap - problem.rows) * rest +
                                         channel - half];
      }
      shared[i] = value;
    }
  }
  __device__ Vector<accum_t> table(int tap) const {
    Vector<accum_t> vector;
    const accum_t* from = shared + (tap * problem.lanes + part) * kPart;
#pragma unroll
    for (int i = 0; i < kPart; ++i) vector.values[i] = from[i];
    return vector;
  }

  // Map `which` in shared memory.
  __device__ accum_t* staged(int which) const {
    return shared + problem.tables() + which * problem.staged_rows * problem.staged_row();
  }

  // Copies rows [begin, end) of a map around the block to shared memory, 0 where there are none.
  __device__ void stage(const Source<T>& map, int which, int64_t begin, int64_t end) const {
    const int fours = problem.lanes * kPart / 4, columns = problem.staged_columns();
    const int count = static_cast<int>(end - begin) * columns * fours;
    for (int i = threadIdx.x; i < count; i += kThreads) {
      const int four = i % fours, column = i / fours % columns, row = i / fours / columns;
      const int64_t y = begin + row, x = left + column - problem.cols / 2;
      Four<accum_t> values{};
      if (y >= 0 && y < problem.height && x >= 0 && x < problem.width) {
        const T* data = map.data + position(y, x) * map.step + head * problem.head_dim + 4 * four;
        if (problem.head_dim % 4 == 0) {
          if (4 * four < problem.head_dim) {
            const Four<T> loaded = *reinterpret_cast<const Four<T>*>(data);
#pragma unroll
            for (int j = 0; j < 4; ++j) values.values[j] = static_cast<accum_t>(loaded.values[j]);
          }
        } else {
          for (int j = 0; j < 4; ++j) {
            if (4 * four + j < problem.head_dim) {
              values.values[j] = static_cast<accum_t>(data[j]);
            }
          }
        }
      }
      *reinterpret_cast<Four<accum_t>*>(staged(which) +
                                        4 * ((row * fours + four) * columns + column)) = values;
    }
  }
  // This lane's channels of column x() + tap - cols / 2 of a staged row.
  __device__ Vector<accum_t> tap(int which, int row, int tap) const {
    Vector<accum_t> vector;
    const int fours = problem.lanes * kPart / 4, columns = problem.staged_columns();
#pragma unroll
    for (int i = 0; i < kPart / 4; ++i) {
      const int four = part * (kPart / 4) + i;
      const Four<accum_t> values = *reinterpret_cast<const Four<accum_t>*>(
          staged(which) + 4 * ((row * fours + four) * columns + column + tap));
#pragma unroll
      for (int j = 0; j < 4; ++j) vector.values[4 * i + j] = values.values[j];
    }
    return vector;
  }

  // Calls body(row, its place in shared memory) for the rows of two maps that the own positions
  // see, or that see them, with a barrier around every chunk of rows. A warp has one answer.
  template <typename Body>
  __device__ void for_each_row(const Source<T>& first, const Source<T>& second, bool all,
                               const Body& body) const {
    const int64_t end = end_row(all);
    for (int64_t begin = first_row(all); begin < end; begin += problem.staged_rows) {
      const int64_t chunk_end =
          begin + problem.staged_rows < end ? begin + problem.staged_rows : end;
      sync_block();
      stage(first, 0, begin, chunk_end);
      stage(second, 1, begin, chunk_end);
      sync_block();
      for (int64_t u = begin; u < chunk_end; ++u) {
        if (u >= y(0) - problem.rows / 2 && u <= y(kRows - 1) + problem.rows / 2) {
          body(u, static_cast<int>(u - begin));
        }
      }
    }
  }

  // Calls body(t, b, logit, is_masked, key + column embedding, value) for the taps b of the own
  // positions t that see row u, which is row `row` in shared memory: keys are map 0, values map 1.
  // A warp has one answer but for `is_masked`.
  template <typename Body>
  __device__ void for_each_tap(const Vector<accum_t> (&query)[kRows], int64_t u, int row,
                               const Body& body) const {
    accum_t row_term[kRows];
#pragma unroll
    for (int t = 0; t < kRows; ++t) {
      row_term[t] = sees(t, u) ? query[t].dot(table(tap_row(t, u))) : accum_t(0);
    }
    for (int b = 0; b < problem.cols; ++b) {
      Vector<accum_t> key = tap(0, row, b);
      key.add(1, table(problem.rows + b));
      const Vector<accum_t> value = tap(1, row, b);
      const bool is_masked = this->is_masked(b);
#pragma unroll
      for (int t = 0; t < kRows; ++t) {
        if (sees(t, u)) {
          const accum_t logit = sum_parts(row_term[t] + query[t].dot(key));
          body(t, b, logit, is_masked, key, value);
        }
      }
    }
  }

  // The row of the window of own position t that row u is, if it is.
  __device__ int tap_row(int t, int64_t u) const {
    return static_cast<int>(u - y(t)) + problem.rows / 2;
  }
  __device__ bool sees(int t, int64_t u) const {
    return tap_row(t, u) >= 0 && tap_row(t, u) < problem.rows;
  }
  __device__ bool is_masked(int tap) const {
    const int64_t column = x() + tap - problem.cols / 2;
    return !problem.zero_padding && (column < 0 || column >= problem.width);
  }
};

// Launches a kernel whose lanes have kRows positions each, with room for two maps and `extra`
// values per column of a block in shared memory.
template <int kRows, typename T, typename... Parameters, typename... Arguments>
void launch_tiles(void (*kernel)(Problem<T>, Parameters...), Problem<T> problem, int64_t extra,
                  const Arguments&... arguments) {
  constexpr int64_t kSize = sizeof(at::opmath_type<T>);
  const int64_t fixed = problem.tables() + extra * problem.columns(),
                row = 2 * problem.staged_row(), most = kRows * kWarps + problem.rows - 1;
  problem.staged_rows =
      static_cast<int>(std::clamp<int64_t>((kSharedBytes / kSize - fixed) / row, 1, most));
  const int64_t across = ceil_div<int64_t>(problem.width, problem.columns());
  const int64_t down = ceil_div<int64_t>(problem.height, kRows * kWarps);
  launch(kernel, problem.batch * down * across * problem.heads, kThreads,
         (fixed + problem.staged_rows * row) * kSize, problem, arguments...);
}

}  // namespace
}  // namespace mmlocalattn::cuda::stand_alone
