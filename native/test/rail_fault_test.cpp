// What happens when the other process dies, hangs, or is thrown out, and when a rail is closed at any moment.

#include <dirent.h>

#include <unistd.h>

#include <algorithm>
#include <array>
#include <csignal>
#include <string>

#include "check.h"
#include "driver.h"
#include "memory/crc32c.h"
#include "peer_process.h"

using namespace fabrickv;
using namespace fabrickv::test;
using fabric::ErrorCode;

namespace {

constexpr uint64_t kMiB = uint64_t{1} << 20;

// The names in a directory, each with what it links to.
std::string list_entries(const std::string& directory) {
  DIR* listing = opendir(directory.c_str());
  std::string entries;
  while (const dirent* entry = readdir(listing)) {
    std::array<char, 256> target{};
    [[maybe_unused]] const ssize_t length =
        readlink((directory + "/" + entry->d_name).c_str(), target.data(), target.size() - 1);
    entries += std::string(entry->d_name) + " " + target.data() + "\n";
  }
  closedir(listing);
  return entries;
}

size_t count_entries(const char* directory) {
  const std::string entries = list_entries(directory);
  return static_cast<size_t>(std::count(entries.begin(), entries.end(), '\n'));
}

template <typename Condition>
void wait_until(Condition condition) {
  const auto deadline = std::chrono::steady_clock::now() + kDeadline;
  while (!condition()) {
    if (std::chrono::steady_clock::now() >= deadline) fail(__FILE__, __LINE__, "waited in vain");
  }
}

struct Writer {
  explicit Writer(PeerProcess& target, fabric::RailOptions options = {}) : driver(std::move(options)) {
    use_source(target.size_bytes());
    target.insert_peer(driver.info().address);
    know(target);
  }
  void use_source(uint64_t size_bytes) {
    source = map(size_bytes);
    fill(*source, 1);
    driver.add_source(source);
  }
  void know(PeerProcess& target) {
    peer = driver.add_peer(target.address());
    remote = driver.add_remote(peer, target.remote_address(), target.key(), target.size_bytes());
  }
  uint64_t start() { return driver.start_write(peer, {{source, 0, remote, 0, source->size_bytes()}}); }
  // Starts a write and returns when some of it has arrived and some has not.
  uint64_t start_and_reach_the_middle() {
    const uint64_t transfer = start();
    wait_until([&] { return driver.rail().bytes_completed(transfer) >= source->size_bytes() / 16; });
    if (driver.settled(transfer)) fail(__FILE__, __LINE__, "it was over before its middle");
    return transfer;
  }

  Driver driver;
  std::shared_ptr<memory::Mapping> source;
  uint64_t peer = 0;
  uint64_t remote = 0;
};

}  // namespace

TEST(a_killed_peer_fails_the_write_at_once) {
  PeerProcess target(place().scaled(128 * kMiB));
  Writer writer(target);
  CHECK(writer.driver.wait_transfer(writer.start()) == nullptr);
  const uint64_t transfer = writer.start_and_reach_the_middle();
  const auto before = std::chrono::steady_clock::now();
  target.kill(SIGKILL);
  const auto error = writer.driver.wait_transfer(transfer);
  CHECK(error != nullptr);
  CHECK_EQUAL(error->code, ErrorCode::kTransferFailed);
  CHECK(std::chrono::steady_clock::now() - before < place().soon());
  // The rail lives: another peer works.
  PeerProcess next(kMiB);
  next.insert_peer(writer.driver.info().address);
  writer.use_source(kMiB);
  writer.know(next);
  CHECK(writer.driver.wait_transfer(writer.start()) == nullptr);
}

TEST(a_frozen_peer_is_cancelled_and_removed_without_its_help) {
  if (place().is_verbs) SKIP("a device goes on when its process is stopped: see the next");
  PeerProcess target(256 * kMiB);
  Writer writer(target);
  PeerProcess bystander(kMiB);
  bystander.insert_peer(writer.driver.info().address);
  const uint64_t other = writer.driver.add_peer(bystander.address());
  const uint64_t other_remote = writer.driver.add_remote(other, bystander.remote_address(), bystander.key(), kMiB);
  CHECK(writer.driver.wait_transfer(writer.start()) == nullptr);

  const uint64_t transfer = writer.start_and_reach_the_middle();
  target.kill(SIGSTOP);
  fabric::Rail& rail = writer.driver.rail();
  // What the sockets hold drains away, and then nothing moves.
  uint64_t done = 0;
  do {
    done = rail.bytes_completed(transfer);
    usleep(300'000);
  } while (rail.bytes_completed(transfer) != done);
  CHECK(rail.chunks_in_flight(transfer) > 0);
  CHECK(rail.cancel(transfer));
  CHECK(!rail.cancel(transfer));
  CHECK(!writer.driver.settled(transfer));
  // The others go on meanwhile.
  CHECK(writer.driver.wait_transfer(writer.driver.start_write(other, {{writer.source, 0, other_remote, 0, kMiB}})) ==
        nullptr);

  fabric::Error error;
  const auto before = std::chrono::steady_clock::now();
  const auto token = rail.remove_peer(writer.peer, error);
  CHECK(token.has_value());
  CHECK(writer.driver.wait(*token).error == nullptr);
  CHECK(std::chrono::steady_clock::now() - before < place().soon());
  // Its transfers were settled first.
  CHECK(writer.driver.settled(transfer));
  CHECK_EQUAL(writer.driver.wait_transfer(transfer)->code, ErrorCode::kCancelled);
  CHECK(!rail.write(writer.peer, std::vector<fabric::WritePiece>{}, error));
  CHECK(writer.driver.wait_transfer(writer.driver.start_write(other, {{writer.source, 0, other_remote, 0, kMiB}})) ==
        nullptr);

  // It wakes up and is inserted again.
  target.kill(SIGCONT);
  writer.know(target);
  CHECK(writer.driver.wait_transfer(writer.start()) == nullptr);
  CHECK_EQUAL(target.crc(0, 256 * kMiB), memory::crc32c(writer.source->base(), 256 * kMiB, 0));
}

TEST(addresses_of_removed_peers_are_bounded_and_go) {
  if (place().is_verbs || place().source_address != "127.0.0.1") SKIP("it needs many addresses where nobody listens");
  Driver driver;
  fabric::Rail& rail = driver.rail();
  uint16_t next = 0;
  fabric::Error error;
  const auto insert = [&] {
    // A sockaddr_in: port 1 on an address of its own.
    std::vector<uint8_t> address = driver.info().address;
    next++;
    address[2] = 0;
    address[3] = 1;
    address[5] = static_cast<uint8_t>(100 + (next >> 8));
    address[6] = static_cast<uint8_t>(next);
    return rail.insert_peer(address, error).value();
  };
  std::vector<int64_t> tokens;
  std::vector<uint64_t> peers;
  std::vector<uint64_t> pings;
  for (size_t i = 0; i < fabric::kLingeringMax; i++) tokens.push_back(insert());
  for (const int64_t token : tokens) peers.push_back(driver.wait(token).id);
  for (const uint64_t peer : peers) {
    pings.push_back(rail.ping(peer, driver.add_remote(peer, 0, 0, 1), error).value());
  }
  tokens.clear();
  for (const uint64_t peer : peers) tokens.push_back(rail.remove_peer(peer, error).value());
  for (const int64_t token : tokens) CHECK(driver.wait(token).error == nullptr);
  for (const uint64_t ping : pings) CHECK(driver.wait_transfer(ping) != nullptr);
  const auto refused = driver.wait(insert());
  CHECK(refused.error != nullptr);
  CHECK_EQUAL(refused.error->code, ErrorCode::kBusy);
  wait_until([&] {
    usleep(100'000);
    return driver.wait(insert()).error == nullptr;
  });
  CHECK_EQUAL(rail.counters().peers.load(), 1u);
}

TEST(a_frozen_process_is_written_by_its_device_and_removed_without_its_help) {
  if (!place().is_verbs) SKIP("on tcp the process itself receives");
  PeerProcess target(place().scaled(256 * kMiB));
  Writer writer(target);
  // To connect takes the process.
  CHECK(writer.driver.wait_transfer(writer.start()) == nullptr);
  target.kill(SIGSTOP);
  CHECK(writer.driver.wait_transfer(writer.start()) == nullptr);
  const uint64_t transfer = writer.start_and_reach_the_middle();
  fabric::Error error;
  const auto before = std::chrono::steady_clock::now();
  const auto token = writer.driver.rail().remove_peer(writer.peer, error);
  CHECK(token.has_value());
  CHECK(writer.driver.wait(*token).error == nullptr);
  CHECK(std::chrono::steady_clock::now() - before < place().soon());
  CHECK(writer.driver.settled(transfer));
  const auto stopped = writer.driver.wait_transfer(transfer);
  CHECK(stopped != nullptr);
  CHECK_EQUAL(stopped->code, ErrorCode::kCancelled);
  target.kill(SIGCONT);
  writer.know(target);
  CHECK(writer.driver.wait_transfer(writer.start()) == nullptr);
}

namespace {

void check_that_nothing_lands_after(Revocation revocation) {
  constexpr uint8_t kMark = 0xEE;
  // The whole transfer is one write; that of soft-RoCE is at most 8 MiB.
  const uint64_t size = place().is_verbs ? 8 * kMiB : 128 * kMiB;
  PeerProcess target(size);
  fabric::RailOptions options;
  options.chunk_bytes = size;
  Writer writer(target, options);
  CHECK(writer.driver.info().max_message_bytes >= size);
  CHECK(writer.driver.wait_transfer(writer.start()) == nullptr);
  const int rounds = place().is_verbs ? 3 : 8;
  int in_the_middle = 0;
  for (int round = 0; round < rounds; round++) {
    target.fill(kMark);
    const uint64_t transfer = writer.start();
    const bool middle = target.revoke_and_fill(kMark, revocation);
    const auto error = writer.driver.wait_transfer(transfer);
    CHECK(error != nullptr || !middle);
    if (middle) in_the_middle++;
    // The writer tries again, with the old key.
    const auto again = writer.driver.wait_transfer(writer.start());
    CHECK(again != nullptr);
    CHECK_EQUAL(again->code, ErrorCode::kTransferFailed);
    CHECK_EQUAL(target.count_other_than(kMark), 0u);
    target.introduce();
    if (revocation == Revocation::kCloseRegionAndRemovePeer) target.insert_peer(writer.driver.info().address);
    writer.remote = writer.driver.add_remote(writer.peer, target.remote_address(), target.key(), target.size_bytes());
    CHECK(writer.driver.wait_transfer(writer.start()) == nullptr);
  }
  std::printf("    %d of %d rounds hit the middle of a write\n", in_the_middle, rounds);
  CHECK(in_the_middle > 0);
}

}  // namespace

TEST(after_a_target_has_removed_its_writer_not_one_byte_lands) {
  // Fact 2 of the notes: on tcp closing the region alone stops no write that has begun.
  check_that_nothing_lands_after(Revocation::kCloseRegionAndRemovePeer);
}

TEST(after_a_target_has_closed_the_region_not_one_byte_lands) {
  if (!place().is_verbs) SKIP("on tcp it takes the writer's removal: see above");
  check_that_nothing_lands_after(Revocation::kCloseRegion);
}

TEST(a_peer_that_nobody_answers_for_can_be_cancelled_and_removed) {
  std::vector<uint8_t> address;
  uint64_t key = 0;
  {
    PeerProcess gone(kMiB);
    address = gone.address();
    key = gone.key();
  }
  Driver driver;
  const auto source = map(kMiB);
  driver.add_source(source);
  const uint64_t peer = driver.add_peer(address);
  const uint64_t remote = driver.add_remote(peer, 0, key, kMiB);
  const uint64_t transfer = driver.start_write(peer, {{source, 0, remote, 0, kMiB}});
  driver.rail().cancel(transfer);
  const auto error = driver.wait_transfer(transfer);
  CHECK(error != nullptr);
  const uint64_t second = driver.start_write(peer, {{source, 0, remote, 0, kMiB}});
  fabric::Error refused;
  const auto token = driver.rail().remove_peer(peer, refused);
  CHECK(driver.wait(*token).error == nullptr);
  CHECK(driver.wait_transfer(second) != nullptr);

  // A write that the provider has put off is not in flight: closing settles it once.
  const uint64_t again = driver.add_peer(address);
  const uint64_t again_remote = driver.add_remote(again, 0, key, kMiB);
  const uint64_t third = driver.start_write(again, {{source, 0, again_remote, 0, kMiB}});
  const uint64_t tries = driver.rail().counters().eagain.load();
  wait_until([&] { return driver.rail().counters().eagain.load() > tries; });
  driver.rail().close();
  CHECK_EQUAL(driver.wait_transfer(third)->code, ErrorCode::kRailClosed);
  CHECK(driver.rail().join(5s));
  wait_until([&] { return driver.settled(third) || driver.rail().closed(); });
  CHECK_EQUAL(driver.rail().pending(), 0u);
}

TEST(closing_settles_everything_that_is_pending) {
  PeerProcess target(place().scaled(128 * kMiB));
  Writer writer(target);
  CHECK(writer.driver.wait_transfer(writer.start()) == nullptr);
  const uint64_t running = writer.start_and_reach_the_middle();
  fabric::Error error;
  fabric::Rail& rail = writer.driver.rail();
  const auto region = rail.register_region(writer.source, 0, kMiB, true, error);
  const uint64_t queued = writer.start();
  const auto removal = rail.remove_peer(writer.peer, error);
  rail.close();
  rail.close();
  CHECK(!rail.register_region(writer.source, 0, kMiB, true, error));
  CHECK_EQUAL(error.code, ErrorCode::kRailClosed);
  for (const uint64_t transfer : {running, queued}) {
    const auto outcome = writer.driver.wait_transfer(transfer);
    CHECK(outcome != nullptr);
    CHECK(outcome->code == ErrorCode::kRailClosed || outcome->code == ErrorCode::kCancelled);
  }
  writer.driver.wait(*region);
  writer.driver.wait(*removal);
  CHECK(rail.join(5s));
  wait_until([&] { return writer.driver.settled(0) || rail.closed(); });
  CHECK_EQUAL(rail.pending(), 0u);
  CHECK_EQUAL(rail.counters().close_failures.load(), 0u);
  CHECK_EQUAL(rail.counters().regions_open.load(), 0u);
}

TEST(closing_over_a_frozen_peer_is_bounded) {
  PeerProcess target(place().scaled(128 * kMiB));
  const std::shared_ptr<memory::Mapping> source = [&] {
    Writer writer(target);
    CHECK(writer.driver.wait_transfer(writer.start()) == nullptr);
    const uint64_t transfer = writer.start_and_reach_the_middle();
    target.kill(SIGSTOP);
    const auto before = std::chrono::steady_clock::now();
    writer.driver.rail().close();
    CHECK_EQUAL(writer.driver.wait_transfer(transfer)->code, ErrorCode::kRailClosed);
    CHECK(writer.driver.rail().join(5s));
    CHECK(std::chrono::steady_clock::now() - before < 2s);
    return writer.source;
  }();
  CHECK_EQUAL(source.use_count(), 1);
}

TEST(where_removal_does_not_flush_it_waits_and_says_so) {
  if (place().is_verbs) SKIP("a stopped process does not stop its device, so no write is outstanding to it");
  // As on a provider without revocable connections: the library is made to say that it is one.
  fabric::Libfabric other = library();
  other.removal_flushes = false;
  PeerProcess target(64 * kMiB);
  Driver driver({}, other);
  CHECK_EQUAL(driver.info().quiescence, fabric::Quiescence::kCloseEndpoint);
  const auto source = map(64 * kMiB);
  target.insert_peer(driver.info().address);
  const uint64_t peer = driver.add_peer(target.address());
  const uint64_t remote = driver.add_remote(peer, target.remote_address(), target.key(), 64 * kMiB);
  const std::vector<fabric::WritePiece> pieces = {{source, 0, remote, 0, 64 * kMiB}};
  CHECK(driver.wait_transfer(driver.start_write(peer, pieces)) == nullptr);

  // A healthy peer: what is in flight completes first.
  const uint64_t healthy = driver.add_peer(target.address());
  fabric::Error error;
  const auto removed = driver.rail().remove_peer(healthy, error);
  CHECK(driver.wait(*removed).error == nullptr);
  CHECK(driver.wait_transfer(driver.start_write(peer, pieces)) == nullptr);

  target.kill(SIGSTOP);
  const uint64_t stuck = driver.start_write(peer, pieces);
  wait_until([&] { return driver.rail().chunks_in_flight(stuck) > 0; });
  const auto token = driver.rail().remove_peer(peer, error);
  const auto outcome = driver.wait(*token);
  CHECK(outcome.error != nullptr);
  CHECK_EQUAL(outcome.error->error_number, FI_ETIMEDOUT);
  // Its source stays held until the endpoint is closed over it.
  CHECK(!driver.settled(stuck));
  CHECK(source.use_count() > 2);
  driver.rail().close();
  CHECK(driver.wait_transfer(stuck) != nullptr);
  CHECK(driver.rail().join(5s));
  CHECK_EQUAL(driver.rail().counters().close_failures.load(), 0u);
}

TEST(a_rail_can_be_closed_at_any_stage) {
  const auto mapping = map(kMiB);
  for (int stage = 0; stage < 6; stage++) {
    for (int round = 0; round < 5; round++) {
      if (stage == 0) {
        // While it opens.
        fabric::RailOptions options;
        options.query = {place().provider, place().source_address, ""};
        fabric::Error error;
        const auto rail = fabric::Rail::open(
            library(), options, [] {}, error);
        CHECK(rail != nullptr);
        continue;
      }
      Driver driver;
      fabric::Error error;
      fabric::Rail& rail = driver.rail();
      if (stage == 1) continue;
      (void)rail.register_region(mapping, 0, kMiB, true, error);
      if (stage == 2) continue;
      driver.add_source(mapping);
      const uint64_t peer = driver.add_peer(driver.info().address);
      if (stage == 3) continue;
      const auto region = driver.add_region(mapping, 0, kMiB, true);
      const uint64_t remote = driver.add_remote(peer, region.remote_address, region.key, kMiB);
      // To itself, so that it is still connecting.
      (void)driver.start_write(peer, {{mapping, 0, remote, 0, kMiB}});
      if (stage == 4) continue;
      (void)rail.remove_peer(peer, error);
    }
  }
  CHECK_EQUAL(mapping.use_count(), 1);
}

TEST(a_rail_that_cannot_be_opened_says_why) {
  fabric::RailOptions options;
  options.query = {place().provider, "203.0.113.1", ""};
  fabric::Error error;
  bool woken = false;
  const auto rail = fabric::Rail::open(
      library(), options, [&] { woken = true; }, error);
  CHECK(rail->join(20s));
  std::array<fabric::Outcome, 4> outcomes;
  CHECK_EQUAL(rail->drain(outcomes), 1u);
  CHECK(woken && rail->closed());
  CHECK_EQUAL(outcomes[0].token, fabric::kOpenToken);
  CHECK_EQUAL(outcomes[0].error->code, ErrorCode::kProviderMissing);
}

TEST(many_rails_leave_no_descriptor_and_no_thread) {
  const auto mapping = map(kMiB);
  const auto use_one = [&] {
    Driver driver;
    (void)driver.add_region(mapping, 0, kMiB, true);
  };
  use_one();
  const size_t descriptors = count_entries("/proc/self/fd");
  const size_t threads = count_entries("/proc/self/task");
  const int count = place().is_verbs ? 20 : 100;
  for (int i = 0; i < count; i++) use_one();
  if (count_entries("/proc/self/fd") != descriptors) fail(__FILE__, __LINE__, list_entries("/proc/self/fd"));
  CHECK_EQUAL(count_entries("/proc/self/task"), threads);
  CHECK_EQUAL(mapping.use_count(), 1);
}

int main(int argc, char** argv) {
  become_peer_if_asked(argc, argv);
  return run_tests(argc, argv);
}
