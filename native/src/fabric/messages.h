#pragma once

#include <cstdint>

#include "fabric/transfer.h"

namespace fabrickv::fabric {

enum class CommandKind : uint8_t {
  kRegister,
  kDeregister,
  kInsertPeer,
  kRemovePeer,
  kDisconnectPeer,
  kProve,
  kWrite,
  kCancel,
};

// From the owner thread to the progress thread. Which pointer is set follows from the kind.
struct Command {
  CommandKind kind = CommandKind::kWrite;
  // Names the completion; unused by writes, which are named by their transfer, and by cancels, which have none.
  int64_t token = 0;
  union {
    Region* region;
    Peer* peer;
    Transfer* transfer = nullptr;
  };
};

enum class CompletionKind : uint8_t {
  kOpened,
  // The rail failed by itself; everything else settles before.
  kFailed,
  // Closing is done: the last completion of a rail.
  kClosed,
  kRegistered,
  kDeregistered,
  kPeerInserted,
  kPeerRemoved,
  kPeerDisconnected,
  kProved,
  kTransfer,
};

// From the progress thread to the owner thread. `error` is owned by whoever holds the message, null on success.
struct Completion {
  CompletionKind kind = CompletionKind::kTransfer;
  int64_t token = 0;
  union {
    Region* region;
    Peer* peer;
    Transfer* transfer = nullptr;
  };
  Error* error = nullptr;
};

}  // namespace fabrickv::fabric
