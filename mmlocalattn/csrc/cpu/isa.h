// The instruction sets that kernels are compiled for, and the choice of one at run time.
#pragma once

#if defined(__x86_64__)
#define MMLOCALATTN_X86
#endif

// THE list, each entry better than those before it: name, bytes of a vector, the compiler's target,
// whether this processor has it, and whether it multiplies pairs of bfloat16. One that does is
// compiled only for operators that use pairs, and only for bfloat16 maps.
#ifdef MMLOCALATTN_X86
#define MMLOCALATTN_HAS(feature) (__builtin_cpu_supports(feature) != 0)
#define MMLOCALATTN_HAS_AVX512                                                                 \
  (MMLOCALATTN_HAS("avx512f") && MMLOCALATTN_HAS("avx512bw") && MMLOCALATTN_HAS("avx512dq") && \
   MMLOCALATTN_HAS("avx512vl"))
#define MMLOCALATTN_ISA_LIST                                                                  \
  (portable, 16, "", true, 0),                                                                \
      (avx2, 32, "avx2,fma", MMLOCALATTN_HAS("avx2") && MMLOCALATTN_HAS("fma"), 0),           \
      (avx512, 64, "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma", MMLOCALATTN_HAS_AVX512, 0), \
      (avx512_bf16, 64, "avx512bf16,avx512f,avx512bw,avx512dq,avx512vl,avx2,fma",             \
       MMLOCALATTN_HAS_AVX512 && MMLOCALATTN_HAS("avx512bf16"), 1)
#else
#define MMLOCALATTN_ISA_LIST (portable, 16, "", true, 0)
#endif

// For tests: one more entry from the command line of the compiler, such as
// -DMMLOCALATTN_EXTRA_ISA='(extra, 16, "sse4.2", true, 0)'.
#ifdef MMLOCALATTN_EXTRA_ISA
#define MMLOCALATTN_ALL_ISAS MMLOCALATTN_ISA_LIST, MMLOCALATTN_EXTRA_ISA
#else
#define MMLOCALATTN_ALL_ISAS MMLOCALATTN_ISA_LIST
#endif

// MMLOCALATTN_ISA_ENTRY(i) is entry i of the list; past its end there are entries of 0 bytes.
#define MMLOCALATTN_NO_ISA (none, 0, "", false, 0)
#define MMLOCALATTN_ISA_ENTRY(index)                                                               \
  MMLOCALATTN_PICK(index, MMLOCALATTN_ALL_ISAS, MMLOCALATTN_NO_ISA, MMLOCALATTN_NO_ISA,            \
                   MMLOCALATTN_NO_ISA, MMLOCALATTN_NO_ISA, MMLOCALATTN_NO_ISA, MMLOCALATTN_NO_ISA, \
                   MMLOCALATTN_NO_ISA)
#define MMLOCALATTN_PICK(index, ...) MMLOCALATTN_PICK_(index, __VA_ARGS__)
#define MMLOCALATTN_PICK_(index, ...) MMLOCALATTN_PICK_##index(__VA_ARGS__)
#define MMLOCALATTN_PICK_0(a, ...) a
#define MMLOCALATTN_PICK_1(a, b, ...) b
#define MMLOCALATTN_PICK_2(a, b, c, ...) c
#define MMLOCALATTN_PICK_3(a, b, c, d, ...) d
#define MMLOCALATTN_PICK_4(a, b, c, d, e, ...) e
#define MMLOCALATTN_PICK_5(a, b, c, d, e, f, ...) f
#define MMLOCALATTN_PICK_6(a, b, c, d, e, f, g, ...) g

// Parts of an entry.
#define MMLOCALATTN_CALL(macro, arguments) macro arguments
#define MMLOCALATTN_NAME_OF(entry) MMLOCALATTN_CALL(MMLOCALATTN_NAME_OF_, entry)
#define MMLOCALATTN_NAME_OF_(name, bytes, target, check, pairs) name
#define MMLOCALATTN_BYTES_OF(entry) MMLOCALATTN_CALL(MMLOCALATTN_BYTES_OF_, entry)
#define MMLOCALATTN_BYTES_OF_(name, bytes, target, check, pairs) bytes
#define MMLOCALATTN_TARGET_OF(entry) MMLOCALATTN_CALL(MMLOCALATTN_TARGET_OF_, entry)
#define MMLOCALATTN_TARGET_OF_(name, bytes, target, check, pairs) target
#define MMLOCALATTN_CHECK_OF(entry) MMLOCALATTN_CALL(MMLOCALATTN_CHECK_OF_, entry)
#define MMLOCALATTN_CHECK_OF_(name, bytes, target, check, pairs) (check)
#define MMLOCALATTN_PAIRS_OF(entry) MMLOCALATTN_CALL(MMLOCALATTN_PAIRS_OF_, entry)
#define MMLOCALATTN_PAIRS_OF_(name, bytes, target, check, pairs) pairs

namespace mmlocalattn::cpu {

constexpr int kIsaSlots = 6;  // entries that the list, foreach_isa.h and isa_in_use() have room for
static_assert(MMLOCALATTN_BYTES_OF(MMLOCALATTN_ISA_ENTRY(6)) == 0, "more entries than slots");

// Place in the list of the instruction set in use: the best one of this machine, or the one that
// the environment variable MMLOCALATTN_CPU_ISA asks for.
int isa_in_use();

// Entry kIndex of the list. It is an entry before it, too, so that overloads for entries serve the
// better ones for which there is none.
template <int kIndex>
struct IsaTag : IsaTag<kIndex - 1> {};
template <>
struct IsaTag<0> {};

// A table of kernels for each entry of the list.
template <typename Table>
struct PerIsa {
  Table tables[kIsaSlots];

  const Table& in_use() const { return tables[isa_in_use()]; }
};

}  // namespace mmlocalattn::cpu
