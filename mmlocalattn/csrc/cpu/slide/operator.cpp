// CPU operator: slide attention, forward and backward.
//
//   output[b, x, n] = sum_i softmax_i(scale <query[b, x, n], key_i[b, x, n]>) value_i[b, x, n]
//
// with the copies i that ops/slide.py defines. query, key, value, output: (B, H, W, num_heads,
// head_dim); weight: (head_dim, k * k, k, k); bias: (head_dim, k * k); position_bias: (num_heads,
// k, k); logsumexp: (B, H, W, num_heads, 2) in the compute dtype.
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <ATen/ops/zeros.h>
#include <torch/library.h>

#include <vector>

#include "cpu/runtime.h"
#include "cpu/slide/piece.h"

namespace mmlocalattn::cpu::slide {
namespace {

// One call. Undefined biases are none.
struct Problem : AttentionMaps {
  at::Tensor weight, bias, position_bias;
  double scale;

  Problem(const AttentionMaps& maps, const at::Tensor& weight, const OptionalTensor& bias,
          const OptionalTensor& position_bias, double scale)
      : AttentionMaps(maps),
        weight(weight),
        bias(bias.value_or(at::Tensor())),
        position_bias(position_bias.value_or(at::Tensor())),
        scale(scale) {
    check();
    TORCH_CHECK(weight.dim() == 4, "weight must have shape (head_dim, k * k, k, k), got ",
                weight.sizes());
    const int64_t k = kernel();
    TORCH_CHECK(k == 3 || k == 5 || k == 7, "the kernel size must be 3, 5 or 7, got ", k);
    check_table(weight, {dim(), k * k, k, k});
    check_table(this->bias, {dim(), k * k});
    check_table(this->position_bias, {heads(), k, k});
  }

  int64_t kernel() const { return weight.size(3); }
  int64_t taps() const { return weight.size(1); }

 private:
  static void check_table(const at::Tensor& tensor, at::IntArrayRef shape) {
    TORCH_CHECK(!tensor.defined() || tensor.sizes() == shape, "expected ", shape, ", got ",
                tensor.sizes());
  }
};

// Cuts [0, length) so that, with the `radius` positions around it, every part but the last fills
// whole steps and none is longer than `most`, about.
std::vector<Reach> cut(int64_t length, int64_t most, int64_t step, int64_t radius) {
  const int64_t parts = (length + most - 1) / most;
  const int64_t steps = (length + 2 * radius * (parts - 1) + step - 1) / step;
  std::vector<Reach> reaches;
  for (int64_t i = 0, begin = 0; i < parts; ++i) {
    const int64_t reach_begin = std::max<int64_t>(0, begin - radius);
    const int64_t filled = reach_begin + ((i + 1) * steps / parts - i * steps / parts) * step;
    const bool is_last = i + 1 == parts;
    const int64_t end = is_last ? length : filled - radius;
    reaches.push_back({begin, end, reach_begin, is_last ? length : filled});
    begin = end;
  }
  return reaches;
}

// Columns of a piece, and rows: as many as keep about `planes` planes per channel in half of L2.
constexpr int64_t kMostCols = 96, kStep = kVectorBytes / sizeof(float), kCacheBytes = 512 << 10;

int64_t most_rows(int64_t dim, int64_t planes) {
  const int64_t row = dim * planes * kMostCols * static_cast<int64_t>(sizeof(float));
  return std::clamp<int64_t>(kCacheBytes / row, 8, 32);
}

// The maps of a problem and their pieces. The pieces depend on the shape alone, so that results do
// not depend on the number of threads.
template <typename T>
class Pieces {
 public:
  using C = Compute<T>;

  Pieces(const Problem& problem, const at::Tensor& logsumexp, int64_t planes, int64_t radius)
      : problem_(problem),
        query_(ready(problem.query)),
        key_(ready(problem.key)),
        value_(ready(problem.value)),
        logsumexp_(logsumexp),
        rows_(cut(query_.size(1), most_rows(problem.dim(), planes), 1, radius)),
        cols_(cut(query_.size(2), kMostCols, kStep, radius)),
        columns_(ordinals(query_.size(2))) {
    const auto typed = [&](const at::Tensor& table) {
      return table.defined() ? in_dtype(table, logsumexp.scalar_type()).contiguous() : table;
    };
    weight_ = typed(problem.weight), bias_ = typed(problem.bias);
    position_bias_ = typed(problem.position_bias);
    zeros_.resize(std::max(problem.dim(), problem.heads()) * problem.taps());
  }

  int64_t count() const {
    return problem_.batch() * problem_.heads() * rows_.size() * cols_.size();
  }
  int64_t head(int64_t index) const {
    return index / static_cast<int64_t>(rows_.size() * cols_.size()) % problem_.heads();
  }

  // Piece `index` as forward needs it, without output.
  Piece<T> piece(int64_t index) const {
    const int64_t cols = cols_.size(), pieces = cols * rows_.size(), head = this->head(index);
    Piece<T> piece{};
    piece.height = problem_.height();
    piece.width = problem_.width();
    piece.dim = problem_.dim();
    piece.kernel = problem_.kernel();
    piece.rows = rows_[index % pieces / cols];
    piece.cols = cols_[index % cols];
    piece.query = map<const T>(query_, index, problem_.scale);
    piece.key = map<const T>(key_, index);
    piece.value = map<const T>(value_, index);
    const auto or_zeros = [&](const at::Tensor& table) {
      return table.defined() ? data_of<const C>(table) : zeros_.data();
    };
    piece.weight = data_of<const C>(weight_);
    piece.bias = or_zeros(bias_);
    piece.position_bias = or_zeros(position_bias_) + head * problem_.taps();
    piece.logsumexp = grid<C>(logsumexp_, index);
    return piece;
  }

  // The positions of a tensor (B, H, W, num_heads, ...) that belong to piece `index`.
  template <typename U>
  Map<U> map(const at::Tensor& tensor, int64_t index, double factor = 1) const {
    return {grid<U>(tensor, index), static_cast<C>(factor)};
  }

  template <typename U>
  Grid<U> grid(const at::Tensor& tensor, int64_t index) const {
    const int64_t outer = index / static_cast<int64_t>(rows_.size() * cols_.size());
    return grid_of<U>(tensor, outer / problem_.heads(), outer % problem_.heads(), columns_);
  }

 private:
  const Problem& problem_;
  at::Tensor query_, key_, value_, logsumexp_, weight_, bias_, position_bias_;
  std::vector<C> zeros_;  // in place of a missing bias
  std::vector<Reach> rows_, cols_;
  std::vector<int64_t> columns_;
};

std::tuple<at::Tensor, at::Tensor> attend(const Problem& problem) {
  const auto& query = problem.query;
  const auto dtype = query.scalar_type();
  const auto output = make_result(query);
  const auto logsumexp = make_empty(problem.logsumexp_sizes(), at::toOpMathType(dtype));
  if (query.numel() == 0) return {in_dtype(output, dtype), logsumexp.zero_()};
  dispatch(dtype, [&](auto type) {
    using T = decltype(type);
    const auto& kernel = kernels<T>();
    const Pieces<T> pieces(problem, logsumexp, /*planes=*/2, /*radius=*/0);
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

// Gradients of query, key and value in the dtype of the kernels; those of weight and bias, as
// (dim, taps, taps + 1), and of the position bias, (num_heads, taps), in the compute dtype.
struct Grads {
  at::Tensor query, key, value, weight, position_bias;
};

// Pieces of a group add to one sum of the gradients of weights and biases; sums of groups are added
// in order.
constexpr int64_t kMostGroups = 64;

Grads attend_backward(const Problem& problem, const at::Tensor& grad_output_,
                      const at::Tensor& logsumexp_) {
  const auto& query = problem.query;
  TORCH_CHECK(
      grad_output_.sizes() == query.sizes() && logsumexp_.sizes() == problem.logsumexp_sizes(),
      "gradient and logsumexp must fit query ", query.sizes());
  const auto compute = query.options().dtype(at::toOpMathType(query.scalar_type()));
  const int64_t taps = problem.taps(), heads = problem.heads();
  Grads grads{make_result(query), make_result(query), make_result(query),
              at::zeros({problem.dim(), taps, taps + 1}, compute),
              at::zeros({heads, taps}, compute)};
  if (query.numel() == 0) return grads;
  const auto logsumexp = logsumexp_.to(compute).contiguous();
  const auto grad_output = ready(grad_output_.to(query.scalar_type()));
  dispatch(query.scalar_type(), [&](auto type) {
    using T = decltype(type);
    const auto& kernel = kernels<T>();
    const Pieces<T> pieces(problem, logsumexp, /*planes=*/4, problem.kernel() / 2);
    const int64_t count = pieces.count(), groups = std::min(count, kMostGroups);
    const auto weights = at::empty({groups, grads.weight.numel()}, compute);
    const auto position_biases = at::empty({groups, grads.position_bias.numel()}, compute);
    run_in_turns(groups, [&](int64_t begin, int64_t end) {
      for (int64_t group = begin; group < end; ++group) {
        weights[group].zero_(), position_biases[group].zero_();
        auto* weight = data_of<Compute<T>>(weights) + group * grads.weight.numel();
        auto* position_bias =
            data_of<Compute<T>>(position_biases) + group * grads.position_bias.numel();
        for (int64_t i = group * count / groups; i < (group + 1) * count / groups; ++i) {
          auto piece = pieces.piece(i);
          piece.grad_output = pieces.template map<const T>(grad_output, i);
          piece.grad_query = pieces.template map<T>(grads.query, i, problem.scale);
          piece.grad_key = pieces.template map<T>(grads.key, i);
          piece.grad_value = pieces.template map<T>(grads.value, i);
          piece.grad_weight = weight;
          piece.grad_position_bias = position_bias + pieces.head(i) * taps;
          run(kernel.backward, piece);
        }
      }
    });
    for (int64_t group = 0; group < groups; ++group) {
      grads.weight.view(-1).add_(weights[group]);
      grads.position_bias.view(-1).add_(position_biases[group]);
    }
  });
  return grads;
}

std::tuple<at::Tensor, at::Tensor> slide_attention_cpu(
    const at::Tensor& query, const at::Tensor& key, const at::Tensor& value,
    const at::Tensor& weight, const OptionalTensor& bias, const OptionalTensor& position_bias,
    double scale) {
  return attend({{query, key, value}, weight, bias, position_bias, scale});
}

using SixTensors =
    std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor, at::Tensor, at::Tensor>;

SixTensors slide_attention_backward_cpu(const at::Tensor& grad_output, const at::Tensor& query,
                                        const at::Tensor& key, const at::Tensor& value,
                                        const at::Tensor& weight, const OptionalTensor& bias,
                                        const OptionalTensor& position_bias,
                                        const at::Tensor& logsumexp, double scale) {
  const Problem problem({query, key, value}, weight, bias, position_bias, scale);
  const auto grads = attend_backward(problem, grad_output, logsumexp);
  const auto dtype = query.scalar_type();
  const int64_t taps = problem.taps();
  const auto none = at::empty({0}, query.options());
  // Own memory for each: outputs of an operator must not be views of one another.
  const auto own = [](const at::Tensor& part, const at::Tensor& like) {
    return part.reshape(like.sizes()).to(like.scalar_type()).contiguous();
  };
  return {in_dtype(grads.query, dtype),
          in_dtype(grads.key, dtype),
          in_dtype(grads.value, dtype),
          own(grads.weight.narrow(2, 0, taps).contiguous(), weight),
          bias ? own(grads.weight.select(2, taps).contiguous(), *bias) : none,
          position_bias ? own(grads.position_bias, *position_bias) : at::empty_like(none)};
}

}  // namespace
}  // namespace mmlocalattn::cpu::slide

TORCH_LIBRARY_IMPL(mmlocalattn, CPU, m) {
  m.impl("slide_attention", &mmlocalattn::cpu::slide::slide_attention_cpu);
  m.impl("_slide_attention_backward", &mmlocalattn::cpu::slide::slide_attention_backward_cpu);
}
