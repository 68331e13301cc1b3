#pragma once

#include <chrono>
#include <cstdint>

#include "fabric/endpoint.h"
#include "fabric/limits.h"

namespace fabrickv::bench {

// Waits for a completion queue as the product's progress thread does (native/src/fabric/progress_wait.cpp): spins for a
// while, yielding, then sleeps on the queue's fd. On few cores the way of waiting decides the rate, so both must have
// the same.
class Waiter {
 public:
  // `other_fd` ends a sleep too; -1: none.
  Waiter(fabric::Endpoint& endpoint, int other_fd) : endpoint_(endpoint), other_fd_(other_fd) {}

  void tune(uint32_t spin_us, bool block);
  void sleep_at_most(std::chrono::milliseconds limit) { sleep_max_ = limit; }

  // Something has completed.
  void note_activity() { last_activity_ = fabric::Clock::now(); }

  // Nothing has: yields or sleeps. True when other_fd has something to read.
  bool wait();

 private:
  fabric::Clock::duration spin_time() const;

  fabric::Endpoint& endpoint_;
  const int other_fd_;
  fabric::Clock::duration spin_ = std::chrono::microseconds(50);
  bool block_ = false;
  std::chrono::milliseconds sleep_max_ = fabric::kConnectingSleepMax;
  fabric::Clock::time_point last_activity_{};
  int short_sleeps_ = 0;
};

}  // namespace fabrickv::bench
