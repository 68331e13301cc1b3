#include "waiter.h"

#include <poll.h>
#include <sched.h>

#include <algorithm>
#include <array>

namespace fabrickv::bench {

using fabric::Clock;

void Waiter::tune(uint32_t spin_us, bool block) {
  spin_ = std::chrono::microseconds(spin_us);
  block_ = block;
}

Clock::duration Waiter::spin_time() const {
  if (block_) return Clock::duration::zero();
  return short_sleeps_ >= fabric::kBusyStreak ? std::max<Clock::duration>(spin_, fabric::kBusySpin) : spin_;
}

bool Waiter::wait() {
  const bool has_fd = endpoint_.wait_fd() >= 0;
  const Clock::time_point before = Clock::now();
  if (before - last_activity_ < spin_time() || (has_fd && !endpoint_.may_sleep())) {
    sched_yield();
    return false;
  }
  std::array<pollfd, 2> fds = {{{endpoint_.wait_fd(), POLLIN, 0}, {other_fd_, POLLIN, 0}}};
  // poll passes over negative fds. Without one of the queue's, only time can wake us.
  poll(fds.data(), fds.size(), has_fd ? static_cast<int>(sleep_max_.count()) : 0);
  const Clock::time_point after = Clock::now();
  // As a target we see no completion of what arrives, so the wake-up itself counts as activity.
  if (fds[0].revents != 0) last_activity_ = after;
  if (after - before >= fabric::kBusySleep) {
    short_sleeps_ = 0;
  } else if (fds[0].revents != 0 || fds[1].revents != 0) {
    short_sleeps_ = std::min(short_sleeps_ + 1, fabric::kBusyStreak);
  }
  return fds[1].revents != 0;
}

}  // namespace fabrickv::bench
