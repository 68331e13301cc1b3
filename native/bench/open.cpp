#include "open.h"

#include <cstdio>
#include <cstring>

#include "fabric/libfabric.h"
#include "fabric/limits.h"

namespace fabrickv::bench {
namespace {

bool fail(const fabric::Error& error) {
  std::fprintf(stderr, "raw_write: %s: %s%s%s\n", error.call.c_str(), error.text.c_str(),
               error.hint.empty() ? "" : "; ", error.hint.c_str());
  return false;
}

}  // namespace

Opened::~Opened() {
  // The memory must not go before the endpoint, which may still be written to.
  if (endpoint == nullptr) return;
  endpoint->close_endpoint();
  if (registration_ != nullptr) fi_close(&registration_->fid);
  endpoint.reset();
}

bool Opened::open(const Arguments& arguments, uint64_t access) {
  fabric::Error error;
  const fabric::Libfabric* library = fabric::load_libfabric({}, error);
  if (library == nullptr) return fail(error);
  const fabric::EndpointQuery query = {arguments.provider, arguments.source_address, ""};
  endpoint = fabric::Endpoint::open(*library, query, fabric::kOperationsMax, close_failures_, error);
  if (endpoint == nullptr) return fail(error);
  memory::MapFailure failure;
  mapping_ = memory::Mapping::create({.size_bytes = arguments.memory_bytes, .prefault = true}, failure);
  if (mapping_ == nullptr) {
    std::fprintf(stderr, "raw_write: %s: %s\n", failure.call, std::strerror(failure.error_number));
    return false;
  }
  // Pages that were only reserved would all be the one zero page, which the caches hold.
  std::memset(mapping_->base(), 0x5a, arguments.memory_bytes);
  const int result =
      fi_mr_reg(endpoint->domain(), mapping_->base(), arguments.memory_bytes, access, 0, 1, 0, &registration_, nullptr);
  if (result == 0) return true;
  std::fprintf(stderr, "raw_write: fi_mr_reg: %s\n", library->error_text(result).c_str());
  return false;
}

uint64_t Opened::remote_address() const {
  const bool virtual_addresses = (endpoint->info().mr_mode & FI_MR_VIRT_ADDR) != 0;
  return virtual_addresses ? reinterpret_cast<uintptr_t>(mapping_->base()) : 0;
}

}  // namespace fabrickv::bench
