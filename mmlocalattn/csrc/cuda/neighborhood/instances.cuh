// The instances of the tiled kernels of neighborhood attention: which there are, and how many warps
// of one may run at once.
#pragma once

#include <type_traits>

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

// Calls body(std::integral_constant<int, head_dim>(), std::bool_constant<has_bias>()). In fp32 the
// kernels look at run time whether there is a bias.
template <typename T, typename Body>
void with_instance(int64_t head_dim, bool has_bias, const Body& body) {
  with_head_dim(head_dim, [&](auto dim) {
    if constexpr (sizeof(T) == 2) {
      if (!has_bias) {
        return body(dim, std::false_type());
      }
    }
    return body(dim, std::true_type());
  });
}

// The tiled kernels.
enum class Kind { kForward, kQueryGradient, kKeyValueGradient };

// What an instance of them may have: warps of a block, and warps of a multiprocessor, whose 65536
// registers then suffice for what the instance holds.
template <typename T, int kDim, Kind kKind>
struct Limits {
  static constexpr int kWarps = kDim <= 32 ? 8 : 4;
  static constexpr int resident_warps() {
    if (kDim == 128) {
      return 8;
    }
    if (sizeof(T) == 4) {
      return kDim == 64 ? 12 : 16;
    }
    const int forward = kDim == 64 ? 16 : 24, backward = kDim == 64 ? 12 : 16;
    return kKind == Kind::kForward ? forward : backward;
  }

  static constexpr int kResidentWarps = resident_warps();
  static constexpr int kThreads = kWarps * kWarpSize;
  static constexpr int kBlocks = kResidentWarps / kWarps;
};

}  // namespace mmlocalattn::cuda::neighborhood
