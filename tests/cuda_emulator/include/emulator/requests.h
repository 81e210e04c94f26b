// Requests of warps: what one load or store instruction asks of the memory for all lanes together.
//
// In builds with -DEMULATOR_REQUESTS. Lanes run one after the other here, so an instruction is
// taken to be the k-th access of each lane of a warp at one place in the code; a wide Vec is as
// many instructions as words. A request moves whole sectors of 32 bytes: the fewest that its bytes,
// each once, would fit in is the ideal.
#pragma once

#ifdef EMULATOR_REQUESTS

#include <algorithm>
#include <cstdint>
#include <string>
#include <tuple>
#include <vector>

#include "emulator/scheduler.h"

namespace emulator {

class Requests {
 public:
  void add(const void* site, const void* address, size_t bytes, size_t access) {
    for (size_t word = 0; word < bytes; word += access) {
      accesses_.push_back({reinterpret_cast<uintptr_t>(site) + word / access,
                           reinterpret_cast<uintptr_t>(address) + word,
                           static_cast<uint32_t>(access), scheduler.number(), 0});
    }
  }

  // Every block counts for itself.
  void end_block() {
    const auto by_lane = [](const Access& a, const Access& b) {
      return std::tie(a.site, a.thread) < std::tie(b.site, b.thread);
    };
    std::stable_sort(accesses_.begin(), accesses_.end(), by_lane);
    for (size_t i = 1; i < accesses_.size(); ++i) {
      if (!by_lane(accesses_[i - 1], accesses_[i])) accesses_[i].visit = accesses_[i - 1].visit + 1;
    }
    const auto request_of = [](const Access& a) {
      return std::make_tuple(a.site, a.thread / kWarp, a.visit);
    };
    std::sort(accesses_.begin(), accesses_.end(), [&](const Access& a, const Access& b) {
      return std::make_tuple(request_of(a), a.address) < std::make_tuple(request_of(b), b.address);
    });
    for (auto first = accesses_.begin(); first != accesses_.end();) {
      const auto last = std::find_if(first, accesses_.end(), [&](const Access& access) {
        return request_of(access) != request_of(*first);
      });
      uintptr_t end = 0;   // of the bytes that have been counted
      uintptr_t next = 0;  // sector
      int64_t bytes = 0;
      for (; first != last; ++first) {
        const uintptr_t after = first->address + first->bytes;
        bytes += after - std::max(first->address, std::min(end, after));
        const uintptr_t sector = std::max(first->address / kSector, next);
        const uintptr_t last_sector = (after - 1) / kSector;
        if (last_sector >= sector) sectors_ += last_sector + 1 - sector;
        next = std::max(next, last_sector + 1);
        end = std::max(end, after);
      }
      ++requests_;
      ideal_ += (bytes + kSector - 1) / kSector;
    }
    accesses_.clear();
  }

  std::string json() const {
    return "\"requests\": " + std::to_string(requests_) +
           ", \"request_sectors\": " + std::to_string(sectors_) +
           ", \"ideal_sectors\": " + std::to_string(ideal_);
  }

 private:
  static constexpr int64_t kSector = 32;
  struct Access {
    uintptr_t site, address;
    uint32_t bytes, thread, visit;
  };

  std::vector<Access> accesses_;  // of the block that runs
  int64_t requests_ = 0;
  int64_t sectors_ = 0;
  int64_t ideal_ = 0;
};

}  // namespace emulator

#endif
