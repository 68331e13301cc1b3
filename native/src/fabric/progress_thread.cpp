#include "fabric/progress_thread.h"

#include <pthread.h>
#include <sched.h>
#include <sys/random.h>

#include <algorithm>
#include <cerrno>
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
  if (!bind_to_cpu(error)) {
    push(CompletionKind::kOpened, 0, nullptr, std::make_unique<Error>(std::move(error)));
    return false;
  }
  endpoint_ =
      Endpoint::open(shared_.library, shared_.options.query, kOperationsMax, shared_.counters.close_failures, error);
  if (endpoint_ == nullptr) {
    push(CompletionKind::kOpened, 0, nullptr, std::make_unique<Error>(std::move(error)));
    return false;
  }
  if (shared_.options.force_close_endpoint) endpoint_->distrust();
  if (endpoint_->info().quiescence == Quiescence::kFence) {
    inbound_ = Inbound::open(endpoint_->info().address, unprovable_because_);
    if (inbound_ == nullptr) endpoint_->distrust_fences();
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

bool ProgressThread::bind_to_cpu(Error& error) const {
  const int cpu = shared_.options.cpu;
  if (cpu < 0) return true;
  int result = EINVAL;
  if (cpu < CPU_SETSIZE) {
    cpu_set_t cpus;
    CPU_ZERO(&cpus);
    CPU_SET(cpu, &cpus);
    result = pthread_setaffinity_np(pthread_self(), sizeof cpus, &cpus);
  }
  if (result == 0) return true;
  error.code = ErrorCode::kInvalidArgument;
  error.call = "pthread_setaffinity_np";
  error.error_number = result;
  error.text = "the progress thread cannot run on CPU " + std::to_string(cpu);
  error.hint = "name a CPU that is online and that this process may use: taskset -pc $$ lists them";
  return false;
}

void ProgressThread::loop() {
  last_activity_ = Clock::now();
  while (!shared_.stop.load(std::memory_order_relaxed) && failure_ == nullptr) {
    const Clock::time_point before = std::exchange(now_, Clock::now());
    shared_.counters.heartbeat_ms.store(milliseconds(now_), std::memory_order_relaxed);
    if (now_ - before >= kStallMin) excuse_stall(now_ - before);
    bool worked = execute_commands();
    worked |= scheduler_->post();
    queue_was_empty_ = !scheduler_->poll(failure_);
    worked |= !queue_was_empty_;
    reconnect_failed_peers();
    check_disconnections();
    check_removals();
    remove_lingering();
    worked |= advance_proof();
    wake_owner();
    if (worked) {
      last_activity_ = now_;
    } else {
      wait();
    }
  }
}

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
    case CommandKind::kDisconnectPeer:
      return begin_disconnection(*command.peer, command.token);
    case CommandKind::kProve:
      return prove(command.token);
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
    error->hint = info.efa ? efa::registration_hint(result, region.length) : registration_hint(result, region.length);
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

void ProgressThread::on_settled(Transfer& transfer) {
  for (Region* region : transfer.regions) {
    region->users--;
    if (region->closing && region->users == 0) close_region(*region);
  }
  push(CompletionKind::kTransfer, 0, &transfer, std::move(transfer.error));
}

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
      case CommandKind::kDisconnectPeer:
        push(CompletionKind::kPeerDisconnected, command.token, command.peer,
             std::make_unique<Error>(closed_error("disconnectPeer")));
        break;
      case CommandKind::kProve:
        push(CompletionKind::kProved, command.token, nullptr, std::make_unique<Error>(closed_error("prove")));
        break;
      case CommandKind::kDeregister:
      case CommandKind::kRemovePeer:
        execute(command);
        break;
      case CommandKind::kCancel:
        break;
    }
  }
  abandon_proofs();
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
  for (const Disconnection& disconnection : std::exchange(disconnections_, {})) {
    end_disconnection(disconnection, std::make_unique<Error>(closed_error("disconnectPeer")));
  }
  check_removals();
  endpoint_.reset();
}

}  // namespace fabrickv::fabric
