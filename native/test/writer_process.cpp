#include "writer_process.h"

#include <fcntl.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <csignal>
#include <cstring>
#include <deque>
#include <string>

#include "check.h"
#include "driver.h"
#include "pipe_io.h"

namespace fabrickv::test {
namespace {

constexpr int kSocket = 3;
constexpr uint64_t kRegionBytes = 4096;

enum Command : uint8_t { kAim, kStart, kWait };

struct Request {
  uint8_t command;
  uint64_t first;
  uint64_t second;
  uint64_t third;
  uint64_t address_length;
};

struct Introduction {
  uint64_t remote_address;
  uint64_t key;
  uint64_t address_length;
};

fabric::RailOptions options_for(uint64_t chunk_bytes) {
  fabric::RailOptions options;
  options.chunk_bytes = chunk_bytes;
  return options;
}

// The second process.
class Program {
 public:
  Program(uint64_t size_bytes, uint64_t chunk_bytes)
      : driver_(options_for(chunk_bytes)), source_(map(size_bytes)), own_(map(kRegionBytes)) {
    const auto range = source_->range(0, source_->size_bytes());
    for (size_t i = 0; i < range.size(); i++) range[i] = std::byte(i * 31 + (i >> 11));
    std::replace(range.begin(), range.end(), std::byte{WriterProcess::kMark}, std::byte{0});
    driver_.add_source(source_);
  }

  void run() {
    const auto region = driver_.add_region(own_, 0, kRegionBytes, true);
    const auto& address = driver_.info().address;
    const Introduction introduction = {region.remote_address, region.key, address.size()};
    write_all(kSocket, &introduction, sizeof introduction);
    write_all(kSocket, address.data(), address.size());
    Request request{};
    while (read_all(kSocket, &request, sizeof request)) {
      const int answer = serve(request);
      write_all(kSocket, &answer, sizeof answer);
    }
  }

 private:
  int serve(const Request& request) {
    switch (request.command) {
      case kAim: {
        std::vector<uint8_t> address(request.address_length);
        read_all(kSocket, address.data(), address.size());
        if (address != target_) peer_ = driver_.add_peer(address);
        target_ = address;
        remote_ = driver_.add_remote(peer_, request.first, request.second, request.third);
        return 0;
      }
      case kStart:
        started_.push_back(
            driver_.start_write(peer_, {{source_, request.first, remote_, request.first, request.second}}));
        return 0;
      default: {
        const auto error = driver_.wait_transfer(started_.front());
        started_.pop_front();
        return error == nullptr ? 0 : error->error_number;
      }
    }
  }

  Driver driver_;
  std::shared_ptr<memory::Mapping> source_;
  std::shared_ptr<memory::Mapping> own_;
  std::vector<uint8_t> target_;
  std::deque<uint64_t> started_;
  uint64_t peer_ = 0;
  uint64_t remote_ = 0;
};

}  // namespace

void become_writer_if_asked(int argc, char** argv) {
  if (argc < 4 || std::strcmp(argv[1], "--writer") != 0) return;
  { Program(std::stoull(argv[2]), std::stoull(argv[3])).run(); }
  std::exit(0);
}

WriterProcess::WriterProcess(uint64_t size_bytes, uint64_t chunk_bytes) {
  int sockets[2] = {-1, -1};
  CHECK(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, sockets) == 0);
  pid_ = fork();
  if (pid_ == 0) {
    dup2(sockets[1], kSocket);
    if (sockets[1] == kSocket) fcntl(kSocket, F_SETFD, 0);
    const std::string size = std::to_string(size_bytes);
    const std::string chunk = std::to_string(chunk_bytes == 0 ? size_bytes : chunk_bytes);
    execl("/proc/self/exe", "fabric-test-writer", "--writer", size.c_str(), chunk.c_str(), nullptr);
    _exit(127);
  }
  close(sockets[1]);
  socket_ = sockets[0];
  Introduction introduction{};
  CHECK(read_all(socket_, &introduction, sizeof introduction));
  remote_address_ = introduction.remote_address;
  key_ = introduction.key;
  address_.resize(introduction.address_length);
  CHECK(read_all(socket_, address_.data(), address_.size()));
}

WriterProcess::~WriterProcess() {
  ::kill(pid_, SIGKILL);
  waitpid(pid_, nullptr, 0);
  close(socket_);
}

void WriterProcess::aim(const std::vector<uint8_t>& address, uint64_t remote_address, uint64_t key, uint64_t length) {
  const Request request = {kAim, remote_address, key, length, address.size()};
  write_all(socket_, &request, sizeof request);
  write_all(socket_, address.data(), address.size());
  int answer = 0;
  CHECK(read_all(socket_, &answer, sizeof answer));
}

void WriterProcess::start(uint64_t offset, uint64_t length) {
  const Request request = {kStart, offset, length, 0, 0};
  write_all(socket_, &request, sizeof request);
  int answer = 0;
  CHECK(read_all(socket_, &answer, sizeof answer));
}

int WriterProcess::wait() {
  const Request request = {kWait, 0, 0, 0, 0};
  write_all(socket_, &request, sizeof request);
  int answer = 0;
  CHECK(read_all(socket_, &answer, sizeof answer));
  return answer;
}

void WriterProcess::kill(int signal) const {
  ::kill(pid_, signal);
}

}  // namespace fabrickv::test
