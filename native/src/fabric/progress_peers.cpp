// The address vector: how peers get into it and, without harm to anybody, out of it again.

#include <algorithm>
#include <cerrno>
#include <ranges>
#include <string>
#include <utility>

#include "fabric/progress_thread.h"

namespace fabrickv::fabric {

namespace {

std::string address_of(const Peer& peer) {
  return {reinterpret_cast<const char*>(peer.address.data()), peer.address_length};
}

// Whether connect() says that there is no way to the address. rxm hands such an error on, and its connection object is
// idle again. A post on a connection that is there gives none of them.
bool is_unreachable(ssize_t result) {
  switch (-result) {
    case FI_ENETUNREACH:
    case FI_EHOSTUNREACH:
    case FI_ENETDOWN:
    case FI_EHOSTDOWN:
    case FI_EADDRNOTAVAIL:
    case EAFNOSUPPORT:
    case FI_ECONNREFUSED:
    case FI_ETIMEDOUT:
    case FI_EACCES:
    case FI_EPERM:
    case FI_EINVAL:
      return true;
    default:
      return false;
  }
}

}  // namespace

void ProgressThread::insert_peer(Peer& peer, int64_t token) {
  peer.removing = false;
  peer.paused = false;
  peer.posted = false;
  peer.fence = Fence::kNone;
  share_address(peer);
  if (lingering_.size() >= kLingeringMax && peer.use->lingering == 0) {
    leave_address(peer);
    auto error = std::make_unique<Error>();
    error->code = ErrorCode::kBusy;
    error->call = "insertPeer";
    error->text = std::to_string(kLingeringMax) + " peers that were removed may still be connecting";
    return push(CompletionKind::kPeerInserted, token, &peer, std::move(error));
  }
  const int inserted = put_into_vector(peer);
  if (inserted != 1) {
    leave_address(peer);
    // Zero means that the address was refused without a reason.
    const int result = inserted < 0 ? inserted : -FI_EINVAL;
    return push(CompletionKind::kPeerInserted, token, &peer,
                std::make_unique<Error>(make_error(ErrorCode::kTransferFailed, "fi_av_insert", result)));
  }
  peer.operations_in_flight = 0;
  peer.bytes_in_flight = 0;
  enter(peers_, peer);
  bump(shared_.counters.peers);
  // An address that lingered may be connected by now; it is no longer among those that the round ends.
  join_round(peer);
  push(CompletionKind::kPeerInserted, token, &peer, nullptr);
}

void ProgressThread::share_address(Peer& peer) {
  peer.use = &addresses_[address_of(peer)];
  peer.use->peers.push_back(&peer);
}

void ProgressThread::leave_address(Peer& peer) {
  AddressUse* use = std::exchange(peer.use, nullptr);
  std::erase(use->peers, &peer);
  if (use->peers.empty() && use->lingering == 0) addresses_.erase(address_of(peer));
}

// 1, or what fi_av_insert says. An address that lingers is used again as it is.
int ProgressThread::put_into_vector(Peer& peer) {
  last_connect_ = now_;
  int inserted = 1;
  if (peer.use->lingering == 0) {
    inserted = fi_av_insert(endpoint_->av(), peer.address.data(), 1, &peer.fi_addr, 0, nullptr);
  } else {
    const auto lingering = std::ranges::find(lingering_, address_of(peer), &Lingering::address);
    peer.fi_addr = lingering->fi_addr;
    peer.posted = true;
    peer.use->lingering--;
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
  check_removal(removals_.size() - 1);
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
  if (may_be_connecting(peer)) {
    const TakenOut probed = probe(peer.fi_addr);
    if (probed != TakenOut::kYes) return probed;
  }
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

// kYes when there is a connection, which the address's removal has to end now.
ProgressThread::TakenOut ProgressThread::probe(fi_addr_t address) {
  const ssize_t posted = scheduler_->probe(address);
  if (posted == 0) return TakenOut::kYes;
  return posted == -FI_EAGAIN || is_unreachable(posted) ? TakenOut::kNotConnected : TakenOut::kUnknown;
}

// Whether rxm was ever made to connect to the address. Connections that only the peer makes are safe to remove.
bool ProgressThread::may_be_connecting(const Peer& peer) const {
  // Once the endpoint is closed there are no connections.
  if (!endpoint_->info().removal_flushes || endpoint_->ep() == nullptr) return false;
  return peer.use->lingering > 0 || std::ranges::any_of(peer.use->peers, &Peer::posted);
}

void ProgressThread::linger(Peer& peer) {
  lingering_.push_back({peer.fi_addr, address_of(peer), now_ + kLingerTime});
  peer.in_vector = false;
  peer.use->lingering++;
  // What comes of it is the affair of those that have the same address.
  for (Peer* other : peer.use->peers) {
    if (other == &peer || !other->in_vector) continue;
    other->posted = true;
    if (other->fence == Fence::kNone) join_round(*other);
  }
}

void ProgressThread::stop_lingering(const Lingering& lingering) {
  const auto found = addresses_.find(lingering.address);
  found->second.lingering--;
  if (found->second.peers.empty() && found->second.lingering == 0) addresses_.erase(found);
}

bool ProgressThread::is_in_use(const Lingering& lingering) const {
  return std::ranges::any_of(addresses_.at(lingering.address).peers, &Peer::in_vector);
}

void ProgressThread::check_removals() {
  for (size_t i = 0; i < removals_.size();) {
    if (!check_removal(i)) i++;
  }
}

// True when it is done; then the last one has its place.
bool ProgressThread::check_removal(size_t i) {
  Removal& removal = removals_[i];
  Peer& peer = *removal.peer;
  int result = 0;
  TakenOut taken = TakenOut::kYes;
  // On providers other than rxm, removal with operations outstanding drops them without completions (EFA): it waits.
  if (endpoint_->info().removal_flushes || peer.operations_in_flight == 0) taken = take_out_of_vector(peer, result);
  const bool lingers = taken == TakenOut::kNotConnected || taken == TakenOut::kUnknown;
  const bool waits = lingers && now_ - removal.began < kConnectingGrace;
  if (peer.operations_in_flight > 0 || waits) {
    if (!removal.reported && now_ - removal.began >= kRemovalTimeout) {
      removal.reported = true;
      auto error = std::make_unique<Error>(make_error(ErrorCode::kTransferFailed, "removePeer", -FI_ETIMEDOUT));
      error->hint = "close the rail: its writes in flight to this peer do not come back";
      push(CompletionKind::kPeerRemoved, removal.token, &peer, std::move(error));
    }
    return false;
  }
  const Removal done = removal;
  removals_[i] = removals_.back();
  removals_.pop_back();
  if (lingers) linger(peer);
  // The address stays in the vector, its connection open, and nobody would know of it any more.
  if (taken == TakenOut::kRefused && endpoint_->ep() != nullptr) fail("fi_av_remove", result);
  forget_fence(peer);
  for (size_t k = disconnections_.size(); k > 0; k--) {
    const Disconnection disconnection = disconnections_[k - 1];
    if (disconnection.peer != &peer) continue;
    disconnections_.erase(disconnections_.begin() + static_cast<ptrdiff_t>(k) - 1);
    push(CompletionKind::kPeerDisconnected, disconnection.token, &peer, nullptr);
  }
  scheduler_->detach(peer);
  strike(peers_, peer);
  leave_address(peer);
  drop(shared_.counters.peers);
  if (done.reported) return true;
  std::unique_ptr<Error> error;
  if (result != 0) error = std::make_unique<Error>(make_error(ErrorCode::kTransferFailed, "fi_av_remove", result));
  push(CompletionKind::kPeerRemoved, done.token, &peer, std::move(error));
  return true;
}

void ProgressThread::remove_lingering() {
  for (int i = 0; i < kLingeringBatch && !lingering_.empty() && now_ >= lingering_.front().due; i++) {
    remove_first_lingering();
  }
}

// By now an attempt to connect has ended or hangs in the network, so the post below either finds a connection or begins
// a new attempt; both can be removed.
void ProgressThread::remove_first_lingering() {
  Lingering lingering = std::move(lingering_.front());
  lingering_.pop_front();
  ssize_t probed = is_in_use(lingering) ? -FI_EBUSY : scheduler_->probe(lingering.fi_addr);
  // The first may have read that the old attempt was turned down; then the second begins one that cannot be answered
  // yet.
  if (probed == -FI_EAGAIN) probed = scheduler_->probe(lingering.fi_addr);
  if (probed == 0 || probed == -FI_EAGAIN) {
    if (fi_av_remove(endpoint_->av(), &lingering.fi_addr, 1, 0) == 0) return stop_lingering(lingering);
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
    if (peer->removing) continue;
    const TakenOut taken = take_out_of_vector(*peer, result);
    if (taken == TakenOut::kYes) put_back(*peer);
    if (taken == TakenOut::kRefused) fail("fi_av_remove", result);
  }
  failed_peers_.clear();
}

// Puts a peer that was taken out of the vector into it again. The errors of what was in flight are still to come: they
// belong to the connection that is gone, and with it went what a round of proof had to wait for.
void ProgressThread::put_back(Peer& peer) {
  peer.connection++;
  peer.posted = false;
  peer.fence = Fence::kNone;
  const int inserted = put_into_vector(peer);
  if (inserted == 1) return;
  // Out of memory, most likely. Writes to an address that is not there must not be posted.
  fail("fi_av_insert", inserted < 0 ? inserted : -FI_EINVAL);
}

void ProgressThread::fail(const char* call, int result) {
  if (failure_ != nullptr) return;
  failure_ = std::make_unique<Error>(make_error(ErrorCode::kTransferFailed, call, result));
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
