#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>

namespace fabrickv::memory {

// What failed while mapping: the system call and its errno.
struct MapFailure {
  const char* call = "";
  int error_number = 0;
};

struct MapOptions {
  // Rounded up to whole pages (2 MiB ones where huge pages were asked for and the size is at least that).
  size_t size_bytes = 0;
  // Touch every page now. Takes 0.2-1 s per GiB, so never on the JS thread.
  bool prefault = false;
  bool huge_pages = true;
  // Looked at between the steps of prefaulting; true ends it with ECANCELED, so that a process can exit meanwhile.
  const std::atomic<bool>* stop = nullptr;
  // The NUMA node whose memory is preferred; none when negative.
  int numa_node = -1;
};

// Anonymous memory, unmapped when the last std::shared_ptr to it goes: the handle in JavaScript, every view and loan,
// every registration, every transfer and every task hold one each. Thread-safe, since it never changes.
class Mapping {
 public:
  // Null on failure. Blocks while it prefaults.
  static std::shared_ptr<Mapping> create(const MapOptions& options, MapFailure& failure);

  Mapping(std::byte* base, size_t size_bytes, size_t mapped_bytes, bool huge_pages);
  ~Mapping();
  Mapping(const Mapping&) = delete;
  Mapping& operator=(const Mapping&) = delete;

  std::byte* base() const { return base_; }
  size_t size_bytes() const { return size_bytes_; }
  // Whether madvise(MADV_HUGEPAGE) was accepted.
  bool huge_pages() const { return huge_pages_; }
  // Distinguishes mappings for as long as the process lives.
  uint64_t serial() const { return serial_; }

  // Overflow-safe.
  bool contains(uint64_t offset, uint64_t length) const {
    return length <= size_bytes_ && offset <= size_bytes_ - length;
  }
  std::span<std::byte> range(uint64_t offset, uint64_t length) const { return {base_ + offset, length}; }

  // Mappings that exist in this process, for leak tests.
  static int64_t live_count();

 private:
  std::byte* const base_;
  const size_t size_bytes_;
  const size_t mapped_bytes_;
  const bool huge_pages_;
  const uint64_t serial_;
};

}  // namespace fabrickv::memory
