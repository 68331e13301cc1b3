// The proof that no write which anybody had begun into a region that is closed by now can still land, on tcp;ofi_rxm.
//
// A target checks a write's key when it reads the write's header, and then copies the payload as it comes from the
// stream, whatever becomes of the region (tcpx_op_write and tcpx_process_remote_write of prov/tcp, 1.17;
// xnet_handle_write from 1.18 on). So every connection that was there when the region was closed has to come to the end
// of the write that it may be in the middle of, or to its own end:
// - Those that others made to us are ended. The provider has no byte of them in store that belongs to a write begun:
//   while it is in the middle of one it reads the payload straight from the socket, past its read-ahead buffer
//   (ofi_bsock_recv).
// - Those that we made lead to peers that we have posted to. Each is sent a write of no bytes, and its answer proves
// it:
//   an answer is a message of its own in the peer's stream (tcpx_queue_ack), so to have read it is to be in the middle
//   of nothing. Who does not answer in time is disconnected.
// docs/adr/0003-fence.md has the whole argument.

#include <algorithm>
#include <ranges>
#include <utility>

#include "fabric/inbound.h"
#include "fabric/progress_thread.h"

namespace fabrickv::fabric {

void ProgressThread::prove(int64_t token) {
  switch (endpoint_->info().quiescence) {
    case Quiescence::kCloseRegion:
      bump(shared_.counters.proofs);
      return push(CompletionKind::kProved, token, nullptr, nullptr);
    case Quiescence::kCloseEndpoint: {
      auto error = std::make_unique<Error>();
      error->code = ErrorCode::kUnprovable;
      error->call = "prove";
      error->text = "on this provider only closing the rail proves that no write can still land";
      error->provider = shared_.info.provider;
      return push(CompletionKind::kProved, token, nullptr, std::move(error));
    }
    case Quiescence::kFence:
      // A round that is under way began before the regions of this call were closed.
      return waiting_proofs_.push_back(token);
  }
}

bool ProgressThread::advance_proof() {
  if (running_proofs_.empty()) {
    if (waiting_proofs_.empty()) return false;
    // The queue is read once before the round ends: from 1.18 on the provider may have a thread of its own, which has
    // then let go of what was ended.
    begin_round();
    return true;
  }
  const size_t before = fenced_.size();
  may_end_for_credit_ = now_ - round_began_ >= kFenceTimeout;
  const auto settled = [this](Peer* peer) {
    if (!advance_fence(*peer)) return false;
    peer->fence = Fence::kNone;
    return true;
  };
  std::erase_if(fenced_, settled);
  if (!fenced_.empty()) return fenced_.size() < before;
  // What is left of peers that were removed meanwhile.
  const auto goes = [this](const Removal& removal) { return removal.began <= round_began_ && !removal.reported; };
  if (std::ranges::any_of(removals_, goes)) return false;
  end_lingering_connections();
  end_round();
  return true;
}

void ProgressThread::begin_round() {
  running_proofs_.swap(waiting_proofs_);
  round_began_ = now_;
  const auto ended = end_inbound_connections(shared_.info.address);
  if (!ended) {
    auto error = std::make_unique<Error>(make_error(ErrorCode::kUnprovable, "opendir", -FI_EMFILE));
    error->hint = "raise the limit of open files (ulimit -n), or mount /proc";
    for (const int64_t token : running_proofs_) {
      push(CompletionKind::kProved, token, nullptr, std::make_unique<Error>(*error));
    }
    running_proofs_.clear();
    return;
  }
  bump(shared_.counters.connections_ended, *ended);
  for (Peer* peer : peers_) {
    // Another peer that had the same address may have been the one that was posted to.
    peer->posted |= lingers(peer->fi_addr);
    if (!peer->posted || !peer->in_vector || peer->removing) continue;
    peer->fence = Fence::kWanted;
    fenced_.push_back(peer);
  }
}

void ProgressThread::end_round() {
  for (const int64_t token : running_proofs_) push(CompletionKind::kProved, token, nullptr, nullptr);
  running_proofs_.clear();
  bump(shared_.counters.proofs);
}

// True when the peer's connection is proved to be in the middle of nothing.
bool ProgressThread::advance_fence(Peer& peer) {
  // Its connection is being ended anyway.
  if (peer.removing || peer.paused) return true;
  if (peer.fence == Fence::kWanted) post_fence(peer);
  // Frozen peers may have all the credits between them, so that no fence can be posted. One of them is ended at a time,
  // and the others try again with what it gives back.
  if (peer.fence == Fence::kWanted && peer.operations_in_flight > 0 && std::exchange(may_end_for_credit_, false)) {
    peer.fence = Fence::kEnd;
  }
  if (peer.fence == Fence::kPosted && now_ - peer.fence_posted >= kFenceTimeout) peer.fence = Fence::kEnd;
  if (peer.fence == Fence::kEnd) end_connection(peer);
  return peer.fence == Fence::kNone;
}

void ProgressThread::post_fence(Peer& peer) {
  FenceTarget target;
  {
    const std::scoped_lock lock(shared_.fence_mutex);
    target = peer.fence_target;
  }
  if (!target.defined) {
    peer.fence = Fence::kEnd;
    return;
  }
  ssize_t result = scheduler_->post_fence(peer, target);
  // The first may only have read that the connection is there.
  if (result == -FI_EAGAIN) result = scheduler_->post_fence(peer, target);
  if (result == -FI_ENOBUFS) return;
  if (result == -FI_EAGAIN) {
    // There is no connection. One that comes up later finds the region closed.
    peer.fence = Fence::kNone;
    return;
  }
  peer.fence = result == 0 ? Fence::kPosted : Fence::kEnd;
  peer.fence_posted = now_;
  peer.fence_connection = peer.connection;
}

void ProgressThread::on_fenced(Peer& peer, uint64_t connection, bool answered) {
  if (peer.fence != Fence::kPosted || connection != peer.fence_connection) return;
  // One that failed to be sent says nothing of what can still be read.
  peer.fence = answered ? Fence::kNone : Fence::kEnd;
}

// Takes a peer out of the vector and puts it in again: what is in flight to it fails, and the next write connects
// again.
void ProgressThread::end_connection(Peer& peer) {
  peer.fence = Fence::kNone;
  if (peer.removing) return;
  int result = 0;
  TakenOut taken = take_out_of_vector(peer, result);
  // As in post_fence.
  if (taken == TakenOut::kNotConnected) taken = take_out_of_vector(peer, result);
  if (taken == TakenOut::kYes) {
    bump(shared_.counters.peers_disconnected);
    put_back(peer);
    return;
  }
  if (taken == TakenOut::kRefused) {
    failure_ = std::make_unique<Error>(make_error(ErrorCode::kTransferFailed, "fi_av_remove", result));
  }
}

// Addresses of peers that are gone, which could not be taken out of the vector because they were not connected then.
void ProgressThread::end_lingering_connections() {
  std::erase_if(lingering_, [this](Lingering& lingering) {
    const bool in_use = std::ranges::any_of(
        peers_, [&](const Peer* peer) { return peer->in_vector && peer->fi_addr == lingering.fi_addr; });
    if (in_use) return false;
    const bool connected = scheduler_->probe(lingering.fi_addr) == 0 || scheduler_->probe(lingering.fi_addr) == 0;
    return connected && fi_av_remove(endpoint_->av(), &lingering.fi_addr, 1, 0) == 0;
  });
}

void ProgressThread::forget_fence(Peer& peer) {
  if (peer.fence == Fence::kNone) return;
  peer.fence = Fence::kNone;
  std::erase(fenced_, &peer);
}

void ProgressThread::abandon_proofs() {
  for (const auto* tokens : {&running_proofs_, &waiting_proofs_}) {
    for (const int64_t token : *tokens) {
      push(CompletionKind::kProved, token, nullptr, std::make_unique<Error>(closed_error("prove")));
    }
  }
  running_proofs_.clear();
  waiting_proofs_.clear();
  fenced_.clear();
}

}  // namespace fabrickv::fabric
