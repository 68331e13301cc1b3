#pragma once

#include <sys/types.h>

#include <cstdint>
#include <vector>

namespace fabrickv::test {

// A second process that writes into this one: this executable again, with --writer. It has a rail, a source that is
// full of a pattern without the byte kMark, and a small region of its own that may be written to.
class WriterProcess {
 public:
  static constexpr uint8_t kMark = 0xEE;

  // Its whole write is one operation of libfabric unless `chunk_bytes` says otherwise.
  explicit WriterProcess(uint64_t size_bytes, uint64_t chunk_bytes = 0);
  // Kills it and waits for it.
  ~WriterProcess();
  WriterProcess(const WriterProcess&) = delete;
  WriterProcess& operator=(const WriterProcess&) = delete;

  const std::vector<uint8_t>& address() const { return address_; }
  uint64_t remote_address() const { return remote_address_; }
  uint64_t key() const { return key_; }

  // Tells it where to write from now on.
  void aim(const std::vector<uint8_t>& address, uint64_t remote_address, uint64_t key, uint64_t length);
  // Has it start writing `length` bytes, at an offset; it answers with wait().
  void start(uint64_t offset, uint64_t length);
  // The libfabric error number of the oldest write that was started, 0 when it succeeded.
  int wait();
  void kill(int signal) const;

 private:
  pid_t pid_ = -1;
  int socket_ = -1;
  std::vector<uint8_t> address_;
  uint64_t remote_address_ = 0;
  uint64_t key_ = 0;
};

// What main() does before anything else: returns only when this process is not the second one.
void become_writer_if_asked(int argc, char** argv);

}  // namespace fabrickv::test
