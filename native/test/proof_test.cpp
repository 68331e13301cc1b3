// Rail::prove and Rail::disconnect_peer: this process is the target, others write into it.

#include <arpa/inet.h>
#include <netinet/in.h>
#include <poll.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <cerrno>
#include <csignal>
#include <cstdio>
#include <utility>

#include "check.h"
#include "driver.h"
#include "fabric/inbound.h"
#include "fabric/patience.h"
#include "memory/crc32c.h"
#include "peer_process.h"
#include "writer_process.h"

using namespace fabrickv;
using namespace fabrickv::test;
using fabric::ErrorCode;

namespace {

// A system that does not disconnect, as gVisor: the error number.
std::atomic<int> refused_disconnect{0};

}  // namespace

// In front of libc's.
extern "C" int connect(int fd, const sockaddr* address, socklen_t length) {
  if (address->sa_family == AF_UNSPEC && refused_disconnect.load() != 0) {
    errno = refused_disconnect.load();
    return -1;
  }
  return static_cast<int>(syscall(SYS_connect, fd, address, length));
}

namespace {

constexpr uint64_t kMiB = uint64_t{1} << 20;
constexpr uint64_t kSize = 128 * kMiB;
constexpr std::byte kMark{WriterProcess::kMark};

// Memory that others may write into, full of the mark.
struct Target {
  explicit Target(uint64_t size_bytes = kSize) : mapping(map(size_bytes)) {
    fill();
    open();
  }
  std::span<std::byte> bytes() const { return mapping->range(0, mapping->size_bytes()); }
  void fill() const { std::ranges::fill(bytes(), kMark); }
  void open() { region = driver.add_region(mapping, 0, mapping->size_bytes(), true); }
  void close() { driver.remove_region(region.id); }
  size_t landed() const {
    return static_cast<size_t>(std::ranges::count_if(bytes(), [](std::byte is) { return is != kMark; }));
  }
  void aim(WriterProcess& writer) const {
    writer.aim(driver.rail().info().address, region.remote_address, region.key, mapping->size_bytes());
  }
  // Makes a writer known and the connection to it ours, as a session's beginning does.
  uint64_t meet(const WriterProcess& writer) {
    const uint64_t peer = driver.add_peer(writer.address());
    const uint64_t remote = driver.add_remote(peer, writer.remote_address(), writer.key(), 1);
    fabric::Error error;
    const auto ping = driver.rail().ping(peer, remote, error);
    CHECK(ping.has_value());
    CHECK(driver.wait_transfer(*ping) == nullptr);
    return peer;
  }
  int64_t begin_proof() {
    fabric::Error error;
    const auto token = driver.rail().prove(error);
    CHECK(token.has_value());
    return *token;
  }
  void prove() {
    const fabric::Outcome outcome = driver.wait(begin_proof());
    if (outcome.error != nullptr) fail(__FILE__, __LINE__, outcome.error->text);
  }
  // Returns when a write of all of it has come some way.
  void await_middle() const {
    const auto deadline = std::chrono::steady_clock::now() + kDeadline;
    const volatile std::byte& early = bytes()[bytes().size() / 16];
    while (early == kMark) {
      if (std::chrono::steady_clock::now() >= deadline) fail(__FILE__, __LINE__, "the write did not begin");
    }
  }
  bool is_in_the_middle() const { return bytes().back() == kMark; }
  const fabric::Counters& counters() { return driver.rail().counters(); }

  mutable Driver driver;
  std::shared_ptr<memory::Mapping> mapping;
  fabric::Outcome region;
};

// Has the writer write, closes the region in the middle of it and proves. Whether it was in the middle indeed; then
// nothing may land any more, whatever the writer does.
bool close_in_the_middle(Target& target, WriterProcess& writer, bool freeze) {
  target.fill();
  target.open();
  target.aim(writer);
  writer.start(0, kSize);
  target.await_middle();
  if (freeze) writer.kill(SIGSTOP);
  target.close();
  const bool middle = target.is_in_the_middle();
  target.prove();
  target.fill();
  if (freeze) writer.kill(SIGCONT);
  CHECK(writer.wait() != 0 || !freeze);
  // It tries again, with the old key, which tells that the connection is past everything it had begun.
  writer.start(0, kSize);
  CHECK(writer.wait() != 0);
  if (target.landed() != 0) fail(__FILE__, __LINE__, std::to_string(target.landed()) + " bytes have landed");
  return middle;
}

void close_in_the_middle_often(Target& target, WriterProcess& writer, bool freeze) {
  int in_the_middle = 0;
  for (int round = 0; round < 5; round++) in_the_middle += close_in_the_middle(target, writer, freeze) ? 1 : 0;
  std::printf("    %d of 5 rounds hit the middle of a write\n", in_the_middle);
  CHECK(in_the_middle > 0);
}

// A listener on 127.0.0.1, and connections to it.
struct Listener {
  Listener() : fd(socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0)) {
    address.sin_family = AF_INET;
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    CHECK(bind(fd, reinterpret_cast<sockaddr*>(&address), sizeof address) == 0);
    CHECK(listen(fd, 8) == 0);
    socklen_t length = sizeof address;
    CHECK(getsockname(fd, reinterpret_cast<sockaddr*>(&address), &length) == 0);
  }
  ~Listener() { ::close(fd); }
  Listener(const Listener&) = delete;
  Listener& operator=(const Listener&) = delete;
  std::span<const uint8_t> name() const { return {reinterpret_cast<const uint8_t*>(&address), sizeof address}; }

  int fd;
  sockaddr_in address{};
};

// Both ends of a connection; the outer one has sent something that the inner one has not read.
struct Connection {
  explicit Connection(const Listener& listener) : outer(socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0)) {
    CHECK(connect(outer, reinterpret_cast<const sockaddr*>(&listener.address), sizeof listener.address) == 0);
    inner = accept(listener.fd, nullptr, nullptr);
    CHECK(send(outer, "abcd", 4, 0) == 4);
    std::array<char, 4> bytes{};
    CHECK(recv(inner, bytes.data(), bytes.size(), MSG_PEEK | MSG_WAITALL) == 4);
  }
  ~Connection() {
    ::close(inner);
    ::close(outer);
  }
  Connection(const Connection&) = delete;
  Connection& operator=(const Connection&) = delete;
  bool can_read() const {
    char byte = 0;
    return recv(inner, &byte, 1, MSG_DONTWAIT) == 1;
  }

  int outer;
  int inner = -1;
};

}  // namespace

TEST(of_a_connection_that_was_ended_nothing_can_be_read) {
  const Listener listener;
  const Listener other;
  std::string why;
  const auto inbound = fabric::Inbound::open(listener.name(), why);
  CHECK(inbound != nullptr);
  const Connection untouched(other);
  {
    const Connection open(listener);
    const Connection closed(listener);
    shutdown(closed.outer, SHUT_WR);
    Connection reset(listener);
    const linger at_once = {1, 0};
    setsockopt(reset.outer, SOL_SOCKET, SO_LINGER, &at_once, sizeof at_once);
    ::close(std::exchange(reset.outer, -1));
    pollfd gone = {reset.inner, 0, 0};
    CHECK(poll(&gone, 1, 10'000) == 1 && (gone.revents & POLLHUP) != 0);
    const auto ended = inbound->end_all();
    CHECK_EQUAL(ended.connections, 3u);
    CHECK(ended.failed_call == nullptr);
    CHECK(!open.can_read() && !closed.can_read() && !reset.can_read());
  }
  CHECK(untouched.can_read());
  // The listener goes on.
  const Connection next(listener);
  CHECK(next.can_read());
  CHECK_EQUAL(inbound->end_all().connections, 1u);
  CHECK(fabric::Inbound::open({}, why) == nullptr);
}

TEST(connections_are_found_without_a_descriptor_to_spare) {
  const Listener listener;
  std::string why;
  const auto inbound = fabric::Inbound::open(listener.name(), why);
  const Connection open(listener);
  rlimit usual{};
  CHECK(getrlimit(RLIMIT_NOFILE, &usual) == 0);
  const rlimit none = {3, usual.rlim_max};
  CHECK(setrlimit(RLIMIT_NOFILE, &none) == 0);
  const auto ended = inbound->end_all();
  CHECK(setrlimit(RLIMIT_NOFILE, &usual) == 0);
  CHECK_EQUAL(ended.connections, 1u);
  CHECK(!open.can_read());
}

TEST(where_connections_cannot_be_emptied_nothing_is_proved) {
  refused_disconnect = EOPNOTSUPP;
  {
    Driver driver;
    CHECK_EQUAL(driver.info().quiescence, fabric::Quiescence::kCloseEndpoint);
    CHECK(driver.info().removal_flushes);
    fabric::Error error;
    const auto outcome = driver.wait(driver.rail().prove(error).value());
    CHECK_EQUAL(outcome.error->code, ErrorCode::kUnprovable);
    CHECK(outcome.error->hint.find("connect(AF_UNSPEC)") != std::string::npos);
  }
  refused_disconnect = 0;
  // And where it fails this time.
  Target target;
  WriterProcess writer(kSize);
  target.aim(writer);
  writer.start(0, kSize);
  target.await_middle();
  refused_disconnect = EBUSY;
  const auto outcome = target.driver.wait(target.begin_proof());
  refused_disconnect = 0;
  CHECK(outcome.error != nullptr);
  CHECK_EQUAL(outcome.error->code, ErrorCode::kBusy);
  CHECK_EQUAL(outcome.error->call, "connect(AF_UNSPEC)");
  CHECK_EQUAL(outcome.error->error_number, EBUSY);
  CHECK_EQUAL(target.counters().proofs.load(), 0u);
  target.prove();
}

TEST(patience_begins_anew_with_each_sign_of_life_and_has_an_end) {
  const fabric::Clock::time_point start = fabric::Clock::now();
  fabric::Patience patience;
  patience.begin(start);
  CHECK(!patience.is_over(start + 199ms, true));
  CHECK(patience.is_over(start + 200ms, true));
  CHECK(!patience.is_over(start + 200ms, false));
  patience.note_life(start + 150ms);
  CHECK(!patience.is_over(start + 349ms, true));
  CHECK(patience.is_over(start + 350ms, true));
  patience.excuse(1s);
  CHECK(!patience.is_over(start + 1349ms, true));
  CHECK(patience.is_over(start + 1350ms, true));
  patience.note_life(start + 2999ms);
  CHECK(!patience.is_over(start + 2999ms, true));
  CHECK(patience.is_over(start + 3s, false));
}

TEST(an_endpoint_that_nobody_knows_lands_nothing_after_a_proof) {
  Target target;
  target.close();
  WriterProcess writer(kSize);
  close_in_the_middle_often(target, writer, false);
  CHECK(target.counters().connections_ended.load() > 0);
  CHECK_EQUAL(target.counters().peers.load(), 0u);
}

TEST(nor_does_one_that_is_frozen) {
  Target target;
  target.close();
  WriterProcess writer(kSize);
  close_in_the_middle_often(target, writer, true);
  CHECK(target.counters().connections_ended.load() > 0);
}

TEST(an_announced_writer_that_is_frozen_is_disconnected_and_lands_nothing) {
  Target target;
  target.close();
  WriterProcess writer(kSize);
  target.meet(writer);
  const bool middle = close_in_the_middle(target, writer, true);
  CHECK(middle);
  CHECK_EQUAL(target.counters().peers_disconnected.load(), 1u);
  CHECK_EQUAL(target.counters().connections_ended.load(), 0u);
}

TEST(an_announced_writer_that_runs_comes_to_an_end_first) {
  Target target;
  target.close();
  WriterProcess writer(kSize);
  target.meet(writer);
  close_in_the_middle(target, writer, false);
}

TEST(a_peer_that_comes_back_during_a_round_is_fenced_in_it) {
  Target target;
  WriterProcess writer(kSize);
  WriterProcess bystander(kMiB);
  target.meet(bystander);
  // We connect to the writer, and remove it before it can accept: its address lingers, and the connection comes up.
  writer.kill(SIGSTOP);
  fabric::Error error;
  fabric::Rail& rail = target.driver.rail();
  const uint64_t peer = target.driver.add_peer(writer.address());
  const uint64_t remote = target.driver.add_remote(peer, writer.remote_address(), writer.key(), 1);
  const uint64_t ping = rail.ping(peer, remote, error).value();
  usleep(20'000);
  CHECK(target.driver.wait(rail.remove_peer(peer, error).value()).error == nullptr);
  CHECK(target.driver.wait_transfer(ping) != nullptr);
  writer.kill(SIGCONT);
  usleep(50'000);
  target.aim(writer);
  writer.start(0, kSize);
  target.await_middle();
  writer.kill(SIGSTOP);
  target.close();
  const bool middle = target.is_in_the_middle();
  // A round that takes long, since it waits for somebody else.
  bystander.kill(SIGSTOP);
  const int64_t proof = target.begin_proof();
  usleep(50'000);
  target.driver.add_peer(writer.address());
  CHECK(target.driver.wait(proof).error == nullptr);
  target.fill();
  writer.kill(SIGCONT);
  const int result = writer.wait();
  if (target.landed() != 0) fail(__FILE__, __LINE__, std::to_string(target.landed()) + " bytes have landed");
  CHECK(result != 0);
  CHECK(middle);
  // Our own connection, not one that the writer made.
  CHECK_EQUAL(target.counters().connections_ended.load(), 0u);
}

TEST(a_peer_whose_connection_fails_during_a_round_is_not_disconnected_again) {
  Target target(kMiB);
  WriterProcess writer(kMiB);
  target.meet(writer);
  writer.kill(SIGSTOP);
  const int64_t proof = target.begin_proof();
  usleep(50'000);
  writer.kill(SIGKILL);
  CHECK(target.driver.wait(proof).error == nullptr);
  CHECK_EQUAL(target.counters().peers_disconnected.load(), 0u);
}

TEST(an_honest_writer_does_not_pay_for_our_own_stall) {
  Target target;
  WriterProcess writer(kSize);
  target.meet(writer);
  target.aim(writer);
  for (int round = 0; round < 6; round++) {
    target.fill();
    writer.start(0, kSize);
    target.await_middle();
    const pid_t self = getpid();
    const int64_t proof = target.begin_proof();
    const pid_t stopper = fork();
    if (stopper == 0) {
      ::kill(self, SIGSTOP);
      usleep(300'000);
      ::kill(self, SIGCONT);
      _exit(0);
    }
    CHECK(target.driver.wait(proof).error == nullptr);
    CHECK_EQUAL(writer.wait(), 0);
    waitpid(stopper, nullptr, 0);
  }
  CHECK_EQUAL(target.counters().peers_disconnected.load(), 0u);
}

TEST(an_honest_writer_notices_nothing_of_proofs) {
  Target target;
  WriterProcess writer(kSize, kMiB);
  target.meet(writer);
  target.aim(writer);
  const auto other = map(kMiB);
  constexpr int kWrites = 8;
  for (int i = 0; i < kWrites; i++) writer.start(0, kSize);
  target.await_middle();
  uint64_t rounds = 0;
  while (target.is_in_the_middle() || rounds < 50) {
    const auto region = target.driver.add_region(other, 0, kMiB, true);
    target.driver.remove_region(region.id);
    target.prove();
    rounds++;
  }
  for (int i = 0; i < kWrites; i++) CHECK_EQUAL(writer.wait(), 0);
  std::printf("    %lu proofs meanwhile\n", rounds);
  CHECK_EQUAL(target.counters().proofs.load(), rounds);
  CHECK_EQUAL(target.counters().peers_disconnected.load(), 0u);
  CHECK_EQUAL(target.counters().connections_ended.load(), 0u);
}

TEST(our_own_writes_go_on_under_proofs) {
  PeerProcess peer(64 * kMiB);
  Target target(64 * kMiB);
  std::vector<uint64_t> transfers;
  const uint64_t id = target.driver.add_peer(peer.address());
  const uint64_t remote = target.driver.add_remote(id, peer.remote_address(), peer.key(), 64 * kMiB);
  for (int i = 0; i < 10; i++) {
    transfers.push_back(target.driver.start_write(id, {{target.mapping, 0, remote, 0, 64 * kMiB}}));
  }
  for (int i = 0; i < 20; i++) target.prove();
  for (const uint64_t transfer : transfers) CHECK(target.driver.wait_transfer(transfer) == nullptr);
  CHECK_EQUAL(target.counters().peers_disconnected.load(), 0u);
}

TEST(a_hostile_writer_with_bad_keys_and_ranges_lands_nothing) {
  Target target(8 * kMiB);
  WriterProcess writer(8 * kMiB);
  const auto& address = target.driver.info().address;
  const uint64_t base = target.region.remote_address;
  const uint64_t key = target.region.key;
  struct Aim {
    uint64_t address;
    uint64_t key;
  };
  for (const Aim aim : {Aim{base, key + 1}, Aim{base, 0}, Aim{base + 1, key}, Aim{base + 8 * kMiB, key},
                        Aim{base + (uint64_t{1} << 62), key}}) {
    writer.aim(address, aim.address, aim.key, 8 * kMiB);
    writer.start(0, 8 * kMiB);
    CHECK(writer.wait() != 0);
    CHECK_EQUAL(target.landed(), 0u);
  }
  target.close();
  target.aim(writer);
  writer.start(0, 8 * kMiB);
  CHECK(writer.wait() != 0);
  CHECK_EQUAL(target.landed(), 0u);
  // And one that is as it should be.
  target.open();
  target.aim(writer);
  writer.start(0, 8 * kMiB);
  CHECK_EQUAL(writer.wait(), 0);
  CHECK_EQUAL(target.landed(), 8 * kMiB);
}

TEST(proofs_that_are_asked_for_together_share_a_round) {
  Target target(kMiB);
  WriterProcess writer(kMiB);
  target.meet(writer);
  fabric::Error error;
  std::vector<int64_t> tokens;
  for (int i = 0; i < 1000; i++) tokens.push_back(target.driver.rail().prove(error).value());
  for (const int64_t token : tokens) CHECK(target.driver.wait(token).error == nullptr);
  CHECK(target.counters().proofs.load() < 1000);
  CHECK(target.counters().proofs.load() > 0);
}

TEST(many_peers_are_fenced_in_one_round) {
  constexpr int kPeers = 40;
  Target target(kMiB);
  const auto memory = map(4096);
  std::vector<std::unique_ptr<Driver>> peers;
  std::vector<uint64_t> pings;
  fabric::Error error;
  for (int i = 0; i < kPeers; i++) {
    Driver& peer = *peers.emplace_back(std::make_unique<Driver>());
    const auto region = peer.add_region(memory, 0, 4096, true);
    const uint64_t id = target.driver.add_peer(peer.info().address);
    const uint64_t remote = target.driver.add_remote(id, region.remote_address, region.key, 4096);
    pings.push_back(target.driver.rail().ping(id, remote, error).value());
  }
  for (const uint64_t ping : pings) CHECK(target.driver.wait_transfer(ping) == nullptr);
  target.prove();
  CHECK_EQUAL(target.counters().proofs.load(), 1u);
  CHECK_EQUAL(target.counters().peers_disconnected.load(), 0u);
  // Those that are gone do not hinder it.
  peers.resize(kPeers / 2);
  target.prove();
  target.prove();
}

TEST(a_peer_without_a_region_is_disconnected) {
  Target target(kMiB);
  WriterProcess writer(kMiB);
  fabric::Error error;
  const uint64_t peer = target.driver.add_peer(writer.address());
  const uint64_t remote = target.driver.add_remote(peer, writer.remote_address(), writer.key(), 1);
  CHECK(target.driver.wait_transfer(target.driver.rail().ping(peer, remote, error).value()) == nullptr);
  target.driver.rail().forget_remote(remote);
  target.prove();
  CHECK_EQUAL(target.counters().peers_disconnected.load(), 1u);
  // It is still there, and connects again.
  const uint64_t again = target.driver.add_remote(peer, writer.remote_address(), writer.key(), 1);
  CHECK(target.driver.wait_transfer(target.driver.rail().ping(peer, again, error).value()) == nullptr);
}

TEST(where_only_the_endpoints_close_proves_anything_it_says_so) {
  fabric::RailOptions options;
  options.force_close_endpoint = true;
  Driver driver(options);
  CHECK_EQUAL(driver.info().quiescence, fabric::Quiescence::kCloseEndpoint);
  fabric::Error error;
  const auto outcome = driver.wait(driver.rail().prove(error).value());
  CHECK_EQUAL(outcome.error->code, ErrorCode::kUnprovable);
}

TEST(a_rail_that_closes_answers_proofs_and_disconnections) {
  PeerProcess peer(128 * kMiB);
  Target target;
  const uint64_t id = target.driver.add_peer(peer.address());
  const uint64_t remote = target.driver.add_remote(id, peer.remote_address(), peer.key(), kSize);
  const uint64_t transfer = target.driver.start_write(id, {{target.mapping, 0, remote, 0, kSize}});
  while (target.driver.rail().bytes_completed(transfer) == 0) {
  }
  peer.kill(SIGSTOP);
  fabric::Error error;
  const int64_t proof = target.driver.rail().prove(error).value();
  const int64_t end = target.driver.rail().disconnect_peer(id, error).value();
  const int64_t late = target.driver.rail().prove(error).value();
  target.driver.rail().close();
  for (const int64_t token : {proof, end, late}) {
    const auto outcome = target.driver.wait(token);
    CHECK(outcome.error == nullptr || outcome.error->code == ErrorCode::kRailClosed);
  }
  CHECK(target.driver.wait_transfer(transfer) != nullptr);
  CHECK(target.driver.rail().join(5s));
  CHECK_EQUAL(target.driver.rail().pending(), 0u);
}

TEST(a_disconnected_peer_stays_and_a_write_is_continued_where_it_ended) {
  PeerProcess peer(128 * kMiB);
  Driver driver;
  const auto source = map(kSize);
  fill(*source, 1);
  const uint64_t id = driver.add_peer(peer.address());
  const uint64_t remote = driver.add_remote(id, peer.remote_address(), peer.key(), kSize);
  // In two pieces that are crossed, so that the order of the segments matters.
  const std::vector<fabric::WritePiece> pieces = {{source, kSize / 2, remote, kSize / 2, kSize / 2},
                                                  {source, 0, remote, 0, kSize / 2}};
  const uint64_t transfer = driver.start_write(id, pieces);
  while (driver.rail().bytes_completed(transfer) < kSize / 8) {
  }
  peer.kill(SIGSTOP);
  fabric::Error error;
  const auto outcome = driver.wait(driver.rail().disconnect_peer(id, error).value());
  CHECK(outcome.error == nullptr);
  const auto failure = driver.wait_transfer(transfer);
  CHECK(failure != nullptr);
  CHECK_EQUAL(failure->code, ErrorCode::kTransferFailed);
  CHECK_EQUAL(failure->error_number, FI_ECANCELED);
  CHECK_EQUAL(driver.rail().counters().peers_disconnected.load(), 1u);
  const uint64_t landed = failure->landed_bytes;
  std::printf("    %lu of %lu MiB had landed\n", landed / kMiB, kSize / kMiB);
  CHECK(landed >= kSize / 8 - 4 * kMiB && landed < kSize && landed % kMiB == 0);
  peer.kill(SIGCONT);
  const uint64_t first = std::min(landed, kSize / 2);
  CHECK_EQUAL(peer.crc(kSize / 2, first), memory::crc32c(source->base() + kSize / 2, first, 0));
  const uint64_t second = landed - first;
  CHECK_EQUAL(peer.crc(0, second), memory::crc32c(source->base(), second, 0));
  const uint64_t rest =
      driver.start_write(id, {{source, kSize / 2 + first, remote, kSize / 2 + first, kSize / 2 - first},
                              {source, second, remote, second, kSize / 2 - second}});
  CHECK(driver.wait_transfer(rest) == nullptr);
  CHECK_EQUAL(peer.crc(0, kSize), memory::crc32c(source->base(), kSize, 0));
}

TEST(a_cancelled_write_says_how_much_has_landed) {
  PeerProcess peer(128 * kMiB);
  Driver driver;
  const auto source = map(kSize);
  fill(*source, 2);
  const uint64_t id = driver.add_peer(peer.address());
  const uint64_t remote = driver.add_remote(id, peer.remote_address(), peer.key(), kSize);
  const uint64_t transfer = driver.start_write(id, {{source, 0, remote, 0, kSize}});
  while (driver.rail().bytes_completed(transfer) < kSize / 8) {
  }
  CHECK(driver.rail().cancel(transfer));
  const auto failure = driver.wait_transfer(transfer);
  CHECK_EQUAL(failure->code, ErrorCode::kCancelled);
  const uint64_t landed = failure->landed_bytes;
  CHECK(landed >= kSize / 8 && landed < kSize);
  CHECK_EQUAL(peer.crc(0, landed), memory::crc32c(source->base(), landed, 0));
  // Nothing was lost of one that never began.
  fabric::Error error;
  const uint64_t none = driver.start_write(id, {{source, 0, remote, 0, kSize}});
  CHECK(driver.rail().cancel(none));
  CHECK(driver.wait_transfer(none)->landed_bytes < kSize);
}

TEST(small_writes_pass_a_large_one_that_began_before) {
  PeerProcess peer(256 * kMiB);
  Driver driver;
  const auto source = map(256 * kMiB);
  const uint64_t id = driver.add_peer(peer.address());
  const uint64_t remote = driver.add_remote(id, peer.remote_address(), peer.key(), 256 * kMiB);
  // 1 GiB in pieces.
  const uint64_t large = driver.start_write(id, std::vector(4, fabric::WritePiece{source, 0, remote, 0, 256 * kMiB}));
  while (driver.rail().bytes_completed(large) == 0) {
  }
  std::vector<uint64_t> small;
  for (uint64_t i = 0; i < 20; i++) {
    small.push_back(driver.start_write(id, {{source, i << 17, remote, i << 17, 1 << 17}}));
  }
  for (const uint64_t transfer : small) CHECK(driver.wait_transfer(transfer) == nullptr);
  CHECK(!driver.settled(large));
  CHECK(driver.wait_transfer(large) == nullptr);
}

TEST(a_progress_thread_is_bound_to_its_cpu) {
  fabric::RailOptions options;
  options.cpu = 0;
  Driver driver(options);
  options.query = {place().provider, place().source_address, ""};
  options.cpu = 100'000;
  fabric::Error error;
  const auto refused = fabric::Rail::open(
      library(), options, [] {}, error);
  CHECK(refused->join(20s));
  std::array<fabric::Outcome, 4> outcomes;
  CHECK_EQUAL(refused->drain(outcomes), 1u);
  CHECK_EQUAL(outcomes[0].error->call, "pthread_setaffinity_np");
  CHECK_EQUAL(outcomes[0].error->code, ErrorCode::kInvalidArgument);
}

int main(int argc, char** argv) {
  become_peer_if_asked(argc, argv);
  become_writer_if_asked(argc, argv);
  return run_tests(argc, argv);
}
