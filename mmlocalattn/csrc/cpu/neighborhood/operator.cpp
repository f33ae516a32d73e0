// CPU operator: neighborhood attention, forward and backward.
//
//   p[b, i, n, j] = softmax_j(scale <query[b, i, n], key[b, j, n]> + bias[n, j - i])
//   output[b, i, n] = sum_j p[b, i, n, j] value[b, j, n]
//
// query, key, value, output: (B, H, W, num_heads, head_dim); logsumexp: (B, H, W, num_heads, 2) in
// the compute dtype.
#include "cpu/neighborhood/operator.h"

#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <ATen/ops/zeros.h>
#include <torch/library.h>

#include <algorithm>
#include <array>
#include <vector>

#include "cpu/neighborhood/pieces.h"

namespace mmlocalattn::cpu::neighborhood {

Problem::Problem(const AttentionMaps& maps, const at::Tensor& bias, at::IntArrayRef kernel_size,
                 at::IntArrayRef dilation, double scale)
    : AttentionMaps(maps), bias(bias), scale(scale) {
  check();
  rows = {height(), kernel_size[0], dilation[0]};
  cols = {width(), kernel_size[1], dilation[1]};
  for (const auto& axis : {rows, cols}) {
    TORCH_CHECK(axis.kernel > 0 && axis.kernel % 2 == 1 && axis.dilation > 0 &&
                    axis.kernel * axis.dilation <= axis.length,
                "a window of ", axis.kernel, " taps with dilation ", axis.dilation,
                " does not fit ", axis.length, " positions");
  }
  const std::array<int64_t, 3> table{heads(), 2 * rows.kernel - 1, 2 * cols.kernel - 1};
  TORCH_CHECK(!bias.defined() || bias.sizes() == table, "bias must have shape ",
              at::IntArrayRef(table));
}

namespace {

constexpr int64_t kMostRows = 32, kMostCols = 64;  // of a piece: its keys then stay in L2

// How many of the groups from `first` on to work on side by side, so that their columns fill
// vectors: as many as leave the smallest part of groups of 8 lanes unused.
int64_t groups_of_set(const WindowAxis& cols, int64_t first) {
  const auto lanes = [](int64_t columns) { return (columns + 7) / 8 * 8; };
  int64_t columns = 0, best = 1, best_columns = cols.group_length(first);
  for (int64_t groups = 1; first + groups <= cols.dilation; ++groups) {
    columns += cols.group_length(first + groups - 1);
    if (columns > kMostCols) break;
    if (columns * lanes(best_columns) >= best_columns * lanes(columns)) {
      best = groups, best_columns = columns;
    }
  }
  return best;
}

}  // namespace

Split::Split(const WindowAxis& rows, const WindowAxis& cols) {
  for (int64_t gx = 0; gx < cols.dilation;) {
    ColumnSet& set = sets.emplace_back();
    for (const int64_t end = gx + groups_of_set(cols, gx); gx < end; ++gx) {
      const WindowAxis axis = group_axis(cols, gx);
      const int64_t first = set.column.size();
      for (int64_t x = 0; x < axis.length; ++x) {
        set.column.push_back(gx + x * cols.dilation);
        set.first_tap.push_back(first + axis.start(x));
        set.table_column.push_back(axis.first_offset(x));
      }
    }
  }
  for (int64_t gy = 0; gy < rows.dilation; ++gy) {
    for (size_t set = 0; set < sets.size(); ++set) {
      const auto y = cuts(rows.group_length(gy), kMostRows, 4),
                 x = cuts(sets[set].column.size(), kMostCols, 8);
      for (size_t i = 0; i + 1 < y.size(); ++i) {
        for (size_t j = 0; j + 1 < x.size(); ++j) {
          places.push_back({gy, static_cast<int64_t>(set), y[i], y[i + 1], x[j], x[j + 1]});
        }
      }
    }
  }
}

namespace {

// Gradients of keys and values: pieces overlap there, so that each first writes its own part.
template <typename T>
class KeyValueGrads {
 public:
  using C = Compute<T>;

  explicit KeyValueGrads(const Pieces<T>& pieces) : pieces_(pieces), places_(pieces.places()) {
    for (const auto& place : places_) {
      offsets_.push_back(size_);
      size_ += pieces_.piece(0, 0, place).grad_size();
    }
    parts_ = at::empty({pieces_.batch(), pieces_.heads(), size_}, pieces_.compute_options());
  }

  C* part(int64_t b, int64_t place, int64_t head) const {
    return data_of<C>(parts_) + (b * pieces_.heads() + head) * size_ + offsets_[place];
  }

  // Adds the parts up, always in the same order.
  void write(const Kernels<T>& kernels, const Grads& grads, bool add_key) const {
    std::vector<int64_t> groups;  // the first place of each group of rows and set of columns
    for (size_t i = 0; i < places_.size(); ++i) {
      if (places_[i].y_begin == 0 && places_[i].x_begin == 0) groups.push_back(i);
    }
    const int64_t num_groups = groups.size(), heads = pieces_.heads();
    groups.push_back(places_.size());
    // Row y of all groups of rows, for all y in the longest.
    const int64_t rows = pieces_.piece(0, 0, places_[0]).rows.length;
    at::parallel_for(0, pieces_.batch() * num_groups * heads * rows, 1,
                     [&](int64_t begin, int64_t end) {
                       for (int64_t i = begin; i < end; ++i) {
                         const int64_t task = i / rows, group = task / heads % num_groups;
                         write_row(kernels, grads, add_key, task / heads / num_groups, task % heads,
                                   i % rows, groups[group], groups[group + 1]);
                       }
                     });
  }

 private:
  void write_row(const Kernels<T>& kernels, const Grads& grads, bool add_key, int64_t b,
                 int64_t head, int64_t y, int64_t begin, int64_t end) const {
    const Place& place = places_[begin];
    const auto first = pieces_.piece(b, head, place);
    if (y >= first.rows.length) return;
    const int64_t width = first.cols.length, padded = padded_dim<T>(first.dim), step = 2 * padded;
    C* sums = scratch<C>(width * step);
    std::fill_n(sums, width * step, C(0));
    for (int64_t i = begin; i < end; ++i) {
      const auto piece = pieces_.piece(b, head, places_[i]);
      const int64_t u = y - piece.first_row();
      if (u < 0 || u >= piece.key_rows()) continue;
      const C* row = part(b, i, head) + u * piece.grad_cols() * step;
      C* to = sums + piece.first_col() * step;
      for (int64_t j = 0; j < piece.key_cols() * step; ++j) to[j] += row[j];
    }
    const auto write = [&](auto type, const auto& kernel) {
      using U = decltype(type);
      auto key = pieces_.template map<U>(grads.key, b, head, place);
      key.add = add_key;
      kernel(key, y, width, first.dim, sums, step);
      kernel(pieces_.template map<U>(grads.value, b, head, place), y, width, first.dim,
             sums + padded, step);
    };
    grads.key.scalar_type() == c10::typeMetaToScalarType(pieces_.options().dtype())
        ? write(T(), kernels.write_rounded)
        : write(C(), kernels.write);
  }

  const Pieces<T>& pieces_;
  const std::vector<Place>& places_;
  std::vector<int64_t> offsets_;
  int64_t size_ = 0;
  at::Tensor parts_;
};

}  // namespace

std::tuple<at::Tensor, at::Tensor> attend(const Problem& problem) {
  const auto dtype = problem.query.scalar_type();
  const at::Tensor output = make_result(problem.query);
  const at::Tensor logsumexp = make_empty(problem.logsumexp_sizes(), at::toOpMathType(dtype));
  dispatch(dtype, [&](auto type) {
    using T = decltype(type);
    const Pieces<T> pieces(problem);
    const auto& places = pieces.places();
    const auto& kernels = neighborhood::kernels<T>();
    run_pieces(
        kernels, pieces.batch(), places.size(), pieces.heads(),
        [&](int64_t b, int64_t i, int64_t head) {
          auto piece = pieces.piece(b, head, places[i]);
          piece.output = pieces.template map<T>(output, b, head, places[i]);
          piece.logsumexp = pieces.template grid<Compute<T>>(logsumexp, b, head, places[i]);
          return piece;
        },
        [&](const Piece<T>& piece) { run(kernels.forward, piece); });
  });
  return {in_dtype(output, dtype), logsumexp};
}

Grads attend_backward(const Problem& problem, const at::Tensor& grad_output,
                      const at::Tensor& output, const at::Tensor& logsumexp, bool rounded,
                      Grads grads) {
  TORCH_CHECK(grad_output.sizes() == problem.query.sizes() &&
                  output.sizes() == problem.query.sizes() &&
                  logsumexp.sizes() == problem.logsumexp_sizes(),
              "grad_output, output and logsumexp must belong to query");
  const bool add = grads.query.defined();
  dispatch(problem.query.scalar_type(), [&](auto type) {
    using T = decltype(type);
    const Pieces<T> pieces(problem);
    const auto& places = pieces.places();
    const int64_t num_places = places.size();
    const auto& kernels = neighborhood::kernels<T>();
    const auto ready_output = ready(output.to(pieces.options())),
               ready_grad = ready(grad_output.to(pieces.options()));
    const auto ready_logsumexp = logsumexp.to(pieces.compute_options()).contiguous();
    const auto options = rounded ? pieces.options() : pieces.compute_options();
    if (!add) {
      grads.query = at::empty(problem.query.sizes(), options);
      grads.key = at::empty_like(grads.query);
    }
    grads.value = at::empty(problem.query.sizes(), options);
    at::Tensor grad_bias;  // one table for each piece
    if (problem.bias.defined()) {
      grad_bias = at::zeros(
          {pieces.batch(), num_places, pieces.heads(), problem.bias.size(1), problem.bias.size(2)},
          pieces.compute_options());
    }
    const KeyValueGrads<T> key_value(pieces);
    run_pieces(
        kernels, pieces.batch(), num_places, pieces.heads(),
        [&](int64_t b, int64_t i, int64_t head) {
          auto piece = pieces.piece(b, head, places[i]);
          piece.output = pieces.template map<T>(ready_output, b, head, places[i]);
          piece.grad_output = pieces.template map<const T>(ready_grad, b, head, places[i]);
          piece.logsumexp = pieces.template grid<Compute<T>>(ready_logsumexp, b, head, places[i]);
          if (rounded) {
            piece.rounded_grad_query =
                pieces.template map<T>(grads.query, b, head, places[i], problem.scale);
          } else {
            piece.grad_query =
                pieces.template map<Compute<T>>(grads.query, b, head, places[i], problem.scale);
          }
          piece.grad_query.add = piece.rounded_grad_query.add = add;
          piece.grad_key_value = key_value.part(b, i, head);
          if (grad_bias.defined()) {
            piece.grad_bias =
                data_of<Compute<T>>(grad_bias) + ((b * num_places + i) * pieces.heads() + head) *
                                                     problem.bias.size(1) * problem.bias.size(2);
          }
          return piece;
        },
        [&](const Piece<T>& piece) { run(kernels.backward, piece); });
    key_value.write(kernels, grads, add);
    if (grad_bias.defined()) grads.bias = grad_bias.sum(at::IntArrayRef{0, 1});
  });
  return grads;
}

namespace {

Problem make_problem(const at::Tensor& query, const at::Tensor& key, const at::Tensor& value,
                     const OptionalTensor& bias, at::IntArrayRef kernel_size,
                     at::IntArrayRef dilation, double scale) {
  return {{query, key, value}, bias.value_or(at::Tensor()), kernel_size, dilation, scale};
}

std::tuple<at::Tensor, at::Tensor> neighborhood_attention_cpu(
    const at::Tensor& query, const at::Tensor& key, const at::Tensor& value,
    const OptionalTensor& bias, at::IntArrayRef kernel_size, at::IntArrayRef dilation,
    double scale) {
  return attend(make_problem(query, key, value, bias, kernel_size, dilation, scale));
}

std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor> neighborhood_attention_backward_cpu(
    const at::Tensor& grad_output, const at::Tensor& query, const at::Tensor& key,
    const at::Tensor& value, const OptionalTensor& bias, const at::Tensor& output,
    const at::Tensor& logsumexp, at::IntArrayRef kernel_size, at::IntArrayRef dilation,
    double scale) {
  const auto grads =
      attend_backward(make_problem(query, key, value, bias, kernel_size, dilation, scale),
                      grad_output, output, logsumexp, /*rounded=*/true);
  const auto dtype = query.scalar_type();
  return {in_dtype(grads.query, dtype), in_dtype(grads.key, dtype), in_dtype(grads.value, dtype),
          bias ? grads.bias.to(bias->scalar_type()) : at::empty({0}, query.options())};
}

}  // namespace
}  // namespace mmlocalattn::cpu::neighborhood

TORCH_LIBRARY_IMPL(mmlocalattn, CPU, m) {
  m.impl("neighborhood_attention", &mmlocalattn::cpu::neighborhood::neighborhood_attention_cpu);
  m.impl("_neighborhood_attention_backward",
         &mmlocalattn::cpu::neighborhood::neighborhood_attention_backward_cpu);
}
