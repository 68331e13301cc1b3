#pragma once

#include <napi.h>

#include <cstdint>
#include <map>
#include <memory>

#include "binding/environment.h"

#ifdef FABRICKV_HAVE_LIBFABRIC
#include "fabric/rail.h"
#endif

namespace fabrickv::binding {

#ifdef FABRICKV_HAVE_LIBFABRIC

// A rail and whom to tell.
struct RailEntry {
  std::unique_ptr<fabric::Rail> rail;
  Napi::FunctionReference handler;
  uint64_t batches = 0;
  bool close_announced = false;
};

// The rails of one environment.
class RailTable {
 public:
  explicit RailTable(Environment& environment) : environment_(environment) {}

  uint64_t add(std::unique_ptr<fabric::Rail> rail, Napi::Function handler);
  // Null for one that is not there.
  RailEntry* find(uint64_t id);
  // Takes it out; its handler is not called any more.
  std::unique_ptr<fabric::Rail> take(uint64_t id);

  // Hands what has settled to JavaScript, a batch per call.
  void deliver();
  // The event loop stays alive exactly while something is pending.
  void update_liveness();
  // Stops every rail, newest first, and waits for their threads, seconds at most.
  void shut_down();

 private:
  bool deliver_batch(RailEntry& entry);

  Environment& environment_;
  std::map<uint64_t, std::shared_ptr<RailEntry>> rails_;
  uint64_t next_id_ = 1;
};

#else

// Without libfabric's headers there are no rails.
class RailTable {
 public:
  explicit RailTable(Environment&) {}
  void deliver() {}
  void shut_down() {}
};

#endif

}  // namespace fabrickv::binding
