#pragma once

#include <sys/eventfd.h>
#include <unistd.h>

#include <cstdint>

namespace fabrickv::fabric {

// An eventfd that wakes a thread out of poll().
class WakeFd {
 public:
  WakeFd() : fd_(eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)) {}
  ~WakeFd() {
    if (fd_ >= 0) close(fd_);
  }
  WakeFd(const WakeFd&) = delete;
  WakeFd& operator=(const WakeFd&) = delete;

  // -1 when the process is out of file descriptors: a poll() on it then only times out.
  int fd() const { return fd_; }

  void notify() const {
    const uint64_t one = 1;
    // It can only fail when the counter is full, and then the reader is awake.
    [[maybe_unused]] const ssize_t written = write(fd_, &one, sizeof one);
  }

  void drain() const {
    uint64_t count = 0;
    [[maybe_unused]] const ssize_t got = read(fd_, &count, sizeof count);
  }

 private:
  const int fd_;
};

}  // namespace fabrickv::fabric
