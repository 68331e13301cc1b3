#pragma once

#include <sys/socket.h>
#include <unistd.h>

#include <cstddef>

#include "check.h"

namespace fabrickv::test {

// False when the other process is gone before all of it has come.
inline bool read_all(int fd, void* into, size_t length) {
  auto* bytes = static_cast<char*>(into);
  while (length > 0) {
    const ssize_t got = read(fd, bytes, length);
    if (got <= 0) return false;
    bytes += got;
    length -= static_cast<size_t>(got);
  }
  return true;
}

inline void write_all(int fd, const void* from, size_t length) {
  const auto* bytes = static_cast<const char*>(from);
  while (length > 0) {
    const ssize_t put = send(fd, bytes, length, MSG_NOSIGNAL);
    if (put <= 0) fail(__FILE__, __LINE__, "the other process is gone");
    bytes += put;
    length -= static_cast<size_t>(put);
  }
}

}  // namespace fabrickv::test
