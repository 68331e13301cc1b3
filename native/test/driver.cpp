#include "driver.h"

#include <array>
#include <cstdlib>
#include <cstring>

#include "check.h"

namespace fabrickv::test {
namespace {

std::string setting(const char* name, const char* otherwise) {
  const char* value = std::getenv(name);
  return value == nullptr ? otherwise : value;
}

}  // namespace

const Place& place() {
  static const Place named = [] {
    const std::string provider = setting("FABRICKV_TEST_PROVIDER", "tcp;ofi_rxm");
    return Place{provider, setting("FABRICKV_TEST_SOURCE_ADDRESS", "127.0.0.1"), provider.starts_with("verbs")};
  }();
  return named;
}

const fabric::Libfabric& library() {
  fabric::Error error;
  const fabric::Libfabric* loaded = fabric::load_libfabric({}, error);
  if (loaded == nullptr) fail(__FILE__, __LINE__, error.text);
  return *loaded;
}

Driver::Driver(fabric::RailOptions options, const fabric::Libfabric& with) {
  if (options.query.provider.empty()) options.query.provider = place().provider;
  options.query.source_address = place().source_address;
  fabric::Error error;
  rail_ = fabric::Rail::open(
      with, options,
      [this] {
        const std::scoped_lock lock(mutex_);
        wake_ = true;
        woken_.notify_all();
      },
      error);
  if (rail_ == nullptr) fail(__FILE__, __LINE__, error.text);
  const fabric::Outcome opened = wait(fabric::kOpenToken);
  if (opened.error != nullptr) fail(__FILE__, __LINE__, opened.error->call + ": " + opened.error->text);
}

Driver::~Driver() = default;

void Driver::collect(std::chrono::steady_clock::time_point deadline) {
  std::array<fabric::Outcome, 64> outcomes;
  for (;;) {
    const size_t count = rail_->drain(outcomes);
    for (size_t i = 0; i < count; i++) {
      fabric::Outcome& outcome = outcomes[i];
      const bool transfer = outcome.kind == fabric::CompletionKind::kTransfer;
      const auto id = outcome.id;
      const auto token = outcome.token;
      const bool first = transfer ? transfers_.emplace(id, std::move(outcome)).second
                                  : commands_.emplace(token, std::move(outcome)).second;
      if (!first) fail(__FILE__, __LINE__, "settled twice");
    }
    if (count > 0 || rail_->closed()) return;
    std::unique_lock lock(mutex_);
    if (!woken_.wait_until(lock, deadline, [this] { return wake_; })) return;
    wake_ = false;
  }
}

fabric::Outcome Driver::wait(int64_t token) {
  const auto deadline = std::chrono::steady_clock::now() + kDeadline;
  for (;;) {
    if (auto found = commands_.extract(token)) return std::move(found.mapped());
    if (std::chrono::steady_clock::now() >= deadline) fail(__FILE__, __LINE__, "no completion of a command");
    collect(deadline);
  }
}

std::unique_ptr<fabric::Error> Driver::wait_transfer(uint64_t transfer) {
  const auto deadline = std::chrono::steady_clock::now() + kDeadline;
  for (;;) {
    if (auto found = transfers_.extract(transfer)) return std::move(found.mapped().error);
    if (std::chrono::steady_clock::now() >= deadline) fail(__FILE__, __LINE__, "no completion of a transfer");
    collect(deadline);
  }
}

bool Driver::settled(uint64_t transfer) {
  collect(std::chrono::steady_clock::now());
  return transfers_.contains(transfer);
}

fabric::Outcome Driver::add_region(const std::shared_ptr<memory::Mapping>& mapping, uint64_t offset, uint64_t length,
                                   bool remote) {
  fabric::Error error;
  const auto token = rail_->register_region(mapping, offset, length, remote, error);
  if (!token) fail(__FILE__, __LINE__, error.text);
  fabric::Outcome outcome = wait(*token);
  if (outcome.error != nullptr) fail(__FILE__, __LINE__, outcome.error->text);
  return outcome;
}

std::optional<uint64_t> Driver::add_source(const std::shared_ptr<memory::Mapping>& mapping) {
  if (!info().needs_local_registration) return {};
  return add_region(mapping, 0, mapping->size_bytes(), false).id;
}

void Driver::remove_region(uint64_t region) {
  fabric::Error error;
  const auto token = rail_->deregister_region(region, error);
  if (!token) fail(__FILE__, __LINE__, error.text);
  const fabric::Outcome outcome = wait(*token);
  if (outcome.error != nullptr) fail(__FILE__, __LINE__, outcome.error->text);
}

uint64_t Driver::add_peer(const std::vector<uint8_t>& address) {
  fabric::Error error;
  const auto token = rail_->insert_peer(address, error);
  if (!token) fail(__FILE__, __LINE__, error.text);
  const fabric::Outcome outcome = wait(*token);
  if (outcome.error != nullptr) fail(__FILE__, __LINE__, outcome.error->text);
  return outcome.id;
}

uint64_t Driver::add_remote(uint64_t peer, uint64_t address, uint64_t key, uint64_t length) {
  fabric::Error error;
  const auto remote = rail_->define_remote(peer, address, key, length, error);
  if (!remote) fail(__FILE__, __LINE__, error.text);
  return *remote;
}

uint64_t Driver::start_write(uint64_t peer, const std::vector<fabric::WritePiece>& pieces) {
  fabric::Error error;
  const auto transfer = rail_->write(peer, pieces, error);
  if (!transfer) fail(__FILE__, __LINE__, error.text);
  return *transfer;
}

std::shared_ptr<memory::Mapping> map(size_t size_bytes) {
  memory::MapFailure failure;
  auto mapping = memory::Mapping::create({size_bytes, true, true, nullptr}, failure);
  if (mapping == nullptr) fail(__FILE__, __LINE__, "mmap");
  return mapping;
}

void fill(memory::Mapping& mapping, uint32_t seed) {
  uint64_t state = seed + 0x9E3779B97F4A7C15;
  for (size_t at = 0; at < mapping.size_bytes(); at += sizeof state) {
    state ^= state << 13;
    state ^= state >> 7;
    state ^= state << 17;
    std::memcpy(mapping.base() + at, &state, std::min(sizeof state, mapping.size_bytes() - at));
  }
}

}  // namespace fabrickv::test
