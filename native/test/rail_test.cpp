// Two processes, a writer (this one) and a target, over what driver.h's place() says.

#include <algorithm>
#include <csignal>
#include <random>

#include "check.h"
#include "driver.h"
#include "fabric/limits.h"
#include "memory/crc32c.h"
#include "peer_process.h"

using namespace fabrickv;
using namespace fabrickv::test;
using fabric::ErrorCode;

namespace {

constexpr uint64_t kMiB = uint64_t{1} << 20;

// A writer and a target that know each other.
struct Pair {
  // A test that asks for registered sources registers them itself.
  explicit Pair(uint64_t size_bytes, const fabric::RailOptions& options = {})
      : target(size_bytes), driver(options), source(map(size_bytes)) {
    fill(*source, 1);
    if (!options.force_local_registration) source_region = driver.add_source(source);
    target.insert_peer(driver.info().address);
    peer = driver.add_peer(target.address());
    remote = driver.add_remote(peer, target.remote_address(), target.key(), size_bytes);
  }

  fabric::WritePiece piece(uint64_t local_offset, uint64_t remote_offset, uint64_t length) const {
    return {source, local_offset, remote, remote_offset, length};
  }
  void write(uint64_t local_offset, uint64_t remote_offset, uint64_t length) {
    const auto error = driver.wait_transfer(driver.start_write(peer, {piece(local_offset, remote_offset, length)}));
    if (error != nullptr) fail(__FILE__, __LINE__, error->call + ": " + error->text);
  }
  uint32_t crc(uint64_t offset, uint64_t length) const { return memory::crc32c(source->base() + offset, length, 0); }

  PeerProcess target;
  Driver driver;
  std::shared_ptr<memory::Mapping> source;
  std::optional<uint64_t> source_region;
  uint64_t peer = 0;
  uint64_t remote = 0;
};

// enum ibv_wc_status of infiniband/verbs.h, which is what verbs passes on.
constexpr int kFlushed = 5;
constexpr int kRemoteAccessError = 10;

void check_verbs_error(const fabric::Error& error, int provider_errno) {
  CHECK(error.provider_errno.has_value());
  CHECK_EQUAL(*error.provider_errno, provider_errno);
  CHECK_EQUAL(error.error_number, provider_errno == kFlushed ? FI_ECANCELED : FI_EIO);
}

}  // namespace

TEST(describes_itself) {
  Driver driver;
  const fabric::RailInfo& info = driver.info();
  CHECK_EQUAL(info.provider, place().provider);
  CHECK_EQUAL(info.address_format, "FI_SOCKADDR_IN");
  CHECK(info.address_text.starts_with(place().source_address + ":"));
  CHECK(info.has_wait_fd && info.removal_flushes);
  CHECK_EQUAL(info.chunk_bytes, kMiB);
  if (place().is_verbs) {
    CHECK_EQUAL(info.quiescence, fabric::Quiescence::kCloseRegion);
    CHECK(info.needs_local_registration);
    CHECK((info.mr_mode & FI_MR_VIRT_ADDR) != 0 && (info.mr_mode & FI_MR_PROV_KEY) != 0);
    CHECK_EQUAL(info.key_bytes, 4u);
  } else {
    CHECK_EQUAL(info.quiescence, fabric::Quiescence::kFence);
    CHECK(!info.needs_local_registration);
    CHECK_EQUAL(info.key_bytes, 8u);
  }
}

TEST(writes_of_every_size_arrive_whole) {
  const uint64_t most = place().scaled(64 * kMiB);
  Pair pair(most);
  for (const uint64_t size : {uint64_t{0}, uint64_t{1}, uint64_t{7}, uint64_t{4096}, uint64_t{65'537}, kMiB - 1, kMiB,
                              kMiB + 1, 5 * kMiB + 12'345, most}) {
    pair.target.fill(0xEE);
    const uint64_t slack = most - size;
    const uint64_t offset = std::min<uint64_t>(slack, 13);
    pair.write(offset, offset, size);
    CHECK_EQUAL(pair.target.crc(offset, size), pair.crc(offset, size));
    // Not a byte beside it.
    if (size < kMiB) CHECK(pair.target.count_other_than(0xEE) <= size);
  }
  const auto& counters = pair.driver.rail().counters();
  CHECK_EQUAL(counters.writes_posted.load(), counters.writes_completed.load());
  CHECK_EQUAL(counters.writes_failed.load(), 0u);
  CHECK_EQUAL(counters.transfers_active.load(), 0u);
  pair.target.finish();
}

TEST(many_pieces_land_where_they_belong) {
  Pair pair(8 * kMiB);
  // The target gets the source's blocks in a shuffled order.
  constexpr uint64_t kBlock = 4099;
  std::vector<uint64_t> order(8 * kMiB / kBlock);
  for (uint64_t i = 0; i < order.size(); i++) order[i] = i;
  std::shuffle(order.begin(), order.end(), std::mt19937(7));
  std::vector<fabric::WritePiece> pieces;
  for (uint64_t i = 0; i < order.size(); i++) {
    pieces.push_back(pair.piece(i * kBlock, order[i] * kBlock, kBlock));
    // Empty pieces do no harm.
    if (i % 100 == 0) pieces.push_back(pair.piece(i, i, 0));
  }
  CHECK(pair.driver.wait_transfer(pair.driver.start_write(pair.peer, pieces)) == nullptr);
  for (uint64_t i = 0; i < order.size(); i += 17) {
    CHECK_EQUAL(pair.target.crc(order[i] * kBlock, kBlock), pair.crc(i * kBlock, kBlock));
  }
}

TEST(chunks_meet_without_a_seam) {
  for (const uint64_t chunk : {1000u, 4096u, 65'536u}) {
    fabric::RailOptions options;
    options.chunk_bytes = chunk;
    options.chunks_in_flight = 3;
    Pair pair(kMiB, options);
    for (const uint64_t size : {chunk - 1, chunk, chunk + 1, 10 * chunk + 3}) {
      pair.write(1, 2, size);
      CHECK_EQUAL(pair.target.crc(2, size), pair.crc(1, size));
    }
  }
}

TEST(many_transfers_at_once) {
  constexpr uint64_t kCount = 1000;
  const uint64_t size = place().scaled(65'536);
  Pair pair(kCount * size);
  std::vector<uint64_t> transfers;
  for (uint64_t i = 0; i < kCount; i++) {
    transfers.push_back(pair.driver.start_write(pair.peer, {pair.piece(i * size, i * size, size)}));
  }
  for (const uint64_t transfer : transfers) CHECK(pair.driver.wait_transfer(transfer) == nullptr);
  CHECK_EQUAL(pair.target.crc(0, kCount * size), pair.crc(0, kCount * size));
}

TEST(sources_are_registered_where_they_must_be) {
  fabric::RailOptions options;
  options.force_local_registration = true;
  Pair pair(8 * kMiB, options);
  fabric::Error error;
  CHECK(!pair.driver.rail().write(pair.peer, std::vector{pair.piece(0, 0, 1)}, error));
  CHECK_EQUAL(error.code, ErrorCode::kInvalidArgument);
  // Three registrations that meet, and a hole behind them.
  const auto first = pair.driver.add_region(pair.source, 0, 3 * kMiB + 5, false);
  const auto second = pair.driver.add_region(pair.source, 3 * kMiB + 5, 11, false);
  const auto third = pair.driver.add_region(pair.source, 3 * kMiB + 16, kMiB, false);
  pair.write(10, 10, 4 * kMiB + 6);
  CHECK_EQUAL(pair.target.crc(10, 4 * kMiB + 6), pair.crc(10, 4 * kMiB + 6));
  CHECK(!pair.driver.rail().write(pair.peer, std::vector{pair.piece(0, 0, 4 * kMiB + 17)}, error));
  CHECK_EQUAL(error.code, ErrorCode::kInvalidArgument);
  // A registration that is in use is closed when the last write from it has come back.
  const uint64_t transfer = pair.driver.start_write(pair.peer, {pair.piece(0, 0, 3 * kMiB)});
  const auto token = pair.driver.rail().deregister_region(first.id, error);
  CHECK(token.has_value());
  CHECK(pair.driver.wait(*token).error == nullptr);
  CHECK(pair.driver.settled(transfer));
  CHECK(pair.driver.wait_transfer(transfer) == nullptr);
  CHECK(!pair.driver.rail().write(pair.peer, std::vector{pair.piece(0, 0, 1)}, error));
  CHECK_EQUAL(pair.driver.rail().counters().regions_open.load(), 2u);
  CHECK(!pair.driver.rail().deregister_region(first.id, error));
  CHECK(second.id != third.id);
}

TEST(registrations_of_a_source_may_overlap) {
  fabric::RailOptions options;
  options.force_local_registration = true;
  Pair pair(4 * kMiB, options);
  fabric::Rail& rail = pair.driver.rail();
  const auto writes = [&](uint64_t offset, uint64_t length) {
    fabric::Error error;
    const auto transfer = rail.write(pair.peer, std::vector{pair.piece(offset, offset, length)}, error);
    return transfer && pair.driver.wait_transfer(*transfer) == nullptr;
  };
  const auto outer = pair.driver.add_region(pair.source, 0, 2 * kMiB, false);
  const auto twin = pair.driver.add_region(pair.source, 0, 2 * kMiB, false);
  const auto shorter = pair.driver.add_region(pair.source, 0, 4096, false);
  const auto inner = pair.driver.add_region(pair.source, kMiB, 4096, false);
  const auto longer = pair.driver.add_region(pair.source, kMiB + 1, 3 * kMiB - 1, false);
  CHECK(writes(0, 4 * kMiB));
  pair.driver.remove_region(longer.id);
  // Of two at one place, one is left; the shorter ones within hide nothing.
  CHECK(writes(8192, 2 * kMiB - 8192));
  pair.driver.remove_region(twin.id);
  CHECK(writes(0, 2 * kMiB));
  pair.driver.remove_region(outer.id);
  CHECK(!writes(0, 4097));
  CHECK(writes(0, 4096) && writes(kMiB, 4096));
  pair.driver.remove_region(shorter.id);
  CHECK(!writes(0, 1));
  pair.driver.remove_region(inner.id);
  CHECK(!writes(kMiB, 1));
}

TEST(what_is_out_of_bounds_is_refused_before_anything_is_posted) {
  Pair pair(kMiB);
  fabric::Rail& rail = pair.driver.rail();
  const auto refused = [&](const fabric::WritePiece& piece, uint64_t peer) {
    fabric::Error error;
    const std::vector<fabric::WritePiece> pieces = {pair.piece(0, 0, 10), piece};
    return !rail.write(peer, pieces, error) && error.code == ErrorCode::kInvalidArgument;
  };
  CHECK(refused(pair.piece(0, 1, kMiB), pair.peer));
  CHECK(refused(pair.piece(1, 0, kMiB), pair.peer));
  CHECK(refused(pair.piece(UINT64_MAX, 0, 2), pair.peer));
  CHECK(refused(pair.piece(0, UINT64_MAX, 2), pair.peer));
  CHECK(refused(pair.piece(0, 0, UINT64_MAX), pair.peer));
  CHECK(refused({pair.source, 0, pair.remote + 1, 0, 1}, pair.peer));
  CHECK(refused(pair.piece(0, 0, 1), pair.peer + 1));
  // A region of another peer's.
  const uint64_t other = pair.driver.add_peer(pair.target.address());
  CHECK(refused(pair.piece(0, 0, 1), other));
  CHECK(rail.forget_remote(pair.remote));
  CHECK(!rail.forget_remote(pair.remote));
  CHECK(refused(pair.piece(0, 0, 1), pair.peer));
  CHECK_EQUAL(rail.counters().writes_posted.load(), 0u);
  CHECK_EQUAL(rail.pending(), 0u);
}

TEST(bad_registrations_and_addresses_are_refused) {
  Driver driver;
  const auto mapping = map(kMiB);
  fabric::Error error;
  for (const auto& [offset, length] :
       {std::pair<uint64_t, uint64_t>{0, 0}, {0, kMiB + 1}, {kMiB, 1}, {UINT64_MAX, 2}}) {
    CHECK(!driver.rail().register_region(mapping, offset, length, true, error));
    CHECK_EQUAL(error.code, ErrorCode::kInvalidArgument);
  }
  CHECK(!driver.rail().insert_peer(std::vector<uint8_t>{1, 2, 3}, error));
  std::vector<uint8_t> other_family(driver.info().address);
  other_family[0] = 10;
  CHECK(!driver.rail().insert_peer(other_family, error));
  CHECK(!driver.rail().remove_peer(1, error));
  CHECK(!driver.rail().deregister_region(1, error));
  CHECK(!driver.rail().define_remote(1, 0, 0, 1, error));
}

TEST(keys_are_random_where_we_choose_them) {
  Driver driver;
  const auto mapping = map(kMiB);
  std::vector<uint64_t> keys;
  for (int i = 0; i < 64; i++) keys.push_back(driver.add_region(mapping, 0, 4096, true).key);
  std::sort(keys.begin(), keys.end());
  CHECK(std::adjacent_find(keys.begin(), keys.end()) == keys.end());
  if (place().is_verbs) {
    // The device chooses: no secret.
    CHECK(keys.back() <= UINT32_MAX);
    return;
  }
  // Of 64 random numbers some have the highest bit and some have not.
  CHECK(keys.front() < uint64_t{1} << 63 && keys.back() >= uint64_t{1} << 63);
}

TEST(a_wrong_key_fails_its_peer_only_and_the_next_write_reconnects) {
  Pair pair(kMiB);
  PeerProcess bystander(kMiB);
  const uint64_t other = pair.driver.add_peer(bystander.address());
  const uint64_t other_remote = pair.driver.add_remote(other, bystander.remote_address(), bystander.key(), kMiB);
  pair.write(0, 0, 4096);
  bystander.insert_peer(pair.driver.info().address);

  pair.target.fill(0xEE);
  const uint64_t wrong = pair.driver.add_remote(pair.peer, pair.target.remote_address(), pair.target.key() + 1, kMiB);
  std::vector<uint64_t> good;
  for (int i = 0; i < 50; i++)
    good.push_back(pair.driver.start_write(other, {{pair.source, 0, other_remote, 0, kMiB}}));
  const auto error =
      pair.driver.wait_transfer(pair.driver.start_write(pair.peer, {{pair.source, 0, wrong, 0, 65'536}}));
  CHECK(error != nullptr);
  CHECK_EQUAL(error->code, ErrorCode::kTransferFailed);
  CHECK_EQUAL(error->provider, place().provider);
  CHECK(error->error_number != 0 && !error->text.empty() && error->provider_errno.has_value());
  if (place().is_verbs) check_verbs_error(*error, kRemoteAccessError);
  for (const uint64_t transfer : good) CHECK(pair.driver.wait_transfer(transfer) == nullptr);
  CHECK_EQUAL(pair.target.count_other_than(0xEE), 0u);

  pair.write(0, 0, kMiB);
  CHECK_EQUAL(pair.target.crc(0, kMiB), pair.crc(0, kMiB));
  pair.target.finish();
  bystander.finish();
}

TEST(errors_and_good_writes_alternate) {
  // The connection that an error has killed must not take the write after it along.
  Pair pair(kMiB);
  const uint64_t wrong = pair.driver.add_remote(pair.peer, pair.target.remote_address(), pair.target.key() + 1, kMiB);
  for (int round = 0; round < 20; round++) {
    CHECK(pair.driver.wait_transfer(pair.driver.start_write(pair.peer, {{pair.source, 0, wrong, 0, 4096}})) != nullptr);
    pair.write(0, 0, kMiB);
  }
  CHECK_EQUAL(pair.driver.rail().counters().peers.load(), 1u);
}

TEST(a_write_beyond_the_region_fails_and_lands_nowhere) {
  Pair pair(kMiB);
  pair.write(0, 0, 16);
  pair.target.fill(0xEE);
  // A remote region that claims to be longer than it is.
  const uint64_t wrong =
      pair.driver.add_remote(pair.peer, pair.target.remote_address() + 4096, pair.target.key(), kMiB);
  const auto error = pair.driver.wait_transfer(pair.driver.start_write(pair.peer, {{pair.source, 0, wrong, 0, kMiB}}));
  CHECK(error != nullptr);
  if (place().is_verbs) check_verbs_error(*error, kRemoteAccessError);
  CHECK_EQUAL(pair.target.count_other_than(0xEE), 0u);
}

TEST(what_is_posted_behind_a_wrong_key_is_flushed) {
  if (!place().is_verbs) SKIP("tcp closes the connection, and what is behind has no provider's error of its own");
  Pair pair(kMiB);
  const uint64_t wrong = pair.driver.add_remote(pair.peer, pair.target.remote_address(), pair.target.key() + 1, kMiB);
  pair.write(0, 0, kMiB);
  int flushed = 0;
  for (int round = 0; round < 20; round++) {
    const uint64_t first = pair.driver.start_write(pair.peer, {{pair.source, 0, wrong, 0, kMiB}});
    const uint64_t second = pair.driver.start_write(pair.peer, {pair.piece(0, 0, kMiB)});
    const auto error = pair.driver.wait_transfer(first);
    CHECK(error != nullptr);
    check_verbs_error(*error, kRemoteAccessError);
    // It may have been posted only when the queue pair was a new one.
    const auto behind = pair.driver.wait_transfer(second);
    if (behind == nullptr) continue;
    check_verbs_error(*behind, kFlushed);
    flushed++;
  }
  std::printf("    %d of 20 writes were behind the wrong one\n", flushed);
  CHECK(flushed > 0);
  pair.write(0, 0, kMiB);
}

TEST(the_mapping_is_held_until_the_transfer_is_done) {
  {
    const uint64_t size = place().scaled(64 * kMiB);
    Pair pair(size);
    std::weak_ptr<memory::Mapping> source = pair.source;
    const uint32_t crc = pair.crc(0, size);
    const uint64_t transfer = pair.driver.start_write(pair.peer, {pair.piece(0, 0, size)});
    pair.source.reset();
    CHECK(!source.expired());
    // A registration holds it as well, and is itself held by the transfer.
    if (pair.source_region) pair.driver.remove_region(*pair.source_region);
    CHECK(pair.driver.wait_transfer(transfer) == nullptr);
    CHECK(source.expired());
    CHECK_EQUAL(pair.target.crc(0, size), crc);
  }
  // Large mappings are unmapped by a thread of their own.
  for (int i = 0; i < 5000 && memory::Mapping::live_count() > 0; i++) usleep(1000);
  CHECK_EQUAL(memory::Mapping::live_count(), 0);
}

TEST(the_same_address_can_be_inserted_twice) {
  Pair pair(4 * kMiB);
  const uint64_t twin = pair.driver.add_peer(pair.target.address());
  const uint64_t twin_remote = pair.driver.add_remote(twin, pair.target.remote_address(), pair.target.key(), 4 * kMiB);
  pair.write(0, 0, kMiB);
  CHECK(pair.driver.wait_transfer(pair.driver.start_write(twin, {{pair.source, 0, twin_remote, 0, kMiB}})) == nullptr);
  fabric::Error error;
  const auto token = pair.driver.rail().remove_peer(pair.peer, error);
  CHECK(pair.driver.wait(*token).error == nullptr);
  // The twin reconnects, by its own address.
  CHECK(pair.driver.wait_transfer(pair.driver.start_write(twin, {{pair.source, 0, twin_remote, 0, 4 * kMiB}})) ==
        nullptr);
  CHECK_EQUAL(pair.target.crc(0, 4 * kMiB), pair.crc(0, 4 * kMiB));
  CHECK_EQUAL(pair.driver.rail().counters().peers.load(), 1u);
}

TEST(ids_are_never_used_again) {
  Pair pair(kMiB);
  fabric::Error error;
  const uint64_t first_peer = pair.peer;
  const uint64_t first_remote = pair.remote;
  const auto token = pair.driver.rail().remove_peer(first_peer, error);
  CHECK(pair.driver.wait(*token).error == nullptr);
  const uint64_t second_peer = pair.driver.add_peer(pair.target.address());
  const uint64_t second_remote =
      pair.driver.add_remote(second_peer, pair.target.remote_address(), pair.target.key(), kMiB);
  CHECK(second_peer != first_peer);
  CHECK(second_remote != first_remote);
  CHECK(!pair.driver.rail().remove_peer(first_peer, error));
  CHECK(!pair.driver.rail().forget_remote(first_remote));
  const uint64_t transfer = pair.driver.start_write(second_peer, {{pair.source, 0, second_remote, 0, 10}});
  CHECK(pair.driver.wait_transfer(transfer) == nullptr);
  const uint64_t next = pair.driver.start_write(second_peer, {{pair.source, 0, second_remote, 0, 10}});
  CHECK(next != transfer);
  CHECK(!pair.driver.rail().cancel(transfer));
  CHECK_EQUAL(pair.driver.rail().bytes_completed(transfer), 0u);
  CHECK(pair.driver.wait_transfer(next) == nullptr);
}

TEST(more_than_the_limit_is_busy_and_all_of_it_settles) {
  Pair pair(kMiB);
  pair.write(0, 0, 4096);
  pair.target.kill(SIGSTOP);
  fabric::Error error;
  std::vector<uint64_t> transfers;
  const std::vector<fabric::WritePiece> pieces = {pair.piece(0, 0, kMiB)};
  while (const auto transfer = pair.driver.rail().write(pair.peer, pieces, error)) transfers.push_back(*transfer);
  CHECK_EQUAL(error.code, ErrorCode::kBusy);
  CHECK(transfers.size() >= fabric::kPendingBeginnings - 10 && transfers.size() <= fabric::kPendingBeginnings);
  CHECK(!pair.driver.rail().insert_peer(pair.driver.info().address, error));
  CHECK_EQUAL(error.code, ErrorCode::kBusy);
  // What ends something may still be asked for.
  for (int i = 0; i < 100; i++) CHECK(pair.driver.rail().prove(error).has_value());
  // Every one of them can still be cancelled.
  for (const uint64_t transfer : transfers) CHECK(pair.driver.rail().cancel(transfer) || pair.driver.settled(transfer));
  pair.target.kill(SIGCONT);
  for (const uint64_t transfer : transfers) {
    const auto outcome = pair.driver.wait_transfer(transfer);
    CHECK(outcome == nullptr || outcome->code == ErrorCode::kCancelled);
  }
  pair.write(0, 0, kMiB);
  CHECK_EQUAL(pair.target.crc(0, kMiB), pair.crc(0, kMiB));
}

int main(int argc, char** argv) {
  become_peer_if_asked(argc, argv);
  return run_tests(argc, argv);
}
