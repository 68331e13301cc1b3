#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

namespace fabrickv::bench {

// What the target tells the initiator when it is ready, followed by its fabric address.
struct Introduction {
  uint64_t remote_address = 0;
  uint64_t key = 0;
  uint64_t address_length = 0;
};

// How the target is to wait from now on.
struct Tuning {
  uint32_t spin_us = 0;
  uint32_t block = 0;
};

// Whole messages over a socket. False when the other process is gone.
bool send_all(int fd, const void* from, size_t length);
bool receive_all(int fd, void* into, size_t length);

template <typename T>
bool send_message(int fd, const T& message) {
  return send_all(fd, &message, sizeof message);
}
template <typename T>
bool receive_message(int fd, T& message) {
  return receive_all(fd, &message, sizeof message);
}

}  // namespace fabrickv::bench
