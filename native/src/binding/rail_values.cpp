#include "binding/rail_values.h"

#include <cstring>

#include "binding/napi_util.h"
#include "fabric/limits.h"

namespace fabrickv::binding {
namespace {

const char* quiescence_name(fabric::Quiescence quiescence) {
  switch (quiescence) {
    case fabric::Quiescence::kCloseRegion:
      return "close-region";
    case fabric::Quiescence::kRemovePeer:
      return "remove-peer";
    case fabric::Quiescence::kCloseEndpoint:
      break;
  }
  return "close-endpoint";
}

napi_value make_buffer(napi_env env, const std::vector<uint8_t>& bytes) {
  napi_value buffer = nullptr;
  napi_create_buffer_copy(env, bytes.size(), bytes.data(), nullptr, &buffer);
  return buffer;
}

napi_value make_region(napi_env env, const fabric::Outcome& outcome) {
  napi_value object = make_object(env);
  set(env, object, "id", make_number(env, static_cast<double>(outcome.id)));
  set(env, object, "address", make_bigint(env, outcome.remote_address));
  set(env, object, "key", make_bigint(env, outcome.key));
  return object;
}

}  // namespace

napi_value make_details(napi_env env, const fabric::Error& error) {
  napi_value object = make_details(env, {fabric::code_name(error.code), error.call, error.text, error.error_number});
  if (!error.provider.empty()) set(env, object, "provider", make_string(env, error.provider));
  if (error.provider_errno) set(env, object, "providerErrno", make_number(env, *error.provider_errno));
  if (!error.provider_text.empty()) set(env, object, "providerText", make_string(env, error.provider_text));
  if (!error.hint.empty()) set(env, object, "hint", make_string(env, error.hint));
  return object;
}

napi_value make_rail_info(napi_env env, const fabric::RailInfo& info) {
  napi_value mode = make_object(env);
  set(env, mode, "local", make_boolean(env, (info.mr_mode & FI_MR_LOCAL) != 0));
  set(env, mode, "virtAddr", make_boolean(env, (info.mr_mode & FI_MR_VIRT_ADDR) != 0));
  set(env, mode, "allocated", make_boolean(env, (info.mr_mode & FI_MR_ALLOCATED) != 0));
  set(env, mode, "provKey", make_boolean(env, (info.mr_mode & FI_MR_PROV_KEY) != 0));

  napi_value object = make_object(env);
  set(env, object, "libfabricProvider", make_string(env, info.provider));
  set(env, object, "domain", make_string(env, info.domain));
  set(env, object, "address", make_buffer(env, info.address));
  set(env, object, "addressText", make_string(env, info.address_text));
  set(env, object, "addressFormat", make_string(env, info.address_format));
  set(env, object, "maxMessageBytes", make_number(env, static_cast<double>(info.max_message_bytes)));
  set(env, object, "transmitCredits", make_number(env, static_cast<double>(info.transmit_credits)));
  set(env, object, "maxRegionBytes", make_number(env, static_cast<double>(fabric::kRegionBytesMax)));
  set(env, object, "mrMode", mode);
  set(env, object, "keyBytes", make_number(env, static_cast<double>(info.key_bytes)));
  set(env, object, "needsLocalRegistration", make_boolean(env, info.needs_local_registration));
  set(env, object, "quiescence", make_string(env, quiescence_name(info.quiescence)));
  set(env, object, "waitMode", make_string(env, info.has_wait_fd ? "fd" : "spin"));
  set(env, object, "chunkBytes", make_number(env, static_cast<double>(info.chunk_bytes)));
  return object;
}

napi_value make_detail(napi_env env, const fabric::Outcome& outcome, const fabric::RailInfo& info) {
  napi_value value = nullptr;
  if (outcome.error != nullptr) {
    napi_value detail = make_object(env);
    set(env, detail, "error", make_details(env, *outcome.error));
    return detail;
  }
  switch (outcome.kind) {
    case fabric::CompletionKind::kOpened:
      value = make_rail_info(env, info);
      break;
    case fabric::CompletionKind::kRegistered:
      value = make_region(env, outcome);
      break;
    case fabric::CompletionKind::kPeerInserted:
      value = make_number(env, static_cast<double>(outcome.id));
      break;
    default:
      return nullptr;
  }
  napi_value detail = make_object(env);
  set(env, detail, "value", value);
  return detail;
}

}  // namespace fabrickv::binding
