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
  int stage_tokens;               // that one stage holds; there are two where one does not hold all
  int table_offset, warp_offset;  // in bytes
  int warp_bytes;
};

struct Launch {
  Tiling tiling;
  int64_t blocks;
  int threads, shared_bytes;
};

// Chooses for maps of the axes; `maps` is batch times heads.
class TilingChoice {
 public:
  TilingChoice(const WindowAxis& rows, const WindowAxis& cols, int64_t maps, const Demand& demand,
               const Device& device)
      : row_kernel_(static_cast<int>(rows.kernel)),
        col_kernel_(static_cast<int>(cols.kernel)),
        height_(static_cast<int>(rows.group_length(0))),
        width_(static_cast<int>(cols.group_length(0))),
        groups_(maps * rows.dilation * cols.dilation),
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
    return best_;
  }

 private:
  static constexpr int kCounts[] = {1, 2, 3, 4, 6, 8};
  static constexpr int kSystemBytes = 1 << 10;   // of a block
  static constexpr int kMostBlocks = 16;         // of a multiprocessor of compute capability 8.6
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
    const int needed = most_partners(block_rows, grow * (row_kernel_ - 1), height_) *
                       most_partners(block_cols, grow * (col_kernel_ - 1), width_);
    while (resident > 1 && tokens_of(resident) < std::min(needed, kLeastTokens)) {
      --resident;
    }
    const int tokens = tokens_of(resident);
    if (tokens < std::min(needed, kLeastTokens)) {
      return;
    }
    const bool holds_all = needed <= tokens;
    const int stage_tokens = holds_all ? needed : tokens / 2;

    const int partner_rows = most_partners(block_rows, row_kernel_ - 1, height_);
    const int partner_cols = most_partners(block_cols, col_kernel_ - 1, width_);
    const int warp_cols = most_partners(cols, col_kernel_ - 1, width_);
    // Between two stages the warps wait for each other, so that all take as long as the one that
    // has partners in every row.
    const int used_rows =
        holds_all ? most_partners(rows, row_kernel_ - 1, height_) : partner_rows;
    const int chunks = ceil_div(partner_cols, stage_tokens);
    const int chunk_cols = std::min(warp_cols, ceil_div(partner_cols, chunks));
    const int64_t products = used_rows * chunks * ceil_div(chunk_cols, kOwnTokens);
    const int stage_rows = stage_tokens / ceil_div(partner_cols, chunks);
    const int64_t stages = chunks * ceil_div(partner_rows, stage_rows);
    const int64_t blocks = groups_ * tiles_y * tiles_x;
    const int64_t rounds = (blocks + device_.multiprocessors - 1) / device_.multiprocessors;
    const int64_t busy =
        rounds * (kProductTime * warps * products + partner_rows * partner_cols);
    const int64_t latency = (rounds + resident - 1) / resident * kProductLatency *
                            (products + kStageProducts * stages);
    const int64_t cost = std::max(busy, latency);
    if (cost <= best_cost_) {
      best_cost_ = cost;
      const int table_offset = (holds_all ? 1 : 2) * stage_tokens * demand_.token_bytes;
      const int warp_offset = table_offset + demand_.table_bytes;
      best_ = {{cols, cols_log2, across, down, tiles_y, tiles_x, stage_tokens, table_offset, warp_offset,
                demand_.warp_bytes},
               blocks,
               warps * 32,
               warp_offset + warps * demand_.warp_bytes};
    }
  }

  const int row_kernel_, col_kernel_, height_, width_;
  const int64_t groups_;
  const Demand demand_;
  const Device device_;
  Launch best_{};
  int64_t best_cost_ = std::numeric_limits<int64_t>::max();
};

}  // namespace neighborhood
}  // namespace mmlocalattn::cuda
