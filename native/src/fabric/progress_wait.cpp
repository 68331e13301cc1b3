// How a progress thread waits: it spins a little, yielding, and then sleeps on the queue's fd and the command eventfd
// together. Measured on two cores: sched_yield in the spin decides everything (0.2 GB/s without it, 1.0 with it, at 64
// KiB).

#include <poll.h>
#include <sched.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <cstdlib>
#include <utility>

#include "fabric/progress_thread.h"

namespace fabrickv::fabric {

void ProgressThread::wait() {
  if (now_ - last_activity_ < spin_time() || must_not_sleep()) {
    sched_yield();
    return;
  }
  shared_.sleeping.store(true, std::memory_order_relaxed);
  // Pairs with the fence in Rail::send: either we see the command, or its sender sees that we sleep.
  std::atomic_thread_fence(std::memory_order_seq_cst);
  const bool has_fd = endpoint_->wait_fd() >= 0;
  if (!shared_.commands.empty() || shared_.stop.load(std::memory_order_relaxed) ||
      (has_fd && !endpoint_->may_sleep())) {
    shared_.sleeping.store(false, std::memory_order_relaxed);
    sched_yield();
    return;
  }
  std::array<pollfd, 2> fds = {{{shared_.wake_fd.fd(), POLLIN, 0}, {endpoint_->wait_fd(), POLLIN, 0}}};
  const Clock::time_point before = Clock::now();
  const auto limit = std::chrono::duration_cast<std::chrono::milliseconds>(sleep_limit(before));
  bump(shared_.counters.sleeps);
  // Interrupted or refused, it returns early, and the loop goes round: there is nothing else to do about it.
  poll(fds.data(), has_fd ? 2 : 1, static_cast<int>(limit.count()));
  shared_.sleeping.store(false, std::memory_order_relaxed);
  const bool command_woke_us = (fds[0].revents & POLLIN) != 0;
  if (command_woke_us) shared_.wake_fd.drain();
  const Clock::time_point after = Clock::now();
  note_sleep(after - before, fds[1].revents != 0, command_woke_us, after);
}

bool ProgressThread::must_not_sleep() const {
  if (endpoint_->wait_fd() >= 0) return false;
  // Without an fd nobody wakes us for a completion, or for a peer's emulated write.
  return scheduler_->operations_in_flight() > 0 || remote_write_regions_ > 0;
}

Clock::duration ProgressThread::spin_time() const {
  const Clock::duration usual = std::chrono::microseconds(shared_.options.spin_us);
  return shared_.options.spin_auto && short_sleeps_ >= kBusyStreak ? std::max<Clock::duration>(usual, kBusySpin)
                                                                   : usual;
}

Clock::duration ProgressThread::sleep_limit(Clock::time_point now) const {
  // A removal that was reported waits for what may never come back.
  const bool removes = std::ranges::any_of(removals_, [](const Removal& removal) { return !removal.reported; });
  if (endpoint_->wait_fd() < 0 || scheduler_->has_stalled() || removes || !disconnections_.empty() ||
      !running_proofs_.empty()) {
    return kConnectingSleepMax;
  }
  const Clock::time_point trouble = std::max(last_connect_, scheduler_->last_trouble());
  if (now - trouble < kConnectingWindow) return kConnectingSleepMax;
  if (now - last_unexplained_wake_ < kUnexplainedWakeWindow) return kConnectingSleepMax;
  return kSleepMax;
}

void ProgressThread::note_sleep(Clock::duration slept, bool queue_woke_us, bool command_woke_us,
                                Clock::time_point now) {
  // As a target we see no completion of what arrives, so the wake-up itself counts as activity and is spun upon.
  if (queue_woke_us) last_activity_ = last_unexplained_wake_ = now;
  if (slept >= kBusySleep) {
    short_sleeps_ = 0;
  } else if (queue_woke_us || command_woke_us) {
    short_sleeps_ = std::min(short_sleeps_ + 1, kBusyStreak);
  }
}

void ProgressThread::push(CompletionKind kind, int64_t token, void* object, std::unique_ptr<Error> error) {
  Completion completion;
  completion.kind = kind;
  completion.token = token;
  switch (kind) {
    case CompletionKind::kRegistered:
    case CompletionKind::kDeregistered:
      completion.region = static_cast<Region*>(object);
      break;
    case CompletionKind::kPeerInserted:
    case CompletionKind::kPeerRemoved:
    case CompletionKind::kPeerDisconnected:
      completion.peer = static_cast<Peer*>(object);
      break;
    default:
      completion.transfer = static_cast<Transfer*>(object);
  }
  completion.error = error.release();
  // The owner never has more pending than the ring holds, so this cannot fail.
  if (!shared_.completions.push(completion)) std::abort();
  pushed_ = true;
}

void ProgressThread::wake_owner() {
  if (!std::exchange(pushed_, false)) return;
  // Pairs with the exchange in Rail::drain: whoever saw the flag set also sees what was pushed before.
  if (shared_.owner_woken.exchange(true, std::memory_order_acq_rel)) return;
  bump(shared_.counters.wakeups);
  shared_.wake();
}

Error ProgressThread::make_error(ErrorCode code, const char* call, int result) const {
  Error error;
  error.code = code;
  error.call = call;
  error.error_number = -result;
  error.text = shared_.library.error_text(result);
  error.provider = shared_.info.provider;
  return error;
}

Error ProgressThread::closed_error(const char* call) const {
  Error error;
  error.code = ErrorCode::kRailClosed;
  error.call = call;
  error.text = failure_ == nullptr ? "the rail is closed" : "the rail failed: " + failure_->text;
  error.provider = shared_.info.provider;
  return error;
}

}  // namespace fabrickv::fabric
