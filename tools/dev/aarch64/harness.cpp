// Runs the kernels of one operator on one problem, without PyTorch, so that they run wherever there
// is a compiler for: check_aarch64.py writes the problem and judges the results.
//
//   harness ISA OPERATOR DTYPE INPUT OUTPUT
//
// Both files are numbers of 8 bytes; an array has its size before it. What operator.cpp of an
// operator does with tensors is done here with arrays: maps are contiguous (B, H, W, num_heads,
// head_dim), and pieces are small, so that a small map has several.
#include "harness.h"

#include "cpu/isa.h"
#include "neighborhood.h"
#include "query_and_attend.h"
#include "slide.h"
#include "stand_alone.h"

namespace mmlocalattn::cpu {
namespace {

int chosen_isa = 0;

// Chooses by the name in the list of instruction sets.
void choose_isa(const std::string& name) {
#define MMLOCALATTN_STRING(name) #name
#define MMLOCALATTN_STRING_OF(name) MMLOCALATTN_STRING(name)
#define MMLOCALATTN_NAME(index) \
  MMLOCALATTN_STRING_OF(MMLOCALATTN_NAME_OF(MMLOCALATTN_ISA_ENTRY(index)))
  const std::string names[kIsaSlots] = {MMLOCALATTN_NAME(0), MMLOCALATTN_NAME(1),
                                        MMLOCALATTN_NAME(2), MMLOCALATTN_NAME(3),
                                        MMLOCALATTN_NAME(4), MMLOCALATTN_NAME(5)};
  const auto* found = std::find(names, names + kIsaSlots, name);
  if (found == names + kIsaSlots) stop("no instruction set is called " + name);
  chosen_isa = static_cast<int>(found - names);
}

template <typename T>
void run_operator(const std::string& name, Input& input, Output& output) {
  if (name == "neighborhood") return run_neighborhood<T>(input, output);
  if (name == "rotary") return run_rotary<T>(input, output);
  if (name == "query_and_attend") return run_query_and_attend<T>(input, output);
  if (name == "slide") return run_slide<T>(input, output);
  if (name == "stand_alone") return run_stand_alone<T>(input, output);
  stop("no operator is called " + name);
}

}  // namespace

int isa_in_use() { return chosen_isa; }

}  // namespace mmlocalattn::cpu

int main(int argc, char** argv) {
  using namespace mmlocalattn::cpu;
  if (argc != 6) stop("usage: harness ISA OPERATOR DTYPE INPUT OUTPUT");
  choose_isa(argv[1]);
  const std::string name = argv[2], dtype = argv[3];
  Input input(argv[4]);
  Output output(argv[5]);
  if (dtype == "float64") {
    run_operator<double>(name, input, output);
  } else if (dtype == "float32") {
    run_operator<float>(name, input, output);
  } else {
    run_operator<BFloat16>(name, input, output);
  }
}
