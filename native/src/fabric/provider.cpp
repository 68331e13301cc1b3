#include "fabric/provider.h"

#include <arpa/inet.h>
#include <netinet/in.h>

#include <array>
#include <cstdint>
#include <cstring>

#include "fabric/efa.h"

namespace fabrickv::fabric {
namespace {

std::string text_of(const char* text) {
  return text == nullptr ? "" : text;
}

// fi_freeinfo frees these with free().
char* duplicate(const std::string& text) {
  return text.empty() ? nullptr : strdup(text.c_str());
}

Info make_hints(const Libfabric& library, const EndpointQuery& query) {
  Info hints(library.dupinfo(nullptr));
  if (!hints) return hints;
  hints->caps = FI_MSG | FI_RMA | FI_READ | FI_WRITE | FI_REMOTE_READ | FI_REMOTE_WRITE;
  hints->mode = FI_CONTEXT | FI_CONTEXT2;
  hints->ep_attr->type = FI_EP_RDM;
  hints->domain_attr->mr_mode = FI_MR_LOCAL | FI_MR_VIRT_ADDR | FI_MR_ALLOCATED | FI_MR_PROV_KEY;
  // One thread owns everything of a rail: concurrent posts corrupt EFA's state.
  hints->domain_attr->threading = FI_THREAD_DOMAIN;
  hints->domain_attr->av_type = FI_AV_TABLE;
  hints->domain_attr->name = duplicate(query.domain);
  hints->fabric_attr->prov_name = duplicate(query.provider);
  if (efa::is_efa(query.provider)) hints->fabric_attr->name = duplicate(efa::fabric_name());
  return hints;
}

std::string hexadecimal(const uint8_t* bytes, size_t length) {
  constexpr std::array<char, 17> digits = {"0123456789abcdef"};
  std::string text;
  for (size_t i = 0; i < length; i++) {
    text += digits[bytes[i] >> 4];
    text += digits[bytes[i] & 15];
  }
  return text;
}

std::string efa_address_text(const uint8_t* bytes, size_t length) {
  // struct efa_ep_addr of prov/efa: 16 bytes of GID, then queue pair number and connection id.
  constexpr size_t kGidBytes = 16;
  uint16_t queue_pair = 0;
  if (length < kGidBytes + sizeof queue_pair) return hexadecimal(bytes, length);
  std::array<char, INET6_ADDRSTRLEN> gid{};
  inet_ntop(AF_INET6, bytes, gid.data(), gid.size());
  std::memcpy(&queue_pair, bytes + kGidBytes, sizeof queue_pair);
  return std::string(gid.data()) + "/qpn " + std::to_string(queue_pair);
}

std::string link_state_text(const fid_nic* nic) {
  if (nic == nullptr || nic->link_attr == nullptr) return "unknown";
  switch (nic->link_attr->state) {
    case FI_LINK_UP:
      return "up";
    case FI_LINK_DOWN:
      return "down";
    default:
      return "unknown";
  }
}

ProviderEntry describe(const fi_info& info) {
  ProviderEntry entry;
  entry.provider = text_of(info.fabric_attr->prov_name);
  entry.fabric = text_of(info.fabric_attr->name);
  entry.domain = text_of(info.domain_attr->name);
  entry.address_format = address_format_name(info.addr_format);
  entry.address_text = address_text(info.addr_format, info.src_addr, info.src_addrlen);
  entry.max_message_bytes = info.ep_attr->max_msg_size;
  entry.transmit_credits = info.tx_attr->size;
  entry.key_bytes = info.domain_attr->mr_key_size;
  entry.link_state = link_state_text(info.nic);
  if (info.nic != nullptr && info.nic->link_attr != nullptr) {
    entry.link_speed_bits_per_second = info.nic->link_attr->speed;
  }
  if (info.nic != nullptr && info.nic->device_attr != nullptr) entry.device = text_of(info.nic->device_attr->name);
  return entry;
}

}  // namespace

int query_endpoints(const Libfabric& library, const EndpointQuery& query, Info& info) {
  const Info hints = make_hints(library, query);
  if (!hints) return -FI_ENOMEM;
  const bool bound = !query.source_address.empty();
  const uint32_t version =
      efa::is_efa(query.provider)
          ? efa::api_version(library.loaded_version, FI_VERSION(FI_MAJOR_VERSION, FI_MINOR_VERSION))
          : library.api_version;
  return get_info(library, version, bound ? query.source_address.c_str() : nullptr,
                  bound ? FI_SOURCE | FI_NUMERICHOST : 0, hints.get(), info);
}

Error provider_missing(const Libfabric& library, const EndpointQuery& query, int result) {
  Error error;
  error.code = ErrorCode::kProviderMissing;
  error.call = "fi_getinfo";
  error.error_number = -result;
  error.text = library.error_text(result);
  error.provider = query.provider;
  return error;
}

std::vector<ProviderEntry> list_endpoints(const Libfabric& library, const EndpointQuery& query, Error& error) {
  Info info;
  const int result = query_endpoints(library, query, info);
  std::vector<ProviderEntry> entries;
  if (result != 0) {
    error = provider_missing(library, query, result);
    return entries;
  }
  for (const fi_info* entry = info.get(); entry != nullptr; entry = entry->next) entries.push_back(describe(*entry));
  return entries;
}

std::string address_format_name(uint32_t format) {
  switch (format) {
    case FI_SOCKADDR:
      return "FI_SOCKADDR";
    case FI_SOCKADDR_IN:
      return "FI_SOCKADDR_IN";
    case FI_SOCKADDR_IN6:
      return "FI_SOCKADDR_IN6";
    case FI_SOCKADDR_IB:
      return "FI_SOCKADDR_IB";
    case FI_ADDR_EFA:
      return "FI_ADDR_EFA";
    case FI_ADDR_STR:
      return "FI_ADDR_STR";
    default:
      return "FI_FORMAT_" + std::to_string(format);
  }
}

std::string address_text(uint32_t format, const void* address, size_t length) {
  const auto* bytes = static_cast<const uint8_t*>(address);
  if (bytes == nullptr || length == 0) return "";
  std::array<char, INET6_ADDRSTRLEN> text{};
  if (format == FI_SOCKADDR_IN && length >= sizeof(sockaddr_in)) {
    sockaddr_in ipv4{};
    std::memcpy(&ipv4, bytes, sizeof ipv4);
    inet_ntop(AF_INET, &ipv4.sin_addr, text.data(), text.size());
    return std::string(text.data()) + ":" + std::to_string(ntohs(ipv4.sin_port));
  }
  if (format == FI_SOCKADDR_IN6 && length >= sizeof(sockaddr_in6)) {
    sockaddr_in6 ipv6{};
    std::memcpy(&ipv6, bytes, sizeof ipv6);
    inet_ntop(AF_INET6, &ipv6.sin6_addr, text.data(), text.size());
    return "[" + std::string(text.data()) + "]:" + std::to_string(ntohs(ipv6.sin6_port));
  }
  if (format == FI_ADDR_EFA) return efa_address_text(bytes, length);
  return hexadecimal(bytes, length);
}

}  // namespace fabrickv::fabric
