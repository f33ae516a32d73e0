// CPU operator: query and attend, forward and backward.
//
//   p_qj[i] = softmax_j(scores[b, i + j, q, n] + bias[q, n, j])
//   output[b, i, n] = sum_qj scale[q, n, j] p_qj[i] values[b, i + j, n]
//
// scores: (B, H, W, num_queries, num_heads); values: (B, H, W, num_heads, head_dim); bias and
// scale: (num_queries, num_heads, kh, kw); output: (B, H', W', num_heads, head_dim); logsumexp:
// (B, H', W', num_queries, num_heads, 2) in the compute dtype.
//
// Backward goes over the windows for delta = sum_j p_qj scale_qj <grad_output, value_j>, then over
// the positions, which gather from the windows that see them.
#include <ATen/ops/empty_like.h>
#include <torch/library.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <limits>
#include <vector>

#include "cpu/query_and_attend/piece.h"
#include "cpu/runtime.h"

namespace mmlocalattn::cpu::query_and_attend {
namespace {

constexpr int64_t kMostRows = 18, kMostCols = 64;  // of a tile: the planes of a head stay in L2
constexpr int64_t kRowStep = 6;      // the rows that kernels compute together divide it
constexpr int64_t kMostHeads = 8;    // of a piece: what it packs of scores at once
constexpr int64_t kColumnStep = 16;  // the lanes of the longest vector

// One call. scores and values: maps of one dtype and any strides; bias and scale may be undefined.
struct Problem {
  at::Tensor scores, values, bias, scale;
  StridedAxis rows, cols;

  Problem(const at::Tensor& scores, const at::Tensor& values, const OptionalTensor& bias,
          const OptionalTensor& scale, at::IntArrayRef kernel_size, int64_t stride)
      : scores(scores),
        values(values),
        bias(bias.value_or(at::Tensor())),
        scale(scale.value_or(at::Tensor())) {
    check_map(scores, "scores (B, H, W, num_queries, num_heads)");
    check_map(values, "values (B, H, W, num_heads, head_dim)");
    TORCH_CHECK(scores.sizes().slice(0, 3) == values.sizes().slice(0, 3) &&
                    scores.size(4) == values.size(3) && values.size(1) > 0 && values.size(2) > 0 &&
                    scores.size(3) > 0 && values.size(4) > 0 &&
                    scores.scalar_type() == values.scalar_type(),
                "scores and values must have one map, num_heads and dtype, got ", scores.sizes(),
                " and ", values.sizes());
    TORCH_CHECK(stride == 1 || stride == 2, "cannot use stride ", stride);
    for (const int64_t kernel : kernel_size) {
      TORCH_CHECK(kernel > 0 && kernel % 2 == 1 && kernel <= kMostKernel, "cannot use a window of ",
                  kernel, " positions");
    }
    const std::array<int64_t, 4> sizes{scores.size(3), scores.size(4), kernel_size[0],
                                       kernel_size[1]};
    for (const auto* table : {&this->bias, &this->scale}) {
      TORCH_CHECK(!table->defined() || table->sizes() == sizes, "a table must have shape ",
                  at::IntArrayRef(sizes), ", got ", table->sizes());
    }
    rows = {values.size(1), kernel_size[0], stride};
    cols = {values.size(2), kernel_size[1], stride};
  }
};

// See Vectors: of scores (B, H, W, items, heads), or of values (B, H, W, items, dim) whose heads
// are the items, from one image and head on.
template <typename T>
Vectors<T> vectors(const at::Tensor& map, int64_t b, int64_t offset) {
  using U = std::remove_const_t<T>;
  return {data_of<U>(map) + b * map.stride(0) + offset, map.stride(1), map.stride(2),
          map.stride(3)};
}

// Places of the tiles of a problem: begins and ends along both axes. The split depends on the shape
// alone, so that results do not depend on the number of threads.
struct Tiles {
  std::vector<int64_t> rows, cols;

  int64_t size() const { return (rows.size() - 1) * (cols.size() - 1); }
};

// The maps of a problem and their pieces.
template <typename T>
class Pieces {
 public:
  using C = Compute<T>;

  explicit Pieces(const Problem& problem)
      : problem_(problem),
        scores_(ready(problem.scores)),
        values_(ready(problem.values)),
        ordinals_(ordinals(kMostCols + kMostKernel + kColumnStep)) {
    make_tables();
  }

  at::ScalarType dtype() const { return scores_.scalar_type(); }
  at::ScalarType compute_dtype() const { return at::toOpMathType(dtype()); }
  int64_t batch() const { return values_.size(0); }
  int64_t heads() const { return values_.size(3); }
  int64_t queries() const { return scores_.size(3); }
  int64_t taps() const { return problem_.rows.kernel * problem_.cols.kernel; }

  // (B, H', W') and other sizes.
  std::array<int64_t, 5> window_sizes(const at::Tensor& like) const {
    return {batch(), problem_.rows.windows(), problem_.cols.windows(), like.size(3), like.size(4)};
  }
  std::array<int64_t, 6> logsumexp_sizes() const {
    const auto [b, rows, cols, num_queries, num_heads] = window_sizes(scores_);
    return {b, rows, cols, num_queries, num_heads, 2};
  }

  Tiles window_tiles() const {
    return {cuts(problem_.rows.windows(), kMostRows, kRowStep),
            cuts(problem_.cols.windows(), kMostCols, kColumnStep)};
  }

  Tiles position_tiles() const {
    const auto& cols = problem_.cols;
    const int64_t first = cols.low() / cols.stride,
                  last = (cols.length - 1 + cols.low()) / cols.stride;
    auto tiles = Tiles{cuts(problem_.rows.length, kMostRows, 1),
                       cuts(last - first + 1, kMostCols, kColumnStep)};
    for (auto& x : tiles.cols) x += first;
    return tiles;
  }

  // Runs a kernel on every piece, in parallel, after complete(piece, b, tile, first head).
  template <typename Complete>
  void run(const Tiles& tiles, Kernel<Piece<T>, T> kernel, const Complete& complete) const {
    const int64_t groups = (heads() + kMostHeads - 1) / kMostHeads;
    run_in_turns(batch() * tiles.size() * groups, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) {
        const int64_t group = i % groups, tile = i / groups % tiles.size(),
                      b = i / groups / tiles.size(), head = group * heads() / groups;
        auto piece = make_piece(b, head, (group + 1) * heads() / groups - head);
        const int64_t row = tile / (tiles.cols.size() - 1), col = tile % (tiles.cols.size() - 1);
        piece.y_begin = tiles.rows[row], piece.y_end = tiles.rows[row + 1];
        piece.x_begin = tiles.cols[col], piece.x_end = tiles.cols[col + 1];
        complete(piece, b, tile, head);
        cpu::run(kernel, piece);
      }
    });
  }

 private:
  // See TapTable.
  void make_tables() {
    const int64_t taps = this->taps();
    tables_.resize(queries() * heads() * 4 * taps);
    bias_ranges_.resize(queries() * heads());
    const auto typed = [&](const at::Tensor& table) {
      return table.defined() ? in_dtype(table, compute_dtype()).contiguous() : table;
    };
    const auto biases = typed(problem_.bias), scales = typed(problem_.scale);
    C* rows = tables_.data();
    for (int64_t i = 0; i < queries() * heads(); ++i, rows += 4 * taps) {
      C least = 0, most = 0;
      for (int64_t j = 0; j < taps; ++j) {
        const C bias = biases.defined() ? data_of<const C>(biases)[i * taps + j] : C(0),
                scale = scales.defined() ? data_of<const C>(scales)[i * taps + j] : C(1),
                factor = std::exp(bias);
        rows[j] = bias, rows[taps + j] = factor;
        rows[2 * taps + j] = scale, rows[3 * taps + j] = scale * factor;
        // NaN makes the range infinite, for which the kernels do not rely on e^bias.
        least = std::isnan(bias) ? -std::numeric_limits<C>::infinity() : std::min(least, bias);
        most = std::max(most, bias);
      }
      bias_ranges_[i] = most - least;
    }
  }

  Piece<T> make_piece(int64_t b, int64_t head, int64_t num_heads) const {
    Piece<T> piece{};
    piece.rows = problem_.rows, piece.cols = problem_.cols;
    piece.queries = queries(), piece.heads = num_heads, piece.dim = values_.size(4);
    piece.ordinals = ordinals_.data();
    piece.scores = vectors<const T>(scores_, b, head);
    piece.values = vectors<const T>(values_, b, head * values_.stride(3));
    piece.tables = tables_.data() + head * 4 * taps();
    piece.bias_ranges = bias_ranges_.data() + head;
    piece.all_heads = heads();
    return piece;
  }

  const Problem& problem_;
  at::Tensor scores_, values_;
  std::vector<C> tables_, bias_ranges_;
  std::vector<int64_t> ordinals_;
};

std::tuple<at::Tensor, at::Tensor> query_and_attend_cpu(
    const at::Tensor& scores, const at::Tensor& values, const OptionalTensor& bias,
    const OptionalTensor& scale, at::IntArrayRef kernel_size, int64_t stride) {
  const Problem problem(scores, values, bias, scale, kernel_size, stride);
  at::Tensor output, logsumexp;
  dispatch(values.scalar_type(), [&](auto type) {
    using T = decltype(type);
    using C = Compute<T>;
    const Pieces<T> pieces(problem);
    output = make_empty(pieces.window_sizes(values), pieces.dtype());
    logsumexp = make_empty(pieces.logsumexp_sizes(), pieces.compute_dtype());
    pieces.run(pieces.window_tiles(), kernels<T>().forward,
               [&](auto& piece, int64_t b, int64_t, int64_t head) {
                 piece.output = vectors<T>(output, b, head * output.stride(3));
                 piece.logsumexp = vectors<C>(logsumexp, b, 2 * head);
               });
  });
  return {in_dtype(output, values.scalar_type()), logsumexp};
}

std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor> query_and_attend_backward_cpu(
    const at::Tensor& grad_output, const at::Tensor& scores, const at::Tensor& values,
    const OptionalTensor& bias, const OptionalTensor& scale, const at::Tensor& logsumexp,
    at::IntArrayRef kernel_size, int64_t stride) {
  const Problem problem(scores, values, bias, scale, kernel_size, stride);
  at::Tensor grad_scores, grad_values, grad_bias, grad_scale;
  dispatch(values.scalar_type(), [&](auto type) {
    using T = decltype(type);
    using C = Compute<T>;
    const Pieces<T> pieces(problem);
    TORCH_CHECK(grad_output.sizes() == pieces.window_sizes(values) &&
                    logsumexp.sizes() == pieces.logsumexp_sizes(),
                "grad_output and logsumexp must belong to scores and values");
    const auto ready_grad = ready(in_dtype(grad_output, pieces.dtype()));
    const auto ready_logsumexp = in_dtype(logsumexp, pieces.compute_dtype()).contiguous();
    const auto delta = make_empty(pieces.window_sizes(scores), pieces.compute_dtype());
    const auto add_inputs = [&](Piece<T>& piece, int64_t b, int64_t, int64_t head) {
      piece.grad_output = vectors<const T>(ready_grad, b, head * ready_grad.stride(3));
      piece.logsumexp = vectors<C>(ready_logsumexp, b, 2 * head);
      piece.delta = vectors<C>(delta, b, head);
    };
    pieces.run(pieces.window_tiles(), kernels<T>().backward_windows, add_inputs);
    grad_scores = make_result(scores);
    grad_values = make_result(values);
    const auto tiles = pieces.position_tiles();
    grad_bias = make_empty({pieces.batch() * tiles.size(), pieces.queries(), pieces.heads(),
                            kernel_size[0], kernel_size[1]},
                           pieces.compute_dtype());
    grad_scale = at::empty_like(grad_bias);
    const auto add_all = [&](Piece<T>& piece, int64_t b, int64_t tile, int64_t head) {
      add_inputs(piece, b, tile, head);
      piece.grad_scores = vectors<T>(grad_scores, b, head);
      piece.grad_values = vectors<T>(grad_values, b, head * grad_values.stride(3));
      const int64_t part = (b * tiles.size() + tile) * grad_bias.stride(0) + head * pieces.taps();
      piece.grad_bias = data_of<C>(grad_bias) + part;
      piece.grad_scale = data_of<C>(grad_scale) + part;
    };
    pieces.run(tiles, kernels<T>().backward_positions, add_all);
  });
  const auto of_table = [&](const at::Tensor& parts, const OptionalTensor& table) {
    return table ? parts.sum(0).to(table->scalar_type()) : make_empty({0}, values.scalar_type());
  };
  return {in_dtype(grad_scores, scores.scalar_type()), in_dtype(grad_values, values.scalar_type()),
          of_table(grad_bias, bias), of_table(grad_scale, scale)};
}

}  // namespace
}  // namespace mmlocalattn::cpu::query_and_attend

TORCH_LIBRARY_IMPL(mmlocalattn, CPU, m) {
  m.impl("query_and_attend", &mmlocalattn::cpu::query_and_attend::query_and_attend_cpu);
  m.impl("_query_and_attend_backward",
         &mmlocalattn::cpu::query_and_attend::query_and_attend_backward_cpu);
}
