// Runs the lanes of a block as fibers: see emulation_intrinsics.h. A lane runs until it waits for
// others or ends, so that a run is deterministic; what another order could change, races.cpp finds.
#include "emulator.h"

#include <sys/mman.h>
#include <ucontext.h>

#include <algorithm>
#include <map>
#include <memory>
#include <sstream>
#include <stdexcept>
#include <string>
#include <string_view>
#include <vector>

#include "emulation_intrinsics.h"

#ifdef MMLOCALATTN_ADDRESS_SANITIZER
#include <sanitizer/common_interface_defs.h>
#endif

EmulatedIndex threadIdx, blockIdx, blockDim, gridDim;

// The linker's: this library from its first byte to its last variable.
extern const char __ehdr_start[] __attribute__((visibility("hidden")));
extern const char _end[] __attribute__((visibility("hidden")));

namespace mmlocalattn::emulation {
namespace {

constexpr int kMostThreads = 1024;
constexpr int64_t kMostSharedBytes = 99 << 10;  // the least of compute capability 8.0 and newer
constexpr size_t kStackBytes = 128 << 10;
constexpr int kCopyBytes = 16;
constexpr int kPoison = 0xff;  // four of these bytes are NaN, as are two

using JumpTarget = void* [5];  // of __builtin_setjmp, which costs no system call

struct Copy {
  void* shared;
  const void* global;  // null: zeros
};

struct Fiber : Lane {
  enum State { kReady, kWaitsForWarp, kWaitsForBlock, kDone };

  State state;
  const char* operation;
  uintptr_t call_site;  // of the operation
  void* mine;
  void (*perform)(void* const* lanes);
  std::vector<Copy> copies;               // not in a group yet
  std::vector<std::vector<Copy>> groups;  // oldest first
  bool has_started;
  ucontext_t start;
  JumpTarget resume;
  void* fake_stack;  // AddressSanitizer's
};

// Of the running kernel.
const std::function<void()>* body;
std::vector<Fiber> fibers(kMostThreads);
Fiber* current;  // null: the scheduler runs
std::string error;
JumpTarget scheduler;
char* dynamic_memory;
int64_t dynamic_bytes;
const void* running_kernel;

std::map<const void*, std::string> names;
std::map<const void*, int64_t> launches;

char* stacks() {
  static char* const memory =
      static_cast<char*>(mmap(nullptr, kMostThreads * kStackBytes, PROT_READ | PROT_WRITE,
                              MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0));
  return memory;
}

char* stack_of(const Fiber& fiber) { return stacks() + fiber.thread * kStackBytes; }

// Tell AddressSanitizer to which stack execution goes, and that it has arrived.
#ifdef MMLOCALATTN_ADDRESS_SANITIZER
const void* scheduler_stack;
size_t scheduler_stack_bytes;

void leave(void** fake_stack, const void* stack, size_t bytes) {
  __sanitizer_start_switch_fiber(fake_stack, stack, bytes);
}
void arrive_in_fiber(void* fake_stack) {
  __sanitizer_finish_switch_fiber(fake_stack, &scheduler_stack, &scheduler_stack_bytes);
}
void arrive_in_scheduler(void* fake_stack) {
  __sanitizer_finish_switch_fiber(fake_stack, nullptr, nullptr);
}
#else
constexpr const void* scheduler_stack = nullptr;
constexpr size_t scheduler_stack_bytes = 0;

void leave(void**, const void*, size_t) {}
void arrive_in_fiber(void*) {}
void arrive_in_scheduler(void*) {}
#endif

// A function of its own: in the one that saves a target, __builtin_longjmp has no defined meaning.
__attribute__((noinline)) void jump(JumpTarget& target) { __builtin_longjmp(target, 1); }

__attribute__((noinline)) void resume(Fiber& fiber) {
  void* fake_stack = nullptr;
  current = &fiber;
  threadIdx = {static_cast<unsigned>(fiber.thread), 0, 0};
  leave(&fake_stack, stack_of(fiber), kStackBytes);
  if (__builtin_setjmp(scheduler) == 0) {
    if (fiber.has_started) {
      jump(fiber.resume);
    }
    fiber.has_started = true;
    setcontext(&fiber.start);
  }
  arrive_in_scheduler(fake_stack);
  current = nullptr;
}

__attribute__((noinline)) void go_to_scheduler() {
  leave(&current->fake_stack, scheduler_stack, scheduler_stack_bytes);
  if (__builtin_setjmp(current->resume) == 0) {
    jump(scheduler);
  }
  arrive_in_fiber(current->fake_stack);
}

void run_fiber() {
  arrive_in_fiber(nullptr);
  (*body)();
  current->state = Fiber::kDone;
  current->operation = "end of the kernel";
  current->call_site = 0;
  leave(nullptr, scheduler_stack, scheduler_stack_bytes);
  jump(scheduler);
}

void start(Fiber& fiber, int thread, int64_t block) {
  static_cast<Lane&>(fiber) = {thread, block, 0, 0};
  fiber.state = Fiber::kReady;
  fiber.copies.clear();
  fiber.groups.clear();
  fiber.has_started = false;
  fiber.fake_stack = nullptr;
  getcontext(&fiber.start);
  fiber.start.uc_stack.ss_sp = stack_of(fiber);
  fiber.start.uc_stack.ss_size = kStackBytes;
  makecontext(&fiber.start, run_fiber, 0);
}

bool is_between(const void* address, const void* begin, const void* end) {
  const auto number = [](const void* pointer) { return reinterpret_cast<uintptr_t>(pointer); };
  return number(address) - number(begin) < number(end) - number(begin);
}

// A number that tells where the kernel waits, made of the return addresses from `frame` on to the
// first function of the fiber. Code that the compiler inlines twice is two places. Without the
// calls for races.cpp it also duplicates what follows a branch: then all places are one.
uintptr_t call_site_of(const Fiber& fiber, const void* frame) {
#ifndef MMLOCALATTN_CHECK_RACES
  return 0;
#endif
  struct Frame {
    const Frame* caller;
    uintptr_t return_address;
  };
  const char* const stack = stack_of(fiber);
  const auto is_frame = [&](const Frame* at) {
    return is_between(at, stack, stack + kStackBytes - sizeof(Frame));
  };
  uintptr_t site = 0;
  for (auto* at = static_cast<const Frame*>(frame); is_frame(at); at = at->caller) {
    site = 31 * site + at->return_address;
  }
  return site;
}

[[noreturn]] void report_divergence(const Fiber* warp) {
  std::map<uintptr_t, std::string> lanes;
  std::vector<uintptr_t> sites;
  for (int lane = 0; lane < kWarpSize; ++lane) {
    std::string& waiting = lanes[warp[lane].call_site];
    if (waiting.empty()) {
      sites.push_back(warp[lane].call_site);
      waiting = std::string(" ") + warp[lane].operation + " (lanes";
    }
    waiting += " " + std::to_string(lane);
  }
  std::string message =
      "lanes of warp " + std::to_string(warp->thread / kWarpSize) + " wait in different places:";
  for (const uintptr_t site : sites) {
    message += lanes[site] + ")";
  }
  fail(message);
}

// Until all lanes wait for other warps or have ended.
void run_warp(Fiber* warp) {
  for (;;) {
    for (int lane = 0; lane < kWarpSize; ++lane) {
      if (warp[lane].state == Fiber::kReady) {
        resume(warp[lane]);
        if (!error.empty()) {
          throw std::runtime_error(error);
        }
      }
    }
    for (int lane = 1; lane < kWarpSize; ++lane) {
      if (warp[lane].call_site != warp[0].call_site) {
        report_divergence(warp);
      }
    }
    if (warp->state != Fiber::kWaitsForWarp) {
      return;
    }
    void* lanes[kWarpSize];
    for (int lane = 0; lane < kWarpSize; ++lane) {
      lanes[lane] = warp[lane].mine;
      warp[lane].state = Fiber::kReady;
    }
    warp->perform(lanes);
  }
}

void run_block(int64_t block, int threads) {
  blockIdx = {static_cast<unsigned>(block), 0, 0};
  std::memset(dynamic_memory, kPoison, dynamic_bytes);
  for (int thread = 0; thread < threads; ++thread) {
    start(fibers[thread], thread, block);
  }
  for (bool is_done = false; !is_done;) {
    for (int thread = 0; thread < threads; thread += kWarpSize) {
      run_warp(&fibers[thread]);
    }
    is_done = true;
    for (int thread = 0; thread < threads; ++thread) {
      if (fibers[thread].state == Fiber::kWaitsForBlock) {
        is_done = false;
        fibers[thread].state = Fiber::kReady;
      }
    }
  }
}

void check_shared(const void* address, const char* operation) {
  if (!is_shared(address)) {
    fail(std::string(operation) + " of an address that is not in shared memory");
  }
  if (reinterpret_cast<uintptr_t>(address) % kCopyBytes != 0) {
    fail(std::string(operation) + " of an address that is no multiple of 16");
  }
}

void wait_for(Fiber::State what, const char* operation, uintptr_t call_site) {
  current->operation = operation;
  current->call_site = call_site + std::hash<std::string_view>()(operation);
  current->state = what;
  go_to_scheduler();
}

void finish(const Copy& copy) {
  if (copy.global == nullptr) {
    std::memset(copy.shared, 0, kCopyBytes);
  } else {
    std::memcpy(copy.shared, copy.global, kCopyBytes);
  }
  note_copy(*current, copy.shared, kCopyBytes, false);
}

}  // namespace

const Lane* current_lane() { return current; }

bool is_stack(const void* address) {
  return is_between(address, stacks(), stacks() + kMostThreads * kStackBytes);
}

// __shared__ variables are static ones of this library.
bool is_shared(const void* address) {
  return is_between(address, dynamic_memory, dynamic_memory + dynamic_bytes) ||
         is_between(address, __ehdr_start, _end);
}

void fail(const std::string& message) {
  const auto name = names.find(running_kernel);
  std::ostringstream text;
  text << (name == names.end() ? "unknown kernel" : name->second) << ", block " << blockIdx.x
       << ": " << message;
  if (current == nullptr) {
    throw std::runtime_error(text.str());
  }
  error = text.str();
  go_to_scheduler();
  __builtin_unreachable();
}

void run(const void* kernel, unsigned blocks, int threads, int64_t shared_bytes,
         const std::function<void()>& lane) {
  if (blocks == 0) {
    return;
  }
  running_kernel = kernel;
  ++launches[kernel];
  error.clear();
  current = nullptr;
  if (threads <= 0 || threads > kMostThreads || threads % kWarpSize != 0 || shared_bytes < 0 ||
      shared_bytes > kMostSharedBytes) {
    std::ostringstream text;
    text << "cannot launch blocks of " << threads << " threads with " << shared_bytes
         << " bytes of shared memory";
    fail(text.str());
  }
  gridDim = {blocks, 1, 1};
  blockDim = {static_cast<unsigned>(threads), 1, 1};
  // Not rounded up, so that AddressSanitizer sees where it ends.
  void* memory = nullptr;
  if (posix_memalign(&memory, kCopyBytes, shared_bytes) != 0) {
    throw std::bad_alloc();
  }
  const std::unique_ptr<void, decltype(&free)> owner(memory, free);
  dynamic_memory = static_cast<char*>(memory);
  dynamic_bytes = shared_bytes;
  body = &lane;
  note_launch();
  for (int64_t block = 0; block < blocks; ++block) {
    run_block(block, threads);
  }
}

void warp_together(const char* operation, void* mine, void (*perform)(void* const* lanes)) {
  current->mine = mine;
  current->perform = perform;
  wait_for(Fiber::kWaitsForWarp, operation, call_site_of(*current, __builtin_frame_address(0)));
}

void sync_warp() {
  current->mine = nullptr;
  current->perform = [](void* const*) {};
  wait_for(Fiber::kWaitsForWarp, "sync_warp", call_site_of(*current, __builtin_frame_address(0)));
  ++current->warp_phase;
}

void sync_block() {
  wait_for(Fiber::kWaitsForBlock, "sync_block", call_site_of(*current, __builtin_frame_address(0)));
  ++current->warp_phase;
  ++current->block_phase;
}

void* dynamic_shared() { return dynamic_memory; }

void copy_async_16(void* shared, const void* global, bool valid) {
  check_shared(shared, "copy_async_16");
  if (reinterpret_cast<uintptr_t>(global) % kCopyBytes != 0) {
    fail("copy_async_16 from an address that is no multiple of 16");
  }
  note_copy(*current, shared, kCopyBytes, true);
  std::memset(shared, kPoison, kCopyBytes);
  if (valid) {
    note_access(*current, global, kCopyBytes, false);
  }
  current->copies.push_back({shared, valid ? global : nullptr});
}

void copy_async_commit() {
  current->groups.push_back(std::move(current->copies));
  current->copies.clear();
}

void copy_async_wait(int pending) {
  auto& groups = current->groups;
  while (groups.size() > static_cast<size_t>(pending)) {
    std::for_each(groups.front().begin(), groups.front().end(), finish);
    groups.erase(groups.begin());
  }
}

void read_shared(const void* address, int bytes) {
  check_shared(address, "load_matrix");
  note_access(*current, address, bytes, false);
}

}  // namespace mmlocalattn::emulation

// For emulator.py. A kernel is the place of its code in this library.
extern "C" void emulation_name_kernel(size_t place, const char* name) {
  using namespace mmlocalattn::emulation;
  names[__ehdr_start + place] = name;
}

extern "C" int64_t emulation_launches(size_t place) {
  using namespace mmlocalattn::emulation;
  return launches[__ehdr_start + place];
}
