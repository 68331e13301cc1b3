#include "fabric/error.h"

#include <system_error>

namespace fabrickv::fabric {

const char* code_name(ErrorCode code) {
  switch (code) {
    case ErrorCode::kLibfabricMissing:
      return "LIBFABRIC_MISSING";
    case ErrorCode::kProviderMissing:
      return "PROVIDER_MISSING";
    case ErrorCode::kRegistrationFailed:
      return "REGISTRATION_FAILED";
    case ErrorCode::kMappingFailed:
      return "MAPPING_FAILED";
    case ErrorCode::kTransferFailed:
      return "TRANSFER_FAILED";
    case ErrorCode::kCancelled:
      return "CANCELLED";
    case ErrorCode::kRailClosed:
      return "RAIL_CLOSED";
    case ErrorCode::kUnprovable:
      return "UNPROVABLE";
    case ErrorCode::kBusy:
      return "BUSY";
    case ErrorCode::kInvalidArgument:
      break;
  }
  return "INVALID_ARGUMENT";
}

std::string system_error_text(int error_number) {
  return std::generic_category().message(error_number);
}

}  // namespace fabrickv::fabric
