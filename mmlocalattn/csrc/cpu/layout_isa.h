// Rows of planar maps from and to channels-last, for one instruction set.
#pragma once

#include "simd.h"

namespace mmlocalattn {
namespace cpu {
namespace MMLOCALATTN_ISA {
namespace {

// x cos + (-x[1], x[0], ...) sin for adjacent pairs of lanes.
template <typename T, int... kLane>
MMLOCALATTN_INLINE Vec<T> rotate(Vec<T> x, Vec<T> sin, Vec<T> cos,
                                 std::integer_sequence<int, kLane...>) {
  const Vec<T> sign{(kLane % 2 ? T(1) : T(-1))...};
  return x * cos + shuffle<T>(x, x, std::integer_sequence<int, (kLane ^ 1)...>()) * sign * sin;
}

// A vector of up to `count` values, the rest 0.
template <typename T>
MMLOCALATTN_INLINE Vec<T> load_some(const T* p, int64_t count) {
  if (count >= lanes<T>) return load(p);
  Vec<T> x{};
  for (int64_t i = 0; i < count; ++i) x[i] = p[i];
  return x;
}

template <typename T>
MMLOCALATTN_INLINE void store_some(T* p, Vec<T> x, int64_t count) {
  if (count >= lanes<T>) return store(p, x);
  for (int64_t i = 0; i < count; ++i) p[i] = x[i];
}

template <typename T, typename U>
MMLOCALATTN_INLINE Vec<T> convert(const ChannelsRow<U>& channels, Vec<T> x, int64_t place,
                                  int64_t count) {
  x *= channels.factor;
  if (!channels.sin) return x;
  return rotate<T>(x, load_some(channels.sin + place, count),
                   load_some(channels.cos + place, count),
                   std::make_integer_sequence<int, lanes<T>>());
}

template <typename T>
void pack(const ChannelsRow<const T>& channels, int64_t width, int64_t dim, int64_t plane, T* row) {
  constexpr int kLanes = lanes<T>;
  for (int64_t x = 0; x < width; x += kLanes) {
    for (int64_t d = 0; d < dim; d += kLanes) {
      Vec<T> tile[kLanes];
      for (int i = 0; i < kLanes; ++i) {
        tile[i] = Vec<T>{};
        if (x + i >= width) continue;
        const T* from = channels.first + (x + i) * channels.step + d;
        tile[i] = convert<T>(channels, load_some(from, dim - d), (x + i) * dim + d, dim - d);
      }
      transpose<T>(tile);
      for (int i = 0; i < kLanes && d + i < dim; ++i) store(row + (d + i) * plane + x, tile[i]);
    }
  }
  for (int64_t d = 0; d < dim; ++d) {
    for (int64_t x = (width + kLanes - 1) / kLanes * kLanes; x < plane; ++x) row[d * plane + x] = 0;
  }
}

template <typename T>
void unpack(const ChannelsRow<T>& channels, int64_t width, int64_t dim, int64_t plane,
            const T* row) {
  constexpr int kLanes = lanes<T>;
  for (int64_t x = 0; x < width; x += kLanes) {
    for (int64_t d = 0; d < dim; d += kLanes) {
      Vec<T> tile[kLanes];
      for (int i = 0; i < kLanes; ++i)
        tile[i] = d + i < dim ? load(row + (d + i) * plane + x) : Vec<T>{};
      transpose<T>(tile);
      for (int i = 0; i < kLanes && x + i < width; ++i) {
        const Vec<T> out = convert<T>(channels, tile[i], (x + i) * dim + d, dim - d);
        store_some(channels.first + (x + i) * channels.step + d, out, dim - d);
      }
    }
  }
}

}  // namespace
}  // namespace MMLOCALATTN_ISA
}  // namespace cpu
}  // namespace mmlocalattn
