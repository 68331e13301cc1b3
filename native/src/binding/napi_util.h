#pragma once

#include <napi.h>

#include <cstddef>
#include <cstdint>
#include <map>
#include <span>
#include <string>

namespace fabrickv::binding {

// What JavaScript gave us. Only src/fabric calls us, with the types that addon.ts declares, so a wrong type is not
// diagnosed: it reads as zero, or as empty.
//
// So does an empty value, as Object::Get returns while a worker is being terminated: every call that may run JavaScript
// fails then. node-addon-api's own conversions abort the process at it, since an empty value has no environment.
bool to_boolean(const Napi::Value& value);
uint64_t to_bigint(const Napi::Value& value);
std::string to_string(const Napi::Value& value);
// An object's own string properties.
std::map<std::string, std::string> to_strings(const Napi::Value& value);

// What every write and every checksum needs takes one call of Node-API each, and is inline: measured 3 ns a call.

inline double to_number(const Napi::Value& value) {
  double number = 0;
  napi_get_value_double(value.Env(), value, &number);
  return number;
}

inline uint32_t to_word(const Napi::Value& value) {
  uint32_t word = 0;
  napi_get_value_uint32(value.Env(), value, &word);
  return word;
}

// What is not an integer from 0 to 2^53 becomes UINT64_MAX, which no bounds check lets through.
uint64_t to_count(double value);
inline uint64_t to_count(const Napi::Value& value) {
  return to_count(to_number(value));
}

// A typed array's memory; valid until JavaScript runs again.
template <typename Element>
std::span<Element> to_span(const Napi::Value& value, napi_typedarray_type expected) {
  napi_typedarray_type type{};
  size_t length = 0;
  void* data = nullptr;
  if (napi_get_typedarray_info(value.Env(), value, &type, &length, &data, nullptr, nullptr) != napi_ok) return {};
  if (type != expected) return {};
  return {static_cast<Element*>(data), length};
}
inline std::span<std::byte> to_bytes(const Napi::Value& value) {
  return to_span<std::byte>(value, napi_uint8_array);
}
inline std::span<double> to_doubles(const Napi::Value& value) {
  return to_span<double>(value, napi_float64_array);
}

// The bare details of a failure, as FabricErrorDetails in src/fabric/errors.ts.
struct Details {
  const char* code;
  std::string call;
  std::string text;
  int error_number = 0;
};
Napi::Object make_details(Napi::Env env, const Details& details);

template <auto function>
void define(Napi::Object exports, const char* name) {
  exports.Set(name, Napi::Function::New<function>(exports.Env(), name));
}

}  // namespace fabrickv::binding
