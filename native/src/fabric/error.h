#pragma once

#include <cstdint>
#include <optional>
#include <string>

namespace fabrickv::fabric {

// What src/fabric/errors.ts calls FabricErrorCode; code_name() is its spelling there.
enum class ErrorCode {
  kLibfabricMissing,
  kProviderMissing,
  kRegistrationFailed,
  kMappingFailed,
  kTransferFailed,
  kCancelled,
  kRailClosed,
  kUnprovable,
  kBusy,
  kInvalidArgument,
};

const char* code_name(ErrorCode code);

// One failure, with everything that libfabric said about it.
struct Error {
  ErrorCode code = ErrorCode::kInvalidArgument;
  // The libfabric or system call, or the name of our own check.
  std::string call;
  // A positive errno or FI_E… number; 0 where there is none.
  int error_number = 0;
  std::string text;
  // libfabric's provider name; empty where none is involved.
  std::string provider;
  std::optional<int> provider_errno;
  std::string provider_text;
  // What the user can do; may be empty.
  std::string hint;
  // Of a transfer: the bytes from its beginning that have all arrived.
  uint64_t landed_bytes = 0;
};

// strerror, thread-safe.
std::string system_error_text(int error_number);

}  // namespace fabrickv::fabric
