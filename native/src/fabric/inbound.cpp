#include "fabric/inbound.h"

#include <dirent.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <poll.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cerrno>
#include <charconv>
#include <cstring>
#include <string_view>

#include "fabric/error.h"

namespace fabrickv::fabric {
namespace {

// Where the process's files cannot be listed, as many of them are looked at.
constexpr rlim_t kFilesMax = 65536;
// A connection over loopback is there at once, if packets pass at all.
constexpr int kLoopbackTimeoutMs = 200;

class Socket {
 public:
  explicit Socket(int fd) : fd_(fd) {}
  ~Socket() {
    if (fd_ >= 0) close(fd_);
  }
  Socket(const Socket&) = delete;
  Socket& operator=(const Socket&) = delete;
  int fd() const { return fd_; }

 private:
  int fd_;
};

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

// Resets a connection and empties its receive queue (tcp_disconnect). Not every system does that: gVisor refuses.
int disconnect(int fd) {
  sockaddr unspecified{};
  unspecified.sa_family = AF_UNSPEC;
  return connect(fd, &unspecified, sizeof unspecified) == 0 ? 0 : errno;
}

void end_connection(int fd, Inbound::Ended& ended) {
  ended.connections++;
  // shutdown() alone would leave what is queued to be read. But only shutdown() makes the socket readable, so that
  // libfabric notices.
  if (const int result = disconnect(fd); result != 0) {
    ended.failed_call = "connect(AF_UNSPEC)";
    ended.error_number = result;
  }
  // One that is no longer connected refuses this, and needs it no longer.
  [[maybe_unused]] const int shut = shutdown(fd, SHUT_RDWR);
}

void end_if_inbound(int fd, const Name& listener, Inbound::Ended& ended) {
  if (!is_inbound(fd, listener)) return;
  // Another thread of the program may close a file and open another under the same number, between our look and our
  // deed. A duplicate stays what it is. (libfabric's own files are closed on this thread: rxm has one for connection
  // events only where it makes progress by itself, which FI_OFI_RXM_DATA_AUTO_PROGRESS=0 forbids.)
  const Socket duplicate(fcntl(fd, F_DUPFD_CLOEXEC, 0));
  if (duplicate.fd() < 0) {
    // No descriptor is left; then none can have been opened under this number just now, either.
    end_connection(fd, ended);
  } else if (is_inbound(duplicate.fd(), listener)) {
    end_connection(duplicate.fd(), ended);
  }
}

bool is_ready(int fd, short event) {
  pollfd waited = {fd, event, 0};
  return poll(&waited, 1, kLoopbackTimeoutMs) == 1 && (waited.revents & event) != 0;
}

// Whether a connection over loopback with a byte in its receive queue can be emptied. True where there is no loopback
// to try it on: that a socket without a connection can be disconnected has been seen by then.
bool empties_queues(int family) {
  constexpr int kType = SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK;
  Name name;
  name.address.ss_family = static_cast<sa_family_t>(family);
  if (family == AF_INET) {
    reinterpret_cast<sockaddr_in&>(name.address).sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    name.length = sizeof(sockaddr_in);
  } else {
    reinterpret_cast<sockaddr_in6&>(name.address).sin6_addr = in6addr_loopback;
    name.length = sizeof(sockaddr_in6);
  }
  auto* address = reinterpret_cast<sockaddr*>(&name.address);
  const Socket listening(socket(family, kType, 0));
  const Socket outer(socket(family, kType, 0));
  if (bind(listening.fd(), address, name.length) != 0 || listen(listening.fd(), 1) != 0) return true;
  if (getsockname(listening.fd(), address, &name.length) != 0) return true;
  if (connect(outer.fd(), address, name.length) != 0 && errno != EINPROGRESS) return true;
  if (!is_ready(listening.fd(), POLLIN) || !is_ready(outer.fd(), POLLOUT)) return true;
  const Socket inner(accept4(listening.fd(), nullptr, nullptr, SOCK_CLOEXEC | SOCK_NONBLOCK));
  char byte = 1;
  if (send(outer.fd(), &byte, 1, MSG_NOSIGNAL) != 1 || !is_ready(inner.fd(), POLLIN)) return true;
  return disconnect(inner.fd()) == 0 && recv(inner.fd(), &byte, 1, 0) != 1;
}

bool may_try_every_number() {
  rlimit limit{};
  return getrlimit(RLIMIT_NOFILE, &limit) == 0 && limit.rlim_cur <= kFilesMax;
}

}  // namespace

std::unique_ptr<Inbound> Inbound::open(std::span<const uint8_t> listener, std::string& why) {
  if (listener.size() < sizeof(sockaddr_in) || listener.size() > sizeof(sockaddr_storage)) {
    why = "the rail's address is none of IP";
    return nullptr;
  }
  sa_family_t family = 0;
  std::memcpy(&family, listener.data(), sizeof family);
  if (family != AF_INET && family != AF_INET6) {
    why = "the rail's address is none of IP";
    return nullptr;
  }
  {
    const Socket fresh(socket(family, SOCK_STREAM | SOCK_CLOEXEC, 0));
    const int result = fresh.fd() < 0 ? errno : disconnect(fresh.fd());
    if (result != 0 || !empties_queues(family)) {
      why = "connect(AF_UNSPEC) does not empty the queue of a connection here";
      if (result != 0) why += ": " + system_error_text(result);
      return nullptr;
    }
  }
  std::unique_ptr<Inbound> inbound(new Inbound(listener));
  inbound->directory_.reset(opendir("/proc/self/fd"));
  // Where only a descriptor was missing, there may be one next time.
  if (inbound->directory_ == nullptr && errno == ENOENT && !may_try_every_number()) {
    why = "the process's files cannot be listed: mount /proc, or lower the limit of open files to 65,536 (ulimit -n)";
    return nullptr;
  }
  return inbound;
}

// All of them first: what is done to them takes and gives back numbers.
bool Inbound::list_files(Ended& ended, std::vector<int>& files) {
  files.clear();
  if (directory_ == nullptr) directory_.reset(opendir("/proc/self/fd"));
  if (directory_ != nullptr) {
    rewinddir(directory_.get());
    errno = 0;
    while (const dirent* file = readdir(directory_.get())) {
      const std::string_view text = file->d_name;
      int fd = -1;
      if (std::from_chars(text.data(), text.data() + text.size(), fd).ec == std::errc()) files.push_back(fd);
      errno = 0;
    }
    if (errno == 0) return true;
    ended.failed_call = "readdir(/proc/self/fd)";
    ended.error_number = errno;
    return false;
  }
  // No /proc, or no descriptor for it.
  const int error_number = errno;
  rlimit limit{};
  if (may_try_every_number() && getrlimit(RLIMIT_NOFILE, &limit) == 0) {
    for (rlim_t fd = 0; fd < limit.rlim_cur; fd++) files.push_back(static_cast<int>(fd));
    return true;
  }
  ended.failed_call = "opendir(/proc/self/fd)";
  ended.error_number = error_number;
  return false;
}

Inbound::Ended Inbound::end_all() {
  Ended ended;
  if (!list_files(ended, files_)) return ended;
  Name name;
  std::memcpy(&name.address, listener_.data(), listener_.size());
  for (const int fd : files_) end_if_inbound(fd, name, ended);
  return ended;
}

}  // namespace fabrickv::fabric
