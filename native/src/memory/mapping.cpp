#include "memory/mapping.h"

#include <linux/mempolicy.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <system_error>
#include <thread>

#ifndef MADV_POPULATE_WRITE
#define MADV_POPULATE_WRITE 23  // Linux 5.14; glibc's headers are younger than many a kernel.
#endif

namespace fabrickv::memory {
namespace {

constexpr size_t kHugePageBytes = size_t{2} << 20;
// How much is prefaulted before `stop` is looked at: some 5-20 ms.
constexpr size_t kPrefaultStepBytes = size_t{32} << 20;
// Unmapping this much takes a millisecond or more, which the JS thread must not spend.
constexpr size_t kUnmapInlineBytes = size_t{16} << 20;

std::atomic<int64_t> live{0};
std::atomic<uint64_t> next_serial{1};

size_t round_up(size_t value, size_t unit) {
  return (value + unit - 1) / unit * unit;
}

// The kernel knows no more nodes than this (CONFIG_NODES_SHIFT is at most 10).
constexpr int kNodesMax = 1024;

// Takes the pages that are touched from now on from a NUMA node, as long as it has some. 0, or an errno. The system
// call itself: libnuma would be a dependency for this one function.
int prefer_node(std::byte* base, size_t length, int node) {
  constexpr int kWordBits = 8 * sizeof(unsigned long);
  if (node >= kNodesMax) return EINVAL;
  std::array<unsigned long, kNodesMax / kWordBits> nodes{};
  nodes[static_cast<size_t>(node / kWordBits)] = 1UL << (node % kWordBits);
  // The kernel takes one bit less than it is told.
  const long result = syscall(SYS_mbind, base, length, MPOL_PREFERRED, nodes.data(), kNodesMax + 1UL, 0U);
  if (result == 0) return 0;
  // A kernel without NUMA has the one node.
  return errno == ENOSYS && node == 0 ? 0 : errno;
}

void touch(std::byte* base, size_t length, size_t page_bytes) {
  for (size_t offset = 0; offset < length; offset += page_bytes) {
    auto* page = reinterpret_cast<volatile std::byte*>(base + offset);
    *page = std::byte{0};
  }
}

// 0, or the errno of the step that failed.
int prefault(std::byte* base, size_t length, size_t page_bytes, const std::atomic<bool>* stop) {
  bool populate = true;
  for (size_t offset = 0; offset < length; offset += kPrefaultStepBytes) {
    if (stop != nullptr && stop->load(std::memory_order_relaxed)) return ECANCELED;
    const size_t step = std::min(kPrefaultStepBytes, length - offset);
    if (populate && madvise(base + offset, step, MADV_POPULATE_WRITE) == 0) continue;
    // Only a kernel that does not know it leaves us to touch the pages; ENOMEM and the like would be SIGBUS or the OOM
    // killer if we did.
    if (populate && errno != EINVAL) return errno;
    populate = false;
    touch(base + offset, step, page_bytes);
  }
  return 0;
}

void unmap(std::byte* base, size_t mapped_bytes) {
  munmap(base, mapped_bytes);
  live.fetch_sub(1, std::memory_order_relaxed);
}

}  // namespace

std::shared_ptr<Mapping> Mapping::create(const MapOptions& options, MapFailure& failure) {
  const auto page_bytes = static_cast<size_t>(sysconf(_SC_PAGESIZE));
  const bool want_huge = options.huge_pages && options.size_bytes >= kHugePageBytes;
  const size_t unit = want_huge ? kHugePageBytes : page_bytes;
  if (options.size_bytes == 0 || options.size_bytes > SIZE_MAX - 2 * unit) {
    failure = {"mmap", options.size_bytes == 0 ? EINVAL : ENOMEM};
    return nullptr;
  }
  const size_t mapped_bytes = round_up(options.size_bytes, unit);
  // The kernel aligns to small pages only, so one huge page more is mapped and what sticks out is given back.
  const size_t slack = want_huge ? kHugePageBytes : 0;
  void* raw = mmap(nullptr, mapped_bytes + slack, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (raw == MAP_FAILED) {
    failure = {"mmap", errno};
    return nullptr;
  }
  auto* base = static_cast<std::byte*>(raw);
  if (slack > 0) {
    const size_t head = round_up(reinterpret_cast<uintptr_t>(base), unit) - reinterpret_cast<uintptr_t>(base);
    if (head > 0) munmap(base, head);
    if (slack > head) munmap(base + head + mapped_bytes, slack - head);
    base += head;
  }
  const bool huge = want_huge && madvise(base, mapped_bytes, MADV_HUGEPAGE) == 0;
  // A forked child would otherwise turn our pages copy-on-write under a device that writes into the old ones.
  madvise(base, mapped_bytes, MADV_DONTFORK);
  live.fetch_add(1, std::memory_order_relaxed);
  auto mapping = std::make_shared<Mapping>(base, options.size_bytes, mapped_bytes, huge);
  if (options.numa_node >= 0) {
    const int error_number = prefer_node(base, mapped_bytes, options.numa_node);
    if (error_number != 0) {
      failure = {"mbind", error_number};
      return nullptr;
    }
  }
  if (options.prefault) {
    const int error_number = prefault(base, mapped_bytes, page_bytes, options.stop);
    if (error_number != 0) {
      failure = {"madvise", error_number};
      return nullptr;
    }
  }
  return mapping;
}

Mapping::Mapping(std::byte* base, size_t size_bytes, size_t mapped_bytes, bool huge_pages)
    : base_(base),
      size_bytes_(size_bytes),
      mapped_bytes_(mapped_bytes),
      huge_pages_(huge_pages),
      serial_(next_serial.fetch_add(1, std::memory_order_relaxed)) {}

Mapping::~Mapping() {
  if (mapped_bytes_ > kUnmapInlineBytes) {
    // The last reference often goes on the JS thread. The addon is linked with -z nodelete, so its code stays under the
    // thread even when the worker that loaded it has ended.
    try {
      std::thread(unmap, base_, mapped_bytes_).detach();
      return;
    } catch (const std::system_error&) {
      // No thread to be had: unmap here, late rather than never.
    }
  }
  unmap(base_, mapped_bytes_);
}

int64_t Mapping::live_count() {
  return live.load(std::memory_order_relaxed);
}

}  // namespace fabrickv::memory
