#pragma once

#include <dirent.h>

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

namespace fabrickv::fabric {

// The connections that others have made to a rail: every TCP connection of this process that was accepted on the rail's
// own address. Belongs to the progress thread.
class Inbound {
 public:
  // What became of an attempt to end them.
  struct Ended {
    // How many there were. One that was ended before counts until libfabric has closed it.
    size_t connections = 0;
    // The call that failed, null when all were found and ended; otherwise this attempt proves nothing.
    const char* failed_call = nullptr;
    int error_number = 0;
  };

  // `listener` is a sockaddr_in or sockaddr_in6. Null, with the reason, where connections cannot be found, or not be
  // emptied: tried out on a connection of its own over loopback.
  static std::unique_ptr<Inbound> open(std::span<const uint8_t> listener, std::string& why);

  // Ends them. What the kernel has buffered of them is dropped, so that not one more byte can be read from them. Some
  // microseconds per open file of the process.
  Ended end_all();

 private:
  explicit Inbound(std::span<const uint8_t> listener) : listener_(listener.begin(), listener.end()) {}

  bool list_files(Ended& ended, std::vector<int>& files);

  std::vector<uint8_t> listener_;
  // /proc/self/fd, opened once: a process that has no descriptor left can still list those that it has. Null where
  // there was none to be had; then it is tried again.
  std::unique_ptr<DIR, int (*)(DIR*)> directory_{nullptr, closedir};
  std::vector<int> files_;
};

}  // namespace fabrickv::fabric
