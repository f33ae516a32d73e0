// Row kernels of neighborhood attention for one instruction set: included by
// neighborhood_<isa>.cpp, which defines MMLOCALATTN_ISA and MMLOCALATTN_VECTOR_BYTES and sets the
// compiler's target.
//
//   s_ij = <q_i, k_j> + bias[j - i]     p_ij = exp(s_ij - lse_i)     o_i = sum_j p_ij v_j
//   ds_ij = p_ij (<do_i, v_j> - delta_i)     dq_i = sum_j ds_ij k_j     dk_j = sum_i ds_ij q_i dv_j
//   = sum_i p_ij do_i
//
// Per query (or key, in the last two sums) the logits of its whole window stay in L1; nothing of
// that size goes to memory. Lanes run over head_dim: four dot products at a time share one
// transposing reduction. Every sum has a fixed order, so results do not depend on the number of
// threads.
//
// No function of the standard library is used here: an inline function compiled for a newer
// instruction set must not be the copy that the linker keeps for everybody.
#include <cstdint>
#include <utility>

#include "neighborhood.h"

namespace mmlocalattn {
namespace cpu {
namespace MMLOCALATTN_ISA {
namespace {

#define MMLOCALATTN_INLINE inline __attribute__((always_inline))

template <typename T>
struct Vector;
template <>
struct Vector<float> {
  typedef float type __attribute__((vector_size(MMLOCALATTN_VECTOR_BYTES)));
  typedef float unaligned
      __attribute__((vector_size(MMLOCALATTN_VECTOR_BYTES), aligned(4), may_alias));
  typedef int32_t integer;
  typedef integer index __attribute__((vector_size(MMLOCALATTN_VECTOR_BYTES)));
};
template <>
struct Vector<double> {
  typedef double type __attribute__((vector_size(MMLOCALATTN_VECTOR_BYTES)));
  typedef double unaligned
      __attribute__((vector_size(MMLOCALATTN_VECTOR_BYTES), aligned(8), may_alias));
  typedef int64_t integer;
  typedef integer index __attribute__((vector_size(MMLOCALATTN_VECTOR_BYTES)));
};

template <typename T>
using Vec = typename Vector<T>::type;

template <typename T>
constexpr int lanes = MMLOCALATTN_VECTOR_BYTES / sizeof(T);

template <typename T>
MMLOCALATTN_INLINE Vec<T> load(const T* p) {
  return *reinterpret_cast<const typename Vector<T>::unaligned*>(p);
}

template <typename T>
MMLOCALATTN_INLINE void store(T* p, Vec<T> x) {
  *reinterpret_cast<typename Vector<T>::unaligned*>(p) = x;
}

// Lane i of the result is lane kIndex[i] of (a, b) side by side.
template <typename T, int... kIndex>
MMLOCALATTN_INLINE Vec<T> shuffle(Vec<T> a, Vec<T> b, std::integer_sequence<int, kIndex...>) {
#ifdef __clang__
  return __builtin_shufflevector(a, b, kIndex...);
#else
  return __builtin_shuffle(a, b, typename Vector<T>::index{kIndex...});
#endif
}

// Lanes whose bit kStep is 0 become a[i] + a[i ^ kStep], the others b[i] + b[i ^ kStep].
template <int kStep, typename T, int... kLane>
MMLOCALATTN_INLINE Vec<T> add_pairs(Vec<T> a, Vec<T> b, std::integer_sequence<int, kLane...>) {
  constexpr int kLanes = sizeof...(kLane);
  return shuffle<T>(a, b,
                    std::integer_sequence<int, (kLane & kStep ? kLane + kLanes : kLane)...>()) +
         shuffle<T>(
             a, b,
             std::integer_sequence<int, ((kLane & kStep ? kLane + kLanes : kLane) ^ kStep)...>());
}

// out[0..3] = the sums over the lanes of a, b, c, d.
template <typename T>
MMLOCALATTN_INLINE void sum_lanes(Vec<T> a, Vec<T> b, Vec<T> c, Vec<T> d, T* out) {
  constexpr int kLanes = lanes<T>;
  if constexpr (kLanes < 4) {
    T sums[4] = {0, 0, 0, 0};
    for (int i = 0; i < kLanes; ++i) {
      sums[0] += a[i], sums[1] += b[i], sums[2] += c[i], sums[3] += d[i];
    }
    for (int i = 0; i < 4; ++i) out[i] = sums[i];
  } else {
    using Lanes = std::make_integer_sequence<int, kLanes>;
    Vec<T> sum =
        add_pairs<2, T>(add_pairs<1, T>(a, b, Lanes()), add_pairs<1, T>(c, d, Lanes()), Lanes());
    if constexpr (kLanes > 4) sum = add_pairs<4, T>(sum, sum, Lanes());
    if constexpr (kLanes > 8) sum = add_pairs<8, T>(sum, sum, Lanes());
    for (int i = 0; i < 4; ++i) out[i] = sum[i];
  }
}

// Lane i becomes lane i ^ kStep.
template <int kStep, typename T, int... kLane>
MMLOCALATTN_INLINE Vec<T> swap_lanes(Vec<T> x, std::integer_sequence<int, kLane...>) {
  return shuffle<T>(x, x, std::integer_sequence<int, (kLane ^ kStep)...>());
}

template <typename T, int kStep = lanes<T> / 2>
MMLOCALATTN_INLINE T sum_lanes(Vec<T> x) {
  x += swap_lanes<kStep, T>(x, std::make_integer_sequence<int, lanes<T>>());
  if constexpr (kStep == 1) {
    return x[0];
  } else {
    return sum_lanes<T, kStep / 2>(x);
  }
}

template <typename T, int kStep = lanes<T> / 2>
MMLOCALATTN_INLINE T max_lanes(Vec<T> x) {
  const Vec<T> other = swap_lanes<kStep, T>(x, std::make_integer_sequence<int, lanes<T>>());
  x = x < other ? other : x;
  if constexpr (kStep == 1) {
    return x[0];
  } else {
    return max_lanes<T, kStep / 2>(x);
  }
}

MMLOCALATTN_INLINE Vec<double> exp(Vec<double> x) {
  Vec<double> y;
  for (int i = 0; i < lanes<double>; ++i) y[i] = __builtin_exp(x[i]);
  return y;
}

// Relative error 2e-7 for x in [-87, 88]; below that it is 1.6e-38, NaN stays NaN. exp(x) = 2^n
// exp(r) with n = round(x / ln 2) and a polynomial of Cephes' expf for exp(r).
MMLOCALATTN_INLINE Vec<float> exp(Vec<float> x) {
  using I = typename Vector<float>::index;
  const Vec<float> low = Vec<float>{} - 87.0f, high = Vec<float>{} + 88.0f;
  x = x < low ? low : x;
  x = x > high ? high : x;
  const Vec<float> round = Vec<float>{} + 12582912.0f;  // 1.5 * 2^23: adding it leaves an integer
  const Vec<float> shifted = x * 1.44269504088896341f + round;
  const Vec<float> n = shifted - round;
  const Vec<float> r = (x - n * 0.693359375f) + n * 2.12194440e-4f;
  Vec<float> p = r * 1.9875691500e-4f + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = p * (r * r) + r + 1.0f;
  const I power = (((I)shifted - (I)round) + 127) << 23;
  return p * (Vec<float>)power;
}

// The taps of one row of a window: `count` vectors of `dim` values, `step` values apart.
template <typename T>
struct Taps {
  const T* first;
  int64_t step, count;
};

// out[t] = <x, tap t>; writes up to three values past the last.
template <typename T>
MMLOCALATTN_INLINE void dot_taps(const T* x, Taps<T> taps, int64_t dim, T* out) {
  constexpr int kLanes = lanes<T>;
  const int64_t step = taps.step;
  for (int64_t t = 0; t < taps.count; t += 4) {
    const int64_t last = taps.count - 1 - t;  // taps past the last one repeat it
    const T* tap = taps.first + t * step;
    const T* tap1 = tap + (last < 1 ? last : 1) * step;
    const T* tap2 = tap + (last < 2 ? last : 2) * step;
    const T* tap3 = tap + (last < 3 ? last : 3) * step;
    Vec<T> a{}, b{}, c{}, d{};
    for (int64_t i = 0; i < dim; i += kLanes) {
      const Vec<T> xi = load(x + i);
      a += xi * load(tap + i);
      b += xi * load(tap1 + i);
      c += xi * load(tap2 + i);
      d += xi * load(tap3 + i);
    }
    sum_lanes<T>(a, b, c, d, out + t);
  }
}

// sum[0..kVecs) += sum_t weight[t] * tap t, for the kVecs vectors of channels at taps.first.
template <int kVecs, typename T>
MMLOCALATTN_INLINE void add_taps(const T* weight, Taps<T> taps, Vec<T> (&even)[kVecs],
                                 Vec<T> (&odd)[kVecs]) {
  constexpr int kLanes = lanes<T>;
  const T* tap = taps.first;
  int64_t t = 0;
  for (; t + 1 < taps.count; t += 2, tap += 2 * taps.step) {
    for (int i = 0; i < kVecs; ++i) even[i] += weight[t] * load(tap + i * kLanes);
    for (int i = 0; i < kVecs; ++i) odd[i] += weight[t + 1] * load(tap + taps.step + i * kLanes);
  }
  if (t < taps.count) {
    for (int i = 0; i < kVecs; ++i) even[i] += weight[t] * load(tap + i * kLanes);
  }
}

// The window of one query, or the queries that see one key: rows of taps of a packed map.
template <typename T>
struct Window {
  int64_t offset;              // of the first tap, in values
  int64_t row_step, col_step;  // in values
  int64_t row_count, col_count;

  MMLOCALATTN_INLINE Taps<T> row(const T* map, int64_t a) const {
    return {map + offset + a * row_step, col_step, col_count};
  }
};

// out[c] = factor * sum over the window of weight * tap, for channels c in blocks of kVecs vectors
// from *done on.
template <int kVecs, typename T>
MMLOCALATTN_INLINE void weighted_sum_blocks(const Window<T>& window, const T* map, const T* weight,
                                            int64_t dim, T factor, T* out, int64_t* done) {
  constexpr int kLanes = lanes<T>;
  for (; *done + kVecs * kLanes <= dim; *done += kVecs * kLanes) {
    Vec<T> even[kVecs], odd[kVecs];
    for (int i = 0; i < kVecs; ++i) even[i] = odd[i] = Vec<T>{};
    for (int64_t a = 0; a < window.row_count; ++a) {
      add_taps<kVecs>(weight + a * window.col_count, window.row(map + *done, a), even, odd);
    }
    for (int i = 0; i < kVecs; ++i) store(out + *done + i * kLanes, (even[i] + odd[i]) * factor);
  }
}

template <typename T>
MMLOCALATTN_INLINE void weighted_sum(const Window<T>& window, const T* map, const T* weight,
                                     int64_t dim, T factor, T* out) {
  int64_t done = 0;
  weighted_sum_blocks<4>(window, map, weight, dim, factor, out, &done);
  weighted_sum_blocks<2>(window, map, weight, dim, factor, out, &done);
  weighted_sum_blocks<1>(window, map, weight, dim, factor, out, &done);
}

// out[a * col_count + b] = <x, tap (a, b)>
template <typename T>
MMLOCALATTN_INLINE void dot_window(const Window<T>& window, const T* x, const T* map, int64_t dim,
                                   T* out) {
  for (int64_t a = 0; a < window.row_count; ++a) {
    dot_taps(x, window.row(map, a), dim, out + a * window.col_count);
  }
}

// One row of one map of one head. `dim` is the packed head_dim, here so that callers can make it a
// constant.
template <typename T>
struct Row {
  const Neighborhood<T>& problem;
  int64_t dim, y, map_offset, lse_offset;
  const T* bias;

  MMLOCALATTN_INLINE Row(const Neighborhood<T>& problem, int64_t row, int64_t dim)
      : problem(problem), dim(dim) {
    const int64_t height = problem.rows.length, width = problem.cols.length;
    y = row % height;
    map_offset = row / height * height * width * dim;
    lse_offset = row * width;
    const int64_t table = (2 * problem.rows.kernel - 1) * (2 * problem.cols.kernel - 1);
    bias = problem.bias ? problem.bias + row / height % problem.heads * table : nullptr;
  }

  // Offset of the channels of position x.
  MMLOCALATTN_INLINE int64_t at(int64_t x) const {
    return map_offset + (y * problem.cols.length + x) * dim;
  }

  MMLOCALATTN_INLINE Window<T> window(int64_t first_y, int64_t first_x, int64_t row_count,
                                      int64_t col_count) const {
    const int64_t width = problem.cols.length;
    return {(first_y * width + first_x) * dim, problem.rows.dilation * width * dim,
            problem.cols.dilation * dim, row_count, col_count};
  }
};

// The keys that the queries of one row see.
template <typename T>
struct QueryRow : Row<T> {
  int64_t first_y, table_width;
  const T* bias_row;  // entry of the first row of taps and column offset 0, or null

  MMLOCALATTN_INLINE QueryRow(const Neighborhood<T>& problem, int64_t row, int64_t dim)
      : Row<T>(problem, row, dim) {
    first_y = problem.rows.start(this->y);
    table_width = 2 * problem.cols.kernel - 1;
    bias_row = this->bias ? this->bias + problem.rows.first_offset(this->y) * table_width : nullptr;
  }

  MMLOCALATTN_INLINE Window<T> window(int64_t x) const {
    return Row<T>::window(first_y, this->problem.col_windows[x].start, this->problem.rows.kernel,
                          this->problem.cols.kernel);
  }

  // Logits of query x over its window, bias included.
  MMLOCALATTN_INLINE void logits(const Window<T>& window, int64_t x, T* out) const {
    dot_window(window, this->problem.query + this->at(x), this->problem.key + this->map_offset,
               this->dim, out);
    if (!bias_row) return;
    const T* entry = bias_row + this->problem.col_windows[x].first_offset;
    for (int64_t a = 0; a < window.row_count; ++a) {
      for (int64_t b = 0; b < window.col_count; ++b) {
        out[a * window.col_count + b] += entry[a * table_width + b];
      }
    }
  }
};

// The queries that see the keys of one row.
template <typename T>
struct KeyRow : Row<T> {
  int64_t first_y, row_count, first_lse;

  MMLOCALATTN_INLINE KeyRow(const Neighborhood<T>& problem, int64_t row, int64_t dim)
      : Row<T>(problem, row, dim) {
    first_y = problem.rows.inverse_start(this->y);
    row_count = problem.rows.inverse_count(this->y);
    first_lse = this->lse_offset + (first_y - this->y) * problem.cols.length;
  }

  MMLOCALATTN_INLINE Window<T> window(int64_t x) const {
    const WindowAt& cols = this->problem.col_windows[x];
    return Row<T>::window(first_y, cols.inverse_start, row_count, cols.inverse_count);
  }

  // Index of the first query of row a of the window of key x in logsumexp and delta.
  MMLOCALATTN_INLINE int64_t query_at(int64_t a, int64_t x) const {
    return first_lse + a * this->problem.rows.dilation * this->problem.cols.length +
           this->problem.col_windows[x].inverse_start;
  }

  // Adds to the logits of the queries that see key x the bias minus the log-sum-exp of each query.
  MMLOCALATTN_INLINE void shift_logits(const Window<T>& window, int64_t x, T* logits) const {
    const WindowAxis &rows = this->problem.rows, &cols = this->problem.cols;
    const int64_t table_width = 2 * cols.kernel - 1;
    // The offset from query to key, in taps, falls by one from query to query.
    const int64_t row_offset = (this->y - first_y) / rows.dilation + rows.kernel - 1;
    const int64_t first_x = this->problem.col_windows[x].inverse_start;
    for (int64_t a = 0; a < window.row_count; ++a) {
      const T* lse = this->problem.logsumexp + query_at(a, x);
      T* line = logits + a * window.col_count;
      for (int64_t b = 0; b < window.col_count; ++b) line[b] -= lse[b * cols.dilation];
      if (!this->bias) continue;
      const T* entry = this->bias + (row_offset - a) * table_width + (x - first_x) / cols.dilation +
                       cols.kernel - 1;
      for (int64_t b = 0; b < window.col_count; ++b) line[b] += entry[-b];
    }
  }
};

// x[0..count) = exp(x - shift), the rest of the last vector 0; returns the sum.
template <typename T, int... kLane>
MMLOCALATTN_INLINE T exp_all(T* x, int64_t count, T shift, std::integer_sequence<int, kLane...>) {
  using Index = typename Vector<T>::index;
  constexpr int kLanes = sizeof...(kLane);
  const Index lane{kLane...};
  Vec<T> sum{};
  for (int64_t i = 0; i < count; i += kLanes) {
    Vec<T> weight = exp(load(x + i) - shift);
    if (i + kLanes > count)
      weight =
          lane < Index{} + static_cast<typename Vector<T>::integer>(count - i) ? weight : Vec<T>{};
    sum += weight;
    store(x + i, weight);
  }
  return sum_lanes<T>(sum);
}

template <typename T>
MMLOCALATTN_INLINE T exp_all(T* x, int64_t count, T shift) {
  return exp_all(x, count, shift, std::make_integer_sequence<int, lanes<T>>());
}

template <typename T>
MMLOCALATTN_INLINE T max_all(T* x, int64_t count) {
  constexpr int kLanes = lanes<T>;
  for (int64_t i = count; i % kLanes; ++i) x[i] = x[0];
  Vec<T> most = load(x);
  for (int64_t i = kLanes; i < count; i += kLanes) {
    const Vec<T> next = load(x + i);
    most = most < next ? next : most;
  }
  return max_lanes<T>(most);
}

MMLOCALATTN_INLINE float log(float x) { return __builtin_logf(x); }
MMLOCALATTN_INLINE double log(double x) { return __builtin_log(x); }

struct Forward {
  template <typename T>
  static MMLOCALATTN_INLINE void run(int64_t dim, const Neighborhood<T>& problem, int64_t index,
                                     T* logits, T* out) {
    const QueryRow<T> row(problem, index, dim);
    const int64_t taps = problem.rows.kernel * problem.cols.kernel;
    for (int64_t x = 0; x < problem.cols.length; ++x) {
      const Window<T> window = row.window(x);
      row.logits(window, x, logits);
      const T shift = max_all(logits, taps);
      const T sum = exp_all(logits, taps, shift);
      problem.logsumexp[row.lse_offset + x] = shift + log(sum);
      weighted_sum(window, problem.value + row.map_offset, logits, dim, T(1) / sum, out + x * dim);
    }
  }
};

// Per query: weights = P, then grads = dS.
struct BackwardQuery {
  template <typename T>
  static MMLOCALATTN_INLINE void run(int64_t dim, const Neighborhood<T>& problem, int64_t index,
                                     T* scratch, T* grad_query, T* grad_bias) {
    const QueryRow<T> row(problem, index, dim);
    const int64_t taps = problem.rows.kernel * problem.cols.kernel;
    const int64_t bias_row = problem.rows.first_offset(row.y) * row.table_width;
    T *weights = scratch, *grads = scratch + scratch_size(problem) / 2;
    for (int64_t x = 0; x < problem.cols.length; ++x) {
      const Window<T> window = row.window(x);
      row.logits(window, x, weights);
      exp_all(weights, taps, problem.logsumexp[row.lse_offset + x]);
      dot_window(window, problem.grad_output + row.at(x), problem.value + row.map_offset, dim,
                 grads);
      const T delta = problem.delta[row.lse_offset + x];
      for (int64_t i = 0; i < taps; ++i) grads[i] = weights[i] * (grads[i] - delta);
      weighted_sum(window, problem.key + row.map_offset, grads, dim, T(1), grad_query + x * dim);
      if (!grad_bias) continue;
      T* entry = grad_bias + bias_row + problem.col_windows[x].first_offset;
      for (int64_t a = 0; a < window.row_count; ++a) {
        for (int64_t b = 0; b < window.col_count; ++b) {
          entry[a * row.table_width + b] += grads[a * window.col_count + b];
        }
      }
    }
  }
};

// Per key, over the queries that see it: weights = P, then grads = dS.
struct BackwardKeyValue {
  template <typename T>
  static MMLOCALATTN_INLINE void run(int64_t dim, const Neighborhood<T>& problem, int64_t index,
                                     T* scratch, T* grad_key, T* grad_value) {
    const KeyRow<T> row(problem, index, dim);
    const T *queries = problem.query + row.map_offset,
            *outputs = problem.grad_output + row.map_offset;
    T *weights = scratch, *grads = scratch + scratch_size(problem) / 2;
    for (int64_t x = 0; x < problem.cols.length; ++x) {
      const Window<T> window = row.window(x);
      dot_window(window, problem.key + row.at(x), queries, dim, weights);
      row.shift_logits(window, x, weights);
      exp_all(weights, window.row_count * window.col_count, T(0));
      weighted_sum(window, outputs, weights, dim, T(1), grad_value + x * dim);
      dot_window(window, problem.value + row.at(x), outputs, dim, grads);
      for (int64_t a = 0; a < window.row_count; ++a) {
        const T* delta = problem.delta + row.query_at(a, x);
        for (int64_t b = 0; b < window.col_count; ++b) {
          const int64_t i = a * window.col_count + b;
          grads[i] = weights[i] * (grads[i] - delta[b * problem.cols.dilation]);
        }
      }
      weighted_sum(window, queries, grads, dim, T(1), grad_key + x * dim);
    }
  }
};

// Runs a kernel with the packed head_dim as a constant where it is a common one.
template <typename Kernel, typename T, typename... Outputs>
void run(const Neighborhood<T>& problem, int64_t row, Outputs*... outputs) {
  constexpr int64_t kUnit = kLaneBytes / sizeof(T);
  switch (problem.dim) {
    case kUnit:
      return Kernel::template run<T>(kUnit, problem, row, outputs...);
    case 2 * kUnit:
      return Kernel::template run<T>(2 * kUnit, problem, row, outputs...);
    case 4 * kUnit:
      return Kernel::template run<T>(4 * kUnit, problem, row, outputs...);
    default:
      return Kernel::template run<T>(problem.dim, problem, row, outputs...);
  }
}

template <typename T>
constexpr RowKernels<T> row_kernels() {
  return {&run<Forward, T, T, T>, &run<BackwardQuery, T, T, T, T>,
          &run<BackwardKeyValue, T, T, T, T>};
}

}  // namespace
}  // namespace MMLOCALATTN_ISA
}  // namespace cpu
}  // namespace mmlocalattn
