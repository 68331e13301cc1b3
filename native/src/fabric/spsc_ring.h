#pragma once

#include <atomic>
#include <cstddef>
#include <utility>
#include <vector>

namespace fabrickv::fabric {

// A bounded queue between one producer thread and one consumer thread. Never allocates after construction.
template <typename T>
class SpscRing {
 public:
  // `capacity` must be a power of two.
  explicit SpscRing(size_t capacity) : slots_(capacity), mask_(capacity - 1) {}

  // Producer. Whether the next push will succeed.
  bool has_room() {
    const size_t tail = tail_.load(std::memory_order_relaxed);
    if (tail - cached_head_ == slots_.size()) cached_head_ = head_.load(std::memory_order_acquire);
    return tail - cached_head_ < slots_.size();
  }

  // Producer. False when it is full.
  bool push(const T& value) {
    if (!has_room()) return false;
    const size_t tail = tail_.load(std::memory_order_relaxed);
    slots_[tail & mask_] = value;
    tail_.store(tail + 1, std::memory_order_release);
    return true;
  }

  // Consumer. False when it is empty.
  bool pop(T& value) {
    const size_t head = head_.load(std::memory_order_relaxed);
    if (head == cached_tail_) {
      cached_tail_ = tail_.load(std::memory_order_acquire);
      if (head == cached_tail_) return false;
    }
    value = slots_[head & mask_];
    head_.store(head + 1, std::memory_order_release);
    return true;
  }

  // Consumer. Sees everything that was pushed before a sequentially consistent fence of the producer's.
  bool empty() const { return head_.load(std::memory_order_relaxed) == tail_.load(std::memory_order_acquire); }

 private:
  static constexpr size_t kCacheLineBytes = 64;

  std::vector<T> slots_;
  const size_t mask_;
  alignas(kCacheLineBytes) std::atomic<size_t> head_{0};
  size_t cached_tail_ = 0;
  alignas(kCacheLineBytes) std::atomic<size_t> tail_{0};
  size_t cached_head_ = 0;
};

}  // namespace fabrickv::fabric
