#include "fabric/exit_guard.h"

#include <cstdlib>
#include <mutex>
#include <vector>

#include "fabric/limits.h"

namespace fabrickv::fabric {
namespace {

struct Guarded {
  std::mutex mutex;
  std::vector<std::shared_ptr<SharedState>> rails;
  int handlers = 0;
};

// Never destroyed: the handler and the threads may come late.
Guarded& guarded() {
  static auto* instance = new Guarded();
  return *instance;
}

// Enough for the first rails of each provider; more would only pile up.
constexpr int kHandlersMax = 8;

void stop_all() {
  std::vector<std::shared_ptr<SharedState>> rails;
  {
    const std::scoped_lock lock(guarded().mutex);
    rails = guarded().rails;
  }
  for (const auto& rail : rails) {
    rail->stop.store(true, std::memory_order_release);
    rail->wake_fd.notify();
  }
  const Clock::time_point deadline = Clock::now() + kExitTimeout;
  for (const auto& rail : rails) {
    std::unique_lock lock(rail->finished_mutex);
    rail->finished_changed.wait_until(lock, deadline, [&] { return rail->finished; });
  }
}

}  // namespace

void guard_exit(const std::shared_ptr<SharedState>& shared) {
  const std::scoped_lock lock(guarded().mutex);
  guarded().rails.push_back(shared);
}

void unguard_exit(const SharedState& shared) {
  const std::scoped_lock lock(guarded().mutex);
  std::erase_if(guarded().rails, [&](const auto& rail) { return rail.get() == &shared; });
}

void renew_exit_handler() {
  const std::scoped_lock lock(guarded().mutex);
  if (guarded().handlers == kHandlersMax) return;
  // It can only fail without memory, and then the exit is merely less graceful.
  if (std::atexit(stop_all) == 0) guarded().handlers++;
}

}  // namespace fabrickv::fabric
