// Stands in for fabric_binding.cpp when libfabric's headers were missing at build time: memory works, nothing else
// does.

#include "binding/fabric_binding.h"
#include "binding/napi_util.h"

namespace fabrickv::binding {
namespace {

napi_value missing(napi_env env, napi_callback_info) {
  napi_value details = make_details(env, {"LIBFABRIC_MISSING", "loadLibfabric", "built without libfabric headers"});
  set(env, details, "hint",
      make_string(env,
                  "install libfabric's headers (Debian, Ubuntu: apt-get install libfabric-dev) and run `npm rebuild "
                  "fabrickv`"));
  return details;
}

}  // namespace

void define_fabric(napi_env env, napi_value exports) {
  // Everything else is reached through it.
  define(env, exports, "loadLibfabric", missing);
}

}  // namespace fabrickv::binding
