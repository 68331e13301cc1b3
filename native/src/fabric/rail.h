#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <thread>
#include <utility>
#include <vector>

#include "fabric/local_regions.h"
#include "fabric/shared_state.h"

namespace fabrickv::fabric {

// A settled command or transfer, as the owner sees it.
struct Outcome {
  CompletionKind kind = CompletionKind::kTransfer;
  // Of a command; kOpenToken and kFailureToken for the two that nobody asked for.
  int64_t token = 0;
  // The transfer, region or peer.
  uint64_t id = 0;
  uint64_t remote_address = 0;
  uint64_t key = 0;
  std::unique_ptr<Error> error;
};

constexpr int64_t kOpenToken = -1;
constexpr int64_t kFailureToken = -2;
// For the owner's own use, when closed() has become true.
constexpr int64_t kClosedToken = -3;

// One piece of a write, as the caller names it.
struct WritePiece {
  std::shared_ptr<memory::Mapping> mapping;
  uint64_t local_offset = 0;
  uint64_t remote = 0;
  uint64_t remote_offset = 0;
  uint64_t length = 0;
};

// A rail as its owner sees it: the tables, the checks, and the two rings to the progress thread. Everything here runs
// on one thread, the owner's (the JS thread), and nothing blocks except join().
//
// Calls that are answered by a completion return its token; a call that cannot even be made returns its error at once.
class Rail {
 public:
  // Starts the progress thread, which opens the endpoint and then completes kOpened. `wake` is called on that thread
  // when there is something to drain; once per drain. Null when no thread can be started.
  static std::unique_ptr<Rail> open(const Libfabric& library, RailOptions options, std::function<void()> wake,
                                    Error& error);
  // Stops and joins, bounded as in join().
  ~Rail();
  Rail(const Rail&) = delete;
  Rail& operator=(const Rail&) = delete;

  // Constant after kOpened has been drained.
  const RailInfo& info() const { return shared_->info; }
  const Counters& counters() const { return shared_->counters; }
  // Commands and transfers that have not been drained.
  size_t pending() const { return pending_; }

  using Token = std::optional<int64_t>;
  Token register_region(std::shared_ptr<memory::Mapping> mapping, uint64_t offset, uint64_t length, bool remote_write,
                        Error& error);
  Token deregister_region(uint64_t region, Error& error);
  Token insert_peer(std::span<const uint8_t> address, Error& error);
  Token remove_peer(uint64_t peer, Error& error);
  Token disconnect_peer(uint64_t peer, Error& error);
  Token prove(Error& error);

  // Answered at once: the id of the remote region.
  std::optional<uint64_t> define_remote(uint64_t peer, uint64_t address, uint64_t key, uint64_t length, Error& error);
  bool forget_remote(uint64_t remote);

  // Answered by kTransfer: the id of the transfer.
  std::optional<uint64_t> write(uint64_t peer, std::span<const WritePiece> pieces, Error& error);
  // A write of no bytes, answered like any other.
  std::optional<uint64_t> ping(uint64_t peer, uint64_t remote, Error& error);
  // False when there is nothing to cancel, or no room in the ring just now.
  bool cancel(uint64_t transfer);
  // 0 for a transfer that has settled.
  uint64_t bytes_completed(uint64_t transfer) const;
  uint32_t chunks_in_flight(uint64_t transfer) const;

  // Tells the progress thread to close everything; it completes whatever is pending and then kClosed. Idempotent.
  void close();

  bool closing() const { return closing_; }

  // Takes up to outcomes.size() of what has settled, and returns how many. kClosed is not handed out: see closed().
  size_t drain(std::span<Outcome> outcomes);
  // Whether the progress thread has closed everything and all of it has been drained.
  bool closed() const { return closed_ && leftovers_.empty(); }

  // Waits for the progress thread to end, at most `limit`. A thread that hangs in libfabric is left behind, with the
  // memory that it uses, and false is returned. Not for the JS thread, except when the environment ends.
  bool join(Clock::duration limit);

 private:
  struct Remote {
    uint64_t id = 0;
    bool live = false;
    uint32_t peer_slot = 0;
    uint64_t address = 0;
    uint64_t key = 0;
    uint64_t length = 0;
    // The peer's other remote regions.
    uint32_t previous = UINT32_MAX;
    uint32_t next = UINT32_MAX;
  };

  explicit Rail(std::shared_ptr<SharedState> shared) : shared_(std::move(shared)) {}

  // May something be begun; may something be ended.
  bool may_begin(const char* call, Error& error) const { return may_start(call, kPendingBeginnings, error); }
  bool may_end(const char* call, Error& error) const { return may_start(call, kPendingMax, error); }
  bool may_start(const char* call, size_t pending_max, Error& error) const;
  int64_t send(CommandKind kind, void* object);
  void notify() const;
  void strike_remote(uint32_t slot);
  void set_oldest_remote(Peer& peer, uint32_t slot);
  uint64_t launch(Transfer& transfer, Peer& peer);
  Remote* find_remote(uint64_t id);
  Peer* find_peer(uint64_t id);
  Transfer* find_transfer(uint64_t id) const;
  Transfer& take_transfer();
  void give_back(Transfer& transfer);
  bool add_piece(Transfer& transfer, uint32_t peer_slot, const WritePiece& piece, Error& error);
  bool add_registered(Transfer& transfer, const WritePiece& piece, const Remote& remote, Error& error);
  Outcome settle(Completion completion);
  void settle_leftovers();

  std::shared_ptr<SharedState> shared_;
  std::thread thread_;
  bool closing_ = false;
  bool failed_ = false;
  bool closed_ = false;
  size_t pending_ = 0;
  int64_t next_token_ = kClosedToken - 1;

  // Slots that are free, by table. Ids are slot + generation * table size, so they are never reused.
  std::vector<uint32_t> free_peers_;
  std::vector<uint32_t> free_regions_;
  std::vector<uint32_t> free_remotes_;
  std::vector<uint32_t> free_transfers_;
  std::vector<Remote> remotes_;
  // Where the provider needs them.
  LocalRegions local_regions_;
  // Commands that the progress thread never took, to be answered by drain().
  std::vector<Completion> leftovers_;
};

}  // namespace fabrickv::fabric
