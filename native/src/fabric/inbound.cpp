#include "fabric/inbound.h"

#include <dirent.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <charconv>
#include <cstring>
#include <memory>
#include <string_view>

namespace fabrickv::fabric {
namespace {

// Where the process's files cannot be listed, as many of them are looked at.
constexpr rlim_t kFilesMax = 65536;

struct Name {
  sockaddr_storage address{};
  socklen_t length = sizeof(sockaddr_storage);
};

bool is_any(const Name& name) {
  if (name.address.ss_family == AF_INET) {
    return reinterpret_cast<const sockaddr_in&>(name.address).sin_addr.s_addr == INADDR_ANY;
  }
  const auto& address = reinterpret_cast<const sockaddr_in6&>(name.address).sin6_addr;
  return std::memcmp(&address, &in6addr_any, sizeof address) == 0;
}

bool is_on(const Name& name, const Name& listener) {
  if (name.address.ss_family != listener.address.ss_family) return false;
  if (name.address.ss_family == AF_INET) {
    const auto& local = reinterpret_cast<const sockaddr_in&>(name.address);
    const auto& wanted = reinterpret_cast<const sockaddr_in&>(listener.address);
    return local.sin_port == wanted.sin_port && (is_any(listener) || local.sin_addr.s_addr == wanted.sin_addr.s_addr);
  }
  const auto& local = reinterpret_cast<const sockaddr_in6&>(name.address);
  const auto& wanted = reinterpret_cast<const sockaddr_in6&>(listener.address);
  return local.sin6_port == wanted.sin6_port &&
         (is_any(listener) || std::memcmp(&local.sin6_addr, &wanted.sin6_addr, sizeof local.sin6_addr) == 0);
}

int option(int fd, int name) {
  int value = -1;
  socklen_t length = sizeof value;
  return getsockopt(fd, SOL_SOCKET, name, &value, &length) == 0 ? value : -1;
}

// Whether the file is a connection that was accepted on `listener`, or was one until its writer reset it: what it had
// sent before can still be read. A connection that we made ourselves has a port of
// its own: the kernel gives away none that is bound.
bool is_inbound(int fd, const Name& listener) {
  Name local;
  if (getsockname(fd, reinterpret_cast<sockaddr*>(&local.address), &local.length) != 0) return false;
  return is_on(local, listener) && option(fd, SO_TYPE) == SOCK_STREAM && option(fd, SO_ACCEPTCONN) == 0;
}

void end_connection(int fd) {
  // Disconnecting resets the connection and empties the receive queue (tcp_disconnect); shutdown() alone would leave
  // what is queued to be read. But only shutdown() makes the socket readable, so that libfabric notices.
  sockaddr unspecified{};
  unspecified.sa_family = AF_UNSPEC;
  [[maybe_unused]] const int disconnected = connect(fd, &unspecified, sizeof unspecified);
  [[maybe_unused]] const int shut = shutdown(fd, SHUT_RDWR);
}

bool end_if_inbound(int fd, const Name& listener) {
  if (!is_inbound(fd, listener)) return false;
  // rxm has a thread of its own for connection events: it may close the file, and the program open another under the
  // same number, between our look and our deed. A duplicate stays what it is.
  const int duplicate = fcntl(fd, F_DUPFD_CLOEXEC, 0);
  if (duplicate < 0) {
    // No descriptor is left; then none can have been opened under this number just now, either.
    end_connection(fd);
    return true;
  }
  const bool inbound = is_inbound(duplicate, listener);
  if (inbound) end_connection(duplicate);
  close(duplicate);
  return inbound;
}

}  // namespace

std::optional<size_t> end_inbound_connections(std::span<const uint8_t> listener) {
  Name name;
  if (listener.size() < sizeof(sockaddr_in) || listener.size() > sizeof name.address) return {};
  std::memcpy(&name.address, listener.data(), listener.size());
  if (name.address.ss_family != AF_INET && name.address.ss_family != AF_INET6) return {};
  size_t ended = 0;
  const std::unique_ptr<DIR, int (*)(DIR*)> files(opendir("/proc/self/fd"), closedir);
  if (files != nullptr) {
    while (const dirent* file = readdir(files.get())) {
      const std::string_view text = file->d_name;
      int fd = -1;
      const bool is_number = std::from_chars(text.data(), text.data() + text.size(), fd).ec == std::errc();
      if (is_number && end_if_inbound(fd, name)) ended++;
    }
    return ended;
  }
  // No /proc, or no descriptor for it.
  rlimit limit{};
  if (getrlimit(RLIMIT_NOFILE, &limit) != 0 || limit.rlim_cur > kFilesMax) return {};
  for (rlim_t fd = 0; fd < limit.rlim_cur; fd++) {
    if (end_if_inbound(static_cast<int>(fd), name)) ended++;
  }
  return ended;
}

}  // namespace fabrickv::fabric
