#include "binding/napi_util.h"

#include <cmath>

namespace fabrickv::binding {
namespace {

constexpr double kCountMax = 9007199254740992.0;  // 2^53

napi_value property(napi_env env, napi_value object, const char* name) {
  napi_value value = nullptr;
  napi_get_named_property(env, object, name, &value);
  return value;
}

}  // namespace

uint64_t to_count(double value) {
  if (!(value >= 0 && value <= kCountMax) || std::trunc(value) != value) return UINT64_MAX;
  return static_cast<uint64_t>(value);
}

double Arguments::number(size_t index) const {
  double value = 0;
  napi_get_value_double(env_, values_[index], &value);
  return value;
}

uint64_t Arguments::count(size_t index) const {
  return to_count(number(index));
}

uint32_t Arguments::word(size_t index) const {
  uint32_t value = 0;
  napi_get_value_uint32(env_, values_[index], &value);
  return value;
}

bool Arguments::boolean(size_t index) const {
  bool value = false;
  napi_get_value_bool(env_, values_[index], &value);
  return value;
}

std::string Arguments::string(size_t index) const {
  return get_string(env_, values_[index]);
}

uint64_t Arguments::bigint(size_t index) const {
  uint64_t value = 0;
  bool lossless = false;
  napi_get_value_bigint_uint64(env_, values_[index], &value, &lossless);
  return value;
}

std::span<std::byte> Arguments::bytes(size_t index) const {
  void* data = nullptr;
  size_t length = 0;
  napi_typedarray_type type{};
  if (napi_get_typedarray_info(env_, values_[index], &type, &length, &data, nullptr, nullptr) != napi_ok) return {};
  if (type != napi_uint8_array) return {};
  return {static_cast<std::byte*>(data), length};
}

std::span<const double> Arguments::doubles(size_t index) const {
  void* data = nullptr;
  size_t length = 0;
  napi_typedarray_type type{};
  if (napi_get_typedarray_info(env_, values_[index], &type, &length, &data, nullptr, nullptr) != napi_ok) return {};
  if (type != napi_float64_array) return {};
  return {static_cast<const double*>(data), length};
}

napi_value make_number(napi_env env, double value) {
  napi_value result = nullptr;
  napi_create_double(env, value, &result);
  return result;
}

napi_value make_string(napi_env env, std::string_view value) {
  napi_value result = nullptr;
  napi_create_string_utf8(env, value.data(), value.size(), &result);
  return result;
}

napi_value make_boolean(napi_env env, bool value) {
  napi_value result = nullptr;
  napi_get_boolean(env, value, &result);
  return result;
}

napi_value make_bigint(napi_env env, uint64_t value) {
  napi_value result = nullptr;
  napi_create_bigint_uint64(env, value, &result);
  return result;
}

napi_value make_undefined(napi_env env) {
  napi_value result = nullptr;
  napi_get_undefined(env, &result);
  return result;
}

napi_value make_object(napi_env env) {
  napi_value result = nullptr;
  napi_create_object(env, &result);
  return result;
}

void set(napi_env env, napi_value object, const char* name, napi_value value) {
  napi_set_named_property(env, object, name, value);
}

std::string get_string(napi_env env, napi_value value) {
  size_t length = 0;
  if (napi_get_value_string_utf8(env, value, nullptr, 0, &length) != napi_ok) return "";
  std::string text(length, '\0');
  napi_get_value_string_utf8(env, value, text.data(), length + 1, &length);
  return text;
}

double get_number(napi_env env, napi_value object, const char* name) {
  double value = 0;
  napi_get_value_double(env, property(env, object, name), &value);
  return value;
}

std::string get_string(napi_env env, napi_value object, const char* name) {
  return get_string(env, property(env, object, name));
}

bool get_boolean(napi_env env, napi_value object, const char* name) {
  bool value = false;
  napi_get_value_bool(env, property(env, object, name), &value);
  return value;
}

std::map<std::string, std::string> get_strings(napi_env env, napi_value object) {
  std::map<std::string, std::string> strings;
  napi_value names = nullptr;
  uint32_t count = 0;
  if (napi_get_property_names(env, object, &names) != napi_ok) return strings;
  napi_get_array_length(env, names, &count);
  for (uint32_t i = 0; i < count; i++) {
    napi_value name = nullptr;
    napi_value value = nullptr;
    napi_get_element(env, names, i, &name);
    napi_get_property(env, object, name, &value);
    strings[get_string(env, name)] = get_string(env, value);
  }
  return strings;
}

napi_value make_details(napi_env env, const Details& details) {
  napi_value object = make_object(env);
  set(env, object, "code", make_string(env, details.code));
  set(env, object, "call", make_string(env, details.call));
  set(env, object, "text", make_string(env, details.text));
  set(env, object, "errno", make_number(env, details.error_number));
  return object;
}

void define(napi_env env, napi_value exports, const char* name, napi_callback function) {
  napi_value value = nullptr;
  napi_create_function(env, name, NAPI_AUTO_LENGTH, function, nullptr, &value);
  set(env, exports, name, value);
}

}  // namespace fabrickv::binding
