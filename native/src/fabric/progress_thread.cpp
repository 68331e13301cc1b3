#include "fabric/progress_thread.h"

#include <sched.h>
#include <sys/random.h>

#include <algorithm>
#include <ranges>
#include <span>
#include <string>
#include <utility>

#include "fabric/exit_guard.h"

namespace fabrickv::fabric {
namespace {

constexpr int kCommandsPerRound = 256;
// Keys are random; two that collide in a narrow key space are tried again.
constexpr int kKeyAttempts = 16;

uint64_t random_key(size_t key_bytes) {
  uint64_t key = 0;
  // getrandom cannot fail for so few bytes once the kernel's pool is up; a key of 0 would collide and be tried again.
  [[maybe_unused]] const ssize_t got = getrandom(&key, sizeof key, 0);
  return key_bytes >= sizeof key ? key : key & ((uint64_t{1} << (8 * key_bytes)) - 1);
}

std::string registration_hint(int result, uint64_t length) {
  if (result == -FI_ENOMEM || result == -FI_EPERM) {
    return "registering " + std::to_string(length) +
           " bytes: raise the limit of locked memory (ulimit -l unlimited, or LimitMEMLOCK)";
  }
  if (result == -FI_EINVAL || result == -FI_ENOSPC) return "the device may limit the size or number of regions";
  return "";
}

template <typename T>
void enter(std::vector<T*>& table, T& element) {
  element.index = table.size();
  table.push_back(&element);
}

template <typename T>
void strike(std::vector<T*>& table, T& element) {
  table[element.index] = table.back();
  table[element.index]->index = element.index;
  table.pop_back();
}

}  // namespace

void ProgressThread::run() {
  shared_.counters.heartbeat_ms.store(milliseconds(Clock::now()), std::memory_order_relaxed);
  if (open()) {
    loop();
    shut_down();
    if (failure_ != nullptr) push(CompletionKind::kFailed, 0, nullptr, std::move(failure_));
  }
  push(CompletionKind::kClosed, 0, nullptr, nullptr);
  wake_owner();
}

bool ProgressThread::open() {
  Error error;
  endpoint_ =
      Endpoint::open(shared_.library, shared_.options.query, kOperationsMax, shared_.counters.close_failures, error);
  if (endpoint_ == nullptr) {
    push(CompletionKind::kOpened, 0, nullptr, std::make_unique<Error>(std::move(error)));
    return false;
  }
  shared_.info = endpoint_->info();
  shared_.info.chunk_bytes = std::min<size_t>(shared_.options.chunk_bytes, shared_.info.max_message_bytes);
  if (shared_.options.force_local_registration) shared_.info.needs_local_registration = true;
  scheduler_ = std::make_unique<Scheduler>(*endpoint_, shared_, *this);
  renew_exit_handler();
  push(CompletionKind::kOpened, 0, nullptr, nullptr);
  wake_owner();
  return true;
}

void ProgressThread::loop() {
  last_activity_ = Clock::now();
  while (!shared_.stop.load(std::memory_order_relaxed) && failure_ == nullptr) {
    now_ = Clock::now();
    shared_.counters.heartbeat_ms.store(milliseconds(now_), std::memory_order_relaxed);
    bool worked = execute_commands();
    worked |= scheduler_->post();
    worked |= scheduler_->poll(failure_);
    reconnect_failed_peers();
    check_removals();
    remove_lingering();
    wake_owner();
    if (worked) {
      last_activity_ = now_;
    } else {
      wait();
    }
  }
}

// --- commands ---

bool ProgressThread::execute_commands() {
  Command command;
  int executed = 0;
  while (executed < kCommandsPerRound && shared_.commands.pop(command)) {
    execute(command);
    executed++;
    // Registering can take a while on a NIC: completions are read in between.
    if (command.kind == CommandKind::kRegister || command.kind == CommandKind::kDeregister) break;
  }
  return executed > 0;
}

void ProgressThread::execute(const Command& command) {
  switch (command.kind) {
    case CommandKind::kRegister:
      return register_region(*command.region, command.token);
    case CommandKind::kDeregister:
      return request_close(*command.region, command.token);
    case CommandKind::kInsertPeer:
      return insert_peer(*command.peer, command.token);
    case CommandKind::kRemovePeer:
      return begin_removal(*command.peer, command.token);
    case CommandKind::kWrite:
      return scheduler_->start(*command.transfer);
    case CommandKind::kCancel: {
      auto error = std::make_unique<Error>();
      error->code = ErrorCode::kCancelled;
      error->call = "cancel";
      error->text = "the transfer was cancelled";
      return scheduler_->stop(*command.transfer, std::move(error));
    }
  }
}

void ProgressThread::register_region(Region& region, int64_t token) {
  const RailInfo& info = endpoint_->info();
  const uint64_t access = region.remote_write ? FI_REMOTE_WRITE : FI_WRITE;
  std::byte* base = region.mapping->base() + region.offset;
  const bool provider_keys = (info.mr_mode & FI_MR_PROV_KEY) != 0;
  int result = -FI_ENOKEY;
  for (int attempt = 0; result == -FI_ENOKEY && attempt < kKeyAttempts; attempt++) {
    const uint64_t key = provider_keys ? 0 : random_key(info.key_bytes);
    result = fi_mr_reg(endpoint_->domain(), base, region.length, access, 0, key, 0, &region.registration, nullptr);
  }
  if (result != 0) {
    region.registration = nullptr;
    auto error = std::make_unique<Error>(make_error(ErrorCode::kRegistrationFailed, "fi_mr_reg", result));
    error->hint = registration_hint(result, region.length);
    return push(CompletionKind::kRegistered, token, &region, std::move(error));
  }
  region.descriptor = fi_mr_desc(region.registration);
  region.key = fi_mr_key(region.registration);
  region.remote_address = (info.mr_mode & FI_MR_VIRT_ADDR) != 0 ? reinterpret_cast<uintptr_t>(base) : 0;
  region.users = 0;
  region.closing = false;
  enter(regions_, region);
  if (region.remote_write) remote_write_regions_++;
  bump(shared_.counters.registrations);
  bump(shared_.counters.regions_open);
  push(CompletionKind::kRegistered, token, &region, nullptr);
}

void ProgressThread::request_close(Region& region, int64_t token) {
  region.closing = true;
  region.close_token = token;
  // Its last user closes it.
  if (region.users == 0) close_region(region);
}

void ProgressThread::close_region(Region& region) {
  const int result = fi_close(&region.registration->fid);
  std::unique_ptr<Error> error;
  if (result == 0) {
    region.registration = nullptr;
    strike(regions_, region);
    if (region.remote_write) remote_write_regions_--;
    bump(shared_.counters.deregistrations);
    drop(shared_.counters.regions_open);
  } else {
    shared_.counters.close_failures.fetch_add(1, std::memory_order_relaxed);
    error = std::make_unique<Error>(make_error(ErrorCode::kRegistrationFailed, "fi_close(mr)", result));
  }
  push(CompletionKind::kDeregistered, region.close_token, &region, std::move(error));
}

void ProgressThread::insert_peer(Peer& peer, int64_t token) {
  peer.removing = false;
  peer.posted = false;
  const int inserted = put_into_vector(peer);
  if (inserted != 1) {
    // Zero means that the address was refused without a reason.
    const int result = inserted < 0 ? inserted : -FI_EINVAL;
    return push(CompletionKind::kPeerInserted, token, &peer,
                std::make_unique<Error>(make_error(ErrorCode::kTransferFailed, "fi_av_insert", result)));
  }
  peer.operations_in_flight = 0;
  peer.bytes_in_flight = 0;
  enter(peers_, peer);
  bump(shared_.counters.peers);
  push(CompletionKind::kPeerInserted, token, &peer, nullptr);
}

// 1, or what fi_av_insert says. An address that lingers is used again as it is.
int ProgressThread::put_into_vector(Peer& peer) {
  last_connect_ = now_;
  const auto lingering = std::ranges::find_if(lingering_, [&](const Lingering& one) {
    return std::ranges::equal(one.address, std::span(peer.address.data(), peer.address_length));
  });
  int inserted = 1;
  if (lingering == lingering_.end()) {
    inserted = fi_av_insert(endpoint_->av(), peer.address.data(), 1, &peer.fi_addr, 0, nullptr);
  } else {
    peer.fi_addr = lingering->fi_addr;
    peer.posted = true;
    lingering_.erase(lingering);
  }
  peer.in_vector = inserted == 1;
  return inserted;
}

// --- removal: nothing of a peer may be in flight when it is reported ---

void ProgressThread::begin_removal(Peer& peer, int64_t token) {
  peer.removing = true;
  Error removed;
  removed.code = ErrorCode::kCancelled;
  removed.call = "removePeer";
  removed.text = "the peer was removed";
  scheduler_->stop_all(peer, removed);
  removals_.push_back({&peer, token, now_, false});
  check_removals();
}

// Takes a peer's address out of the vector. Here rxm closes the connection, which ends what is outstanding in both
// directions and completes it with an error.
//
// Without a connection rxm may not be asked to (seen with 1.17.0): when the last attempt to connect was turned down,
// because the peer's own was under way, its connection object is left without a message endpoint, and
// rxm_av_remove_handler closes that endpoint all the same: a segmentation fault that any peer can bring about. So a
// post finds out first: on a connection it succeeds. What is not connected has nothing in flight, and cannot write into
// a region that is closed; its address lingers in the vector.
ProgressThread::TakenOut ProgressThread::take_out_of_vector(Peer& peer, int& result) {
  result = 0;
  if (!peer.in_vector) return TakenOut::kYes;
  if (may_be_connecting(peer) && scheduler_->probe(peer.fi_addr) != 0) return TakenOut::kNotConnected;
  result = fi_av_remove(endpoint_->av(), &peer.fi_addr, 1, 0);
  if (result != 0) return TakenOut::kRefused;
  peer.in_vector = false;
  return TakenOut::kYes;
}

// Whether rxm was ever made to connect to the address. Connections that only the peer makes are safe to remove.
bool ProgressThread::may_be_connecting(const Peer& peer) const {
  // Once the endpoint is closed there are no connections.
  if (!endpoint_->info().removal_flushes || endpoint_->ep() == nullptr) return false;
  return std::ranges::any_of(peers_, [&](const Peer* other) {
    return other->posted && std::ranges::equal(std::span(other->address.data(), other->address_length),
                                               std::span(peer.address.data(), peer.address_length));
  });
}

void ProgressThread::check_removals() {
  for (size_t i = 0; i < removals_.size();) {
    Removal& removal = removals_[i];
    Peer& peer = *removal.peer;
    int result = 0;
    TakenOut taken = TakenOut::kYes;
    // On providers other than rxm, removal with operations outstanding drops them without completions (EFA): it waits.
    if (endpoint_->info().removal_flushes || peer.operations_in_flight == 0) taken = take_out_of_vector(peer, result);
    const bool waits = taken == TakenOut::kNotConnected && now_ - removal.began < kConnectingGrace;
    if (peer.operations_in_flight > 0 || waits) {
      if (!removal.reported && now_ - removal.began >= kRemovalTimeout) {
        removal.reported = true;
        auto error = std::make_unique<Error>(make_error(ErrorCode::kTransferFailed, "removePeer", -FI_ETIMEDOUT));
        error->hint = "close the rail: its writes in flight to this peer do not come back";
        push(CompletionKind::kPeerRemoved, removal.token, &peer, std::move(error));
      }
      i++;
      continue;
    }
    const Removal done = removal;
    removals_[i] = removals_.back();
    removals_.pop_back();
    if (taken == TakenOut::kNotConnected) {
      lingering_.push_back({peer.fi_addr,
                            {peer.address.begin(), peer.address.begin() + static_cast<ptrdiff_t>(peer.address_length)},
                            now_ + kLingerTime});
      peer.in_vector = false;
    }
    scheduler_->detach(peer);
    strike(peers_, peer);
    drop(shared_.counters.peers);
    if (done.reported) continue;
    std::unique_ptr<Error> error;
    if (result != 0) error = std::make_unique<Error>(make_error(ErrorCode::kTransferFailed, "fi_av_remove", result));
    push(CompletionKind::kPeerRemoved, done.token, &peer, std::move(error));
  }
}

// By now an attempt to connect has ended or hangs in the network, so the post below either finds a connection or begins
// a new attempt; both can be removed.
void ProgressThread::remove_lingering() {
  if (lingering_.empty() || now_ < lingering_.front().due) return;
  Lingering lingering = std::move(lingering_.front());
  lingering_.pop_front();
  const bool in_use = std::ranges::any_of(
      peers_, [&](const Peer* peer) { return peer->in_vector && peer->fi_addr == lingering.fi_addr; });
  const ssize_t probed = in_use ? -FI_EBUSY : scheduler_->probe(lingering.fi_addr);
  if (probed == 0 || probed == -FI_EAGAIN) {
    if (fi_av_remove(endpoint_->av(), &lingering.fi_addr, 1, 0) == 0) return;
  }
  lingering.due = now_ + kLingerTime;
  lingering_.push_back(std::move(lingering));
}

void ProgressThread::on_settled(Transfer& transfer) {
  for (Region* region : transfer.regions) {
    region->users--;
    if (region->closing && region->users == 0) close_region(*region);
  }
  push(CompletionKind::kTransfer, 0, &transfer, std::move(transfer.error));
}

// --- after an error ---

void ProgressThread::on_connection_failed(Peer& peer) {
  // Not here, in the midst of reading completions: closing a connection produces more of them.
  if (endpoint_->info().removal_flushes) failed_peers_.push_back(&peer);
}

// A connection that has failed takes some 20 ms to be recognised by rxm, and what is posted on it meanwhile fails, too
// (tcp: ENOTCONN; verbs: flush errors for ever). Removing the peer closes the connection at once, so that the next
// write, posted to the peer as it is inserted again, makes a new one.
void ProgressThread::reconnect_failed_peers() {
  for (Peer* peer : failed_peers_) {
    int result = 0;
    if (peer->removing || take_out_of_vector(*peer, result) != TakenOut::kYes) continue;
    const int inserted = put_into_vector(*peer);
    if (inserted == 1) continue;
    // Out of memory, most likely. Writes to an address that is not there must not be posted.
    failure_ = std::make_unique<Error>(
        make_error(ErrorCode::kTransferFailed, "fi_av_insert", inserted < 0 ? inserted : -FI_EINVAL));
  }
  failed_peers_.clear();
}

// --- the end ---

void ProgressThread::shut_down() {
  // Whatever was asked for is answered; writes that were not begun are begun and stopped, so that they settle like all.
  Command command;
  while (shared_.commands.pop(command)) {
    switch (command.kind) {
      case CommandKind::kWrite:
        scheduler_->start(*command.transfer);
        break;
      case CommandKind::kRegister:
        push(CompletionKind::kRegistered, command.token, command.region,
             std::make_unique<Error>(closed_error("register")));
        break;
      case CommandKind::kInsertPeer:
        push(CompletionKind::kPeerInserted, command.token, command.peer,
             std::make_unique<Error>(closed_error("insertPeer")));
        break;
      case CommandKind::kDeregister:
      case CommandKind::kRemovePeer:
        execute(command);
        break;
      case CommandKind::kCancel:
        break;
    }
  }
  const Error closed = closed_error("write");
  for (Peer* peer : peers_) scheduler_->stop_all(*peer, closed);
  if (failure_ == nullptr) flush_in_flight();
  close_everything();
}

void ProgressThread::flush_in_flight() {
  if (scheduler_->operations_in_flight() == 0) return;
  if (endpoint_->info().removal_flushes) {
    for (Peer* peer : peers_) {
      int result = 0;
      take_out_of_vector(*peer, result);
    }
  }
  const Clock::time_point deadline = Clock::now() + kCloseTimeout;
  while (scheduler_->operations_in_flight() > 0 && failure_ == nullptr) {
    now_ = Clock::now();
    if (now_ >= deadline) return;
    shared_.counters.heartbeat_ms.store(milliseconds(now_), std::memory_order_relaxed);
    if (!scheduler_->poll(failure_)) sched_yield();
  }
}

void ProgressThread::close_everything() {
  // First the endpoint: from here on nothing lands and nothing is read, so memory may go. The queue is not read again,
  // since tcp;ofi_rxm crashes when operations were outstanding.
  const int result = endpoint_->close_endpoint();
  // Were it refused, operations could still read their sources: those are then never unmapped.
  shared_.sources_are_free.store(result == 0 || scheduler_->operations_in_flight() == 0, std::memory_order_relaxed);
  scheduler_->forget_in_flight();
  for (Region* region : regions_) {
    if (fi_close(&region->registration->fid) != 0) {
      shared_.counters.close_failures.fetch_add(1, std::memory_order_relaxed);
    } else {
      bump(shared_.counters.deregistrations);
      drop(shared_.counters.regions_open);
    }
  }
  regions_.clear();
  now_ = Clock::now();
  check_removals();
  endpoint_.reset();
}

}  // namespace fabrickv::fabric
