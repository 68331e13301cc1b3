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
      error->hint = unprovable_because_;
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
  const Clock::duration age = now_ - round_began_;
  may_end_for_credit_ = age >= kFenceTimeoutMax || (queue_was_empty_ && age >= kFenceTimeout);
  const auto settled = [this](Peer* peer) {
    if (!advance_fence(*peer)) return false;
    peer->fence = Fence::kNone;
    return true;
  };
  std::erase_if(fenced_, settled);
  if (fenced_.empty() && end_lingering_connections()) {
    end_round();
    return true;
  }
  if (failure_ == nullptr && age >= kRoundTimeout) {
    Error error = make_error(ErrorCode::kBusy, "prove", -FI_ETIMEDOUT);
    error.text = "libfabric does not say of every peer whether it is connected";
    fail_round(std::move(error));
    return true;
  }
  return fenced_.size() < before;
}

void ProgressThread::begin_round() {
  running_proofs_.swap(waiting_proofs_);
  round_began_ = now_;
  round_++;
  const Inbound::Ended ended = inbound_->end_all();
  bump(shared_.counters.connections_ended, ended.connections);
  if (ended.failed_call != nullptr) {
    // What was wrong may pass: Inbound::open has seen that it works here.
    Error error = make_error(ErrorCode::kBusy, ended.failed_call, -ended.error_number);
    error.hint = "prove again later; if it persists, raise the limit of open files (ulimit -n), or mount /proc";
    return fail_round(std::move(error));
  }
  for (Peer* peer : peers_) {
    // Another peer that had the same address may have been the one that was posted to.
    peer->posted |= peer->use->lingering > 0;
    join_round(*peer);
  }
}

// Has the round that is under way, if there is one, wait for a peer that we may have a connection to.
void ProgressThread::join_round(Peer& peer) {
  if (running_proofs_.empty() || !peer.posted || !peer.in_vector) return;
  peer.fence = Fence::kWanted;
  peer.was_put_off = false;
  fenced_.push_back(&peer);
}

void ProgressThread::end_round() {
  for (const int64_t token : running_proofs_) push(CompletionKind::kProved, token, nullptr, nullptr);
  running_proofs_.clear();
  bump(shared_.counters.proofs);
}

void ProgressThread::fail_round(Error error) {
  for (const int64_t token : running_proofs_) {
    push(CompletionKind::kProved, token, nullptr, std::make_unique<Error>(error));
  }
  running_proofs_.clear();
  // Answers that are still to come carry the number of this round.
  for (Peer* peer : fenced_) peer->fence = Fence::kNone;
  fenced_.clear();
}

// We went round too late: what the peers have sent meanwhile has not been read.
void ProgressThread::excuse_stall(Clock::duration stall) {
  if (running_proofs_.empty()) return;
  round_began_ += stall;
  for (Peer* peer : fenced_) peer->patience.excuse(stall);
}

// True when the peer's connection is proved to be in the middle of nothing.
bool ProgressThread::advance_fence(Peer& peer) {
  // Its connection is being ended anyway; where there is none, its address lingers, and is looked at in the end.
  if (peer.removing) return !peer.in_vector;
  if (peer.fence == Fence::kWanted && peer.paused) peer.fence = Fence::kEnd;
  if (peer.fence == Fence::kWanted) post_fence(peer);
  // Frozen peers may have all the credits between them, so that no fence can be posted. One of them is ended at a time,
  // and the others try again with what it gives back.
  if (peer.fence == Fence::kWanted && peer.operations_in_flight > 0 && std::exchange(may_end_for_credit_, false)) {
    peer.fence = Fence::kEnd;
  }
  if (std::exchange(peer.is_alive, false)) peer.patience.note_life(now_);
  if (peer.fence == Fence::kPosted && peer.patience.is_over(now_, queue_was_empty_)) peer.fence = Fence::kEnd;
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
  ssize_t result = scheduler_->post_fence(peer, target, round_);
  // The first may only have read that the connection is there.
  if (result == -FI_EAGAIN) result = scheduler_->post_fence(peer, target, round_);
  if (result == -FI_ENOBUFS) return;
  if (result == -FI_EAGAIN) return note_put_off(peer);
  // Another error says nothing of what can still be read.
  peer.fence = result == 0 ? Fence::kPosted : Fence::kEnd;
  peer.patience.begin(now_);
  peer.is_alive = false;
  peer.fence_connection = peer.connection;
}

// There is no connection, if a later iteration finds the same, and then one that comes up afterwards finds the region
// closed. What is in flight has gone out on a connection, so while there is any, rxm has put the post off for another
// reason.
void ProgressThread::note_put_off(Peer& peer) {
  if (peer.operations_in_flight > 0 || !std::exchange(peer.was_put_off, true)) return;
  peer.fence = Fence::kNone;
}

void ProgressThread::on_fenced(Peer& peer, uint64_t connection, uint64_t round, bool answered) {
  if (peer.fence != Fence::kPosted || connection != peer.fence_connection || round != round_) return;
  // One that failed to be sent says nothing of what can still be read.
  peer.fence = answered ? Fence::kNone : Fence::kEnd;
}

// Takes a peer out of the vector and puts it in again: what is in flight to it fails, and the next write connects
// again.
void ProgressThread::end_connection(Peer& peer) {
  if (peer.removing) return;
  int result = 0;
  TakenOut taken = take_out_of_vector(peer, result);
  // As in post_fence.
  if (taken == TakenOut::kNotConnected) taken = take_out_of_vector(peer, result);
  // A round that waits for it tries again until one or the other is certain.
  if (peer.fence != Fence::kNone) peer.fence = Fence::kEnd;
  switch (taken) {
    case TakenOut::kYes:
      bump(shared_.counters.peers_disconnected);
      return put_back(peer);
    case TakenOut::kNotConnected:
      if (peer.fence == Fence::kEnd) note_put_off(peer);
      return;
    case TakenOut::kUnknown:
      return;
    case TakenOut::kRefused:
      return fail("fi_av_remove", result);
  }
}

// Addresses of peers that are gone, which could not be taken out of the vector because they were not connected then.
// True when none of them is connected any more. Those that are in use are their peers' affair.
bool ProgressThread::end_lingering_connections() {
  bool proved = true;
  std::erase_if(lingering_, [&](Lingering& lingering) {
    if (lingering.proved_round == round_ || is_in_use(lingering)) return false;
    TakenOut probed = probe(lingering.fi_addr);
    if (probed == TakenOut::kNotConnected) probed = probe(lingering.fi_addr);
    if (probed == TakenOut::kNotConnected) {
      // As with a fence, once is not enough.
      const bool again = std::exchange(lingering.put_off_round, round_) == round_;
      if (again) lingering.proved_round = round_;
      proved &= again;
      return false;
    }
    if (probed == TakenOut::kUnknown) {
      proved = false;
      return false;
    }
    if (const int result = fi_av_remove(endpoint_->av(), &lingering.fi_addr, 1, 0); result != 0) {
      fail("fi_av_remove", result);
      proved = false;
      return false;
    }
    stop_lingering(lingering);
    return true;
  });
  return proved;
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
