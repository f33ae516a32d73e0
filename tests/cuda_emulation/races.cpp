// Finds races: two lanes that touch the same memory, one of them writing, with no barrier between.
//
// g++ -fsanitize=thread puts a call before every access of the kernels. They come here and not to
// ThreadSanitizer, to whom all the fibers are one thread.
//
// An access is before another one of the same launch if its lane is the same, if a block barrier is
// between, or if a warp barrier is and the warp is the same. A shuffle is no barrier, as on a GPU.
// Blocks have no order: what two of them touch in global memory is checked too.
#include <cstring>
#include <memory>
#include <sstream>
#include <unordered_map>

#include "emulator.h"

namespace mmlocalattn::emulation {
namespace {

constexpr int kWarpSize = 32;
constexpr uintptr_t kCellBytes = 2, kPageBytes = 4096;

struct Access {
  int64_t launch = 0;  // 0: none
  Lane lane;
};

struct Cell {
  Access write, copy;
  Access reads[2];  // of two warps, if several have read
};

struct Page {
  Cell cells[kPageBytes / kCellBytes];
};

int64_t launch;
std::unordered_map<uintptr_t, std::unique_ptr<Page>> pages;

Cell& cell_at(uintptr_t address) {
  static uintptr_t last_number;
  static Page* last = nullptr;
  const uintptr_t number = address / kPageBytes;
  if (last == nullptr || number != last_number) {
    auto& page = pages[number];
    if (page == nullptr) {
      page = std::make_unique<Page>();
    }
    last_number = number;
    last = page.get();
  }
  return last->cells[address % kPageBytes / kCellBytes];
}

bool are_of_one_warp(const Lane& a, const Lane& b) {
  return a.block == b.block && a.thread / kWarpSize == b.thread / kWarpSize;
}

// Whether there was such an access and it may happen at the same time as one of `lane` now.
bool races(const Access& access, const Lane& lane, const void* address) {
  if (access.launch != launch) {
    return false;
  }
  if (access.lane.block != lane.block) {
    return !is_shared(address);
  }
  return access.lane.thread != lane.thread && access.lane.block_phase == lane.block_phase &&
         (!are_of_one_warp(access.lane, lane) || access.lane.warp_phase == lane.warp_phase);
}

[[noreturn]] void report(const Access& access, const char* before, const Lane& lane,
                         const char* now, const void* address) {
  std::ostringstream text;
  text << "race at " << (is_shared(address) ? "shared" : "global") << " address " << address
       << ": lane " << access.lane.thread;
  if (access.lane.block != lane.block) {
    text << " of block " << access.lane.block;
  }
  text << " " << before << ", lane " << lane.thread << " " << now;
  fail(text.str());
}

void note_read(Cell& cell, const Lane& lane, const void* address) {
  Access& first = cell.reads[0];
  Access& second = cell.reads[1];
  const Access access{launch, lane};
  for (Access* read : {&first, &second}) {
    const bool can_race_with_others =
        read->launch == launch &&
        (read->lane.block == lane.block ? read->lane.block_phase == lane.block_phase
                                        : !is_shared(address));
    const bool is_replaced =
        are_of_one_warp(read->lane, lane) &&
        (read->lane.thread == lane.thread || read->lane.warp_phase != lane.warp_phase);
    if (!can_race_with_others || is_replaced) {
      *read = access;
      return;
    }
  }
  // Reads of two warps, or of two lanes of the only one, stand for all others.
  if (are_of_one_warp(first.lane, second.lane) && !are_of_one_warp(first.lane, lane)) {
    second = access;
  }
}

// An access of the size of a cell or less. Neighboring bytes share a cell: the kernels have none.
void note_cell(const Lane& lane, const void* address, bool is_write) {
  Cell& cell = cell_at(reinterpret_cast<uintptr_t>(address));
  if (cell.copy.launch == launch && cell.copy.lane.block == lane.block) {
    report(cell.copy, "copies without a wait", lane, is_write ? "writes" : "reads", address);
  }
  if (races(cell.write, lane, address)) {
    report(cell.write, "writes", lane, is_write ? "writes" : "reads", address);
  }
  if (!is_write) {
    note_read(cell, lane, address);
    return;
  }
  for (const Access& read : cell.reads) {
    if (races(read, lane, address)) {
      report(read, "reads", lane, "writes", address);
    }
  }
  cell.write = {launch, lane};
}

void note(const void* address, int64_t bytes, bool is_write) {
  const Lane* lane = current_lane();
  if (lane != nullptr && !is_stack(address)) {
    note_access(*lane, address, bytes, is_write);
  }
}

}  // namespace

void note_launch() { ++launch; }

void note_access(const Lane& lane, const void* address, int64_t bytes, bool is_write) {
  const auto* begin = static_cast<const char*>(address);
  for (int64_t offset = 0; offset < bytes; offset += kCellBytes) {
    note_cell(lane, begin + offset, is_write);
  }
}

void note_copy(const Lane& lane, const void* shared, int64_t bytes, bool begins) {
  const auto* begin = static_cast<const char*>(shared);
  for (int64_t offset = 0; offset < bytes; offset += kCellBytes) {
    Access& copy = cell_at(reinterpret_cast<uintptr_t>(begin + offset)).copy;
    if (!begins) {
      copy = {};
    }
    note_cell(lane, begin + offset, true);
    if (begins) {
      copy = {launch, lane};
    }
  }
}

}  // namespace mmlocalattn::emulation

// The calls that the compiler makes.
extern "C" {

#define MMLOCALATTN_ACCESS(bytes)                                                                 \
  void __tsan_read##bytes(void* address) { mmlocalattn::emulation::note(address, bytes, false); } \
  void __tsan_write##bytes(void* address) { mmlocalattn::emulation::note(address, bytes, true); } \
  void __tsan_unaligned_read##bytes(void* address) { __tsan_read##bytes(address); }               \
  void __tsan_unaligned_write##bytes(void* address) { __tsan_write##bytes(address); }

MMLOCALATTN_ACCESS(1)
MMLOCALATTN_ACCESS(2)
MMLOCALATTN_ACCESS(4)
MMLOCALATTN_ACCESS(8)
MMLOCALATTN_ACCESS(16)

void __tsan_read_range(void* address, size_t bytes) {
  mmlocalattn::emulation::note(address, bytes, false);
}
void __tsan_write_range(void* address, size_t bytes) {
  mmlocalattn::emulation::note(address, bytes, true);
}

void __tsan_init() {}
void __tsan_func_entry(void*) {}
void __tsan_func_exit() {}
void __tsan_vptr_update(void**, void*) {}
void __tsan_vptr_read(void**) {}

// Atomics occur in the host's code only, such as a tensor's reference count.
#define MMLOCALATTN_ATOMIC(bits, type)                                                             \
  type __tsan_atomic##bits##_load(const volatile type* a, int) {                                   \
    return __atomic_load_n(a, __ATOMIC_SEQ_CST);                                                   \
  }                                                                                                \
  void __tsan_atomic##bits##_store(volatile type* a, type v, int) {                                \
    __atomic_store_n(a, v, __ATOMIC_SEQ_CST);                                                      \
  }                                                                                                \
  type __tsan_atomic##bits##_fetch_add(volatile type* a, type v, int) {                            \
    return __atomic_fetch_add(a, v, __ATOMIC_SEQ_CST);                                             \
  }                                                                                                \
  type __tsan_atomic##bits##_fetch_sub(volatile type* a, type v, int) {                            \
    return __atomic_fetch_sub(a, v, __ATOMIC_SEQ_CST);                                             \
  }                                                                                                \
  int __tsan_atomic##bits##_compare_exchange_strong(volatile type* a, type* c, type v, int, int) { \
    return __atomic_compare_exchange_n(a, c, v, false, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST);        \
  }                                                                                                \
  int __tsan_atomic##bits##_compare_exchange_weak(volatile type* a, type* c, type v, int, int) {   \
    return __atomic_compare_exchange_n(a, c, v, false, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST);        \
  }

MMLOCALATTN_ATOMIC(8, uint8_t)
MMLOCALATTN_ATOMIC(32, uint32_t)
MMLOCALATTN_ATOMIC(64, uint64_t)

}  // extern "C"
