// The owner's side of transfers: checking and starting them, and settling what the progress thread has completed.

#include <algorithm>
#include <mutex>
#include <string>

#include "fabric/rail.h"

namespace fabrickv::fabric {
namespace {

void invalid(Error& error, std::string text) {
  error = {};
  error.code = ErrorCode::kInvalidArgument;
  error.call = "write";
  error.text = std::move(text);
}

std::string span_text(uint64_t offset, uint64_t length) {
  return "bytes " + std::to_string(offset) + " + " + std::to_string(length);
}

// Sources that a rail could not prove to be free of reads are held for as long as the process lives.
void hold_for_ever(std::shared_ptr<memory::Mapping> mapping) {
  static std::mutex mutex;
  static auto* held = new std::vector<std::shared_ptr<memory::Mapping>>();
  const std::scoped_lock lock(mutex);
  held->push_back(std::move(mapping));
}

}  // namespace

Transfer& Rail::take_transfer() {
  if (free_transfers_.empty()) {
    // kPendingMax bounds the table, since every transfer is pending.
    const auto slot = static_cast<uint32_t>(shared_->transfers.size());
    shared_->transfers.emplace_back().slot = slot;
    free_transfers_.push_back(slot);
  }
  Transfer& transfer = shared_->transfers[free_transfers_.back()];
  free_transfers_.pop_back();
  return transfer;
}

void Rail::give_back(Transfer& transfer) {
  transfer.live = false;
  transfer.segments.clear();
  transfer.regions.clear();
  transfer.mappings.clear();
  free_transfers_.push_back(transfer.slot);
}

std::optional<uint64_t> Rail::write(uint64_t peer_id, std::span<const WritePiece> pieces, Error& error) {
  if (!may_begin("write", error)) return {};
  Peer* peer = find_peer(peer_id);
  if (peer == nullptr) {
    invalid(error, "peer " + std::to_string(peer_id) + " is not there");
    return {};
  }
  if (pieces.size() > kSegmentsMax) {
    invalid(error, std::to_string(pieces.size()) + " pieces; at most " + std::to_string(kSegmentsMax));
    return {};
  }
  Transfer& transfer = take_transfer();
  for (const WritePiece& piece : pieces) {
    if (add_piece(transfer, static_cast<uint32_t>(peer_id % kPeersMax), piece, error)) continue;
    give_back(transfer);
    return {};
  }
  return launch(transfer, *peer);
}

std::optional<uint64_t> Rail::ping(uint64_t peer_id, uint64_t remote_id, Error& error) {
  if (!may_begin("pingPeer", error)) return {};
  Peer* peer = find_peer(peer_id);
  const Remote* remote = find_remote(remote_id);
  if (peer == nullptr || remote == nullptr || remote->peer_slot != peer_id % kPeersMax) {
    invalid(error, peer == nullptr ? "peer " + std::to_string(peer_id) + " is not there"
                                   : "remote region " + std::to_string(remote_id) + " is not one of this peer's");
    error.call = "pingPeer";
    return {};
  }
  Transfer& transfer = take_transfer();
  transfer.segments.push_back({nullptr, nullptr, remote->address, remote->key, 0});
  return launch(transfer, *peer);
}

uint64_t Rail::launch(Transfer& transfer, Peer& peer) {
  // The same slot again is another generation, and so another id; slot numbers stay below kTransferSlots.
  transfer.generation++;
  transfer.id = transfer.slot + transfer.generation * kTransferSlots;
  transfer.live = true;
  transfer.cancel_sent = false;
  transfer.peer = &peer;
  transfer.bytes_completed.store(0, std::memory_order_relaxed);
  const uint64_t id = transfer.id;
  send(CommandKind::kWrite, &transfer);
  return id;
}

bool Rail::add_piece(Transfer& transfer, uint32_t peer_slot, const WritePiece& piece, Error& error) {
  const Remote* remote = find_remote(piece.remote);
  if (remote == nullptr || remote->peer_slot != peer_slot) {
    invalid(error, "remote region " + std::to_string(piece.remote) + " is not one of this peer's");
    return false;
  }
  if (piece.length > remote->length || piece.remote_offset > remote->length - piece.length) {
    invalid(error, span_text(piece.remote_offset, piece.length) + " leave the remote region's " +
                       std::to_string(remote->length));
    return false;
  }
  if (!piece.mapping->contains(piece.local_offset, piece.length)) {
    invalid(error, span_text(piece.local_offset, piece.length) + " leave the mapping's " +
                       std::to_string(piece.mapping->size_bytes()));
    return false;
  }
  if (piece.length == 0) return true;
  // Pieces of one transfer mostly come from one mapping; a reference too many does no harm.
  if (transfer.mappings.empty() || transfer.mappings.back() != piece.mapping)
    transfer.mappings.push_back(piece.mapping);
  if (shared_->info.needs_local_registration) return add_registered(transfer, piece, *remote, error);
  transfer.segments.push_back({piece.mapping->base() + piece.local_offset, nullptr,
                               remote->address + piece.remote_offset, remote->key, piece.length});
  return true;
}

// One segment per source registration that the piece touches.
bool Rail::add_registered(Transfer& transfer, const WritePiece& piece, const Remote& remote, Error& error) {
  for (uint64_t done = 0; done < piece.length;) {
    const uint64_t offset = piece.local_offset + done;
    Region* region = local_regions_.find(*piece.mapping, offset);
    if (region == nullptr) {
      invalid(error,
              span_text(offset, piece.length - done) + " are not registered for local use, which this provider needs");
      return false;
    }
    const uint64_t length = std::min(piece.length - done, region->offset + region->length - offset);
    transfer.segments.push_back({piece.mapping->base() + offset, region->descriptor,
                                 remote.address + piece.remote_offset + done, remote.key, length});
    if (transfer.regions.empty() || transfer.regions.back() != region) transfer.regions.push_back(region);
    done += length;
  }
  return true;
}

Transfer* Rail::find_transfer(uint64_t id) const {
  const size_t slot = id % kTransferSlots;
  if (slot >= shared_->transfers.size()) return nullptr;
  Transfer& transfer = shared_->transfers[slot];
  return transfer.live && transfer.id == id ? &transfer : nullptr;
}

bool Rail::cancel(uint64_t id) {
  Transfer* transfer = find_transfer(id);
  if (transfer == nullptr || transfer->cancel_sent) return false;
  // A rail that is closing cancels everything by itself. A full ring is being emptied: the caller may ask again.
  if (closing_ || failed_ || closed_ || !shared_->commands.has_room()) return false;
  transfer->cancel_sent = true;
  send(CommandKind::kCancel, transfer);
  return true;
}

uint64_t Rail::bytes_completed(uint64_t id) const {
  const Transfer* transfer = find_transfer(id);
  return transfer == nullptr ? 0 : transfer->bytes_completed.load(std::memory_order_relaxed);
}

uint32_t Rail::chunks_in_flight(uint64_t id) const {
  const Transfer* transfer = find_transfer(id);
  return transfer == nullptr ? 0 : transfer->chunks_in_flight.load(std::memory_order_relaxed);
}

size_t Rail::drain(std::span<Outcome> outcomes) {
  // Pairs with the exchange in ProgressThread::wake_owner.
  shared_->owner_woken.exchange(false, std::memory_order_acq_rel);
  size_t count = 0;
  Completion completion;
  while (count < outcomes.size()) {
    if (!leftovers_.empty()) {
      completion = leftovers_.back();
      leftovers_.pop_back();
    } else if (!shared_->completions.pop(completion)) {
      break;
    }
    if (completion.kind == CompletionKind::kClosed) {
      closed_ = true;
      settle_leftovers();
      continue;
    }
    outcomes[count++] = settle(completion);
  }
  return count;
}

Outcome Rail::settle(Completion completion) {
  Outcome outcome;
  outcome.kind = completion.kind;
  outcome.token = completion.token;
  outcome.error.reset(completion.error);
  const bool good = outcome.error == nullptr;
  if (completion.kind != CompletionKind::kFailed) pending_--;
  switch (completion.kind) {
    case CompletionKind::kOpened:
      outcome.token = kOpenToken;
      break;
    case CompletionKind::kFailed:
      outcome.token = kFailureToken;
      failed_ = true;
      break;
    case CompletionKind::kTransfer:
      outcome.id = completion.transfer->id;
      if (!shared_->sources_are_free.load(std::memory_order_relaxed)) {
        for (auto& mapping : completion.transfer->mappings) hold_for_ever(std::move(mapping));
      }
      give_back(*completion.transfer);
      break;
    case CompletionKind::kRegistered: {
      Region& region = *completion.region;
      outcome.id = region.id;
      outcome.remote_address = region.remote_address;
      outcome.key = region.key;
      region.live = good;
      if (good && !region.remote_write) local_regions_.insert(region);
      if (good) break;
      [[fallthrough]];
    }
    case CompletionKind::kDeregistered: {
      Region& region = *completion.region;
      // One that libfabric would not close may still be written to: it keeps its mapping and its slot.
      if (!good && completion.kind == CompletionKind::kDeregistered) break;
      region.mapping.reset();
      free_regions_.push_back(static_cast<uint32_t>(region.id % kRegionsMax));
      break;
    }
    case CompletionKind::kPeerInserted:
      outcome.id = completion.peer->id;
      completion.peer->live = good;
      if (!good) free_peers_.push_back(static_cast<uint32_t>(outcome.id % kPeersMax));
      break;
    case CompletionKind::kPeerRemoved:
      // One whose writes have not come back keeps its slot: the progress thread still knows it.
      if (good) free_peers_.push_back(static_cast<uint32_t>(completion.peer->id % kPeersMax));
      break;
    case CompletionKind::kPeerDisconnected:
    case CompletionKind::kProved:
    case CompletionKind::kClosed:
      break;
  }
  return outcome;
}

void Rail::settle_leftovers() {
  // The progress thread has ended, so its end of the ring is ours. What it never saw is answered here.
  Command command;
  while (shared_->commands.pop(command)) {
    Completion completion;
    completion.token = command.token;
    switch (command.kind) {
      case CommandKind::kCancel:
        continue;
      case CommandKind::kWrite:
        completion.kind = CompletionKind::kTransfer;
        completion.transfer = command.transfer;
        break;
      case CommandKind::kRegister:
      case CommandKind::kDeregister:
        completion.kind =
            command.kind == CommandKind::kRegister ? CompletionKind::kRegistered : CompletionKind::kDeregistered;
        completion.region = command.region;
        break;
      case CommandKind::kInsertPeer:
      case CommandKind::kRemovePeer:
        completion.kind =
            command.kind == CommandKind::kInsertPeer ? CompletionKind::kPeerInserted : CompletionKind::kPeerRemoved;
        completion.peer = command.peer;
        break;
      case CommandKind::kDisconnectPeer:
        completion.kind = CompletionKind::kPeerDisconnected;
        completion.peer = command.peer;
        break;
      case CommandKind::kProve:
        completion.kind = CompletionKind::kProved;
        break;
    }
    // Closing has deregistered and removed everything.
    if (command.kind != CommandKind::kDeregister && command.kind != CommandKind::kRemovePeer) {
      auto error = std::make_unique<Error>();
      error->code = ErrorCode::kRailClosed;
      error->call = "close";
      error->text = "the rail is closed";
      completion.error = error.release();
    }
    leftovers_.push_back(completion);
  }
  const bool free = shared_->sources_are_free.load(std::memory_order_relaxed);
  for (Region& region : shared_->regions) {
    if (!free && region.mapping != nullptr) hold_for_ever(region.mapping);
    if (region.live) region.mapping.reset();
    region.live = false;
  }
  local_regions_.clear();
}

}  // namespace fabrickv::fabric
