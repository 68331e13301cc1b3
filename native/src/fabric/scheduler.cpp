#include "fabric/scheduler.h"

#include <algorithm>
#include <array>
#include <cstring>
#include <utility>

namespace fabrickv::fabric {
namespace {

constexpr size_t kPollBatch = 64;

uint64_t chunk_limit(const RailInfo& info, const RailOptions& options) {
  return std::max<uint64_t>(1, std::min<uint64_t>(options.chunk_bytes, info.max_message_bytes));
}

}  // namespace

Scheduler::Scheduler(Endpoint& endpoint, SharedState& shared, Listener& listener)
    : endpoint_(endpoint),
      shared_(shared),
      listener_(listener),
      chunk_bytes_(chunk_limit(endpoint.info(), shared.options)),
      bytes_per_peer_(chunk_bytes_ * shared.options.chunks_in_flight_per_peer),
      chunks_per_transfer_(shared.options.chunks_in_flight),
      empty_flags_(FI_COMPLETION | FI_DELIVERY_COMPLETE |
                   (endpoint.info().provider.ends_with(";ofi_rxm") ? FI_INJECT : 0)),
      operations_(endpoint.info().transmit_credits) {
  free_operations_.reserve(operations_.size());
  for (Operation& operation : operations_) free_operations_.push_back(&operation);
}

void Scheduler::start(Transfer& transfer) {
  transfer.active = true;
  transfer.stopped = false;
  transfer.segment = 0;
  transfer.segment_offset = 0;
  transfer.bytes_posted = 0;
  transfer.first_hole = UINT64_MAX;
  transfer.index_in_peer = transfer.peer->transfers.size();
  transfer.peer->transfers.push_back(&transfer);
  for (Region* region : transfer.regions) region->users++;
  bump(shared_.counters.transfers_active);
  if (transfer.exhausted()) {
    settle_if_done(transfer);
  } else {
    enqueue(transfer);
  }
}

void Scheduler::stop(Transfer& transfer, std::unique_ptr<Error> error) {
  if (!transfer.active) return;
  transfer.stopped = true;
  IntrusiveList<Transfer>::remove(transfer);
  if (transfer.error == nullptr) transfer.error = std::move(error);
  settle_if_done(transfer);
}

void Scheduler::stop_all(Peer& peer, const Error& error) {
  // Settling takes a transfer out of the list and puts the last one in its place: backwards, every one is seen.
  for (size_t i = peer.transfers.size(); i > 0; i--) stop(*peer.transfers[i - 1], std::make_unique<Error>(error));
}

bool Scheduler::may_post(const Peer& peer) const {
  return !peer.runnable.empty() && !peer.removing && !peer.paused && peer.bytes_in_flight < bytes_per_peer_ &&
         peer.operations_in_flight < kOperationsPerPeerMax;
}

bool Scheduler::may_post(const Transfer& transfer) const {
  return !transfer.stopped && !transfer.exhausted() &&
         transfer.chunks_in_flight.load(std::memory_order_relaxed) < chunks_per_transfer_;
}

void Scheduler::enqueue(Transfer& transfer) {
  Peer& peer = *transfer.peer;
  if (transfer.list() == nullptr && may_post(transfer)) peer.runnable.push_back(transfer);
  enqueue(peer);
}

void Scheduler::enqueue(Peer& peer) {
  if (peer.list() == nullptr && may_post(peer)) ready_.push_back(peer);
}

bool Scheduler::post() {
  while (Peer* peer = stalled_.front()) {
    IntrusiveList<Peer>::remove(*peer);
    enqueue(*peer);
  }
  bool posted = false;
  while (!ready_.empty() && !free_operations_.empty()) {
    Peer& peer = *ready_.front();
    IntrusiveList<Peer>::remove(peer);
    if (!may_post(peer)) continue;
    Transfer& transfer = *peer.runnable.front();
    switch (post_chunk(transfer)) {
      case Posted::kPutOff:
        // The provider is connecting, or has no room for this peer; the others go on.
        stalled_.push_back(peer);
        last_trouble_ = Clock::now();
        continue;
      case Posted::kFailed:
        IntrusiveList<Transfer>::remove(transfer);
        settle_if_done(transfer);
        break;
      case Posted::kYes:
        // To the back of its peer's list, if it may post more.
        IntrusiveList<Transfer>::remove(transfer);
        enqueue(transfer);
        break;
    }
    posted = true;
    enqueue(peer);
  }
  return posted;
}

Scheduler::Posted Scheduler::post_chunk(Transfer& transfer) {
  const Segment& segment = transfer.segments[transfer.segment];
  Operation& operation = *free_operations_.back();
  operation.offset = transfer.bytes_posted;
  operation.length = std::min(chunk_bytes_, segment.length - transfer.segment_offset);
  transfer.peer->posted = true;
  const ssize_t result =
      operation.length == 0 ? post_empty(transfer.peer->fi_addr, {true, segment.remote_address, segment.key}, operation)
                            : post_write(transfer, segment, operation);
  if (result == -FI_EAGAIN) {
    bump(shared_.counters.eagain);
    return Posted::kPutOff;
  }
  if (result != 0) {
    bump(shared_.counters.writes_failed);
    transfer.stopped = true;
    if (transfer.error == nullptr) transfer.error = make_error("fi_writemsg", static_cast<int>(-result));
    note_failure(*transfer.peer, transfer.peer->connection);
    return Posted::kFailed;
  }
  operation.transfer = &transfer;
  enter_flight(operation, *transfer.peer);
  transfer.chunks_in_flight.fetch_add(1, std::memory_order_relaxed);
  transfer.bytes_posted += operation.length;
  transfer.segment_offset += operation.length;
  if (transfer.segment_offset == segment.length) {
    transfer.segment++;
    transfer.segment_offset = 0;
  }
  bump(shared_.counters.writes_posted);
  return Posted::kYes;
}

// Only what is in flight has a peer.
void Scheduler::enter_flight(Operation& operation, Peer& peer) {
  operation.peer = &peer;
  operation.connection = peer.connection;
  free_operations_.pop_back();
  operations_in_flight_++;
  peer.operations_in_flight++;
  peer.bytes_in_flight += operation.length;
}

ssize_t Scheduler::post_write(const Transfer& transfer, const Segment& segment, Operation& operation) {
  const iovec local = {segment.local + transfer.segment_offset, operation.length};
  const fi_rma_iov remote = {segment.remote_address + transfer.segment_offset, operation.length, segment.key};
  void* descriptor = segment.descriptor;
  fi_msg_rma message{};
  message.msg_iov = &local;
  message.desc = descriptor == nullptr ? nullptr : &descriptor;
  message.iov_count = 1;
  message.addr = transfer.peer->fi_addr;
  message.rma_iov = &remote;
  message.rma_iov_count = 1;
  message.context = &operation.context;
  // Asked for per operation: one provider ignores tx_attr->op_flags. Without FI_DELIVERY_COMPLETE, tcp completes writes
  // that have not arrived, and a bad key often reports success.
  return fi_writemsg(endpoint_.ep(), &message, FI_COMPLETION | FI_DELIVERY_COMPLETE);
}

ssize_t Scheduler::post_fence(Peer& peer, const FenceTarget& target, uint64_t round) {
  if (free_operations_.empty()) return -FI_ENOBUFS;
  Operation& operation = *free_operations_.back();
  operation.offset = round;
  operation.length = 0;
  const ssize_t result = post_empty(peer.fi_addr, target, operation);
  if (result == 0) enter_flight(operation, peer);
  return result;
}

bool Scheduler::poll(std::unique_ptr<Error>& fatal) {
  std::array<fi_cq_data_entry, kPollBatch> entries;
  const ssize_t count = fi_cq_read(endpoint_.cq(), entries.data(), entries.size());
  if (count > 0) {
    for (ssize_t i = 0; i < count; i++) {
      void* context = entries[static_cast<size_t>(i)].op_context;
      if (context != nullptr) complete(*reinterpret_cast<Operation*>(context), nullptr);
    }
    return true;
  }
  if (count == -FI_EAVAIL) return read_error(fatal);
  if (count == 0 || count == -FI_EAGAIN || count == -FI_EINTR) return false;
  fatal = make_error("fi_cq_read", static_cast<int>(-count));
  return false;
}

bool Scheduler::read_error(std::unique_ptr<Error>& fatal) {
  fi_cq_err_entry entry{};
  const ssize_t count = fi_cq_readerr(endpoint_.cq(), &entry, 0);
  if (count == -FI_EAGAIN || count == 0) return false;
  if (count < 0) {
    fatal = make_error("fi_cq_readerr", static_cast<int>(-count));
    return false;
  }
  auto error = make_error("fi_writemsg", entry.err);
  error->provider_errno = entry.prov_errno;
  std::array<char, 256> buffer{};
  const char* text = fi_cq_strerror(endpoint_.cq(), entry.prov_errno, entry.err_data, buffer.data(), buffer.size());
  if (text != nullptr) error->provider_text = text;
  if (endpoint_.info().efa) efa::explain(*error);
  // Without a context it is the endpoint's own trouble (a refused connection, say); the operations are told separately.
  if (entry.op_context != nullptr) complete(*reinterpret_cast<Operation*>(entry.op_context), std::move(error));
  return true;
}

void Scheduler::complete(Operation& operation, std::unique_ptr<Error> error) {
  if (operation.peer == nullptr) return;
  Peer& peer = *std::exchange(operation.peer, nullptr);
  free_operations_.push_back(&operation);
  operations_in_flight_--;
  peer.operations_in_flight--;
  peer.bytes_in_flight -= operation.length;
  if (operation.transfer == nullptr) {
    if (error != nullptr) note_failure(peer, operation.connection);
    listener_.on_fenced(peer, operation.connection, operation.offset, error == nullptr);
    enqueue(peer);
    return;
  }
  Transfer& transfer = *std::exchange(operation.transfer, nullptr);
  transfer.chunks_in_flight.fetch_sub(1, std::memory_order_relaxed);
  if (error == nullptr) {
    peer.is_alive = true;
    bump(shared_.counters.writes_completed);
    bump(shared_.counters.bytes_written, operation.length);
    transfer.bytes_completed.fetch_add(operation.length, std::memory_order_relaxed);
  } else {
    bump(shared_.counters.writes_failed);
    transfer.stopped = true;
    transfer.first_hole = std::min(transfer.first_hole, operation.offset);
    IntrusiveList<Transfer>::remove(transfer);
    if (transfer.error == nullptr) transfer.error = std::move(error);
    note_failure(peer, operation.connection);
  }
  enqueue(transfer);
  settle_if_done(transfer);
  enqueue(peer);
}

void Scheduler::note_failure(Peer& peer, uint64_t connection) {
  last_trouble_ = Clock::now();
  if (connection != peer.connection || peer.removing) return;
  peer.connection++;
  listener_.on_connection_failed(peer);
}

void Scheduler::settle_if_done(Transfer& transfer) {
  if (transfer.chunks_in_flight.load(std::memory_order_relaxed) > 0) return;
  if (!transfer.stopped && !transfer.exhausted()) return;
  Peer& peer = *transfer.peer;
  peer.transfers[transfer.index_in_peer] = peer.transfers.back();
  peer.transfers[transfer.index_in_peer]->index_in_peer = transfer.index_in_peer;
  peer.transfers.pop_back();
  transfer.active = false;
  // Everything that was posted has come back: what is not behind the first hole, and was posted, has arrived.
  if (transfer.error != nullptr) {
    transfer.error->landed_bytes = std::min(transfer.first_hole, transfer.bytes_posted);
  }
  drop(shared_.counters.transfers_active);
  listener_.on_settled(transfer);
}

ssize_t Scheduler::probe(fi_addr_t address) {
  return post_empty(address, {}, probe_);
}

ssize_t Scheduler::post_empty(fi_addr_t address, const FenceTarget& target, Operation& operation) {
  const fi_rma_iov remote = {target.address, 0, target.key};
  fi_msg_rma message{};
  // No local piece at all: of an empty one verbs would still want a descriptor. Without one rxm has to be told to take
  // it from a buffer of its own (FI_INJECT; with FI_COMPLETION it still asks for delivery:
  // rxm_ep_rma_emulate_inject_msg), since verbs reads the first descriptor even of none (vrb_send_iov, 1.17 to 2.x): a
  // segmentation fault.
  message.addr = address;
  message.rma_iov = &remote;
  message.rma_iov_count = 1;
  message.context = &operation.context;
  return fi_writemsg(endpoint_.ep(), &message, empty_flags_);
}

void Scheduler::forget_in_flight() {
  for (Operation& operation : operations_) {
    if (operation.peer != nullptr) complete(operation, make_error("fi_close", FI_ECANCELED));
  }
}

std::unique_ptr<Error> Scheduler::make_error(const char* call, int error_number) const {
  auto error = std::make_unique<Error>();
  error->code = ErrorCode::kTransferFailed;
  error->call = call;
  error->error_number = error_number;
  error->text = endpoint_.library().error_text(error_number);
  error->provider = endpoint_.info().provider;
  return error;
}

}  // namespace fabrickv::fabric
