#include "peer_process.h"

#include <fcntl.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <csignal>
#include <cstring>
#include <string>

#include "check.h"
#include "driver.h"
#include "memory/crc32c.h"
#include "pipe_io.h"

namespace fabrickv::test {
namespace {

constexpr int kSocket = 3;

enum Command : uint8_t { kInsert, kCrc, kFill, kCount, kRevokeAndFill, kIntroduce, kFinish };

struct Request {
  uint8_t command;
  uint64_t first;
  uint64_t second;
};

struct Introduction {
  uint64_t remote_address;
  uint64_t key;
  uint64_t address_length;
};

// The second process.
class Server {
 public:
  explicit Server(uint64_t size_bytes) : mapping_(map(size_bytes)) {}

  void run() {
    introduce();
    Request request{};
    while (read_all(kSocket, &request, sizeof request) && request.command != kFinish) {
      const uint64_t answer = serve(request);
      write_all(kSocket, &answer, sizeof answer);
    }
  }

 private:
  void introduce() {
    region_ = driver_.add_region(mapping_, 0, mapping_->size_bytes(), true);
    const auto& address = driver_.info().address;
    const Introduction introduction = {region_.remote_address, region_.key, address.size()};
    write_all(kSocket, &introduction, sizeof introduction);
    write_all(kSocket, address.data(), address.size());
  }

  uint64_t serve(const Request& request) {
    const std::byte byte{static_cast<uint8_t>(request.first)};
    const auto range = mapping_->range(0, mapping_->size_bytes());
    switch (request.command) {
      case kInsert: {
        std::vector<uint8_t> address(request.first);
        read_all(kSocket, address.data(), address.size());
        writer_ = driver_.add_peer(address);
        return writer_;
      }
      case kCrc:
        return memory::crc32c(mapping_->base() + request.first, request.second, 0);
      case kFill:
        std::fill(range.begin(), range.end(), byte);
        return 0;
      case kCount:
        return static_cast<uint64_t>(
            std::count_if(range.begin(), range.end(), [byte](std::byte is) { return is != byte; }));
      case kRevokeAndFill: {
        await_middle(byte);
        revoke(static_cast<Revocation>(request.second));
        const bool was_in_the_middle = range.back() == byte;
        std::fill(range.begin(), range.end(), byte);
        return was_in_the_middle ? 1 : 0;
      }
      case kIntroduce:
        introduce();
        return 0;
      default:
        return UINT64_MAX;
    }
  }

  // Returns when a write into memory that was full of `byte` has come some way.
  void await_middle(std::byte byte) const {
    const auto deadline = std::chrono::steady_clock::now() + kDeadline;
    const volatile std::byte& early = mapping_->base()[mapping_->size_bytes() / 16];
    while (early == byte) {
      if (std::chrono::steady_clock::now() >= deadline) fail(__FILE__, __LINE__, "the write did not begin");
    }
  }

  void revoke(Revocation revocation) {
    driver_.remove_region(region_.id);
    if (revocation == Revocation::kCloseRegion) return;
    fabric::Error error;
    const auto removed = driver_.rail().remove_peer(writer_, error);
    CHECK(removed.has_value());
    CHECK(driver_.wait(*removed).error == nullptr);
  }

  Driver driver_;
  std::shared_ptr<memory::Mapping> mapping_;
  fabric::Outcome region_;
  uint64_t writer_ = 0;
};

}  // namespace

void become_peer_if_asked(int argc, char** argv) {
  if (argc < 3 || std::strcmp(argv[1], "--peer") != 0) return;
  { Server(std::stoull(argv[2])).run(); }
  std::exit(0);
}

PeerProcess::PeerProcess(uint64_t size_bytes) : size_bytes_(size_bytes) {
  int sockets[2] = {-1, -1};
  CHECK(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, sockets) == 0);
  pid_ = fork();
  if (pid_ == 0) {
    // A test that fails ends at once and leaves nobody behind.
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    dup2(sockets[1], kSocket);
    if (sockets[1] == kSocket) fcntl(kSocket, F_SETFD, 0);
    const std::string size = std::to_string(size_bytes);
    execl("/proc/self/exe", "fabric-test-peer", "--peer", size.c_str(), nullptr);
    _exit(127);
  }
  close(sockets[1]);
  socket_ = sockets[0];
  read_introduction();
}

PeerProcess::~PeerProcess() {
  if (pid_ > 0) {
    ::kill(pid_, SIGKILL);
    waitpid(pid_, nullptr, 0);
  }
  close(socket_);
}

void PeerProcess::read_introduction() {
  Introduction introduction{};
  CHECK(read_all(socket_, &introduction, sizeof introduction));
  remote_address_ = introduction.remote_address;
  key_ = introduction.key;
  address_.resize(introduction.address_length);
  CHECK(read_all(socket_, address_.data(), address_.size()));
}

uint64_t PeerProcess::ask(uint8_t command, uint64_t first, uint64_t second) {
  const Request request = {command, first, second};
  write_all(socket_, &request, sizeof request);
  if (command == kIntroduce) read_introduction();
  uint64_t answer = 0;
  CHECK(read_all(socket_, &answer, sizeof answer));
  return answer;
}

void PeerProcess::insert_peer(const std::vector<uint8_t>& address) {
  const Request request = {kInsert, address.size(), 0};
  write_all(socket_, &request, sizeof request);
  write_all(socket_, address.data(), address.size());
  uint64_t answer = 0;
  CHECK(read_all(socket_, &answer, sizeof answer));
}

uint32_t PeerProcess::crc(uint64_t offset, uint64_t length) {
  return static_cast<uint32_t>(ask(kCrc, offset, length));
}

void PeerProcess::fill(uint8_t byte) {
  ask(kFill, byte, 0);
}

uint64_t PeerProcess::count_other_than(uint8_t byte) {
  return ask(kCount, byte, 0);
}

bool PeerProcess::revoke_and_fill(uint8_t byte, Revocation revocation) {
  return ask(kRevokeAndFill, byte, static_cast<uint64_t>(revocation)) == 1;
}

void PeerProcess::introduce() {
  ask(kIntroduce, 0, 0);
}

void PeerProcess::kill(int signal) {
  ::kill(pid_, signal);
  if (signal != SIGKILL) return;
  waitpid(pid_, nullptr, 0);
  pid_ = -1;
}

void PeerProcess::finish() {
  const Request request = {kFinish, 0, 0};
  write_all(socket_, &request, sizeof request);
  int status = 0;
  waitpid(pid_, &status, 0);
  pid_ = -1;
  CHECK(WIFEXITED(status));
  CHECK_EQUAL(WEXITSTATUS(status), 0);
}

}  // namespace fabrickv::test
