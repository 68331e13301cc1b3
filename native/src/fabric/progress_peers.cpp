// The address vector: how peers get into it and, without harm to anybody, out of it again.

#include <algorithm>
#include <ranges>
#include <span>
#include <utility>

#include "fabric/progress_thread.h"

namespace fabrickv::fabric {

void ProgressThread::insert_peer(Peer& peer, int64_t token) {
  peer.removing = false;
  peer.paused = false;
  peer.posted = false;
  peer.fence = Fence::kNone;
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
  // EFA does not count how often an address was inserted: the last one that has it takes it out.
  const bool shared = !endpoint_->info().removal_flushes && std::ranges::any_of(peers_, [&](const Peer* other) {
    return other != &peer && other->in_vector && other->fi_addr == peer.fi_addr;
  });
  if (shared) {
    peer.in_vector = false;
    return TakenOut::kYes;
  }
  result = fi_av_remove(endpoint_->av(), &peer.fi_addr, 1, 0);
  if (result != 0) return TakenOut::kRefused;
  peer.in_vector = false;
  return TakenOut::kYes;
}

// Whether rxm was ever made to connect to the address. Connections that only the peer makes are safe to remove.
bool ProgressThread::may_be_connecting(const Peer& peer) const {
  // Once the endpoint is closed there are no connections.
  if (!endpoint_->info().removal_flushes || endpoint_->ep() == nullptr) return false;
  return lingers(peer.fi_addr) || std::ranges::any_of(peers_, [&](const Peer* other) {
           return other->posted && std::ranges::equal(std::span(other->address.data(), other->address_length),
                                                      std::span(peer.address.data(), peer.address_length));
         });
}

bool ProgressThread::lingers(fi_addr_t address) const {
  return std::ranges::any_of(lingering_, [&](const Lingering& one) { return one.fi_addr == address; });
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
    forget_fence(peer);
    for (size_t k = disconnections_.size(); k > 0; k--) {
      const Disconnection disconnection = disconnections_[k - 1];
      if (disconnection.peer != &peer) continue;
      disconnections_.erase(disconnections_.begin() + static_cast<ptrdiff_t>(k) - 1);
      push(CompletionKind::kPeerDisconnected, disconnection.token, &peer, nullptr);
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
  ssize_t probed = in_use ? -FI_EBUSY : scheduler_->probe(lingering.fi_addr);
  // The first may have read that the old attempt was turned down; then the second begins one that cannot be answered
  // yet.
  if (probed == -FI_EAGAIN) probed = scheduler_->probe(lingering.fi_addr);
  if (probed == 0 || probed == -FI_EAGAIN) {
    if (fi_av_remove(endpoint_->av(), &lingering.fi_addr, 1, 0) == 0) return;
  }
  lingering.due = now_ + kLingerTime;
  lingering_.push_back(std::move(lingering));
}

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
    put_back(*peer);
  }
  failed_peers_.clear();
}

// Puts a peer that was taken out of the vector into it again. The errors of what was in flight are still to come: they
// belong to the connection that is gone.
void ProgressThread::put_back(Peer& peer) {
  peer.connection++;
  peer.posted = false;
  const int inserted = put_into_vector(peer);
  if (inserted == 1) return;
  // Out of memory, most likely. Writes to an address that is not there must not be posted.
  failure_ = std::make_unique<Error>(
      make_error(ErrorCode::kTransferFailed, "fi_av_insert", inserted < 0 ? inserted : -FI_EINVAL));
}

void ProgressThread::begin_disconnection(Peer& peer, int64_t token) {
  // Nothing is posted until what was in flight has come back, so that the end of that can be told.
  peer.paused = true;
  disconnections_.push_back({&peer, token, now_});
  if (endpoint_->info().removal_flushes) return end_connection(peer);
  Error disconnected;
  disconnected.code = ErrorCode::kCancelled;
  disconnected.call = "disconnectPeer";
  disconnected.text = "the peer was disconnected";
  scheduler_->stop_all(peer, disconnected);
}

void ProgressThread::check_disconnections() {
  for (size_t i = 0; i < disconnections_.size();) {
    const Disconnection disconnection = disconnections_[i];
    std::unique_ptr<Error> error;
    if (disconnection.peer->operations_in_flight > 0) {
      if (now_ - disconnection.began < kRemovalTimeout) {
        i++;
        continue;
      }
      error = std::make_unique<Error>(make_error(ErrorCode::kTransferFailed, "disconnectPeer", -FI_ETIMEDOUT));
      error->hint = "close the rail: its writes in flight to this peer do not come back";
    }
    disconnections_.erase(disconnections_.begin() + static_cast<ptrdiff_t>(i));
    end_disconnection(disconnection, std::move(error));
  }
}

void ProgressThread::end_disconnection(const Disconnection& disconnection, std::unique_ptr<Error> error) {
  Peer& peer = *disconnection.peer;
  peer.paused = std::ranges::any_of(disconnections_, [&](const Disconnection& other) { return other.peer == &peer; });
  push(CompletionKind::kPeerDisconnected, disconnection.token, &peer, std::move(error));
  scheduler_->resume(peer);
}

}  // namespace fabrickv::fabric
