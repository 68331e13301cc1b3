#include "binding/rail_values.h"

#include "binding/napi_util.h"
#include "fabric/limits.h"

namespace fabrickv::binding {
namespace {

const char* quiescence_name(fabric::Quiescence quiescence) {
  switch (quiescence) {
    case fabric::Quiescence::kCloseRegion:
      return "close-region";
    case fabric::Quiescence::kFence:
      return "fence";
    case fabric::Quiescence::kCloseEndpoint:
      break;
  }
  return "close-endpoint";
}

Napi::Object make_efa(Napi::Env env, const fabric::RailInfo& info) {
  auto remarks = Napi::Array::New(env, info.efa_remarks.size());
  for (uint32_t i = 0; i < info.efa_remarks.size(); i++) remarks.Set(i, info.efa_remarks[i]);
  auto object = Napi::Object::New(env);
  object.Set("fabric", info.efa->direct ? "efa-direct" : "efa");
  object.Set("emulatedRead", info.efa->emulated_read);
  object.Set("emulatedWrite", info.efa->emulated_write);
  object.Set("exposesLocalRegions", info.efa->exposes_local_regions);
  object.Set("remarks", remarks);
  return object;
}

Napi::Object make_region(Napi::Env env, const fabric::Outcome& outcome) {
  auto object = Napi::Object::New(env);
  object.Set("id", outcome.id);
  object.Set("address", Napi::BigInt::New(env, outcome.remote_address));
  object.Set("key", Napi::BigInt::New(env, outcome.key));
  return object;
}

}  // namespace

Napi::Object make_details(Napi::Env env, const fabric::Error& error) {
  auto object = make_details(env, {fabric::code_name(error.code), error.call, error.text, error.error_number});
  if (!error.provider.empty()) object.Set("provider", error.provider);
  if (error.provider_errno) object.Set("providerErrno", *error.provider_errno);
  if (!error.provider_text.empty()) object.Set("providerText", error.provider_text);
  if (!error.hint.empty()) object.Set("hint", error.hint);
  if (error.landed_bytes > 0) object.Set("landedBytes", error.landed_bytes);
  return object;
}

Napi::Object make_rail_info(Napi::Env env, const fabric::RailInfo& info) {
  auto mode = Napi::Object::New(env);
  mode.Set("local", (info.mr_mode & FI_MR_LOCAL) != 0);
  mode.Set("virtAddr", (info.mr_mode & FI_MR_VIRT_ADDR) != 0);
  mode.Set("allocated", (info.mr_mode & FI_MR_ALLOCATED) != 0);
  mode.Set("provKey", (info.mr_mode & FI_MR_PROV_KEY) != 0);

  auto object = Napi::Object::New(env);
  object.Set("libfabricProvider", info.provider);
  object.Set("domain", info.domain);
  object.Set("address", Napi::Buffer<uint8_t>::Copy(env, info.address.data(), info.address.size()));
  object.Set("addressText", info.address_text);
  object.Set("addressFormat", info.address_format);
  object.Set("maxMessageBytes", info.max_message_bytes);
  object.Set("transmitCredits", info.transmit_credits);
  object.Set("maxRegionBytes", fabric::kRegionBytesMax);
  object.Set("mrMode", mode);
  object.Set("keyBytes", info.key_bytes);
  object.Set("needsLocalRegistration", info.needs_local_registration);
  object.Set("quiescence", quiescence_name(info.quiescence));
  object.Set("waitMode", info.has_wait_fd ? "fd" : "spin");
  object.Set("chunkBytes", info.chunk_bytes);
  if (info.efa) object.Set("efa", make_efa(env, info));
  return object;
}

Napi::Object make_detail(Napi::Env env, const fabric::Outcome& outcome, const fabric::RailInfo& info) {
  const auto wrap = [env](const char* name, const Napi::Value& value) {
    auto detail = Napi::Object::New(env);
    detail.Set(name, value);
    return detail;
  };
  if (outcome.error != nullptr) return wrap("error", make_details(env, *outcome.error));
  switch (outcome.kind) {
    case fabric::CompletionKind::kOpened:
      return wrap("value", make_rail_info(env, info));
    case fabric::CompletionKind::kRegistered:
      return wrap("value", make_region(env, outcome));
    case fabric::CompletionKind::kPeerInserted:
      return wrap("value", Napi::Value::From(env, outcome.id));
    default:
      return {};
  }
}

}  // namespace fabrickv::binding
