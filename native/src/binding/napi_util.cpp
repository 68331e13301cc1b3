#include "binding/napi_util.h"

#include <cmath>

namespace fabrickv::binding {
namespace {

constexpr double kCountMax = 9007199254740992.0;  // 2^53

}  // namespace

uint64_t to_count(double value) {
  if (!(value >= 0 && value <= kCountMax) || std::trunc(value) != value) return UINT64_MAX;
  return static_cast<uint64_t>(value);
}

bool to_boolean(const Napi::Value& value) {
  return value.IsBoolean() && value.As<Napi::Boolean>();
}

uint64_t to_bigint(const Napi::Value& value) {
  bool lossless = false;
  return value.IsBigInt() ? value.As<Napi::BigInt>().Uint64Value(&lossless) : 0;
}

std::string to_string(const Napi::Value& value) {
  return value.IsString() ? value.As<Napi::String>().Utf8Value() : "";
}

std::map<std::string, std::string> to_strings(const Napi::Value& value) {
  std::map<std::string, std::string> strings;
  if (!value.IsObject()) return strings;
  const auto object = value.As<Napi::Object>();
  const Napi::Array names = object.GetPropertyNames();
  const uint32_t count = names.IsEmpty() ? 0 : names.Length();
  for (uint32_t i = 0; i < count; i++) {
    const Napi::Value name = names.Get(i);
    strings[to_string(name)] = to_string(object.Get(name));
  }
  return strings;
}

Napi::Object make_details(Napi::Env env, const Details& details) {
  auto object = Napi::Object::New(env);
  object.Set("code", details.code);
  object.Set("call", details.call);
  object.Set("text", details.text);
  object.Set("errno", details.error_number);
  return object;
}

}  // namespace fabrickv::binding
