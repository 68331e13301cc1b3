#pragma once

#include <chrono>
#include <condition_variable>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <vector>

#include "fabric/rail.h"

namespace fabrickv::test {

using namespace std::chrono_literals;

// Nothing here takes a fraction of it; reaching it is a failure.
constexpr auto kDeadline = 20s;

// Loaded on first use.
const fabric::Libfabric& library();

// What the tests run over: tcp;ofi_rxm on 127.0.0.1, or what FABRICKV_TEST_PROVIDER (libfabric's own name, as in
// verbs;ofi_rxm) and FABRICKV_TEST_SOURCE_ADDRESS say.
struct Place {
  std::string provider;
  std::string source_address;
  // The device writes into memory by itself, whatever the process does that it belongs to, and chooses the keys.
  bool is_verbs;

  // How much to move where tcp moves so much: a software device in a software processor is a hundred times slower.
  uint64_t scaled(uint64_t size_bytes) const { return is_verbs ? size_bytes / 8 : size_bytes; }
  // What "at once" means here.
  std::chrono::seconds soon() const { return is_verbs ? 5s : 1s; }
};
const Place& place();

// A rail with a blocking face: what the JS thread does, for tests.
class Driver {
 public:
  // Where place() says, unless the options say otherwise. Ends the process when it cannot be opened.
  explicit Driver(fabric::RailOptions options = {}, const fabric::Libfabric& with = library());
  ~Driver();

  fabric::Rail& rail() { return *rail_; }
  const fabric::RailInfo& info() const { return rail_->info(); }

  // Waits for the completion of a command.
  fabric::Outcome wait(int64_t token);
  // Waits for a transfer; null when it succeeded.
  std::unique_ptr<fabric::Error> wait_transfer(uint64_t transfer);
  // Takes what has settled, without waiting; whether the transfer is among it.
  bool settled(uint64_t transfer);

  // These end the process on failure.
  fabric::Outcome add_region(const std::shared_ptr<memory::Mapping>& mapping, uint64_t offset, uint64_t length,
                             bool remote);
  // Registers the whole mapping as a source of writes where the provider wants that.
  std::optional<uint64_t> add_source(const std::shared_ptr<memory::Mapping>& mapping);
  void remove_region(uint64_t region);
  uint64_t add_peer(const std::vector<uint8_t>& address);
  uint64_t add_remote(uint64_t peer, uint64_t address, uint64_t key, uint64_t length);
  uint64_t start_write(uint64_t peer, const std::vector<fabric::WritePiece>& pieces);

 private:
  void collect(std::chrono::steady_clock::time_point deadline);

  std::mutex mutex_;
  std::condition_variable woken_;
  bool wake_ = false;
  std::unique_ptr<fabric::Rail> rail_;
  std::map<int64_t, fabric::Outcome> commands_;
  std::map<uint64_t, fabric::Outcome> transfers_;
};

std::shared_ptr<memory::Mapping> map(size_t size_bytes);
// Fills with a pattern that depends on the seed.
void fill(memory::Mapping& mapping, uint32_t seed);

}  // namespace fabrickv::test
