#pragma once

#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <deque>
#include <functional>
#include <memory>
#include <mutex>

#include "fabric/endpoint.h"
#include "fabric/messages.h"
#include "fabric/spsc_ring.h"
#include "fabric/transfer.h"
#include "fabric/wake_fd.h"

namespace fabrickv::fabric {

struct RailOptions {
  EndpointQuery query;
  // Spin longer than spin_us while the rail is busy.
  bool spin_auto = true;
  uint32_t spin_us = 50;
  uint64_t chunk_bytes = uint64_t{1} << 20;
  // Of one transfer.
  uint32_t chunks_in_flight = 4;
  // To one peer, in full chunks: the limit is this times chunk_bytes.
  uint32_t chunks_in_flight_per_peer = 4;
  // Demand registered sources of a provider that needs none; for tests.
  bool force_local_registration = false;
  // Behave as where only closing the endpoint proves anything; for tests.
  bool force_close_endpoint = false;
  // The CPU that the progress thread is bound to; none when negative.
  int cpu = -1;
};

// Written by the progress thread unless the comment says otherwise; read by anyone.
struct Counters {
  std::atomic<int64_t> heartbeat_ms{0};
  std::atomic<uint64_t> writes_posted{0};
  std::atomic<uint64_t> writes_completed{0};
  std::atomic<uint64_t> writes_failed{0};
  std::atomic<uint64_t> bytes_written{0};
  std::atomic<uint64_t> eagain{0};
  std::atomic<uint64_t> registrations{0};
  std::atomic<uint64_t> deregistrations{0};
  std::atomic<uint64_t> regions_open{0};
  std::atomic<uint64_t> peers{0};
  std::atomic<uint64_t> transfers_active{0};
  std::atomic<uint64_t> wakeups{0};
  std::atomic<uint64_t> sleeps{0};
  std::atomic<uint64_t> close_failures{0};
  std::atomic<uint64_t> proofs{0};
  std::atomic<uint64_t> peers_disconnected{0};
  std::atomic<uint64_t> connections_ended{0};
};

inline void bump(std::atomic<uint64_t>& counter, uint64_t by = 1) {
  // One writer, so no locked instruction is needed.
  counter.store(counter.load(std::memory_order_relaxed) + by, std::memory_order_relaxed);
}

inline void drop(std::atomic<uint64_t>& counter) {
  counter.store(counter.load(std::memory_order_relaxed) - 1, std::memory_order_relaxed);
}

inline int64_t milliseconds(Clock::time_point time) {
  return std::chrono::duration_cast<std::chrono::milliseconds>(time.time_since_epoch()).count();
}

// What the two threads of a rail share. Held by both, so that a progress thread that had to be left behind finds it
// alive.
struct SharedState {
  SharedState(const Libfabric& with_library, RailOptions with_options, std::function<void()> on_wake)
      : library(with_library),
        options(std::move(with_options)),
        wake(std::move(on_wake)),
        commands(kCommandRing),
        completions(kCompletionRing) {}

  const Libfabric& library;
  const RailOptions options;
  // Called on the progress thread when completions have been pushed and the owner has not been woken since it last
  // drained.
  const std::function<void()> wake;

  // Filled in before kOpened is pushed, constant afterwards.
  RailInfo info;
  Counters counters;

  SpscRing<Command> commands;
  SpscRing<Completion> completions;
  std::atomic<bool> owner_woken{false};

  WakeFd wake_fd;
  // Whether the progress thread is about to sleep or sleeps, so that commands need to notify it.
  std::atomic<bool> sleeping{false};
  // False when the endpoint could not be closed over operations in flight. Valid once kClosed is pushed.
  std::atomic<bool> sources_are_free{true};
  // Set by the owner, once: close everything and end.
  std::atomic<bool> stop{false};

  // Objects never move and are never freed before the rail is.
  std::deque<Peer> peers;
  std::deque<Region> regions;
  std::deque<Transfer> transfers;

  // Guards Peer::fence_target. Held for a copy by either thread.
  std::mutex fence_mutex;

  std::mutex finished_mutex;
  std::condition_variable finished_changed;
  bool finished = false;
};

}  // namespace fabrickv::fabric
