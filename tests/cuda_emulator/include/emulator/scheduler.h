// Runs a grid on one OS thread: blocks one after the other, the threads of a block as fibers that
// switch only where a thread must wait for others (a barrier, a warp collective).
//
// A thread that never waits costs no switch: a fiber runs thread after thread until one waits,
// and only then the next thread gets a fiber of its own. A waiting thread hands over directly to
// the next thread that can go on. When none can and not all have exited, some barrier will never
// be reached by a thread that should: the launch fails and says who waits where.
#pragma once

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <numeric>
#include <random>
#include <string>
#include <vector>

#include "emulator/fiber.h"
#include "emulator/image.h"
#include "vector_types.h"

// What a kernel sees; set whenever a thread goes on.
inline uint3 threadIdx;
inline uint3 blockIdx;
inline dim3 blockDim;
inline dim3 gridDim;
constexpr int warpSize = 32;

// Not seen by the check of races, where a build has it.
#define EMULATOR_UNCHECKED __attribute__((no_sanitize("thread")))

namespace emulator {

constexpr unsigned kWarp = 32;
constexpr unsigned kMaxThreads = 1024;

// Visits 0..n-1: first, first + step, first + 2 step, ... modulo n. That is forward, reverse and,
// with a random first and a random step coprime to n, shuffled.
struct Order {
  uint64_t n;
  uint64_t next;
  uint64_t step;

  uint64_t take() {
    const uint64_t at = next;
    next += step;
    if (next >= n) next -= n;
    return at;
  }
};

class Orders {
 public:
  Order over(uint64_t n) {
    if (kind_ == kForward || n == 1) return {n, 0, 1};
    if (kind_ == kReverse) return {n, n - 1, n - 1};
    uint64_t step = 0;
    do {
      step = 1 + random_() % (n - 1);
    } while (std::gcd(step, n) != 1);
    return {n, random_() % n, step};
  }

  // "forward", "reverse", "shuffled" or "shuffled:SEED"; false for anything else.
  bool set(const std::string& name) {
    const std::string shuffled = "shuffled";
    if (name == "forward") {
      kind_ = kForward;
    } else if (name == "reverse") {
      kind_ = kReverse;
    } else if (name == shuffled || name.rfind(shuffled + ":", 0) == 0) {
      kind_ = kShuffled;
      const std::string seed = name == shuffled ? "1" : name.substr(shuffled.size() + 1);
      random_.seed(static_cast<unsigned>(std::strtoul(seed.c_str(), nullptr, 10)));
    } else {
      return false;
    }
    return true;
  }

 private:
  enum { kForward, kReverse, kShuffled } kind_ = kForward;
  std::minstd_rand random_{1};
};

// What a thread can wait at.
enum class Wait : uint8_t {
  kNothing,
  kSyncwarp,
  kShfl,
  kShflUp,
  kShflDown,
  kShflXor,
  kBallot,
  kAny,
  kAll,
  kMatchAny,
  kMatchAll,
  kSyncthreads,
  kSyncthreadsCount,
  kSyncthreadsAnd,
  kSyncthreadsOr,
};

inline const char* name_of(Wait wait) {
  constexpr const char* kNames[] = {"nothing",
                                    "__syncwarp",
                                    "__shfl_sync",
                                    "__shfl_up_sync",
                                    "__shfl_down_sync",
                                    "__shfl_xor_sync",
                                    "__ballot_sync",
                                    "__any_sync",
                                    "__all_sync",
                                    "__match_any_sync",
                                    "__match_all_sync",
                                    "__syncthreads",
                                    "__syncthreads_count",
                                    "__syncthreads_and",
                                    "__syncthreads_or"};
  return kNames[static_cast<int>(wait)];
}

struct Thread {
  uint3 index;
  bool exited;
  Wait wait;
  uint8_t source;     // the lane that a shuffle reads
  uint32_t mask;      // the lanes that take part in a warp collective
  uint64_t value;     // what the thread brings to it
  uint64_t received;  // what it takes away
  Fiber* fiber;       // while it waits
};

// 0xff bytes are a NaN in every floating type.
inline void fill_with_garbage(const Range& range) {
  if (range.size > 0) std::memset(range.begin, 0xff, range.size);
}

class Scheduler {
 public:
  Orders orders;

  // Runs the grid; returns what went wrong, if anything. invoke(arguments) is one thread's work.
  std::string run(const void* kernel, dim3 grid, dim3 block, size_t shared_bytes,
                  void (*invoke)(void*), void* arguments, void (*begin_block)()) {
    kernel_ = kernel;
    invoke_ = invoke;
    arguments_ = arguments;
    failure_.clear();
    gridDim = grid;
    blockDim = block;
    num_threads_ = block.x * block.y * block.z;
    threads_.resize(kMaxThreads);
    adopt_stack(outside_);
    // An allocation of its own and of the exact size, so that AddressSanitizer guards its end.
    void* shared = nullptr;
    if (shared_bytes > 0 && posix_memalign(&shared, 1024, shared_bytes) != 0)
      throw std::bad_alloc();
    dynamic_shared_ = {static_cast<char*>(shared), shared_bytes};
    static_shared_ = hull(image().shared());
    const uint64_t blocks = uint64_t{grid.x} * grid.y * grid.z;
    Order order = orders.over(blocks);
    for (uint64_t i = 0; i < blocks && failure_.empty(); ++i) {
      const uint64_t block_number = order.take();
      blockIdx.x = static_cast<unsigned>(block_number % grid.x);
      blockIdx.y = static_cast<unsigned>(block_number / grid.x % grid.y);
      blockIdx.z = static_cast<unsigned>(block_number / grid.x / grid.y);
      begin_block();
      run_block();
    }
    dynamic_shared_ = {nullptr, 0};
    std::free(shared);
    return failure_;
  }

  void* dynamic_shared() const { return dynamic_shared_.begin; }

  bool is_shared(const void* address) const {
    if (dynamic_shared_.holds(address)) return true;
    for (const Range& range : image().shared()) {
      if (range.holds(address)) return true;
    }
    return false;
  }

  // Quickly, for almost every address that is not; race.h asks at every access.
  EMULATOR_UNCHECKED bool may_be_shared(const void* address) const {
    const auto within = [address](const Range& range) EMULATOR_UNCHECKED {
      return static_cast<size_t>(static_cast<const char*>(address) - range.begin) < range.size;
    };
    return within(dynamic_shared_) || within(static_shared_);
  }

  bool in_kernel() const { return current_ != nullptr; }

  // Of the thread that runs, in its block.
  unsigned number() const { return static_cast<unsigned>(current_ - threads_.data()); }

  // How many barriers the block, and a warp, has passed since the launch began.
  uint32_t block_barriers() const { return block_barriers_; }
  uint32_t warp_barriers(unsigned warp) const { return warp_barriers_[warp]; }

  // Ends the launch from inside a kernel.
  [[noreturn]] void fail(const std::string& why) {
    failure_ = why + " in " + place() + ", thread " + text(current_->index);
    hand_over(outside_);
    std::abort();  // an abandoned fiber never goes on
  }

  unsigned lane() const { return number() % kWarp; }

  // The lanes of the warp that have not exited. On a GPU lanes on another branch are missing too;
  // a correct kernel cannot rely on either.
  uint32_t active_lanes() const {
    const unsigned first = number() / kWarp * kWarp;
    uint32_t lanes = 0;
    for (unsigned i = 0; i < kWarp && first + i < num_threads_; ++i) {
      lanes |= uint32_t{!threads_[first + i].exited} << i;
    }
    return lanes;
  }

  // Waits until every lane of mask has called the same collective with the same mask; returns the
  // calling lane's result.
  __attribute__((noinline)) uint64_t collective(Wait wait, uint32_t mask, uint64_t value = 0,
                                                unsigned source = 0) {
    Thread& self = *current_;
    const unsigned warp = number() / kWarp;
    const uint32_t bit = 1u << number() % kWarp;
    if (!(mask & bit)) fail(std::string(name_of(wait)) + " by a lane that its mask leaves out");
    self.wait = wait;
    self.source = static_cast<uint8_t>(source);
    self.mask = mask;
    self.value = value;
    waiting_lanes_[warp] |= bit;
    Thread* lanes = &threads_[warp * kWarp];
    if ((waiting_lanes_[warp] & mask) == mask && all_joined(lanes, wait, mask)) {
      if (wait == Wait::kSyncwarp) ++warp_barriers_[warp];
      exchange(lanes, wait, mask);
      waiting_lanes_[warp] &= ~mask;
      release(lanes, kWarp, mask);
    } else {
      give_way();
    }
    return self.received;
  }

  // Waits until every thread of the block is here; returns how many brought a true predicate.
  __attribute__((noinline)) uint64_t barrier(Wait wait, bool predicate = false) {
    Thread& self = *current_;
    if (arrived_ > 0 && barrier_ != wait) {
      fail(std::string(name_of(wait)) + " where other threads wait at " + name_of(barrier_));
    }
    barrier_ = wait;
    self.wait = wait;
    predicates_ += predicate;
    if (++arrived_ == num_threads_) {
      ++block_barriers_;
      for (unsigned i = 0; i < num_threads_; ++i) threads_[i].received = predicates_;
      arrived_ = 0;
      predicates_ = 0;
      release(threads_.data(), num_threads_, ~0u);
    } else {
      give_way();
    }
    return self.received;
  }

  // Name of the kernel that runs and its block, for messages.
  std::string place() const { return image().kernel_name(kernel_) + ", block " + text(blockIdx); }

 private:
  // Threads that can go on, first come first served; none is in it twice.
  class Queue {
   public:
    bool empty() const { return head_ == tail_; }
    void push(Thread* thread) { threads_[tail_++ % kMaxThreads] = thread; }
    Thread* pop() { return threads_[head_++ % kMaxThreads]; }
    void clear() { head_ = tail_ = 0; }

   private:
    Thread* threads_[kMaxThreads];
    unsigned head_ = 0;
    unsigned tail_ = 0;
  };

  template <class Ranges>
  static Range hull(const Ranges& ranges) {
    Range all{nullptr, 0};
    for (const Range& range : ranges) {
      if (range.size == 0) continue;
      char* const begin = all.size > 0 ? std::min(all.begin, range.begin) : range.begin;
      char* const end = std::max(all.begin + all.size, range.begin + range.size);
      all = {begin, static_cast<size_t>(end - begin)};
    }
    return all;
  }

  static std::string text(uint3 v) {
    return "(" + std::to_string(v.x) + ", " + std::to_string(v.y) + ", " + std::to_string(v.z) +
           ")";
  }

  static std::string hex(uint32_t mask) {
    char buffer[16];
    std::snprintf(buffer, sizeof(buffer), "0x%08x", mask);
    return buffer;
  }

  void run_block() {
    for (const Range& range : image().shared()) fill_with_garbage(range);
    fill_with_garbage(dynamic_shared_);
    Thread* thread = threads_.data();
    for (unsigned z = 0; z < blockDim.z; ++z) {
      for (unsigned y = 0; y < blockDim.y; ++y) {
        for (unsigned x = 0; x < blockDim.x; ++x, ++thread) {
          thread->index = {x, y, z};
          thread->exited = false;
          thread->wait = Wait::kNothing;
        }
      }
    }
    unstarted_ = orders.over(num_threads_);
    started_ = exited_ = arrived_ = 0;
    predicates_ = 0;
    ready_.clear();
    std::memset(waiting_lanes_, 0, sizeof(waiting_lanes_));

    running_ = &outside_;
    hand_over(idle_fiber());
    current_ = nullptr;

    if (failure_.empty() && exited_ != num_threads_) failure_ = deadlock();
    if (!failure_.empty()) {
      idle_ = fibers_;
      for (Fiber* fiber : fibers_) reset_fiber(*fiber, &fiber_main);
    }
  }

  static void fiber_main();

  // What every fiber does: start threads, one after the other, while no waiting thread can go on.
  [[noreturn]] void run_threads() {
    for (;;) {
      while (ready_.empty() && started_ < num_threads_) {
        ++started_;
        current_ = &threads_[unstarted_.take()];
        threadIdx = current_->index;
        invoke_(arguments_);
        current_->exited = true;
        ++exited_;
      }
      idle_.push_back(running_);
      hand_over(ready_.empty() ? outside_ : *ready_.pop()->fiber);
    }
  }

  // Lets other threads run until the calling one is released.
  void give_way() {
    Thread* self = current_;
    self->fiber = running_;
    hand_over(!ready_.empty()           ? *ready_.pop()->fiber
              : started_ < num_threads_ ? idle_fiber()
                                        : outside_);
    current_ = self;
    threadIdx = self->index;
  }

  void hand_over(Fiber& next) {
    Fiber& self = *running_;
    running_ = &next;
    switch_fiber(self, next);
  }

  Fiber& idle_fiber() {
    if (idle_.empty()) {
      fibers_.push_back(new_fiber(static_cast<int>(fibers_.size())));
      reset_fiber(*fibers_.back(), &fiber_main);
      return *fibers_.back();
    }
    Fiber* fiber = idle_.back();
    idle_.pop_back();
    return *fiber;
  }

  // The threads of mask go on; the calling one does so without a switch.
  void release(Thread* threads, unsigned n, uint32_t mask) {
    Order order = orders.over(n);
    for (unsigned i = 0; i < n; ++i) {
      const uint64_t at = order.take();
      if (n == kWarp && !(mask >> at & 1)) continue;
      threads[at].wait = Wait::kNothing;
      if (&threads[at] != current_) ready_.push(&threads[at]);
    }
  }

  bool all_joined(const Thread* lanes, Wait wait, uint32_t mask) {
    for (uint32_t rest = mask; rest != 0; rest &= rest - 1) {
      const Thread& thread = lanes[__builtin_ctz(rest)];
      if (thread.mask != mask) return false;  // it waits with other lanes first
      if (thread.wait != wait) {
        fail(std::string(name_of(wait)) + " where lane " + std::to_string(__builtin_ctz(rest)) +
             " of its mask waits at " + name_of(thread.wait));
      }
    }
    return true;
  }

  static void exchange(Thread* lanes, Wait wait, uint32_t mask) {
    uint64_t same = 0;
    for (uint32_t rest = mask; rest != 0; rest &= rest - 1) {
      Thread& thread = lanes[__builtin_ctz(rest)];
      switch (wait) {
        case Wait::kShfl:
        case Wait::kShflUp:
        case Wait::kShflDown:
        case Wait::kShflXor:
          // a lane outside the mask has nothing defined to give
          thread.received = mask >> thread.source & 1 ? lanes[thread.source].value : ~uint64_t{0};
          break;
        case Wait::kBallot:
        case Wait::kAny:
        case Wait::kAll:
          if (rest == mask) same = lanes_with(1, lanes, mask);
          thread.received = same;
          break;
        case Wait::kMatchAny:
        case Wait::kMatchAll:
          thread.received = lanes_with(thread.value, lanes, mask);
          break;
        default:
          break;
      }
    }
  }

  static uint32_t lanes_with(uint64_t value, const Thread* lanes, uint32_t mask) {
    uint32_t found = 0;
    for (uint32_t rest = mask; rest != 0; rest &= rest - 1) {
      const int i = __builtin_ctz(rest);
      found |= uint32_t{lanes[i].value == value} << i;
    }
    return found;
  }

  std::string deadlock() const {
    std::string message = "deadlock in " + place() + ": ";
    unsigned first = 0;
    while (threads_[first].exited) ++first;
    const Thread& thread = threads_[first];
    if (thread.wait >= Wait::kSyncthreads) {
      return message + std::to_string(arrived_) + " of " + std::to_string(num_threads_) +
             " threads wait at " + name_of(thread.wait) + " (the first is " + text(thread.index) +
             "), " + std::to_string(exited_) + " have exited, " +
             std::to_string(num_threads_ - arrived_ - exited_) + " wait elsewhere";
    }
    const unsigned warp = first / kWarp;
    uint32_t here = 0;
    uint32_t exited = 0;
    uint32_t elsewhere = 0;
    for (unsigned i = 0; i < kWarp && warp * kWarp + i < num_threads_; ++i) {
      const Thread& lane = threads_[warp * kWarp + i];
      const bool joined = lane.wait == thread.wait && lane.mask == thread.mask;
      (lane.exited ? exited : joined ? here : elsewhere) |= 1u << i;
    }
    message += "lanes " + hex(here) + " of warp " + std::to_string(warp) + " wait at " +
               name_of(thread.wait) + " with mask " + hex(thread.mask) + ", lanes " + hex(exited) +
               " have exited, lanes " + hex(elsewhere) + " wait elsewhere";
    const uint32_t absent = thread.mask & ~(here | exited | elsewhere);
    return absent == 0 ? message : message + ", lanes " + hex(absent) + " do not exist";
  }

  const void* kernel_ = nullptr;
  void (*invoke_)(void*) = nullptr;
  void* arguments_ = nullptr;
  std::string failure_;
  unsigned num_threads_ = 0;  // of a block
  Range dynamic_shared_{nullptr, 0};

  std::vector<Thread> threads_;
  Order unstarted_{1, 0, 1};
  unsigned started_ = 0;
  unsigned exited_ = 0;
  Queue ready_;
  Thread* current_ = nullptr;

  Fiber outside_;  // the stack that run was called on
  Fiber* running_ = nullptr;
  std::vector<Fiber*> fibers_;
  std::vector<Fiber*> idle_;  // those that hold no thread

  uint32_t waiting_lanes_[kMaxThreads / kWarp] = {};
  Range static_shared_{nullptr, 0};  // and what lies in between
  uint32_t block_barriers_ = 0;
  uint32_t warp_barriers_[kMaxThreads / kWarp] = {};
  Wait barrier_ = Wait::kNothing;  // that arrived_ threads wait at
  unsigned arrived_ = 0;
  uint64_t predicates_ = 0;
};

inline Scheduler scheduler;

inline void Scheduler::fiber_main() {
#ifdef __SANITIZE_ADDRESS__
  __sanitizer_finish_switch_fiber(nullptr, nullptr, nullptr);
#endif
  scheduler.run_threads();
}

}  // namespace emulator
