// How the tiled kernels of neighborhood attention split their work, and what they share.
//
// Tokens whose position is equal modulo the dilation form a group, inside which the dilation is 1
// and neighbors are `dilation` positions apart. A block owns a rectangle of tokens of one group of
// one head, each of its warps a part of 16 tokens. The partners of an own token are the keys of its
// window or, if kInverse, the queries that see it. Partners of all own tokens of the block, which
// form a rectangle too, pass through shared memory in stages, the next being copied while one is
// used. A warp takes 16 partners of a row at once, and only of rows and columns that hold partners
// of its own tokens.
#pragma once

#include <algorithm>
#include <limits>
#include <tuple>

#include "cuda/fragments.cuh"
#include "problem.cuh"

namespace mmlocalattn::cuda::neighborhood {

// Whether there are tiled kernels for the types.
template <typename query_t, typename value_t>
constexpr bool kTiledTypes = std::is_same_v<query_t, value_t> && !std::is_same_v<value_t, double>;

// Calls body(std::integral_constant<int, head_dim>()).
template <typename Body>
void with_head_dim(int64_t head_dim, const Body& body) {
  switch (head_dim) {
    case 16:
      return body(std::integral_constant<int, 16>());
    case 32:
      return body(std::integral_constant<int, 32>());
    case 64:
      return body(std::integral_constant<int, 64>());
    case 128:
      return body(std::integral_constant<int, 128>());
    default:
      TORCH_CHECK(false, "no tiles for head_dim ", head_dim);
  }
}

// Positions begin, ..., end - 1 along one axis of a group.
struct Span {
  int begin, end;

  __device__ bool contains(int i) const {
    return static_cast<unsigned>(i - begin) < static_cast<unsigned>(end - begin);
  }
  __device__ int size() const { return end - begin; }
  __device__ Span operator&(Span other) const {
    const int first = begin > other.begin ? begin : other.begin;
    const int last = end < other.end ? end : other.end;
    return {first, last < first ? first : last};
  }
};

// Chosen by choose_tiling.
struct Tiling {
  int cols;              // of a warp's own tokens; they have kTokens / cols rows
  int warps_across;      // the warps of a block have kWarps / warps_across rows
  int tiles_y, tiles_x;  // blocks that cover the largest group
};

// The cheapest tiling and its number of blocks.
template <typename T>
std::tuple<Tiling, int64_t> choose_tiling(const Problem<T, T>& problem, int warps) {
  const int64_t height = problem.rows.group_length(0), width = problem.cols.group_length(0);
  Tiling best{};
  int64_t best_cost = std::numeric_limits<int64_t>::max();
  for (int cols = 1; cols <= kTokens; cols *= 2) {
    for (int across = 1; across <= warps; across *= 2) {
      const int64_t rows = kTokens / cols, block_rows = rows * (warps / across);
      const int64_t block_cols = cols * across;
      const int64_t tiles_y = ceil_div(height, block_rows), tiles_x = ceil_div(width, block_cols);
      const auto partners = [](int64_t own, const WindowAxis& axis, int64_t length) {
        return std::min(own + axis.kernel - 1, length);
      };
      const int64_t products = ceil_div(height, rows) * ceil_div<int64_t>(width, cols) *
                               partners(rows, problem.rows, height) *
                               ceil_div<int64_t>(partners(cols, problem.cols, width), kTokens);
      const int64_t copies = tiles_y * tiles_x * partners(block_rows, problem.rows, height) *
                             partners(block_cols, problem.cols, width);
      // An estimate for an H100: a product keeps a multiprocessor busy for as long as its share of
      // the L2 cache needs to deliver five partners.
      const int64_t cost = 5 * products + copies;
      if (cost <= best_cost) {
        best_cost = cost;
        best = {cols, across, static_cast<int>(tiles_y), static_cast<int>(tiles_x)};
      }
    }
  }
  return {best, problem.batch * problem.heads * problem.rows.dilation * problem.cols.dilation *
                    best.tiles_y * best.tiles_x};
}

// What a tiled kernel computes with 16 partners of one row, of a tensor each.
template <typename T, int kDim>
struct Product {
  Partners<T, kDim> first, second;
  const Float4* statistics;  // of the partners, if the kernel asked for them
  int col;                   // of the first partner
  bool is_full;              // all are partners of all own tokens
  Span visible[2];           // columns of the partners of this lane's own tokens

  // Hides from an own token what is not its partner.
  __device__ void mask(float (&logits)[2][4]) const {
    if (is_full) {
      return;
    }
#pragma unroll
    for (int half = 0; half < 2; ++half) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        if (!visible[i / 2].contains(col + partner_column(half, i % 2))) {
          logits[half][i] = -std::numeric_limits<float>::infinity();
        }
      }
    }
  }
};

template <typename T, int kDim, bool kInverse>
class Tile {
 public:
  static constexpr int kWarps = Own<T, kDim>::kWarps;
  static constexpr int kThreads = kWarps * kWarpSize;
  static constexpr int kStages = 2;
  static constexpr int kPitch = Partners<T, kDim>::kPitch;
  static constexpr int kElements = kCopyBytes / sizeof(T);  // of one copy
  static constexpr int kCopies = kDim / kElements;          // of one vector
  static constexpr int kTokenBytes = 2 * kPitch * sizeof(T) + sizeof(Float4);
  static constexpr int kStageTokens = (31 << 10) / kTokenBytes;

  // Of the shared memory of a kernel that has the own vectors of `own` tensors.
  static constexpr int shared_bytes(int own) {
    return kStages * kStageTokens * kTokenBytes + own * kWarps * Own<T, kDim>::kSharedBytes;
  }

  static_assert(shared_bytes(2) <= 99 << 10, "GPUs of compute capability 8.6 have 99 KB");

  // Blocks of a kernel with the own vectors of `own` tensors and `results` results that a
  // multiprocessor can hold: by its 65536 registers, and at most three by shared memory.
  static constexpr int blocks(int own, int results) {
    const int registers = (sizeof(T) == 2 ? 44 : 96) + own * Own<T, kDim>::kRegisters +
                          results * (kTokens * kDim / kWarpSize);
    return std::min(3, (1 << 16) / (kThreads * registers));
  }

  __device__ Tile(const Problem<T, T>& problem, const Tiling& tiling) {
    int block = blockIdx.x;
    const auto next = [&](int count) {
      const int index = block % count;
      block /= count;
      return index;
    };
    const int heads = problem.heads, head = next(heads);
    const int group_x = next(problem.cols.dilation), tile_x = next(tiling.tiles_x);
    const int group_y = next(problem.rows.dilation), tile_y = next(tiling.tiles_y);
    const Axis rows{narrow(problem.rows).group_length(group_y),
                    static_cast<int>(problem.rows.kernel), 1};
    const Axis cols{narrow(problem.cols).group_length(group_x),
                    static_cast<int>(problem.cols.kernel), 1};
    height_ = rows.length;
    width_ = cols.length;
    heads_ = heads;
    head_ = head;
    map_ = block * (problem.rows.length * problem.cols.length);
    origin_ = map_ + group_y * problem.cols.length + group_x;
    row_step_ = problem.rows.dilation * problem.cols.length;
    col_step_ = problem.cols.dilation;

    const int down = kWarps / tiling.warps_across;
    own_cols_ = tiling.cols;
    const int own_rows = kTokens / own_cols_;
    const int y = tile_y * down * own_rows, x = tile_x * tiling.warps_across * own_cols_;
    is_empty_ = y >= height_ || x >= width_;
    block_rows_ = all_partners(rows, y, down * own_rows);
    block_cols_ = all_partners(cols, x, tiling.warps_across * own_cols_);

    y_ = y + warp() / tiling.warps_across * own_rows;
    x_ = x + warp() % tiling.warps_across * own_cols_;
    warp_rows_ = all_partners(rows, y_, own_rows);
    warp_cols_ = all_partners(cols, x_, own_cols_);
    full_rows_ = common_partners(rows, y_, own_rows);
    full_cols_ = common_partners(cols, x_, own_cols_);
#pragma unroll
    for (int slot = 0; slot < 2; ++slot) {
      const int i = own_row(slot);
      own_partner_rows_[slot] = partners(rows, inside(height_, y_ + i / own_cols_));
      own_partner_cols_[slot] = partners(cols, inside(width_, x_ + i % own_cols_));
    }
  }

  // Whether the block owns nothing: its group is smaller than the largest.
  __device__ bool is_empty() const { return is_empty_; }

  // Whether there is an own token i of this warp, and its index, else that of another own token.
  __device__ bool has_token(int i) const {
    return y_ + i / own_cols_ < height_ && x_ + i % own_cols_ < width_;
  }
  __device__ int64_t token(int i) const { return own_position(i) * heads_ + head_; }

  // Its position in its map.
  __device__ int64_t map_position(int i) const { return own_position(i) - map_; }

  // The vector of that token.
  __device__ const T* vector(const Source<T>& tensor, int i) const {
    return tensor.data + own_position(i) * tensor.step + head_ * kDim;
  }

  // The own vectors of a warp from the tensor; `index` numbers those that the kernel loads.
  __device__ Own<T, kDim> own(const Source<T>& tensor, int index) const {
    T* shared = dynamic_shared<T>() + shared_bytes(0) / sizeof(T) +
                (index * kWarps + warp()) * (Own<T, kDim>::kSharedBytes / sizeof(T));
    return Own<T, kDim>([&](int i) { return vector(tensor, i); }, shared);
  }

  // Calls use(product) with all partners of the warp in the tensors `first` and `second`, and their
  // statistics unless null. All warps of the block must call it.
  template <typename Use>
  __device__ void for_each_product(const Source<T>& first, const Source<T>& second,
                                   const Float4* statistics, const Use& use) const {
    const int chunks = ceil_div(block_cols_.size(), kStageTokens);
    const int cols = ceil_div(block_cols_.size(), chunks);
    const int rows =
        ceil_div(block_rows_.size(), ceil_div(block_rows_.size(), kStageTokens / cols));
    constexpr int kStep = kThreads / kCopies;
    const int place = threadIdx.x / kCopies;
    const Copier copier{place / cols, place % cols, kStep / cols, kStep % cols};
    const auto stage_at = [&](int row, int col, int buffer) {
      return Stage{Span{row, row + rows} & block_rows_, Span{col, col + cols} & block_cols_, cols,
                   buffer};
    };
    Stage stage = stage_at(block_rows_.begin, block_cols_.begin, 0);
    copy(stage, copier, first, second, statistics);
    copy_async_commit();
    while (true) {
      const bool ends_row = stage.cols.end == block_cols_.end;
      const Stage next =
          stage_at(ends_row ? stage.rows.end : stage.rows.begin,
                   ends_row ? block_cols_.begin : stage.cols.end, (stage.buffer + 1) % kStages);
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

 private:
  using Axis = BasicWindowAxis<int>;  // divides faster

  __device__ static Axis narrow(const WindowAxis& axis) {
    return {static_cast<int>(axis.length), static_cast<int>(axis.kernel),
            static_cast<int>(axis.dilation)};
  }

  // A rectangle of partners in shared memory, row by row.
  struct Stage {
    Span rows, cols;
    int pitch;  // tokens from one row to the next
    int buffer;

    __device__ T* first() const {
      return dynamic_shared<T>() + buffer * (kStageTokens * kTokenBytes / sizeof(T));
    }
    __device__ T* second() const { return first() + kStageTokens * kPitch; }
    __device__ Float4* statistics() const {
      return reinterpret_cast<Float4*>(second() + kStageTokens * kPitch);
    }
  };

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

  // Index among all positions of the batch.
  __device__ int64_t position(int y, int x) const {
    return origin_ + y * row_step_ + x * col_step_;
  }
  __device__ int64_t own_position(int i) const {
    return position(inside(height_, y_ + i / own_cols_), inside(width_, x_ + i % own_cols_));
  }

  // The part of a thread in copies: which token of a stage it begins with, and how many tokens
  // further the next one is.
  struct Copier {
    int row, col, step_rows, step_cols;
  };

  // Starts the copies of all threads of the block.
  __device__ void copy(const Stage& stage, const Copier& copier, const Source<T>& first,
                       const Source<T>& second, const Float4* statistics) const {
    const int channel = threadIdx.x % kCopies * kElements, offset = head_ * kDim + channel;
    int row = copier.row, col = copier.col;
    while (row < stage.rows.size()) {
      if (col < stage.cols.size()) {
        const int64_t source = position(stage.rows.begin + row, stage.cols.begin + col);
        const int token = row * stage.pitch + col, target = token * kPitch + channel;
        copy_async_16(stage.first() + target, first.data + source * first.step + offset, true);
        copy_async_16(stage.second() + target, second.data + source * second.step + offset, true);
        if (statistics != nullptr && channel == 0) {
          copy_async_16(stage.statistics() + token, statistics + source * heads_ + head_, true);
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

  template <typename Use>
  __device__ void multiply(const Stage& stage, const Use& use) const {
    const Span rows = warp_rows_ & stage.rows, cols = warp_cols_ & stage.cols;
    const Span full_cols = full_cols_ & stage.cols;
    for (int row = rows.begin; row < rows.end; ++row) {
      const bool is_full = full_rows_.contains(row);
      Span visible[2];
#pragma unroll
      for (int slot = 0; slot < 2; ++slot) {
        visible[slot] = own_partner_cols_[slot] & stage.cols;
        if (!own_partner_rows_[slot].contains(row)) {
          visible[slot].end = visible[slot].begin;
        }
      }
      for (int col = cols.begin; col < cols.end; col += kTokens) {
        const int i = (row - stage.rows.begin) * stage.pitch + col - stage.cols.begin;
        const int last = stage.cols.end - 1 - col;
        use(Product<T, kDim>{{stage.first() + i * kPitch, last},
                             {stage.second() + i * kPitch, last},
                             stage.statistics() + i,
                             col,
                             is_full && full_cols.begin <= col && col + kTokens <= full_cols.end,
                             {visible[0], visible[1]}});
      }
    }
  }

  int height_, width_;  // of the group
  int heads_, head_;
  int64_t map_, origin_;  // positions of the first token of the map and of the group
  int row_step_, col_step_;
  int own_cols_, y_, x_;  // the own tokens of the warp
  bool is_empty_;
  Span block_rows_, block_cols_;  // partners of the block's own tokens
  Span warp_rows_, warp_cols_;    // partners of one of the warp's
  Span full_rows_, full_cols_;    // partners of all of the warp's
  Span own_partner_rows_[2], own_partner_cols_[2];
};

}  // namespace mmlocalattn::cuda::neighborhood
