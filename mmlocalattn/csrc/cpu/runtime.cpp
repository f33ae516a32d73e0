// The choice of the instruction set, the checks of maps, and scratch memory.
#include "cpu/runtime.h"

#include <c10/util/StringUtil.h>

#include <cstdlib>
#include <cstring>
#include <memory>
#include <numeric>
#include <string>

#include "pytorch_cpp_helper.hpp"

namespace mmlocalattn::cpu {

int isa_in_use() {
  struct Isa {
    const char* name;
    bool is_supported;
  };
#define MMLOCALATTN_STRING(name) #name
#define MMLOCALATTN_STRING_OF(name) MMLOCALATTN_STRING(name)
#define MMLOCALATTN_DESCRIBE(index)                                           \
  Isa {                                                                       \
    MMLOCALATTN_STRING_OF(MMLOCALATTN_NAME_OF(MMLOCALATTN_ISA_ENTRY(index))), \
        MMLOCALATTN_CHECK_OF(MMLOCALATTN_ISA_ENTRY(index))                    \
  }
  static const Isa isas[kIsaSlots] = {MMLOCALATTN_DESCRIBE(0), MMLOCALATTN_DESCRIBE(1),
                                      MMLOCALATTN_DESCRIBE(2), MMLOCALATTN_DESCRIBE(3),
                                      MMLOCALATTN_DESCRIBE(4), MMLOCALATTN_DESCRIBE(5)};
  const char* wish = std::getenv("MMLOCALATTN_CPU_ISA");
  std::vector<std::string> names;
  for (int i = kIsaSlots - 1; i >= 0; --i) {
    if (!isas[i].is_supported) continue;
    if (wish == nullptr || std::strcmp(wish, isas[i].name) == 0) return i;
    names.push_back(isas[i].name);
  }
  TORCH_CHECK(false, "MMLOCALATTN_CPU_ISA=", wish,
              " cannot be used here, choose one of: ", c10::Join(", ", names));
}

void check_map(const at::Tensor& tensor, const char* axes) {
  CHECK_CPU(tensor);
  TORCH_CHECK(tensor.dim() == 5, "expected ", axes, ", got ", tensor.sizes());
}

void AttentionMaps::check() const {
  check_map(query, "(B, H, W, num_heads, head_dim)");
  for (const auto* other : {&key, &value}) {
    TORCH_CHECK(other->sizes() == query.sizes() && other->scalar_type() == query.scalar_type(),
                "query, key and value must have one shape and dtype");
  }
}

std::vector<int64_t> cuts(int64_t length, int64_t most, int64_t step) {
  const int64_t pieces = (length + most - 1) / most, steps = (length + step - 1) / step;
  std::vector<int64_t> cuts;
  cuts.reserve(pieces + 1);
  for (int64_t i = 0; i < pieces; ++i) cuts.push_back(i * steps / pieces * step);
  cuts.push_back(length);
  return cuts;
}

std::vector<int64_t> ordinals(int64_t length) {
  std::vector<int64_t> ordinals(length);
  std::iota(ordinals.begin(), ordinals.end(), 0);
  return ordinals;
}

void* scratch_bytes(int64_t bytes) {
  struct Free {
    void operator()(void* memory) const { std::free(memory); }
  };
  thread_local std::unique_ptr<void, Free> memory;
  thread_local int64_t capacity = 0;
  // Never none: a kernel that gets no memory does nothing.
  bytes = std::max<int64_t>(1, (bytes + kVectorBytes - 1) / kVectorBytes) * kVectorBytes;
#ifdef __SANITIZE_ADDRESS__
  capacity = 0;  // no more than was asked for, and no marks of the last Arena
#endif
  if (bytes > capacity) {
    memory.reset();
    capacity = 0;
    memory.reset(std::aligned_alloc(kVectorBytes, bytes));
    TORCH_CHECK(memory, "out of memory: ", bytes, " bytes of scratch");
    capacity = bytes;
  }
  return memory.get();
}

}  // namespace mmlocalattn::cpu
