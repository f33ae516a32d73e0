// The choice of the instruction set, and scratch memory.
#include "runtime.h"

#include <c10/util/StringUtil.h>

#include <cstdlib>
#include <memory>
#include <string>
#include <utility>
#include <vector>

namespace mmlocalattn {
namespace cpu {
namespace {

// Instruction sets with kernels of their own that this machine has, the best one first.
const std::vector<std::pair<std::string, InstructionSet>>& instruction_sets() {
  static const auto sets = [] {
    std::vector<std::pair<std::string, InstructionSet>> sets;
#ifdef MMLOCALATTN_X86
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
        __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl")) {
      if (__builtin_cpu_supports("avx512bf16")) {
        sets.emplace_back("avx512_bf16", InstructionSet::kAvx512Bf16);
      }
      sets.emplace_back("avx512", InstructionSet::kAvx512);
    }
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) {
      sets.emplace_back("avx2", InstructionSet::kAvx2);
    }
#endif
    sets.emplace_back("portable", InstructionSet::kPortable);
    return sets;
  }();
  return sets;
}

}  // namespace

InstructionSet instruction_set() {
  const char* wish = std::getenv("MMLOCALATTN_CPU_ISA");
  if (wish == nullptr) return instruction_sets().front().second;
  std::vector<std::string> names;
  for (const auto& [name, set] : instruction_sets()) {
    if (name == wish) return set;
    names.push_back(name);
  }
  TORCH_CHECK(false, "MMLOCALATTN_CPU_ISA=", wish,
              " cannot be used here, choose one of: ", c10::Join(", ", names));
}

std::vector<int64_t> cuts(int64_t length, int64_t most, int64_t step) {
  const int64_t pieces = (length + most - 1) / most, steps = (length + step - 1) / step;
  std::vector<int64_t> cuts;
  for (int64_t i = 0; i < pieces; ++i) cuts.push_back(i * steps / pieces * step);
  cuts.push_back(length);
  return cuts;
}

void* scratch_bytes(int64_t bytes) {
  struct Free {
    void operator()(void* memory) const { std::free(memory); }
  };
  thread_local std::unique_ptr<void, Free> memory;
  thread_local int64_t capacity = 0;
  bytes = (bytes + kVectorBytes - 1) / kVectorBytes * kVectorBytes;
  if (bytes > capacity) {
    memory.reset();
    capacity = 0;
    memory.reset(std::aligned_alloc(kVectorBytes, bytes));
    TORCH_CHECK(memory, "out of memory: ", bytes, " bytes of scratch");
    capacity = bytes;
  }
  return memory.get();
}

}  // namespace cpu
}  // namespace mmlocalattn
