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
  typedef int32_t index __attribute__((vector_size(MMLOCALATTN_VECTOR_BYTES)));
};
template <>
struct Vector<double> {
  typedef double type __attribute__((vector_size(MMLOCALATTN_VECTOR_BYTES)));
  typedef double unaligned
      __attribute__((vector_size(MMLOCALATTN_VECTOR_BYTES), aligned(8), may_alias));
  typedef int64_t index __attribute__((vector_size(MMLOCALATTN_VECTOR_BYTES)));
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

template <typename T>
MMLOCALATTN_INLINE T sum_lanes(Vec<T> x) {
  T sum = x[0];
  for (int i = 1; i < lanes<T>; ++i) sum += x[i];
  return sum;
}

template <typename T>
MMLOCALATTN_INLINE T max_lanes(Vec<T> x) {
  T most = x[0];
  for (int i = 1; i < lanes<T>; ++i) most = most < x[i] ? x[i] : most;
  return most;
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

// One row of one map of one head.
template <typename T>
struct Row {
  int64_t y, map_offset, lse_offset;
  const T* bias;

  MMLOCALATTN_INLINE Row(const Neighborhood<T>& problem, int64_t row) {
    const int64_t height = problem.rows.length, width = problem.cols.length;
    y = row % height;
    map_offset = row / height * height * width * problem.dim;
    lse_offset = row * width;
    const int64_t table = (2 * problem.rows.kernel - 1) * (2 * problem.cols.kernel - 1);
    bias = problem.bias ? problem.bias + row / height % problem.heads * table : nullptr;
  }
};

template <typename T>
MMLOCALATTN_INLINE Window<T> query_window(const Neighborhood<T>& problem, int64_t y, int64_t x) {
  const int64_t width = problem.cols.length, dim = problem.dim;
  return {(problem.rows.start(y) * width + problem.cols.start(x)) * dim,
          problem.rows.dilation * width * dim, problem.cols.dilation * dim, problem.rows.kernel,
          problem.cols.kernel};
}

template <typename T>
MMLOCALATTN_INLINE Window<T> key_window(const Neighborhood<T>& problem, int64_t y, int64_t x) {
  const int64_t width = problem.cols.length, dim = problem.dim;
  return {(problem.rows.inverse_start(y) * width + problem.cols.inverse_start(x)) * dim,
          problem.rows.dilation * width * dim, problem.cols.dilation * dim,
          problem.rows.inverse_count(y), problem.cols.inverse_count(x)};
}

// logits of query (y, x) over its window, bias included.
template <typename T>
MMLOCALATTN_INLINE void query_logits(const Neighborhood<T>& problem, const Row<T>& row,
                                     const Window<T>& window, int64_t x, T* logits) {
  const int64_t width = problem.cols.length, dim = problem.dim;
  dot_window(window, problem.query + row.map_offset + (row.y * width + x) * dim,
             problem.key + row.map_offset, dim, logits);
  if (!row.bias) return;
  const int64_t table_width = 2 * problem.cols.kernel - 1;
  const T* bias =
      row.bias + problem.rows.first_offset(row.y) * table_width + problem.cols.first_offset(x);
  for (int64_t a = 0; a < window.row_count; ++a) {
    for (int64_t b = 0; b < window.col_count; ++b)
      logits[a * window.col_count + b] += bias[a * table_width + b];
  }
}

// x[0..count) = exp(x - shift), the rest of the last vector 0; returns the sum.
template <typename T>
MMLOCALATTN_INLINE T exp_all(T* x, int64_t count, T shift) {
  constexpr int kLanes = lanes<T>;
  Vec<T> sum{};
  for (int64_t i = 0; i < count; i += kLanes) {
    Vec<T> weight = exp(load(x + i) - shift);
    if (i + kLanes > count) {
      for (int lane = 0; lane < kLanes; ++lane)
        weight[lane] = i + lane < count ? weight[lane] : T(0);
    }
    sum += weight;
    store(x + i, weight);
  }
  return sum_lanes<T>(sum);
}

template <typename T>
void forward(const Neighborhood<T>& problem, int64_t index, T* logits, T* out) {
  constexpr int kLanes = lanes<T>;
  const Row<T> row(problem, index);
  const int64_t taps = problem.rows.kernel * problem.cols.kernel;
  for (int64_t x = 0; x < problem.cols.length; ++x) {
    const Window<T> window = query_window(problem, row.y, x);
    query_logits(problem, row, window, x, logits);
    for (int64_t i = taps; i % kLanes; ++i) logits[i] = logits[0];
    Vec<T> most = load(logits);
    for (int64_t i = kLanes; i < taps; i += kLanes) {
      const Vec<T> next = load(logits + i);
      most = most < next ? next : most;
    }
    const T shift = max_lanes<T>(most);
    const T sum = exp_all(logits, taps, shift);
    problem.logsumexp[row.lse_offset + x] =
        shift + (sizeof(T) == 4 ? T(__builtin_logf(float(sum))) : T(__builtin_log(double(sum))));
    weighted_sum(window, problem.value + row.map_offset, logits, problem.dim, T(1) / sum,
                 out + x * problem.dim);
  }
}

// Per query: weights = P, then grads = dS.
template <typename T>
void backward_query(const Neighborhood<T>& problem, int64_t index, T* scratch, T* grad_query,
                    T* grad_bias) {
  const Row<T> row(problem, index);
  const int64_t dim = problem.dim, width = problem.cols.length,
                taps = problem.rows.kernel * problem.cols.kernel;
  const int64_t table_width = 2 * problem.cols.kernel - 1;
  T *weights = scratch, *grads = scratch + scratch_size(problem) / 2;
  for (int64_t x = 0; x < width; ++x) {
    const Window<T> window = query_window(problem, row.y, x);
    query_logits(problem, row, window, x, weights);
    exp_all(weights, taps, problem.logsumexp[row.lse_offset + x]);
    dot_window(window, problem.grad_output + row.map_offset + (row.y * width + x) * dim,
               problem.value + row.map_offset, dim, grads);
    const T delta = problem.delta[row.lse_offset + x];
    for (int64_t i = 0; i < taps; ++i) grads[i] = weights[i] * (grads[i] - delta);
    weighted_sum(window, problem.key + row.map_offset, grads, dim, T(1), grad_query + x * dim);
    if (!grad_bias) continue;
    T* table =
        grad_bias + problem.rows.first_offset(row.y) * table_width + problem.cols.first_offset(x);
    for (int64_t a = 0; a < window.row_count; ++a) {
      for (int64_t b = 0; b < window.col_count; ++b)
        table[a * table_width + b] += grads[a * window.col_count + b];
    }
  }
}

// Adds to the logits of the queries that see key (y, x) the bias minus the log-sum-exp of each
// query.
template <typename T>
MMLOCALATTN_INLINE void shift_logits(const Neighborhood<T>& problem, const Row<T>& row,
                                     const Window<T>& window, int64_t x, T* logits) {
  const int64_t width = problem.cols.length, table_width = 2 * problem.cols.kernel - 1;
  const int64_t map = row.lse_offset - row.y * width;
  const int64_t y0 = problem.rows.inverse_start(row.y), x0 = problem.cols.inverse_start(x);
  for (int64_t a = 0; a < window.row_count; ++a) {
    const int64_t query_y = y0 + a * problem.rows.dilation;
    const T* lse = problem.logsumexp + map + query_y * width + x0;
    T* line = logits + a * window.col_count;
    for (int64_t b = 0; b < window.col_count; ++b) line[b] -= lse[b * problem.cols.dilation];
    if (!row.bias) continue;
    // (key - query) / dilation + kernel - 1 falls by one from query to query.
    const T* bias =
        row.bias +
        ((row.y - query_y) / problem.rows.dilation + problem.rows.kernel - 1) * table_width +
        (x - x0) / problem.cols.dilation + problem.cols.kernel - 1;
    for (int64_t b = 0; b < window.col_count; ++b) line[b] += bias[-b];
  }
}

template <typename T>
void backward_key_value(const Neighborhood<T>& problem, int64_t index, T* scratch, T* grad_key,
                        T* grad_value) {
  const Row<T> row(problem, index);
  const int64_t dim = problem.dim, width = problem.cols.length;
  const int64_t map = row.lse_offset - row.y * width;
  T *weights = scratch, *grads = scratch + scratch_size(problem) / 2;
  for (int64_t x = 0; x < width; ++x) {
    const Window<T> window = key_window(problem, row.y, x);
    const int64_t here = row.map_offset + (row.y * width + x) * dim,
                  taps = window.row_count * window.col_count;
    const int64_t y0 = problem.rows.inverse_start(row.y), x0 = problem.cols.inverse_start(x);
    dot_window(window, problem.key + here, problem.query + row.map_offset, dim, weights);
    shift_logits(problem, row, window, x, weights);
    exp_all(weights, taps, T(0));
    weighted_sum(window, problem.grad_output + row.map_offset, weights, dim, T(1),
                 grad_value + x * dim);
    dot_window(window, problem.value + here, problem.grad_output + row.map_offset, dim, grads);
    for (int64_t a = 0; a < window.row_count; ++a) {
      const T* delta = problem.delta + map + (y0 + a * problem.rows.dilation) * width + x0;
      for (int64_t b = 0; b < window.col_count; ++b) {
        const int64_t i = a * window.col_count + b;
        grads[i] = weights[i] * (grads[i] - delta[b * problem.cols.dilation]);
      }
    }
    weighted_sum(window, problem.query + row.map_offset, grads, dim, T(1), grad_key + x * dim);
  }
}

template <typename T>
constexpr RowKernels<T> row_kernels() {
  return {&forward<T>, &backward_query<T>, &backward_key_value<T>};
}

}  // namespace
}  // namespace MMLOCALATTN_ISA
}  // namespace cpu
}  // namespace mmlocalattn
