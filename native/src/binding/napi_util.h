#pragma once

#include <node_api.h>

#include <array>
#include <cstdint>
#include <map>
#include <span>
#include <string>
#include <string_view>

namespace fabrickv::binding {

// The arguments of a call. Only src/fabric calls us, with the types that addon.ts declares, so a wrong type is not
// diagnosed: it reads as zero, or as empty.
class Arguments {
 public:
  Arguments(napi_env env, napi_callback_info info) : env_(env) {
    size_t count = values_.size();
    napi_get_cb_info(env, info, &count, values_.data(), nullptr, nullptr);
  }

  napi_value operator[](size_t index) const { return values_[index]; }
  double number(size_t index) const;
  // What is not an integer from 0 to 2^53 becomes UINT64_MAX, which no bounds check lets through.
  uint64_t count(size_t index) const;
  uint32_t word(size_t index) const;
  bool boolean(size_t index) const;
  std::string string(size_t index) const;
  uint64_t bigint(size_t index) const;
  // A typed array's memory; valid until JavaScript runs again.
  std::span<std::byte> bytes(size_t index) const;
  std::span<const double> doubles(size_t index) const;

 private:
  napi_env env_;
  std::array<napi_value, 8> values_{};
};

// See Arguments::count.
uint64_t to_count(double value);

napi_value make_number(napi_env env, double value);
napi_value make_string(napi_env env, std::string_view value);
napi_value make_boolean(napi_env env, bool value);
napi_value make_bigint(napi_env env, uint64_t value);
napi_value make_undefined(napi_env env);
napi_value make_object(napi_env env);
void set(napi_env env, napi_value object, const char* name, napi_value value);
std::string get_string(napi_env env, napi_value value);
double get_number(napi_env env, napi_value object, const char* name);
std::string get_string(napi_env env, napi_value object, const char* name);
bool get_boolean(napi_env env, napi_value object, const char* name);
// An object's own string properties.
std::map<std::string, std::string> get_strings(napi_env env, napi_value object);

// The bare details of a failure, as FabricErrorDetails in src/fabric/errors.ts.
struct Details {
  const char* code;
  std::string_view call;
  std::string_view text;
  int error_number = 0;
};
napi_value make_details(napi_env env, const Details& details);

void define(napi_env env, napi_value exports, const char* name, napi_callback function);

}  // namespace fabrickv::binding
