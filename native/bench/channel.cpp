#include "channel.h"

#include <sys/socket.h>
#include <unistd.h>

#include <cerrno>

namespace fabrickv::bench {

bool send_all(int fd, const void* from, size_t length) {
  const auto* bytes = static_cast<const char*>(from);
  while (length > 0) {
    const ssize_t sent = send(fd, bytes, length, MSG_NOSIGNAL);
    if (sent < 0 && errno == EINTR) continue;
    if (sent <= 0) return false;
    bytes += sent;
    length -= static_cast<size_t>(sent);
  }
  return true;
}

bool receive_all(int fd, void* into, size_t length) {
  auto* bytes = static_cast<char*>(into);
  while (length > 0) {
    const ssize_t got = read(fd, bytes, length);
    if (got < 0 && errno == EINTR) continue;
    if (got <= 0) return false;
    bytes += got;
    length -= static_cast<size_t>(got);
  }
  return true;
}

}  // namespace fabrickv::bench
