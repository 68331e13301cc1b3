#pragma once

#include <array>
#include <atomic>
#include <cstdint>
#include <memory>
#include <vector>

#include "fabric/intrusive_list.h"
#include "fabric/libfabric.h"
#include "fabric/limits.h"
#include "fabric/patience.h"
#include "memory/mapping.h"

namespace fabrickv::fabric {

struct Peer;
struct Transfer;

// The objects below are shared by the two threads of a rail without a lock: a field belongs to the owner thread (the JS
// thread) until the command that names the object is pushed, then to the progress thread until the completion that
// names it is pushed. The rings' release and acquire order everything in between. Atomics can be read by either at any
// time.

// Where a write of no bytes is accepted.
struct FenceTarget {
  bool defined = false;
  uint64_t address = 0;
  uint64_t key = 0;
};

// How far a peer has got in the round of proof that is under way.
enum class Fence : uint8_t {
  // It has no part in it.
  kNone,
  // To be posted.
  kWanted,
  kPosted,
  // The connection has failed, or there is nowhere to post to: it has to be ended.
  kEnd,
};

// Who shares an address. libfabric has one connection per address, whoever of them it was made for.
struct AddressUse {
  std::vector<Peer*> peers;
  // How many times the address lingers in the vector without a peer.
  size_t lingering = 0;
};

// A peer in the address vector.
struct Peer : IntrusiveList<Peer>::Hook {
  // Owner thread.
  uint64_t id = 0;
  bool live = false;
  // The first of the remote regions that were defined for it; an index into the owner's table.
  uint32_t first_remote = UINT32_MAX;

  uint32_t oldest_remote = UINT32_MAX;

  // Guarded by SharedState::fence_mutex: the remote region that fences and pings of our own go to, the one that was
  // defined first, since it is the likeliest to last.
  FenceTarget fence_target;

  // Handed over.
  std::array<uint8_t, kAddressBytesMax> address{};
  size_t address_length = 0;

  // Progress thread.
  size_t index = 0;
  fi_addr_t fi_addr = FI_ADDR_NOTAVAIL;
  bool removing = false;
  bool in_vector = false;
  // Whether anything was ever posted to it: rxm may then have begun to connect.
  bool posted = false;
  // While its connection is being ended: nothing is posted.
  bool paused = false;
  Fence fence = Fence::kNone;
  // Peer::connection when its fence was posted.
  uint64_t fence_connection = 0;
  Patience patience;
  // Whether a write to it has completed since it was last looked at.
  bool is_alive = false;
  // Whether an earlier look in this round has found no connection.
  bool was_put_off = false;
  AddressUse* use = nullptr;
  // Counts the connections that were closed after an error, so that the rest of their errors closes no later one.
  uint64_t connection = 0;
  uint32_t operations_in_flight = 0;
  uint64_t bytes_in_flight = 0;
  // Every transfer that has not settled, in no order.
  std::vector<Transfer*> transfers;
  // The transfers that have something to post and may, in turn.
  IntrusiveList<Transfer> runnable;
};

// A registered piece of a mapping.
struct Region {
  // Owner thread.
  uint64_t id = 0;
  bool live = false;

  // Handed over. The mapping is held until the owner has seen the region's close.
  std::shared_ptr<memory::Mapping> mapping;
  uint64_t offset = 0;
  uint64_t length = 0;
  bool remote_write = false;

  // Progress thread until the registration's completion, read by both afterwards.
  fid_mr* registration = nullptr;
  void* descriptor = nullptr;
  uint64_t remote_address = 0;
  uint64_t key = 0;

  // Progress thread.
  size_t index = 0;
  // Transfers whose source it is; a close waits for them.
  uint32_t users = 0;
  bool closing = false;
  int64_t close_token = 0;
};

// One contiguous piece of a write, its bounds checked, within one source registration.
struct Segment {
  std::byte* local = nullptr;
  void* descriptor = nullptr;
  uint64_t remote_address = 0;
  uint64_t key = 0;
  uint64_t length = 0;
};

// A write. Its vectors keep their capacity from use to use, so that a transfer allocates nothing once it is warm.
struct Transfer : IntrusiveList<Transfer>::Hook {
  // Owner thread.
  uint32_t slot = 0;
  uint64_t generation = 0;
  bool live = false;
  bool cancel_sent = false;
  // What keeps the sources mapped; cleared by the owner when it has read the completion.
  std::vector<std::shared_ptr<memory::Mapping>> mappings;

  // Handed over.
  uint64_t id = 0;
  Peer* peer = nullptr;
  std::vector<Segment> segments;
  std::vector<Region*> regions;

  // Written by the progress thread, read by both.
  std::atomic<uint64_t> bytes_completed{0};
  std::atomic<uint32_t> chunks_in_flight{0};

  // Progress thread.
  bool active = false;
  bool stopped = false;
  size_t segment = 0;
  uint64_t segment_offset = 0;
  // All bytes that were posted, and where the first chunk that failed begins.
  uint64_t bytes_posted = 0;
  uint64_t first_hole = UINT64_MAX;
  size_t index_in_peer = 0;
  std::unique_ptr<Error> error;

  bool exhausted() const { return segment == segments.size(); }
};

// A posted chunk. The provider keeps its own state in the context until the completion has been read.
struct Operation {
  fi_context2 context{};
  // Null when it is not in flight.
  Peer* peer = nullptr;
  // Null for a fence.
  Transfer* transfer = nullptr;
  // Where in the transfer it begins; of a fence, the number of its round.
  uint64_t offset = 0;
  uint64_t length = 0;
  // Peer::connection when it was posted.
  uint64_t connection = 0;
};

}  // namespace fabrickv::fabric
