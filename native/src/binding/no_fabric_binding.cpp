// Stands in for fabric_binding.cpp when libfabric's headers were missing at build time: memory works, nothing else
// does.

#include "binding/fabric_binding.h"
#include "binding/napi_util.h"

namespace fabrickv::binding {
namespace {

Napi::Value missing(const Napi::CallbackInfo& info) {
  auto details = make_details(info.Env(), {"LIBFABRIC_MISSING", "loadLibfabric", "built without libfabric headers"});
  details.Set("hint",
              "install libfabric's headers (Debian, Ubuntu: apt-get install libfabric-dev) and run `npm rebuild "
              "fabrickv`");
  return details;
}

}  // namespace

void define_fabric(Napi::Object exports) {
  // Everything else is reached through it.
  define<missing>(exports, "loadLibfabric");
}

}  // namespace fabrickv::binding
