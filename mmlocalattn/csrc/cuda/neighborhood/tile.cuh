// How the tiled kernels of neighborhood attention split their work, and what they share.
//
// Tokens whose position is equal modulo the dilation form a group, inside which the dilation is 1
// and neighbors are `dilation` positions apart. A block owns a rectangle of tokens of one group of
// one head, each of its warps a part of 16 tokens. The partners of an own token are the keys of its
// window or, if kInverse, the queries that see it. Partners of all own tokens of the block, which
// form a rectangle too, pass through shared memory in stages, the next being copied while one is
// used, or all at once where they fit. A warp takes 16 partners of a row at once, one row after the
// other, and only of rows and columns that hold partners of its own tokens.
//
// The bias of a head is a table in shared memory from which the products of a tensor core start. Of
// its gradient, every warp adds its part to a table of its own; the block adds those.
#pragma once

#include "bias.cuh"
#include "cuda/fragments.cuh"
#include "instances.cuh"
#include "problem.cuh"
#include "product.cuh"
#include "tiling.h"

namespace mmlocalattn::cuda::neighborhood {

// If kHasBias there may be a bias.
template <typename T, int kDim, Kind kKind, bool kHasBias>
class Tile {
 public:
  static constexpr bool kInverse = kKind == Kind::kKeyValueGradient;
  // Registers suffice for one own vector of 128 channels.
  using FirstOwn = Own<T, kDim>;
  using SecondOwn = Own<T, kDim, kInverse && kDim == 128>;

  // The cheapest launch. If `has_bias_gradient` the kernel adds bias_gradient() up.
  static Launch launch_for(const Problem<T, T>& problem, bool has_bias_gradient = false) {
    const int entries = problem.bias == nullptr ? 0 : problem.bias_entries();
    int warp_bytes = FirstOwn::kSharedBytes;
    warp_bytes += kKind == Kind::kForward ? 0 : SecondOwn::kSharedBytes;
    warp_bytes += has_bias_gradient ? BiasGradient::kScratchBytes + entries * kNumberBytes : 0;
    const int table_bytes = entries == 0 ? 0 : (entries + 2 * kMargin) * kNumberBytes;
    using Shape = Limits<T, kDim, kKind>;
    const Demand demand{kTokenBytes,   align(table_bytes),    align(warp_bytes),
                        Shape::kWarps, Shape::kResidentWarps, kInverse};
    const Device device{multiprocessors(), shared_bytes()};
    const Launch launch =
        TilingChoice(problem.rows, problem.cols, problem.batch, problem.heads, demand, device)
            .best();
    TORCH_CHECK(launch.threads > 0, "a tile does not fit into ", device.shared_bytes,
                " bytes of shared memory");
    return launch;
  }

  // `magnitude` is what logits are multiplied with.
  __device__ Tile(const Problem<T, T>& problem, const Tiling& tiling, float magnitude)
      : tiling_(tiling), table_cols_(2 * problem.cols.kernel - 1) {
    unsigned block = blockIdx.x;
    head_ = tiling.by_heads.divide(block);
    const int group_x = tiling.by_groups_x.divide(block), tile_x = tiling.by_tiles_x.divide(block);
    const int group_y = tiling.by_groups_y.divide(block), tile_y = tiling.by_tiles_y.divide(block);
    const auto row_kernel = static_cast<int>(problem.rows.kernel);
    const auto col_kernel = static_cast<int>(problem.cols.kernel);
    height_ = tiling.groups_y.length_of(group_y);
    width_ = tiling.groups_x.length_of(group_x);
    const Axis rows{height_, row_kernel, 1}, cols{width_, col_kernel, 1};
    const auto map_width = static_cast<int>(problem.cols.length);
    heads_ = static_cast<int>(problem.heads);
    map_ = block * (problem.rows.length * map_width);
    group_ = group_y * map_width + group_x;
    row_step_ = static_cast<int>(problem.rows.dilation) * map_width;
    col_step_ = static_cast<int>(problem.cols.dilation);
    last_offset_y_ = row_kernel - 1;
    last_offset_x_ = col_kernel - 1;

    const int own_cols = tiling.cols, own_rows = kTokens >> tiling.cols_log2;
    const int y = tile_y * tiling.warps_down * own_rows;
    const int x = tile_x * tiling.warps_across * own_cols;
    is_empty_ = y >= height_ || x >= width_;
    block_rows_ = all_partners(rows, y, tiling.warps_down * own_rows);
    block_cols_ = all_partners(cols, x, tiling.warps_across * own_cols);

    unsigned warp_row = warp();
    x_ = x + tiling.by_warps_across.divide(warp_row) * own_cols;
    y_ = y + static_cast<int>(warp_row) * own_rows;
    warp_rows_ = all_partners(rows, y_, own_rows);
    warp_cols_ = all_partners(cols, x_, own_cols);
    full_rows_ = common_partners(rows, y_, own_rows);
    full_cols_ = common_partners(cols, x_, own_cols);
#pragma unroll
    for (int slot = 0; slot < 2; ++slot) {
      own_partner_rows_[slot] = partners(rows, own_y(own_row(slot)));
      own_partner_cols_[slot] = partners(cols, own_x(own_row(slot)));
    }
    if (kHasBias && problem.bias != nullptr) {
      load_bias(problem, magnitude);
    }
  }

  // Whether the block owns nothing: its group is smaller than the largest.
  __device__ bool is_empty() const { return is_empty_; }

  // Whether there is an own token i of this warp, and its index, else that of another own token.
  __device__ bool has_token(int i) const {
    return y_ + (i >> tiling_.cols_log2) < height_ && x_ + (i & (tiling_.cols - 1)) < width_;
  }
  __device__ int64_t token(int i) const {
    return map_ * heads_ + head_ + static_cast<int64_t>(map_position(i)) * heads_;
  }

  // Its position in its map.
  __device__ int map_position(int i) const { return position(own_y(i), own_x(i)); }

  // The vector of that token.
  __device__ const T* vector(const Source<T>& tensor, int i) const {
    return vectors(tensor).at(map_position(i));
  }

  // The own vectors of the warp, times `sign`, of one tensor or of two.
  __device__ FirstOwn own(const Source<T>& tensor, float sign) const {
    return own_at<FirstOwn>(tensor, sign, 0);
  }
  __device__ SecondOwn second_own(const Source<T>& tensor, float sign) const {
    return own_at<SecondOwn>(tensor, sign, FirstOwn::kSharedBytes);
  }

  // Calls use(product) with all partners of the warp in the tensors `first` and `second`, and their
  // statistics unless null. All warps of the block must call it.
  template <typename Use>
  __device__ void for_each_product(const Source<T>& first_source, const Source<T>& second_source,
                                   const Float4* statistics, const Use& use) const {
    const Vectors first = vectors(first_source), second = vectors(second_source);
    int cols = block_cols_.size(), rows = block_rows_.size();
    if (!tiling_.holds_all) {
      cols = ceil_div(cols, ceil_div(cols, tiling_.stage_tokens));
      rows = ceil_div(rows, ceil_div(rows, tiling_.stage_tokens / cols));
    }
    const int step = blockDim.x / kCopies, place = threadIdx.x / kCopies;
    const Copier copier{place / cols, place % cols, step / cols, step % cols};
    const auto stage_at = [&](int row, int col, int buffer) {
      return Stage{Span{row, row + rows} & block_rows_, Span{col, col + cols} & block_cols_, cols,
                   buffer};
    };
    Stage stage = stage_at(block_rows_.begin, block_cols_.begin, 0);
    copy(stage, copier, first, second, statistics);
    copy_async_commit();
    while (true) {
      const bool ends_row = stage.cols.end == block_cols_.end;
      const Stage next = stage_at(ends_row ? stage.rows.end : stage.rows.begin,
                                  ends_row ? block_cols_.begin : stage.cols.end, 1 - stage.buffer);
      const bool is_last = next.rows.begin == block_rows_.end;
      if (!is_last) {
        copy(next, copier, first, second, statistics);
      }
      copy_async_commit();
      copy_async_wait<1>();
      sync_block();
      multiply(stage, use);
      if (is_last) {
        break;
      }
      sync_block();
      stage = next;
    }
  }

  // A warp's part of the gradient of the bias.
  __device__ BiasGradient bias_gradient(int index = warp()) const {
    constexpr int kOwnBytes = FirstOwn::kSharedBytes + SecondOwn::kSharedBytes;
    auto* table = reinterpret_cast<float*>(warp_memory(index) + kOwnBytes / sizeof(T));
    return {table,
            table + bias_entries(),
            last_offset_y_,
            last_offset_x_,
            tiling_.cols_log2,
            y_,
            x_,
            {has_token(own_row(0)), has_token(own_row(1))}};
  }

  // The block's part of the gradient of the bias.
  __device__ void store_bias_gradient(float* gradient) const {
    sync_block();
    for (int i = threadIdx.x; i < bias_entries(); i += blockDim.x) {
      float sum = 0;
      for (int first = 0; !is_empty_ && first < blockDim.x / kWarpSize; ++first) {
        sum += bias_gradient(first).table[i];
      }
      gradient[i] = sum;
    }
  }

 private:
  using Axis = BasicWindowAxis<int>;  // divides faster

  static constexpr int kPitch = Partners<T, kDim>::kPitch;
  static constexpr int kTokenBytes = kPitch * sizeof(T);
  static constexpr int kElements = kCopyBytes / sizeof(T);  // of one copy
  static constexpr int kCopies = kDim / kElements;          // of one vector
  static constexpr bool kAlwaysHasBias = sizeof(T) == 2;    // see with_instance
  // Products reach over the table of the bias, where they are masked.
  static constexpr int kMargin = 2 * kTokens;
  static constexpr int kNumberBytes = sizeof(float);

  static constexpr int align(int bytes) {
    return (bytes + kCopyBytes - 1) / kCopyBytes * kCopyBytes;
  }

  // A rectangle of partners in shared memory, row by row.
  struct Stage {
    Span rows, cols;
    int pitch;  // tokens from one row to the next
    int buffer;
  };

  __device__ int bias_entries() const { return (2 * last_offset_y_ + 1) * table_cols_; }

  // Place in shared memory of a stage, of the table of the bias, and of what a warp has.
  __device__ T* buffer(int index) const {
    return dynamic_shared<T>() + index * tiling_.stage_tokens * kPitch;
  }
  __device__ float* table() const {
    return dynamic_shared<float>() + tiling_.table_offset / kNumberBytes;
  }
  __device__ T* warp_memory(int index) const {
    return dynamic_shared<T>() +
           (tiling_.warp_offset + index * tiling_.warp_bytes) / static_cast<int>(sizeof(T));
  }

  // The others of the block see the table after the next sync_block.
  __device__ void load_bias(const Problem<T, T>& problem, float magnitude) {
    const int entries = bias_entries();
    const T* bias = problem.bias + static_cast<int64_t>(head_) * entries;
    const float factor = 1 / magnitude;
    for (int i = threadIdx.x; i < entries + 2 * kMargin; i += blockDim.x) {
      const int entry = i - kMargin;
      const bool is_inside = Span{0, entries}.contains(entry);
      table()[i] = is_inside ? factor * static_cast<float>(bias[entry]) : 0;
    }
    has_bias_ = true;
  }

  template <typename OwnVectors>
  __device__ OwnVectors own_at(const Source<T>& tensor, float sign, int offset) const {
    return OwnVectors([&](int i) { return vector(tensor, i); }, sign,
                      warp_memory(warp()) + offset / sizeof(T));
  }

  __device__ static Span partners(const Axis& axis, int position) {
    if constexpr (kInverse) {
      const int begin = axis.inverse_start(position);
      return {begin, begin + axis.inverse_count(position)};
    } else {
      const int begin = axis.start(position);
      return {begin, begin + axis.kernel};
    }
  }

  __device__ static int inside(int length, int position) {
    return position < length ? position : length - 1;
  }

  // Positions that are partners of one, or of all, of `count` positions from `position` on. Both
  // ends of the partners of a position grow with it.
  __device__ static Span all_partners(const Axis& axis, int position, int count) {
    if (position >= axis.length) {
      return {0, 0};
    }
    return {partners(axis, position).begin,
            partners(axis, inside(axis.length, position + count - 1)).end};
  }
  __device__ static Span common_partners(const Axis& axis, int position, int count) {
    const Span first = partners(axis, inside(axis.length, position));
    return first & partners(axis, inside(axis.length, position + count - 1));
  }

  // Place in the group of an own token, or of another one.
  __device__ int own_y(int i) const { return inside(height_, y_ + (i >> tiling_.cols_log2)); }
  __device__ int own_x(int i) const { return inside(width_, x_ + (i & (tiling_.cols - 1))); }

  // Index among the positions of the map, which are less than 2^31.
  __device__ int position(int y, int x) const { return group_ + y * row_step_ + x * col_step_; }

  // The vectors of the head in a map of a tensor.
  struct Vectors {
    const T* data;
    int step;

    __device__ const T* at(int position) const {
      return data + static_cast<int64_t>(position) * step;
    }
  };
  __device__ Vectors vectors(const Source<T>& tensor) const {
    return {tensor.data + map_ * tensor.step + head_ * kDim, static_cast<int>(tensor.step)};
  }

  // The part of a thread in copies: which token of a stage it begins with, and how many tokens
  // further the next one is.
  struct Copier {
    int row, col, step_rows, step_cols;
  };

  // Starts the copies of all threads of the block.
  __device__ void copy(const Stage& stage, const Copier& copier, const Vectors& first,
                       const Vectors& second, const Float4* statistics) const {
    const int channel = threadIdx.x % kCopies * kElements;
    int row = copier.row, col = copier.col;
    while (row < stage.rows.size()) {
      if (col < stage.cols.size()) {
        const int source = position(stage.rows.begin + row, stage.cols.begin + col);
        T* target = buffer(stage.buffer) + (row * stage.pitch + col) * kPitch;
        copy_async_16(target + channel, first.at(source) + channel, true);
        copy_async_16(target + kDim + channel, second.at(source) + channel, true);
        if (statistics != nullptr && channel == 0) {
          const int64_t token = map_ * heads_ + head_ + static_cast<int64_t>(source) * heads_;
          copy_async_16(target + 2 * kDim, statistics + token, true);
        }
      }
      row += copier.step_rows;
      col += copier.step_cols;
      if (col >= stage.pitch) {
        col -= stage.pitch;
        ++row;
      }
    }
  }

  // Pointer to the entries of the bias of a slot's own token and partners of a row, the lane's
  // first in a product that begins at column `col`. A row without partners of the token has any.
  __device__ const float* bias_at(int slot, int row, int col) const {
    const int i = own_row(slot), sign = kInverse ? -1 : 1;
    const int last = 2 * last_offset_y_;
    int y = sign * (row - own_y(i)) + last_offset_y_;
    y = y < 0 ? 0 : y > last ? last : y;
    const int x = sign * (col + partner_column(0, 0) - own_x(i)) + last_offset_x_;
    return table() + kMargin + y * table_cols_ + x;
  }

  // Bits as in Product of the partners of this lane's own tokens in a product, if they have some in
  // the row.
  __device__ unsigned visible_columns(Span stage_cols, int col) const {
    unsigned bits = 0;
#pragma unroll
    for (int bit = 0; bit < 8; ++bit) {
      const Span visible = own_partner_cols_[bit % 4 / 2] & stage_cols;
      bits |= visible.contains(col + partner_column(bit / 4, bit % 2)) ? 1u << bit : 0;
    }
    return bits;
  }

  template <typename Use>
  __device__ void multiply(const Stage& stage, const Use& use) const {
    const Span rows = warp_rows_ & stage.rows, cols = warp_cols_ & stage.cols;
    const Span full_cols = full_cols_ & stage.cols;
    for (int col = cols.begin; col < cols.end; col += kTokens) {
      const unsigned visible_cols = visible_columns(stage.cols, col);
      const bool are_cols_full = full_cols.begin <= col && col + kTokens <= full_cols.end;
      const T* data =
          buffer(stage.buffer) +
          ((rows.begin - stage.rows.begin) * stage.pitch + col - stage.cols.begin) * kPitch;
#pragma unroll 1
      for (int row = rows.begin; row < rows.end; ++row, data += stage.pitch * kPitch) {
        const unsigned visible_rows = (own_partner_rows_[0].contains(row) ? 0x33 : 0) |
                                      (own_partner_rows_[1].contains(row) ? 0xcc : 0);
        Product<T, kDim> product{data,
                                 stage.cols.end - 1 - col,
                                 row,
                                 col,
                                 are_cols_full && full_rows_.contains(row),
                                 visible_cols & visible_rows,
                                 kHasBias && (kAlwaysHasBias || has_bias_),
                                 {nullptr, nullptr},
                                 kInverse ? -1 : 1};
        if (product.has_bias) {
          product.bias[0] = bias_at(0, row, col);
          product.bias[1] = bias_at(1, row, col);
        }
        use(product);
      }
    }
  }

  const Tiling tiling_;
  const int table_cols_;
  bool has_bias_ = false;
  int last_offset_y_, last_offset_x_;  // of a query and a key, along one axis
  int height_, width_;                 // of the group
  int heads_, head_;
  int64_t map_;  // positions of the batch before the map
  int group_;    // position in the map of the first of the group
  int row_step_, col_step_;
  int y_, x_;  // the first own token of the warp
  bool is_empty_;
  Span block_rows_, block_cols_;  // partners of the block's own tokens
  Span warp_rows_, warp_cols_;    // partners of one of the warp's
  Span full_rows_, full_cols_;    // partners of all of the warp's
  Span own_partner_rows_[2], own_partner_cols_[2];
};

}  // namespace mmlocalattn::cuda::neighborhood
