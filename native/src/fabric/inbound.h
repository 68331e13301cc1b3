#pragma once

#include <cstdint>
#include <optional>
#include <span>

namespace fabrickv::fabric {

// Ends every TCP connection of this process that was accepted on `listener`, a sockaddr_in or sockaddr_in6: the
// connections that others have made to the rail with this address. What the kernel has buffered of them is dropped, so
// that not one more byte can be read from them. Returns how many there were (one that was ended before counts
// until libfabric has closed it), or nothing when they cannot be found.
//
// Runs on the progress thread; some microseconds per open file of the process.
std::optional<size_t> end_inbound_connections(std::span<const uint8_t> listener);

}  // namespace fabrickv::fabric
