#pragma once

#include <string>
#include <vector>

#include "fabric/libfabric.h"

namespace fabrickv::fabric {

// What narrows fi_getinfo down. Empty strings mean: any.
struct EndpointQuery {
  // libfabric's own name, as in "tcp;ofi_rxm".
  std::string provider;
  // A numeric local address.
  std::string source_address;
  std::string domain;
};

// One provider on one device.
struct ProviderEntry {
  std::string provider;
  std::string domain;
  std::string fabric;
  std::string address_format;
  std::string address_text;
  size_t max_message_bytes = 0;
  size_t transmit_credits = 0;
  size_t key_bytes = 0;
  size_t link_speed_bits_per_second = 0;
  // "up", "down" or "unknown".
  std::string link_state;
  // The NIC's device name, empty where the provider does not say.
  std::string device;
};

// fi_getinfo with the hints that hold for all providers. 0, or a negative errno with `info` empty.
int query_endpoints(const Libfabric& library, const EndpointQuery& query, Info& info);

// Everything that the query finds, best first. Empty on failure.
std::vector<ProviderEntry> list_endpoints(const Libfabric& library, const EndpointQuery& query, Error& error);

// PROVIDER_MISSING with what fi_getinfo said.
Error provider_missing(const Libfabric& library, const EndpointQuery& query, int result);

// "FI_SOCKADDR_IN".
std::string address_format_name(uint32_t format);

// An address in words: "127.0.0.1:4711", "fe80…/qpn 3/qkey 5" on EFA, else hexadecimal.
std::string address_text(uint32_t format, const void* address, size_t length);

}  // namespace fabrickv::fabric
