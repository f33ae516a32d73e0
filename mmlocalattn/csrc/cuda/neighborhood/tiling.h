// What the tiled kernels of neighborhood attention are launched with. Host only and plain C++, so
// that a test can compile it alone.
#pragma once

#include <algorithm>
#include <cstdint>
#include <limits>

#include "window.h"

namespace mmlocalattn::cuda {

// What the choice asks of a GPU.
struct Device {
  int multiprocessors;
  int shared_bytes;  // of one multiprocessor; a block can have 1 KB less, which the system takes
};

namespace neighborhood {

constexpr int kOwnTokens = 16;  // of a warp; also the partners that it takes at once

// Divides integers below 2^31 by one that the host knows.
struct Divisor {
  unsigned value = 1, factor = 0, shift = 0;

  Divisor() = default;
  explicit Divisor(int64_t divisor) : value(static_cast<unsigned>(divisor)) {
    while (uint64_t{1} << shift < value) {
      ++shift;
    }
    factor = static_cast<unsigned>((((uint64_t{1} << shift) - value) << 32) / value + 1);
  }

  // Divides n and returns the rest.
  MMLOCALATTN_HOST_DEVICE int divide(unsigned& n) const {
    const auto high = static_cast<unsigned>(static_cast<uint64_t>(n) * factor >> 32);
    const unsigned quotient = (high + n) >> shift, rest = n - quotient * value;
    n = quotient;
    return static_cast<int>(rest);
  }
};

// The dilation groups along an axis: the first `longest` have `length` positions, the others one
// less.
struct Groups {
  int length, longest;

  Groups() = default;
  explicit Groups(const WindowAxis& axis)
      : length(static_cast<int>(axis.group_length(0))),
        longest(static_cast<int>(axis.length - (length - 1) * axis.dilation)) {}

  MMLOCALATTN_HOST_DEVICE int length_of(int group) const { return length - (group >= longest); }
};

// What a kernel asks for.
struct Demand {
  int token_bytes;     // of shared memory for a partner
  int table_bytes;     // for a block
  int warp_bytes;      // for a warp
  int most_warps;      // of a block
  int resident_warps;  // of a multiprocessor, by registers
  bool is_inverse;     // partners are the queries that see a token, not the keys that it sees
};

// How a launch splits the map, and what a block has in shared memory: stages of partners, then at
// `table_offset` what its warps share, then at `warp_offset` what each of them has for itself.
struct Tiling {
  int cols, cols_log2;            // of a warp's own tokens; they have kOwnTokens / cols rows
  int warps_across, warps_down;   // of a block
  int tiles_y, tiles_x;           // blocks that cover the largest group
  bool holds_all;                 // one stage does
  int stage_tokens;               // that one stage holds; there are two where one does not hold all
  int table_offset, warp_offset;  // in bytes
  int warp_bytes;
  Groups groups_y, groups_x;
  // The number of a block counts heads, groups and tiles of an axis, then those of the other.
  Divisor by_heads, by_groups_y, by_groups_x, by_tiles_y, by_tiles_x, by_warps_across;
};

struct Launch {
  Tiling tiling;
  int64_t blocks;
  int threads, shared_bytes;
};

// Chooses for maps of the axes.
class TilingChoice {
 public:
  TilingChoice(const WindowAxis& rows, const WindowAxis& cols, int64_t batch, int64_t heads,
               const Demand& demand, const Device& device)
      : rows_(rows),
        cols_(cols),
        heads_(heads),
        row_reach_(static_cast<int>(rows.kernel) - 1),
        col_reach_(static_cast<int>(cols.kernel) - 1),
        height_(static_cast<int>(rows.group_length(0))),
        width_(static_cast<int>(cols.group_length(0))),
        groups_(batch * heads * rows.dilation * cols.dilation),
        demand_(demand),
        device_(device) {}

  // The cheapest launch.
  Launch best() {
    for (int cols_log2 = 0; 1 << cols_log2 <= kOwnTokens; ++cols_log2) {
      for (const int across : kCounts) {
        for (const int down : kCounts) {
          if (across * down <= demand_.most_warps) {
            consider(cols_log2, across, down);
          }
        }
      }
    }
    Tiling& tiling = best_.tiling;
    tiling.groups_y = Groups(rows_);
    tiling.groups_x = Groups(cols_);
    tiling.by_heads = Divisor(heads_);
    tiling.by_groups_y = Divisor(rows_.dilation);
    tiling.by_groups_x = Divisor(cols_.dilation);
    tiling.by_tiles_y = Divisor(tiling.tiles_y);
    tiling.by_tiles_x = Divisor(tiling.tiles_x);
    tiling.by_warps_across = Divisor(tiling.warps_across);
    return best_;
  }

 private:
  static constexpr int kCounts[] = {1, 2, 3, 4, 6, 8};
  static constexpr int kSystemBytes = 1 << 10;  // of a block
  static constexpr int kMostBlocks = 16;        // of a multiprocessor of compute capability 8.6
  static constexpr int kLeastTokens = 2 * kOwnTokens;  // of the stages
  // Estimates for an H100, in the time that the L2 cache needs to deliver a partner to one of its
  // multiprocessors: a product keeps one busy for 5, a warp that is alone takes 60 for it, and a
  // stage takes as long as two of those to begin.
  static constexpr int kProductTime = 5, kProductLatency = 60, kStageProducts = 2;

  static int ceil_div(int a, int b) { return (a + b - 1) / b; }
  static int most_partners(int own, int reach, int length) { return std::min(own + reach, length); }

  void consider(int cols_log2, int across, int down) {
    const int cols = 1 << cols_log2, rows = kOwnTokens / cols;
    const int block_rows = rows * down, block_cols = cols * across;
    const int tiles_y = ceil_div(height_, block_rows), tiles_x = ceil_div(width_, block_cols);
    const int warps = across * down;
    const int fixed_bytes = demand_.table_bytes + warps * demand_.warp_bytes + kSystemBytes;
    const auto tokens_of = [&](int blocks) {
      return (device_.shared_bytes / blocks - fixed_bytes) / demand_.token_bytes;
    };
    int resident = std::max(1, std::min(kMostBlocks, demand_.resident_warps / warps));
    // Near a border more queries see a key than it sees keys.
    const int grow = demand_.is_inverse ? 2 : 1;
    const int needed = most_partners(block_rows, grow * row_reach_, height_) *
                       most_partners(block_cols, grow * col_reach_, width_);
    // Two blocks where a warp of each can have what it needs: one computes while the other waits.
    const int warp_needs = demand_.table_bytes + demand_.warp_bytes + kSystemBytes +
                           kLeastTokens * demand_.token_bytes;
    const int least = 2 * warp_needs <= device_.shared_bytes ? 2 : 1;
    while (resident > least && tokens_of(resident) < std::min(needed, kLeastTokens)) {
      --resident;
    }
    const int tokens = tokens_of(resident);
    if (tokens < std::min(needed, kLeastTokens)) {
      return;
    }
    const bool holds_all = needed <= tokens;
    const int stage_tokens = holds_all ? needed : tokens / 2;

    const int partner_rows = most_partners(block_rows, row_reach_, height_);
    const int partner_cols = most_partners(block_cols, col_reach_, width_);
    const int warp_cols = most_partners(cols, col_reach_, width_);
    // Between two stages the warps wait for each other, so that all take as long as the one that
    // has partners in every row.
    const int used_rows = holds_all ? most_partners(rows, row_reach_, height_) : partner_rows;
    const int chunks = ceil_div(partner_cols, stage_tokens);
    const int chunk_cols = std::min(warp_cols, ceil_div(partner_cols, chunks));
    const int64_t products = used_rows * chunks * ceil_div(chunk_cols, kOwnTokens);
    const int stage_rows = stage_tokens / ceil_div(partner_cols, chunks);
    const int64_t stages = chunks * ceil_div(partner_rows, stage_rows);
    const int64_t blocks = groups_ * tiles_y * tiles_x;
    const int64_t rounds = (blocks + device_.multiprocessors - 1) / device_.multiprocessors;
    const int64_t busy = rounds * (kProductTime * warps * products + partner_rows * partner_cols);
    const int64_t latency =
        (rounds + resident - 1) / resident * kProductLatency * (products + kStageProducts * stages);
    // Multiprocessors without a block could have helped.
    const int64_t used = std::min<int64_t>(std::max<int64_t>(blocks, 1), device_.multiprocessors);
    const int64_t cost = (busy + latency) * device_.multiprocessors / used;
    if (cost <= best_cost_) {
      best_cost_ = cost;
      const int table_offset = (holds_all ? 1 : 2) * stage_tokens * demand_.token_bytes;
      const int warp_offset = table_offset + demand_.table_bytes;
      best_.tiling = {
          cols,      cols_log2,    across,       down,        tiles_y,           tiles_x,
          holds_all, stage_tokens, table_offset, warp_offset, demand_.warp_bytes};
      best_.blocks = blocks;
      best_.threads = warps * 32;
      best_.shared_bytes = warp_offset + warps * demand_.warp_bytes;
    }
  }

  const WindowAxis rows_, cols_;
  const int64_t heads_;
  const int row_reach_, col_reach_, height_, width_;
  const int64_t groups_;
  const Demand demand_;
  const Device device_;
  Launch best_{};
  int64_t best_cost_ = std::numeric_limits<int64_t>::max();
};

}  // namespace neighborhood
}  // namespace mmlocalattn::cuda
