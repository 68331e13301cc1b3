#pragma once

#include <memory>

#include "fabric/shared_state.h"

namespace fabrickv::fabric {

// process.exit() calls exit() without running Node's environment clean-up hooks, and exit() runs the destructors of
// libfabric and of the libraries under it, which crash a progress thread that is inside them. So every rail is entered
// here before its thread starts, and an atexit handler stops those that are left, in bounded time, before the
// destructors run.
void guard_exit(const std::shared_ptr<SharedState>& shared);

// The rail's thread is about to end.
void unguard_exit(const SharedState& shared);

// Handlers run in the reverse order of their registration, so that ours runs before those which libfabric's libraries
// have registered meanwhile: called when libfabric has been loaded and when a rail has been opened. Thread-safe.
void renew_exit_handler();

}  // namespace fabrickv::fabric
