// What emulator.cpp and races.cpp know of each other.
#pragma once

#include <cstdint>
#include <string>

namespace mmlocalattn::emulation {

struct Lane {
  int thread;
  int64_t block;
  // Barriers that this lane has passed. What came before one is visible after it.
  int warp_phase, block_phase;
};

// Null where no kernel runs.
const Lane* current_lane();

bool is_stack(const void* address);
bool is_shared(const void* address);

// Ends the launch with an error that names the kernel.
[[noreturn]] void fail(const std::string& message);

// races.cpp has these if it checks, else they do nothing.
#ifdef MMLOCALATTN_CHECK_RACES
void note_launch();
void note_access(const Lane& lane, const void* address, int64_t bytes, bool is_write);
// A copy to shared memory begins or has arrived.
void note_copy(const Lane& lane, const void* shared, int64_t bytes, bool begins);
#else
inline void note_launch() {}
inline void note_access(const Lane&, const void*, int64_t, bool) {}
inline void note_copy(const Lane&, const void*, int64_t, bool) {}
#endif

}  // namespace mmlocalattn::emulation
