// Finds races: two accesses to the same byte, one of them a write, that no barrier separates.
//
// Built with -DEMULATOR_RACES -fsanitize=thread, but without that sanitizer's library: the calls
// that the compiler puts before every access come here. Of shared memory every access is checked,
// in each block: __syncthreads orders all threads of it, __syncwarp those of a warp, shuffles
// none. Of global memory those of vec.cuh are: a byte that one block of a launch writes belongs to
// no other block.
#pragma once

#ifdef EMULATOR_RACES

#include <cstdint>
#include <cstdlib>
#include <map>
#include <string>

#include "emulator/scheduler.h"

namespace emulator {

class Races {
 public:
  EMULATOR_UNCHECKED void begin_launch() { ++launch_; }
  EMULATOR_UNCHECKED void begin_block() { ++block_; }

  EMULATOR_UNCHECKED void access(const void* address, size_t bytes, bool write) {
    if (busy_) return;  // by the check itself
    if (!scheduler.may_be_shared(address)) return;
    busy_ = true;
    if (scheduler.in_kernel() && scheduler.is_shared(address)) {
      for (size_t i = 0; i < bytes; ++i) shared(reinterpret_cast<uint64_t>(address) + i, write);
    }
    busy_ = false;
  }

  EMULATOR_UNCHECKED void global_access(const void* address, size_t bytes, bool write) {
    if (busy_) return;
    busy_ = true;
    if (scheduler.in_kernel() && !scheduler.is_shared(address)) {
      const uint64_t first = reinterpret_cast<uint64_t>(address);
      const size_t step =
          first % 4 == 0 && bytes % 4 == 0 ? 4 : 1;  // a tensor's elements are alike
      for (size_t i = 0; i < bytes; i += step) global(first + i, write);
    }
    busy_ = false;
  }

  // A line for each kind of race in each kernel, and its count; forgets them. First the bytes that
  // have been checked since the last call.
  EMULATOR_UNCHECKED const char* text() {
    busy_ = true;
    text_ = std::to_string(checked_) + "\n";
    for (const auto& [what, count] : found_) text_ += what + ": " + std::to_string(count) + "\n";
    found_.clear();
    checked_ = 0;
    busy_ = false;
    return text_.c_str();
  }

 private:
  // By whom, and after how many barriers of the block and of the warp. thread is 0 for nobody.
  struct Access {
    uint32_t thread, block_barriers, warp_barriers;
  };
  // The last write and the last reads by a thread, by another one, and by one of another warp.
  struct Shared {
    uint64_t address, block;
    Access write, reads[3];
  };
  struct Global {
    uint64_t address, launch;
    uint32_t block;  // that came last, plus 1
    bool written, by_several;
  };
  // Tables by address: a byte that falls on another's place takes it, so that a race may be missed.
  static constexpr size_t kShared = size_t{1} << 20;
  static constexpr size_t kGlobal = size_t{1} << 22;

  EMULATOR_UNCHECKED static bool unordered(const Access& before, const Access& now) {
    if (before.thread == 0 || before.thread == now.thread ||
        before.block_barriers != now.block_barriers) {
      return false;
    }
    const bool same_warp = (before.thread - 1) / 32 == (now.thread - 1) / 32;
    return !same_warp || before.warp_barriers == now.warp_barriers;
  }

  EMULATOR_UNCHECKED void shared(uint64_t address, bool write) {
    if (shared_ == nullptr) shared_ = static_cast<Shared*>(calloc(kShared, sizeof(Shared)));
    const uint32_t thread = scheduler.number();
    const Access now{thread + 1, scheduler.block_barriers(), scheduler.warp_barriers(thread / 32)};
    Shared& byte = shared_[(address ^ address >> 20) % kShared];
    if (byte.address != address || byte.block != block_) byte = {address, block_, {}, {}};
    ++checked_;
    if (unordered(byte.write, now)) report(write ? "write after write" : "read after write");
    if (write) {
      for (const Access& read : byte.reads) {
        if (unordered(read, now)) {
          report("write after read");
          break;
        }
      }
      byte.write = now;
      return;
    }
    Access* reads = byte.reads;
    if (reads[0].thread != now.thread) {
      if ((reads[0].thread - 1) / 32 != (reads[1].thread - 1) / 32) reads[2] = reads[1];
      reads[1] = reads[0];
    }
    reads[0] = now;
  }

  EMULATOR_UNCHECKED void global(uint64_t address, bool write) {
    if (global_ == nullptr) global_ = static_cast<Global*>(calloc(kGlobal, sizeof(Global)));
    const uint32_t block =
        static_cast<uint32_t>(blockIdx.x + gridDim.x * (blockIdx.y + gridDim.y * blockIdx.z)) + 1;
    Global& byte = global_[(address ^ address >> 22) % kGlobal];
    if (byte.address != address || byte.launch != launch_) {
      byte = {address, launch_, 0, false, false};
    }
    ++checked_;
    const bool other = byte.block != 0 && byte.block != block;
    byte.by_several |= other;
    if (other && byte.written) report(write ? "writes by two blocks" : "read of another block's");
    if (write && !byte.written && byte.by_several) report("write of what another block reads");
    byte.block = block;
    byte.written |= write;
  }

  EMULATOR_UNCHECKED void report(const char* kind) {
    const std::string place = scheduler.place();
    ++found_[place.substr(0, place.find(", block")) + ": " + kind];
  }

  Shared* shared_ = nullptr;  // raw memory: the checked code constructs nothing here
  Global* global_ = nullptr;
  uint64_t launch_ = 0, block_ = 0, checked_ = 0;
  std::map<std::string, uint64_t> found_;
  std::string text_;
  bool busy_ = false;
};

inline Races races;

}  // namespace emulator

#define EMULATOR_HOOK \
  extern "C" __attribute__((weak, visibility("hidden"), no_sanitize("thread"), noinline))
#define EMULATOR_ACCESS(name, bytes, write)         \
  EMULATOR_HOOK void __tsan_##name(void* address) { \
    emulator::races.access(address, bytes, write);  \
  }

EMULATOR_ACCESS(read1, 1, false)
EMULATOR_ACCESS(read2, 2, false)
EMULATOR_ACCESS(read4, 4, false)
EMULATOR_ACCESS(read8, 8, false)
EMULATOR_ACCESS(read16, 16, false)
EMULATOR_ACCESS(write1, 1, true)
EMULATOR_ACCESS(write2, 2, true)
EMULATOR_ACCESS(write4, 4, true)
EMULATOR_ACCESS(write8, 8, true)
EMULATOR_ACCESS(write16, 16, true)
EMULATOR_ACCESS(unaligned_read2, 2, false)
EMULATOR_ACCESS(unaligned_read4, 4, false)
EMULATOR_ACCESS(unaligned_read8, 8, false)
EMULATOR_ACCESS(unaligned_read16, 16, false)
EMULATOR_ACCESS(unaligned_write2, 2, true)
EMULATOR_ACCESS(unaligned_write4, 4, true)
EMULATOR_ACCESS(unaligned_write8, 8, true)
EMULATOR_ACCESS(unaligned_write16, 16, true)
EMULATOR_HOOK void __tsan_read_range(void* address, unsigned long bytes) {
  emulator::races.access(address, bytes, false);
}
EMULATOR_HOOK void __tsan_write_range(void* address, unsigned long bytes) {
  emulator::races.access(address, bytes, true);
}
EMULATOR_HOOK void __tsan_init() {}
EMULATOR_HOOK void __tsan_func_entry(void*) {}
EMULATOR_HOOK void __tsan_func_exit() {}
EMULATOR_HOOK void __tsan_vptr_update(void**, void*) {}
EMULATOR_HOOK void __tsan_vptr_read(void**) {}

// What the standard library's and the emulator's own atomics become.
EMULATOR_HOOK int __tsan_atomic32_fetch_add(volatile int* at, int value, int) {
  return __sync_fetch_and_add(at, value);
}
EMULATOR_HOOK int __tsan_atomic32_fetch_sub(volatile int* at, int value, int) {
  return __sync_fetch_and_sub(at, value);
}
EMULATOR_HOOK int __tsan_atomic32_load(const volatile int* at, int) {
  return *at;
}
EMULATOR_HOOK void __tsan_atomic32_store(volatile int* at, int value, int) {
  *at = value;
}
EMULATOR_HOOK int __tsan_atomic32_exchange(volatile int* at, int value, int) {
  return __sync_lock_test_and_set(at, value);
}
EMULATOR_HOOK bool __tsan_atomic32_compare_exchange_strong(volatile int* at, int* expected,
                                                           int value, int, int) {
  const int before = __sync_val_compare_and_swap(at, *expected, value);
  const bool swapped = before == *expected;
  *expected = before;
  return swapped;
}
EMULATOR_HOOK char __tsan_atomic8_load(const volatile char* at, int) {
  return *at;
}
EMULATOR_HOOK void __tsan_atomic8_store(volatile char* at, char value, int) {
  *at = value;
}
EMULATOR_HOOK long __tsan_atomic64_load(const volatile long* at, int) {
  return *at;
}
EMULATOR_HOOK void __tsan_atomic64_store(volatile long* at, long value, int) {
  *at = value;
}
EMULATOR_HOOK long __tsan_atomic64_fetch_add(volatile long* at, long value, int) {
  return __sync_fetch_and_add(at, value);
}

// For ctypes: see Races::text.
extern "C" inline __attribute__((used, visibility("default"), no_sanitize("thread"))) const char*
emulator_races() {
  return emulator::races.text();
}

#endif
