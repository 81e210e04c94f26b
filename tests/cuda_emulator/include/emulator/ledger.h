// The traffic ledger: bytes that a launch's threads asked global memory for, and the distinct
// 32-byte sectors among them (what a perfect cache would move).
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "emulator/race.h"
#include "emulator/requests.h"
#include "emulator/scheduler.h"

namespace emulator {

// A set of sectors: an open-addressing table from page (4 KiB) to a bitmap of its 128 sectors.
class SectorSet {
 public:
  void add(const void* address, size_t bytes) {
    const auto first = reinterpret_cast<uintptr_t>(address) / kSectorBytes;
    const auto last = (reinterpret_cast<uintptr_t>(address) + bytes - 1) / kSectorBytes;
    for (uintptr_t sector = first; sector <= last; ++sector) {
      const uintptr_t page = sector / kSectorsPerPage;
      if (recent_ == nullptr || recent_->page != page) recent_ = &find(page);
      const unsigned bit = sector % kSectorsPerPage;
      recent_->bits[bit / 64] |= uint64_t{1} << bit % 64;
    }
  }

  int64_t size() const {
    int64_t count = 0;
    for (const Page& page : table_) {
      count += __builtin_popcountll(page.bits[0]) + __builtin_popcountll(page.bits[1]);
    }
    return count;
  }

 private:
  static constexpr uintptr_t kSectorBytes = 32;
  static constexpr uintptr_t kSectorsPerPage = 128;
  struct Page {
    uintptr_t page = 0;  // page 0 is never mapped, so it marks a free slot
    uint64_t bits[2] = {0, 0};
  };

  Page& find(uintptr_t page) {
    if (2 * used_ >= table_.size()) grow();
    Page& slot = probe(page);
    if (slot.page == 0) {
      slot.page = page;
      ++used_;
    }
    return slot;
  }

  Page& probe(uintptr_t page) {
    const size_t mask = table_.size() - 1;
    size_t at = (page * 0x9E3779B97F4A7C15u) >> 20 & mask;
    while (table_[at].page != 0 && table_[at].page != page) at = (at + 1) & mask;
    return table_[at];
  }

  void grow() {
    std::vector<Page> old(table_.empty() ? 1024 : 4 * table_.size());
    old.swap(table_);
    for (const Page& page : old) {
      if (page.page != 0) probe(page.page) = page;
    }
  }

  std::vector<Page> table_;
  size_t used_ = 0;
  Page* recent_ = nullptr;
};

struct Traffic {
  int64_t bytes = 0;
  int64_t widest = 0;  // bytes of the widest single access
  SectorSet sectors;
#ifdef EMULATOR_REQUESTS
  Requests requests;
#endif

  void count(const void* address, size_t size, size_t access) {
    bytes += static_cast<int64_t>(size);
    if (static_cast<int64_t>(access) > widest) widest = static_cast<int64_t>(access);
    sectors.add(address, size);
  }

  std::string json() const {
    return "{\"bytes\": " + std::to_string(bytes) +
           ", \"sectors\": " + std::to_string(sectors.size()) +
           ", \"widest_access\": " + std::to_string(widest) +
#ifdef EMULATOR_REQUESTS
           ", " + requests.json() +
#endif
           "}";
  }
};

struct Ledger {
  bool enabled = false;
  std::vector<std::string> launches;  // one JSON object each
  Traffic loads;                      // of the launch that runs
  Traffic stores;

  void begin_launch() { loads = stores = Traffic{}; }

#ifdef EMULATOR_REQUESTS
  void end_block() {
    loads.requests.end_block();
    stores.requests.end_block();
  }
#endif

  void end_launch(const std::string& kernel, dim3 grid, dim3 block, size_t shared_bytes) {
    auto text = [](dim3 v) {
      return "[" + std::to_string(v.x) + ", " + std::to_string(v.y) + ", " + std::to_string(v.z) +
             "]";
    };
    launches.push_back("{\"kernel\": \"" + kernel + "\", \"grid\": " + text(grid) +
                       ", \"block\": " + text(block) +
                       ", \"shared_bytes\": " + std::to_string(shared_bytes) +
                       ", \"load\": " + loads.json() + ", \"store\": " + stores.json() + "}");
  }
};

inline Ledger ledger;

// Called by every load and store of vec.cuh. An access that a GPU would fault on for its alignment
// fails here too, which x86-64 by itself would let pass.
inline void count_access(Traffic& traffic, const void* address, size_t bytes, size_t access) {
  if (reinterpret_cast<uintptr_t>(address) % access != 0) {
    scheduler.fail("misaligned access of " + std::to_string(access) + " bytes");
  }
  if (ledger.enabled && !scheduler.is_shared(address)) traffic.count(address, bytes, access);
}

#ifdef EMULATOR_REQUESTS
#define EMULATOR_COUNT __attribute__((noinline)) inline void
#define EMULATOR_REQUEST(traffic)                                                     \
  if (ledger.enabled && !scheduler.is_shared(address)) {                              \
    ledger.traffic.requests.add(__builtin_return_address(0), address, bytes, access); \
  }
#else
#define EMULATOR_COUNT inline void
#define EMULATOR_REQUEST(traffic)
#endif

EMULATOR_COUNT count_load(const void* address, size_t bytes, size_t access) {
#ifdef EMULATOR_RACES
  races.global_access(address, bytes, false);
#endif
  count_access(ledger.loads, address, bytes, access);
  EMULATOR_REQUEST(loads)
}

EMULATOR_COUNT count_store(const void* address, size_t bytes, size_t access) {
#ifdef EMULATOR_RACES
  races.global_access(address, bytes, true);
#endif
  count_access(ledger.stores, address, bytes, access);
  EMULATOR_REQUEST(stores)
}

}  // namespace emulator
