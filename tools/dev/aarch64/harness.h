// What the harness is made of: files of numbers, arrays, the memory and the pieces of kernels.
#pragma once

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <string>
#include <type_traits>
#include <vector>

#include "cpu/maps.h"

namespace mmlocalattn::cpu {
namespace {

constexpr int64_t kMostRows = 12, kMostCols = 16;  // of a piece: steps of every kernel divide them

[[noreturn]] void stop(const std::string& message) {
  std::fprintf(stderr, "error: %s\n", message.c_str());
  std::exit(1);
}

template <typename T>
T convert(double x) {
  if constexpr (std::is_same_v<T, BFloat16>) {
    const float value = static_cast<float>(x);
    uint32_t bits;
    std::memcpy(&bits, &value, sizeof(bits));
    return {static_cast<uint16_t>(bits >> 16)};  // inputs are rounded already
  } else {
    return static_cast<T>(x);
  }
}

double to_double(double x) { return x; }
double to_double(BFloat16 x) {
  const uint32_t bits = static_cast<uint32_t>(x.bits) << 16;
  float value;
  std::memcpy(&value, &bits, sizeof(value));
  return value;
}

// Memory whose alignment is that of one value, as that of a slice of a tensor. Results are NaN
// until they are written.
template <typename T>
class Array {
 public:
  explicit Array(int64_t size, double value = std::numeric_limits<double>::quiet_NaN())
      : values_(size + 1, convert<T>(value)) {}

  T* data() { return values_.data() + 1; }
  int64_t size() const { return static_cast<int64_t>(values_.size()) - 1; }

 private:
  std::vector<T> values_;
};

struct Shape {
  int64_t batch, height, width, heads, dim;

  int64_t size() const { return batch * height * width * heads * dim; }
  Shape with_dim(int64_t other) const { return {batch, height, width, heads, other}; }
};

class Input {
 public:
  explicit Input(const char* path) : file_(std::fopen(path, "rb")) {
    if (!file_) stop(std::string("cannot read ") + path);
  }
  ~Input() { std::fclose(file_); }

  double number() {
    double x;
    if (std::fread(&x, sizeof(x), 1, file_) != 1) stop("the problem ends early");
    return x;
  }
  int64_t integer() { return static_cast<int64_t>(number()); }
  Shape shape() {
    Shape shape;
    for (int64_t* size : {&shape.batch, &shape.height, &shape.width, &shape.heads, &shape.dim}) {
      *size = integer();
    }
    return shape;
  }
  template <typename T>
  Array<T> array() {
    Array<T> array(integer());
    for (int64_t i = 0; i < array.size(); ++i) array.data()[i] = convert<T>(number());
    return array;
  }

 private:
  std::FILE* file_;
};

class Output {
 public:
  explicit Output(const char* path) : file_(std::fopen(path, "wb")) {
    if (!file_) stop(std::string("cannot write ") + path);
  }
  ~Output() { std::fclose(file_); }

  template <typename... Arrays>
  void write(Arrays&... arrays) {
    (write_one(arrays), ...);
  }

 private:
  template <typename T>
  void write_one(Array<T>& array) {
    put(static_cast<double>(array.size()));
    for (int64_t i = 0; i < array.size(); ++i) put(to_double(array.data()[i]));
  }
  void put(double x) { std::fwrite(&x, sizeof(x), 1, file_); }

  std::FILE* file_;
};

std::vector<int64_t> ordinals(int64_t length) {
  std::vector<int64_t> ordinals(length);
  for (int64_t i = 0; i < length; ++i) ordinals[i] = i;
  return ordinals;
}

// The vectors of one image and head.
template <typename T>
Grid<T> grid(T* data, const Shape& shape, int64_t b, int64_t head,
             const std::vector<int64_t>& columns) {
  const int64_t column = shape.heads * shape.dim, row = shape.width * column;
  return {data + b * shape.height * row + head * shape.dim, row, column, columns.data()};
}

// Runs a kernel with the memory that it asks for: NaN at first, and no value more.
template <typename Piece, typename C>
void run(int64_t (*kernel)(const Piece&, C*), const Piece& piece) {
  constexpr int64_t kMargin = kVectorBytes / sizeof(C);
  const int64_t size = kernel(piece, nullptr), bytes = (size + kMargin) * int64_t{sizeof(C)};
  C* memory = static_cast<C*>(
      std::aligned_alloc(kVectorBytes, (bytes + kVectorBytes - 1) / kVectorBytes * kVectorBytes));
  std::fill_n(memory, size, std::numeric_limits<C>::quiet_NaN());
  std::fill_n(memory + size, kMargin, C(1234));
  kernel(piece, memory);
  for (int64_t i = 0; i < kMargin; ++i) {
    if (memory[size + i] != C(1234)) stop("a kernel wrote past its scratch memory");
  }
  std::free(memory);
}

template <typename T>
void add(Array<T>& part, Array<T>& sum) {
  for (int64_t i = 0; i < sum.size(); ++i) sum.data()[i] += part.data()[i];
}

struct Range {
  int64_t begin, end;
};

std::vector<Range> ranges(int64_t length, int64_t most) {
  std::vector<Range> ranges;
  for (int64_t i = 0; i < length; i += most) ranges.push_back({i, std::min(i + most, length)});
  return ranges;
}

struct Place {
  int64_t b, head;
};

std::vector<Place> places(const Shape& shape) {
  std::vector<Place> places;
  for (int64_t b = 0; b < shape.batch; ++b) {
    for (int64_t head = 0; head < shape.heads; ++head) places.push_back({b, head});
  }
  return places;
}

// What slide and stand-alone attention have alike: their maps, and those of a piece.
template <typename T>
struct AttentionMaps {
  using C = Compute<T>;

  Shape shape;
  Array<T> query, key, value, grad_output;
  std::vector<int64_t> columns = ordinals(shape.width);
  Array<T> output{shape.size()};
  Array<C> logsumexp{shape.with_dim(2).size()};
  Array<T> grad_query{shape.size()}, grad_key{shape.size()}, grad_value{shape.size()};

  explicit AttentionMaps(Input& input)
      : shape(input.shape()),
        query(input.array<T>()),
        key(input.array<T>()),
        value(input.array<T>()),
        grad_output(input.array<T>()) {}

  template <typename Piece>
  void fill(const Place& place, Piece& piece, C scale) {
    const auto in = [&](Array<T>& map, C factor) {
      return Map<const T>{grid<const T>(map.data(), shape, place.b, place.head, columns), factor};
    };
    const auto out = [&](Array<T>& map, C factor) {
      return Map<T>{grid(map.data(), shape, place.b, place.head, columns), factor};
    };
    piece.query = in(query, scale), piece.key = in(key, 1), piece.value = in(value, 1);
    piece.output = out(output, 1);
    piece.logsumexp = grid(logsumexp.data(), shape.with_dim(2), place.b, place.head, columns);
    piece.grad_output = in(grad_output, 1);
    piece.grad_query = out(grad_query, scale);
    piece.grad_key = out(grad_key, 1), piece.grad_value = out(grad_value, 1);
  }
};

}  // namespace
}  // namespace mmlocalattn::cpu
