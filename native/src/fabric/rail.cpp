#include "fabric/rail.h"

#include <pthread.h>
#include <signal.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <cstdlib>
#include <string>
#include <system_error>

#include "fabric/exit_guard.h"
#include "fabric/progress_thread.h"

namespace fabrickv::fabric {
namespace {

constexpr uint32_t kNone = UINT32_MAX;

void refuse(Error& error, ErrorCode code, const char* call, std::string text) {
  error = {};
  error.code = code;
  error.call = call;
  error.text = std::move(text);
}

void invalid(Error& error, const char* call, std::string text) {
  refuse(error, ErrorCode::kInvalidArgument, call, std::move(text));
}

// A slot from the free list, or a new one at the table's end; kNone when the table is full.
template <typename Table>
uint32_t take_slot(std::vector<uint32_t>& free_slots, Table& table, size_t size_max) {
  if (!free_slots.empty()) {
    const uint32_t slot = free_slots.back();
    free_slots.pop_back();
    return slot;
  }
  if (table.size() == size_max) return kNone;
  table.emplace_back();
  return static_cast<uint32_t>(table.size() - 1);
}

// The id that a slot gets next: never one that it had before.
template <typename Entry>
uint64_t next_id(Entry& entry, uint32_t slot, size_t table_size) {
  return entry.id == 0 ? slot + table_size : entry.id + table_size;
}

// The handlers of the process belong to its other threads.
std::thread start_without_signals(const std::function<void()>& body) {
  sigset_t all;
  sigset_t before;
  sigfillset(&all);
  pthread_sigmask(SIG_SETMASK, &all, &before);
  std::thread thread;
  try {
    thread = std::thread(body);
  } catch (const std::system_error&) {
    // Not joinable: the caller sees that.
  }
  pthread_sigmask(SIG_SETMASK, &before, nullptr);
  return thread;
}

}  // namespace

std::unique_ptr<Rail> Rail::open(const Libfabric& library, RailOptions options, std::function<void()> wake,
                                 Error& error) {
  auto shared = std::make_shared<SharedState>(library, std::move(options), std::move(wake));
  std::unique_ptr<Rail> rail(new Rail(shared));
  guard_exit(shared);
  rail->thread_ = start_without_signals([shared] {
    pthread_setname_np(pthread_self(), "fabrickv-rail");
    ProgressThread(*shared).run();
    unguard_exit(*shared);
    const std::scoped_lock lock(shared->finished_mutex);
    shared->finished = true;
    shared->finished_changed.notify_all();
  });
  if (!rail->thread_.joinable()) {
    unguard_exit(*shared);
    refuse(error, ErrorCode::kBusy, "pthread_create", "no thread can be started for the rail");
    return nullptr;
  }
  rail->pending_ = 1;
  return rail;
}

Rail::~Rail() {
  close();
  join(kRemovalTimeout + kCloseTimeout);
  std::array<Outcome, 64> rest;
  while (drain(rest) > 0) {
  }
}

bool Rail::may_start(const char* call, size_t pending_max, Error& error) const {
  if (closing_ || failed_ || closed_) {
    refuse(error, ErrorCode::kRailClosed, call, failed_ ? "the rail has failed" : "the rail is closed");
    return false;
  }
  // The ring has room for all that can be pending, but cancels of what has settled meanwhile may still be in it.
  if (pending_ >= pending_max || !shared_->commands.has_room()) {
    refuse(error, ErrorCode::kBusy, call, std::to_string(pending_max) + " commands and transfers are pending");
    return false;
  }
  return true;
}

int64_t Rail::send(CommandKind kind, void* object) {
  Command command;
  command.kind = kind;
  switch (kind) {
    case CommandKind::kRegister:
    case CommandKind::kDeregister:
      command.region = static_cast<Region*>(object);
      break;
    case CommandKind::kInsertPeer:
    case CommandKind::kRemovePeer:
    case CommandKind::kDisconnectPeer:
      command.peer = static_cast<Peer*>(object);
      break;
    case CommandKind::kProve:
      break;
    case CommandKind::kWrite:
    case CommandKind::kCancel:
      command.transfer = static_cast<Transfer*>(object);
      break;
  }
  const bool has_token = kind != CommandKind::kWrite && kind != CommandKind::kCancel;
  if (has_token) command.token = next_token_--;
  if (kind != CommandKind::kCancel) pending_++;
  // The callers have made sure that there is room.
  if (!shared_->commands.push(command)) std::abort();
  notify();
  return command.token;
}

void Rail::notify() const {
  // Pairs with the fence in ProgressThread::wait.
  std::atomic_thread_fence(std::memory_order_seq_cst);
  if (shared_->sleeping.load(std::memory_order_relaxed)) shared_->wake_fd.notify();
}

Rail::Token Rail::register_region(std::shared_ptr<memory::Mapping> mapping, uint64_t offset, uint64_t length,
                                  bool remote_write, Error& error) {
  if (!may_begin("register", error)) return {};
  if (length == 0 || length > kRegionBytesMax || !mapping->contains(offset, length)) {
    invalid(error, "register",
            "bytes " + std::to_string(offset) + " + " + std::to_string(length) +
                " are empty, above 1 GiB or outside the mapping's " + std::to_string(mapping->size_bytes()));
    return {};
  }
  const uint32_t slot = take_slot(free_regions_, shared_->regions, kRegionsMax);
  if (slot == kNone) {
    refuse(error, ErrorCode::kBusy, "register", std::to_string(kRegionsMax) + " regions are registered");
    return {};
  }
  Region& region = shared_->regions[slot];
  region.id = next_id(region, slot, kRegionsMax);
  region.mapping = std::move(mapping);
  region.offset = offset;
  region.length = length;
  region.remote_write = remote_write;
  return send(CommandKind::kRegister, &region);
}

Rail::Token Rail::deregister_region(uint64_t id, Error& error) {
  if (!may_end("deregister", error)) return {};
  const size_t slot = id % kRegionsMax;
  if (slot >= shared_->regions.size() || !shared_->regions[slot].live || shared_->regions[slot].id != id) {
    invalid(error, "deregister", "region " + std::to_string(id) + " is not registered");
    return {};
  }
  Region& region = shared_->regions[slot];
  region.live = false;
  if (!region.remote_write) local_regions_.erase(region);
  return send(CommandKind::kDeregister, &region);
}

Rail::Token Rail::insert_peer(std::span<const uint8_t> address, Error& error) {
  if (!may_begin("insertPeer", error)) return {};
  if (address.size() != shared_->info.address.size()) {
    invalid(error, "insertPeer",
            "an address of " + std::to_string(address.size()) + " bytes; this rail's " + shared_->info.address_format +
                " has " + std::to_string(shared_->info.address.size()));
    return {};
  }
  // The provider would read the address as its own family without looking.
  if (shared_->info.address_format.starts_with("FI_SOCKADDR") &&
      !std::equal(address.begin(), address.begin() + 2, shared_->info.address.begin())) {
    invalid(error, "insertPeer", "an address of another family than " + shared_->info.address_format);
    return {};
  }
  if (shared_->info.efa) {
    if (std::string why = efa::refuse_peer(*shared_->info.efa, address); !why.empty()) {
      refuse(error, ErrorCode::kTransferFailed, "insertPeer", std::move(why));
      return {};
    }
  }
  const uint32_t slot = take_slot(free_peers_, shared_->peers, kPeersMax);
  if (slot == kNone) {
    refuse(error, ErrorCode::kBusy, "insertPeer", std::to_string(kPeersMax) + " peers are in the address vector");
    return {};
  }
  Peer& peer = shared_->peers[slot];
  peer.id = next_id(peer, slot, kPeersMax);
  std::copy(address.begin(), address.end(), peer.address.begin());
  peer.address_length = address.size();
  return send(CommandKind::kInsertPeer, &peer);
}

Peer* Rail::find_peer(uint64_t id) {
  const size_t slot = id % kPeersMax;
  if (slot >= shared_->peers.size()) return nullptr;
  Peer& peer = shared_->peers[slot];
  return peer.live && peer.id == id ? &peer : nullptr;
}

Rail::Token Rail::remove_peer(uint64_t id, Error& error) {
  if (!may_end("removePeer", error)) return {};
  Peer* peer = find_peer(id);
  if (peer == nullptr) {
    invalid(error, "removePeer", "peer " + std::to_string(id) + " is not there");
    return {};
  }
  peer->live = false;
  while (peer->first_remote != kNone) strike_remote(peer->first_remote);
  return send(CommandKind::kRemovePeer, peer);
}

Rail::Token Rail::disconnect_peer(uint64_t id, Error& error) {
  if (!may_end("disconnectPeer", error)) return {};
  Peer* peer = find_peer(id);
  if (peer == nullptr) {
    invalid(error, "disconnectPeer", "peer " + std::to_string(id) + " is not there");
    return {};
  }
  return send(CommandKind::kDisconnectPeer, peer);
}

Rail::Token Rail::prove(Error& error) {
  if (!may_end("prove", error)) return {};
  return send(CommandKind::kProve, nullptr);
}

std::optional<uint64_t> Rail::define_remote(uint64_t peer_id, uint64_t address, uint64_t key, uint64_t length,
                                            Error& error) {
  if (closing_ || failed_ || closed_) {
    refuse(error, ErrorCode::kRailClosed, "defineRemote", "the rail is closed");
    return {};
  }
  Peer* peer = find_peer(peer_id);
  if (peer == nullptr || address + length < address) {
    invalid(error, "defineRemote",
            peer == nullptr ? "peer " + std::to_string(peer_id) + " is not there" : "it wraps around");
    return {};
  }
  const uint32_t slot = take_slot(free_remotes_, remotes_, kRemotesMax);
  if (slot == kNone) {
    refuse(error, ErrorCode::kBusy, "defineRemote", std::to_string(kRemotesMax) + " remote regions are defined");
    return {};
  }
  Remote& remote = remotes_[slot];
  remote.id = next_id(remote, slot, kRemotesMax);
  remote.live = true;
  remote.peer_slot = static_cast<uint32_t>(peer_id % kPeersMax);
  remote.address = address;
  remote.key = key;
  remote.length = length;
  remote.previous = kNone;
  remote.next = peer->first_remote;
  if (remote.next != kNone) remotes_[remote.next].previous = slot;
  peer->first_remote = slot;
  if (peer->oldest_remote == kNone) set_oldest_remote(*peer, slot);
  return remote.id;
}

Rail::Remote* Rail::find_remote(uint64_t id) {
  const size_t slot = id % kRemotesMax;
  if (slot >= remotes_.size()) return nullptr;
  Remote& remote = remotes_[slot];
  return remote.live && remote.id == id ? &remote : nullptr;
}

bool Rail::forget_remote(uint64_t id) {
  if (find_remote(id) == nullptr) return false;
  strike_remote(static_cast<uint32_t>(id % kRemotesMax));
  return true;
}

void Rail::strike_remote(uint32_t slot) {
  Remote& remote = remotes_[slot];
  remote.live = false;
  Peer& peer = shared_->peers[remote.peer_slot];
  if (peer.oldest_remote == slot) set_oldest_remote(peer, remote.previous);
  (remote.previous == kNone ? peer.first_remote : remotes_[remote.previous].next) = remote.next;
  if (remote.next != kNone) remotes_[remote.next].previous = remote.previous;
  free_remotes_.push_back(slot);
}

void Rail::set_oldest_remote(Peer& peer, uint32_t slot) {
  peer.oldest_remote = slot;
  const std::scoped_lock lock(shared_->fence_mutex);
  peer.fence_target = {};
  if (slot != kNone) peer.fence_target = {true, remotes_[slot].address, remotes_[slot].key};
}

void Rail::close() {
  closing_ = true;
  shared_->stop.store(true, std::memory_order_release);
  shared_->wake_fd.notify();
}

bool Rail::join(Clock::duration limit) {
  if (!thread_.joinable()) return true;
  {
    std::unique_lock lock(shared_->finished_mutex);
    if (!shared_->finished_changed.wait_for(lock, limit, [this] { return shared_->finished; })) {
      thread_.detach();
      return false;
    }
  }
  thread_.join();
  return true;
}

}  // namespace fabrickv::fabric
