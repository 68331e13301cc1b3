#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "fabric/endpoint.h"
#include "fabric/shared_state.h"

namespace fabrickv::fabric {

// Splits transfers into chunks and posts them, peer by peer and then transfer by transfer, within the limits of the
// provider, the transfer and the peer. Belongs to the progress thread.
class Scheduler {
 public:
  // What the scheduler tells its owner.
  class Listener {
   public:
    virtual ~Listener() = default;
    // A transfer has settled; it is not touched afterwards.
    virtual void on_settled(Transfer& transfer) = 0;
    // A write to this peer has failed, and with it the connection that it was posted on, if the provider has
    // connections. Told once per connection.
    virtual void on_connection_failed(Peer& peer) = 0;
    // The peer has answered its fence, or the connection has failed first.
    virtual void on_fenced(Peer& peer, uint64_t connection, uint64_t round, bool answered) = 0;
  };

  Scheduler(Endpoint& endpoint, SharedState& shared, Listener& listener);

  // Takes a transfer over. One that has nothing to write settles at once.
  void start(Transfer& transfer);

  // Posts nothing more of it. It settles with the error that came first, when nothing of it is in flight.
  void stop(Transfer& transfer, std::unique_ptr<Error> error);

  // Stops every transfer of a peer.
  void stop_all(Peer& peer, const Error& error);

  // Posts what may be posted. True if anything was.
  bool post();

  // Reads up to a batch of completions. True if there were any; `fatal` when the queue itself has failed.
  bool poll(std::unique_ptr<Error>& fatal);

  // The peer may be posted to again.
  void resume(Peer& peer) { enqueue(peer); }

  // Posts a write of no bytes whose completion on_fenced() tells: 0, -FI_EAGAIN when there is no connection (in which
  // case one is begun), -FI_ENOBUFS when there is no credit just now, or another negative errno.
  ssize_t post_fence(Peer& peer, const FenceTarget& target, uint64_t round);

  // Takes a peer that is being removed, and has nothing in flight, out of every list.
  void detach(Peer& peer) { IntrusiveList<Peer>::remove(peer); }

  // Posts a write of no bytes that no target accepts, and returns what libfabric says: it tells whether there is a
  // connection. To be followed by the peer's removal, which ends it.
  ssize_t probe(fi_addr_t address);

  // The endpoint is closed and its queue will not be read: whatever is in flight has ended.
  void forget_in_flight();

  uint32_t operations_in_flight() const { return operations_in_flight_; }
  // Whether the provider put posts off that are waiting to be tried again.
  bool has_stalled() const { return !stalled_.empty(); }
  // When something last failed or was put off, and so may be connecting again.
  Clock::time_point last_trouble() const { return last_trouble_; }

 private:
  enum class Posted { kYes, kPutOff, kFailed };

  bool may_post(const Peer& peer) const;
  bool may_post(const Transfer& transfer) const;
  void enqueue(Transfer& transfer);
  void enqueue(Peer& peer);
  Posted post_chunk(Transfer& transfer);
  ssize_t post_write(const Transfer& transfer, const Segment& segment, Operation& operation);
  ssize_t post_empty(fi_addr_t address, const FenceTarget& target, Operation& operation);
  void enter_flight(Operation& operation, Peer& peer);
  void complete(Operation& operation, std::unique_ptr<Error> error);
  void note_failure(Peer& peer, uint64_t connection);
  void settle_if_done(Transfer& transfer);
  bool read_error(std::unique_ptr<Error>& fatal);
  std::unique_ptr<Error> make_error(const char* call, int error_number) const;

  Endpoint& endpoint_;
  SharedState& shared_;
  Listener& listener_;
  const uint64_t chunk_bytes_;
  const uint64_t bytes_per_peer_;
  const uint32_t chunks_per_transfer_;
  // Of writes of no bytes.
  const uint64_t empty_flags_;

  std::vector<Operation> operations_;
  std::vector<Operation*> free_operations_;
  uint32_t operations_in_flight_ = 0;
  // Peers that can post, in turn.
  IntrusiveList<Peer> ready_;
  // Peers that were put off in this round.
  IntrusiveList<Peer> stalled_;
  Clock::time_point last_trouble_{};
  // The context of probes: it has no transfer, so their completions mean nothing.
  Operation probe_;
};

}  // namespace fabrickv::fabric
