// How the kernels of stand-alone self-attention split their work, and how a block reads its
// problem.
//
// A warp has kWarpSize / lanes() columns of kRows positions, each lane kPart channels of them; a
// block has kWarps of those below each other. The maps around it pass through shared memory, some
// rows at a time, as fours of channels: [row][four][column]. Every value that is read there serves
// all the rows of a lane. Softmax is online. Keys gather from the queries that see them: no
// atomics, every sum has a fixed order.
#pragma once

#include <algorithm>
#include <limits>
#include <type_traits>

#include "cuda/arithmetic.cuh"
#include "problem.cuh"

namespace mmlocalattn::cuda::stand_alone {
namespace {

constexpr int kWarps = 4, kThreads = kWarps * kWarpSize;
constexpr int64_t kSharedBytes = 48 << 10;  // where one row fits in that

template <typename T>
struct alignas(kCopyBytes) Four {
  T values[4];
};

// The channels of one lane.
template <typename accum_t>
struct Vector {
  accum_t values[kPart] = {};

  __device__ accum_t dot(const Vector& other, accum_t sum = 0) const {
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

// What the kernel that gives dk and dv reads of a query.
template <typename accum_t>
struct alignas(2 * sizeof(accum_t)) Numbers {
  accum_t most, rest, delta;  // log-sum-exp in base 2
};

// The place of a thread and of its block in the problem; kRows positions below each other are its
// own.
template <typename T, int kRows>
struct Place {
  using accum_t = at::opmath_type<T>;
  // A number of each of the own positions.
  struct alignas(kRows * sizeof(accum_t) < kCopyBytes ? kRows * sizeof(accum_t) : kCopyBytes)
      OfRows {
    accum_t at[kRows];
  };

  const Problem<T>& problem;
  int64_t image;
  int head, top, left;    // of the block
  int column, part, row;  // of the lane, from there
  accum_t* shared;

  __device__ explicit Place(const Problem<T>& problem) : problem(problem) {
    const int columns = problem.columns();
    const int across = ceil_div(problem.width, columns);
    const int down = ceil_div(problem.height, kRows * kWarps);
    int block = blockIdx.x;
    head = block % problem.heads;
    block /= problem.heads;
    left = block % across * columns;
    block /= across;
    top = block % down * (kRows * kWarps);
    image = block / down;
    column = lane() & (columns - 1);
    part = lane() * problem.lanes() / kWarpSize;
    row = warp() * kRows;
    shared = dynamic_shared<accum_t>();
  }

  __device__ int y(int t) const { return top + row + t; }
  __device__ int x() const { return left + column; }
  __device__ bool is_inside(int t) const { return y(t) < problem.height && x() < problem.width; }
  __device__ int64_t position(int y, int x) const {
    return image * problem.height * problem.width + y * problem.width + x;
  }
  __device__ int64_t token(int t) const { return position(y(t), x()) * problem.heads + head; }

  // Rows that those of the block see, or that see them: those on the map, or all.
  __device__ int first_row(bool all) const {
    const int row = top - problem.rows / 2;
    return row < 0 && !all ? 0 : row;
  }
  __device__ int end_row(bool all) const {
    const int bottom = top + kRows * kWarps;
    const int row = (bottom < problem.height ? bottom : problem.height) + problem.rows / 2;
    return row > problem.height && !all ? problem.height : row;
  }

  // The vector at (0, 0) of a map.
  __device__ const T* origin(const Source<T>& map) const {
    return map.data + image * problem.height * problem.width * map.step + head * problem.head_dim;
  }
  // kPart channels from `channel` on of a vector.
  __device__ Vector<accum_t> read(const T* vector, int channel) const {
    constexpr int kChunk = kCopyBytes / sizeof(T);
    Vector<accum_t> result;
#pragma unroll
    for (int first = 0; first < kPart; first += kChunk) {
      accum_t chunk[kChunk];
      read_channels(vector, problem.has_chunks, channel + first, problem.head_dim, chunk);
#pragma unroll
      for (int i = 0; i < kChunk; ++i) result.values[first + i] = chunk[i];
    }
    return result;
  }

  // Channels of own position t of a map; zeros past the borders.
  __device__ Vector<accum_t> load(const Source<T>& map, int t) const {
    const int offset = (y(t) * problem.width + x()) * static_cast<int>(map.step);
    return is_inside(t) ? read(origin(map) + offset, part * kPart) : Vector<accum_t>();
  }

  __device__ void store(T* map, int t, const Vector<accum_t>& vector) const {
    constexpr int kChunk = kCopyBytes / sizeof(T);
    if (!is_inside(t)) {
      return;
    }
#pragma unroll
    for (int first = 0; first < kPart; first += kChunk) {
      accum_t chunk[kChunk];
#pragma unroll
      for (int i = 0; i < kChunk; ++i) chunk[i] = vector.values[first + i];
      write_channels(map + token(t) * problem.head_dim, problem.has_chunks, part * kPart + first,
                     problem.head_dim, chunk);
    }
  }

  // The sums over the lanes of a position.
  template <int kValues>
  __device__ void sum_parts(accum_t (&values)[kValues]) const {
#pragma unroll
    for (int mask = kWarpSize / 2; mask > 0; mask /= 2) {
      if (mask < problem.columns()) break;
#pragma unroll
      for (int i = 0; i < kValues; ++i) values[i] += shuffle_xor(values[i], mask);
    }
  }

  // Copies the embeddings of the head to shared memory: rows, then columns, with zeros in the other
  // half of the channels.
  __device__ void stage_tables() const {
    const int dim = problem.lanes() * kPart;
    const int half = problem.head_dim / 2, rest = problem.head_dim - half;
    for (int i = threadIdx.x; i < problem.tables(); i += kThreads) {
      const int tap = i / dim, channel = i % dim;
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
    const accum_t* from = shared + ((tap << problem.lanes_log2) + part) * kPart;
#pragma unroll
    for (int i = 0; i < kPart; i += 4) {
      const auto four = *reinterpret_cast<const Four<accum_t>*>(from + i);
#pragma unroll
      for (int j = 0; j < 4; ++j) vector.values[i + j] = four.values[j];
    }
    return vector;
  }

  // Map `which` in shared memory, and what comes after the two of them.
  __device__ accum_t* staged(int which) const {
    return shared + problem.tables() + which * problem.staged_rows * problem.staged_row();
  }

  // Copies rows [begin, end) of a map around the block to shared memory, 0 where there are none.
  __device__ void stage(const Source<T>& map, int which, int begin, int end) const {
    const int columns = problem.staged_columns(), first_x = left - problem.cols / 2;
    const int place = threadIdx.x >> problem.lanes_log2, step = kThreads >> problem.lanes_log2;
    const int part = threadIdx.x & (problem.lanes() - 1);
    const int row_step = step / columns, column_step = step - row_step * columns;
    int row = place / columns, column = place - row * columns;
    const T* const from = origin(map);
    accum_t* const to = staged(which) + part * (kPart * columns);
    while (row < end - begin) {
      const int y = begin + row, x = first_x + column;
      Vector<accum_t> vector;
      if (static_cast<unsigned>(y) < static_cast<unsigned>(problem.height) &&
          static_cast<unsigned>(x) < static_cast<unsigned>(problem.width)) {
        vector = read(from + (y * problem.width + x) * static_cast<int>(map.step), part * kPart);
      }
#pragma unroll
      for (int k = 0; k < kPart / 4; ++k) {
        Four<accum_t> values;
#pragma unroll
        for (int j = 0; j < 4; ++j) values.values[j] = vector.values[4 * k + j];
        *reinterpret_cast<Four<accum_t>*>(to + row * problem.staged_row() +
                                          4 * (k * columns + column)) = values;
      }
      row += row_step;
      column += column_step;
      if (column >= columns) {
        ++row;
        column -= columns;
      }
    }
  }
  // This lane's channels of a staged row, tap by tap.
  struct StagedRow {
    const Four<accum_t>* fours[kPart / 4];

    __device__ Vector<accum_t> next() {
      Vector<accum_t> vector;
#pragma unroll
      for (int i = 0; i < kPart / 4; ++i) {
        const Four<accum_t> four = *fours[i]++;
#pragma unroll
        for (int j = 0; j < 4; ++j) vector.values[4 * i + j] = four.values[j];
      }
      return vector;
    }
  };
  __device__ StagedRow staged_row(int which, int row) const {
    const int columns = problem.staged_columns();
    const auto* const first =
        reinterpret_cast<const Four<accum_t>*>(staged(which) + row * problem.staged_row()) +
        part * (kPart / 4) * columns + column;
    StagedRow staged_row;
#pragma unroll
    for (int i = 0; i < kPart / 4; ++i) staged_row.fours[i] = first + i * columns;
    return staged_row;
  }

  // Calls body(all, row, its place in shared memory) for the rows of two maps that the own
  // positions see, or that see them, with a barrier around every chunk of rows, for which it calls
  // prepare(begin, end) first. A warp has one answer. `all` of the body is what sees() wants: of
  // windows of 7 rows most taps are in rows that all own positions see, where nothing is left to
  // test. With kApart they have a loop of their own, which takes registers.
  template <bool kApart, typename Prepare, typename Body>
  __device__ void for_each_row(const Source<T>& first, const Source<T>& second, bool all,
                               const Prepare& prepare, const Body& body) const {
    const int end = end_row(all);
    for (int begin = first_row(all); begin < end; begin += problem.staged_rows) {
      const int chunk_end = begin + problem.staged_rows < end ? begin + problem.staged_rows : end;
      sync_block();
      stage(first, 0, begin, chunk_end);
      stage(second, 1, begin, chunk_end);
      prepare(begin, chunk_end);
      sync_block();
      for (int u = begin; u < chunk_end; ++u) {
        if (u >= y(0) - problem.rows / 2 && u <= y(kRows - 1) + problem.rows / 2) {
          if constexpr (kApart) {
            if (sees(std::false_type(), 0, u) && sees(std::false_type(), kRows - 1, u)) {
              body(std::true_type(), u, u - begin);
              continue;
            }
          }
          body(std::false_type(), u, u - begin);
        }
      }
    }
  }
  template <typename Body>
  __device__ void for_each_row(const Source<T>& first, const Source<T>& second, bool all,
                               const Body& body) const {
    for_each_row<sizeof(accum_t) < 8>(first, second, all, [](int, int) {}, body);
  }

  // Products of the queries' channels of this lane with a column embedding; -inf if its tap is
  // masked.
  __device__ OfRows column_term(const Vector<accum_t> (&query)[kRows], int b) const {
    const Vector<accum_t> embedding = table(problem.rows + b);
    const accum_t mask = is_masked(b) ? -std::numeric_limits<accum_t>::infinity() : accum_t(0);
    OfRows terms;
#pragma unroll
    for (int t = 0; t < kRows; ++t) terms.at[t] = query[t].dot(embedding, mask);
    return terms;
  }
  // Those of all columns of a window, (columns, kThreads), in shared memory. Of fp64 they would not
  // fit, and are not kept.
  static constexpr bool kKeepsTerms = sizeof(accum_t) < 8;
  __device__ OfRows* column_terms() const {
    return reinterpret_cast<OfRows*>(staged(2)) + static_cast<int>(threadIdx.x);
  }
  __device__ void stage_column_terms(const Vector<accum_t> (&query)[kRows]) const {
    sync_block();  // the tables are there
    for (int b = 0; b < problem.cols && kKeepsTerms; ++b) {
      column_terms()[b * kThreads] = column_term(query, b);
    }
  }
  static constexpr int kTerms = kKeepsTerms ? kThreads * kRows : 0;  // numbers per column

  // Behind them, sums over every column of a window of the own positions.
  struct ColumnSums {
    OfRows grad, weight;
  };
  __device__ ColumnSums& of_column(int b) const {
    auto* const sums = reinterpret_cast<ColumnSums*>(staged(2) + problem.cols * kTerms);
    return sums[b * column_step() + warp() * problem.columns() + column];
  }
  __device__ int column_step() const { return kWarps * problem.columns(); }

  // Calls body(logits, key, value) for the taps of row u, which is row `row` in shared memory,
  // after stage_column_terms: keys are map 0, values map 1. Logits are parts that sum_parts sums,
  // -inf if own position t does not see the row, or if the tap is masked.
  template <typename All, typename Body>
  __device__ void for_each_tap(All all, const Vector<accum_t> (&query)[kRows], int u, int row,
                               const Body& body) const {
    accum_t row_term[kRows];
#pragma unroll
    for (int t = 0; t < kRows; ++t) {
      row_term[t] = sees(all, t, u) ? query[t].dot(table(tap_row(t, u)))
                                    : -std::numeric_limits<accum_t>::infinity();
    }
    StagedRow keys = staged_row(0, row), values = staged_row(1, row);
    const OfRows* kept_terms = column_terms();
    for (int b = 0; b < problem.cols; ++b) {
      const Vector<accum_t> key = keys.next();
      const OfRows terms = kKeepsTerms ? *kept_terms : column_term(query, b);
      kept_terms += kThreads;
      accum_t logits[kRows];
#pragma unroll
      for (int t = 0; t < kRows; ++t) {
        logits[t] = row_term[t] + terms.at[t];
        if (sees(all, t, u)) {
          logits[t] = query[t].dot(key, logits[t]);
        }
      }
      body(logits, key, values.next());
    }
  }

  // The row of the window of own position t that row u is, if it is.
  __device__ int tap_row(int t, int u) const { return u - y(t) + problem.rows / 2; }
  template <bool kAll>
  __device__ bool sees(std::bool_constant<kAll>, int t, int u) const {
    return kAll || static_cast<unsigned>(tap_row(t, u)) < static_cast<unsigned>(problem.rows);
  }
  __device__ bool is_masked(int tap) const {
    const int column = x() + tap - problem.cols / 2;
    return !problem.zero_padding &&
           static_cast<unsigned>(column) >= static_cast<unsigned>(problem.width);
  }
};

// Launches a kernel whose lanes have kRows positions each, with room in shared memory for two maps,
// `per_row` values per staged row of them and, after them, `extra` values.
template <int kRows, typename T, typename... Parameters, typename... Arguments>
void launch_tiles(void (*kernel)(Problem<T>, Parameters...), Problem<T> problem, int64_t per_row,
                  int64_t extra, const Arguments&... arguments) {
  constexpr int64_t kSize = sizeof(at::opmath_type<T>);
  const int64_t fixed = problem.tables() + extra, row = 2 * problem.staged_row() + per_row,
                most = kRows * kWarps + problem.rows - 1;
  problem.staged_rows =
      static_cast<int>(std::clamp<int64_t>((kSharedBytes / kSize - fixed) / row, 1, most));
  const int64_t across = ceil_div(problem.width, problem.columns());
  const int64_t down = ceil_div(problem.height, kRows * kWarps);
  launch(kernel, problem.batch * down * across * problem.heads, kThreads,
         (fixed + problem.staged_rows * row) * kSize, problem, arguments...);
}

}  // namespace
}  // namespace mmlocalattn::cuda::stand_alone
