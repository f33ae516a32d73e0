// CPU operator: stand-alone self-attention, forward and backward.
//
//   p[b, i, n, j] = softmax_j(scale <query[b, i, n], key[b, j, n] + r[n, j - i]>)
//   output[b, i, n] = sum_j p[b, i, n, j] value[b, j, n]
//
// with j over the window centred on i, and r[n, (a, b)] = (row_embedding[n, a],
// column_embedding[n, b]).
//
// query, key, value, output: (B, H, W, num_heads, head_dim); logsumexp: (B, H, W, num_heads, 2) in
// the compute dtype. Work is split into bands of rows of a group of heads; each band packs the rows
// of keys around it, and computes anew the gradients of logits there, so that none adds to what is
// another's.
#include <ATen/ops/empty.h>
#include <ATen/ops/zeros.h>
#include <torch/library.h>

#include <algorithm>
#include <array>
#include <vector>

#include "cpu/runtime.h"
#include "cpu/stand_alone/piece.h"

namespace mmlocalattn::cpu::stand_alone {

namespace {

using at::IntArrayRef;
using at::Tensor;

constexpr int64_t kMostTaps = 11;  // along an axis
constexpr int64_t kBandRows = 48;  // about
constexpr int64_t kRowStep = 4;    // of the kernels
constexpr int64_t kGroupDim = 16;  // lanes of the longest vectors of fp32

// One call.
struct Problem : AttentionMaps {
  Tensor row_embedding, column_embedding;
  IntArrayRef kernel_size;
  bool zero_padding;
  double scale;

  Problem(const AttentionMaps& maps, const Tensor& row_embedding, const Tensor& column_embedding,
          IntArrayRef kernel_size, bool zero_padding, double scale)
      : AttentionMaps(maps),
        row_embedding(row_embedding),
        column_embedding(column_embedding),
        kernel_size(kernel_size),
        zero_padding(zero_padding),
        scale(scale) {
    check();
    for (const int64_t kernel : kernel_size) {
      TORCH_CHECK(kernel > 0 && kernel % 2 == 1 && kernel <= kMostTaps, "a window of ", kernel,
                  " taps is even or larger than ", kMostTaps);
    }
    const int64_t half = dim() / 2;
    const std::array<int64_t, 3> rows{heads(), kernel_size[0], half},
        columns{heads(), kernel_size[1], dim() - half};
    TORCH_CHECK(row_embedding.sizes() == rows, "row_embedding must have shape ", IntArrayRef(rows));
    TORCH_CHECK(column_embedding.sizes() == columns, "column_embedding must have shape ",
                IntArrayRef(columns));
  }
};

// The maps of a problem and their pieces: bands of rows of a group of heads.
template <typename T>
class Pieces {
 public:
  using C = Compute<T>;

  // `others` are read by the kernels too.
  Pieces(const Problem& problem, const Tensor& logsumexp, std::initializer_list<Tensor> others = {})
      : problem_(problem),
        query_(ready(problem.query)),
        key_(ready(problem.key)),
        value_(ready(problem.value)),
        row_embedding_(in_dtype(problem.row_embedding, logsumexp.scalar_type()).contiguous()),
        column_embedding_(in_dtype(problem.column_embedding, logsumexp.scalar_type()).contiguous()),
        logsumexp_(logsumexp),
        columns_(ordinals(problem.width())) {
    const int64_t height = problem.height(), heads = problem.heads(), dim = problem.dim();
    // Narrow heads that lie side by side fill vectors of channels together.
    const auto are_neighbors = [&](const Tensor& map) { return map.stride(3) == dim; };
    if (problem.query.numel() > 0 && are_neighbors(query_) && are_neighbors(key_) &&
        are_neighbors(value_) && std::all_of(others.begin(), others.end(), are_neighbors) &&
        dim % 4 == 0) {
      group_heads_ = std::clamp<int64_t>(kGroupDim / dim, 1, heads);
    }
    groups_ = (heads + group_heads_ - 1) / group_heads_;
    bands_ = std::max<int64_t>(1, (height + kBandRows / 2) / kBandRows);
  }

  // Pieces; none of an empty problem.
  int64_t count() const { return problem_.query.numel() == 0 ? 0 : parts() * groups_; }

  // Pieces of one group of heads, and which of them a piece is.
  int64_t parts() const { return problem_.batch() * bands_; }
  int64_t part(int64_t index) const { return index / groups_; }

  int64_t head(int64_t index) const { return index % groups_ * group_heads_; }

  // Piece `index` as forward needs it, without output.
  Piece<T> piece(int64_t index) const {
    const int64_t head = this->head(index), band = part(index) % bands_;
    Piece<T> piece{};
    piece.height = problem_.height();
    piece.width = problem_.width();
    piece.kernel_rows = problem_.kernel_size[0];
    piece.kernel_cols = problem_.kernel_size[1];
    piece.zero_padding = problem_.zero_padding;
    piece.heads = std::min(group_heads_, problem_.heads() - head);
    piece.dim = problem_.dim();
    piece.y_begin = first_row(band);
    piece.y_end = first_row(band + 1);
    piece.query = map<const T>(query_, index, problem_.scale);
    piece.key = map<const T>(key_, index);
    piece.value = map<const T>(value_, index);
    piece.row_embedding = data_of<C>(row_embedding_) + head * row_embedding_.stride(0);
    piece.column_embedding = data_of<C>(column_embedding_) + head * column_embedding_.stride(0);
    piece.logsumexp = grid<C>(logsumexp_, index);
    return piece;
  }

  // What a piece reads or writes of a map.
  template <typename U>
  Map<U> map(const Tensor& map, int64_t index, double factor = 1) const {
    return {grid<U>(map, index), static_cast<C>(factor)};
  }

 private:
  template <typename U>
  Grid<U> grid(const Tensor& map, int64_t index) const {
    return grid_of<U>(map, part(index) / bands_, head(index), columns_);
  }

  // A multiple of kRowStep.
  int64_t first_row(int64_t band) const {
    const int64_t steps = (problem_.height() + kRowStep - 1) / kRowStep;
    return std::min(problem_.height(), band * steps / bands_ * kRowStep);
  }

  const Problem& problem_;
  Tensor query_, key_, value_, row_embedding_, column_embedding_, logsumexp_;
  std::vector<int64_t> columns_;
  int64_t group_heads_ = 1, groups_, bands_;
};

std::tuple<Tensor, Tensor> stand_alone_attention_cpu(
    const Tensor& query, const Tensor& key, const Tensor& value, const Tensor& row_embedding,
    const Tensor& column_embedding, IntArrayRef kernel_size, bool zero_padding, double scale) {
  const Problem problem({query, key, value}, row_embedding, column_embedding, kernel_size,
                        zero_padding, scale);
  const Tensor output = make_result(query);
  const auto dtype = query.scalar_type();
  const Tensor logsumexp = make_empty(problem.logsumexp_sizes(), at::toOpMathType(dtype));
  if (query.numel() == 0) return {in_dtype(output, dtype), logsumexp.zero_()};
  dispatch(dtype, [&](auto type) {
    using T = decltype(type);
    const auto& kernel = kernels<T>();
    const Pieces<T> pieces(problem, logsumexp);
    run_in_turns(pieces.count(), [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) {
        auto piece = pieces.piece(i);
        piece.output = pieces.template map<T>(output, i);
        run(kernel.forward, piece);
      }
    });
  });
  return {in_dtype(output, dtype), logsumexp};
}

// The parts (parts, ...) added up in their order.
Tensor sum_parts(const Tensor& parts, at::ScalarType dtype) {
  Tensor sum = at::zeros(parts.sizes().slice(1), parts.options());
  for (int64_t part = 0; part < parts.size(0); ++part) sum += parts[part];
  return sum.to(dtype);
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> stand_alone_attention_backward_cpu(
    const Tensor& grad_output_, const Tensor& query, const Tensor& key, const Tensor& value,
    const Tensor& row_embedding, const Tensor& column_embedding, const Tensor& logsumexp_,
    IntArrayRef kernel_size, bool zero_padding, double scale) {
  const Problem problem({query, key, value}, row_embedding, column_embedding, kernel_size,
                        zero_padding, scale);
  TORCH_CHECK(
      grad_output_.sizes() == query.sizes() && logsumexp_.sizes() == problem.logsumexp_sizes(),
      "grad_output and logsumexp must fit query");
  const Tensor grad_output = ready(grad_output_.to(query.scalar_type()));
  const Tensor logsumexp = logsumexp_.to(at::toOpMathType(query.scalar_type())).contiguous();
  const Tensor grad_query = make_result(query), grad_key = make_result(key),
               grad_value = make_result(value);
  Tensor row_parts, column_parts;  // every piece writes its part of the gradients of the embeddings
  dispatch(query.scalar_type(), [&](auto type) {
    using T = decltype(type);
    const auto& kernel = kernels<T>();
    const Pieces<T> pieces(problem, logsumexp, {grad_output});
    const auto make_parts = [&](const Tensor& table) {
      std::vector<int64_t> sizes = table.sizes().vec();
      sizes.insert(sizes.begin(), pieces.parts());
      return at::zeros(sizes, logsumexp.options());
    };
    row_parts = make_parts(row_embedding), column_parts = make_parts(column_embedding);
    run_in_turns(pieces.count(), [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) {
        auto piece = pieces.piece(i);
        piece.grad_output = pieces.template map<const T>(grad_output, i);
        piece.grad_query = pieces.template map<T>(grad_query, i, scale);
        piece.grad_key = pieces.template map<T>(grad_key, i);
        piece.grad_value = pieces.template map<T>(grad_value, i);
        const auto part_of = [&](const Tensor& parts) {
          return data_of<Compute<T>>(parts) + pieces.part(i) * parts.stride(0) +
                 pieces.head(i) * parts.stride(1);
        };
        piece.grad_row_embedding = part_of(row_parts);
        piece.grad_column_embedding = part_of(column_parts);
        run(kernel.backward, piece);
      }
    });
  });
  const auto dtype = query.scalar_type();
  return {in_dtype(grad_query, dtype), in_dtype(grad_key, dtype), in_dtype(grad_value, dtype),
          sum_parts(row_parts, row_embedding.scalar_type()),
          sum_parts(column_parts, column_embedding.scalar_type())};
}

}  // namespace
}  // namespace mmlocalattn::cpu::stand_alone

TORCH_LIBRARY_IMPL(mmlocalattn, CPU, m) {
  m.impl("stand_alone_attention", &mmlocalattn::cpu::stand_alone::stand_alone_attention_cpu);
  m.impl("_stand_alone_attention_backward",
         &mmlocalattn::cpu::stand_alone::stand_alone_attention_backward_cpu);
}
