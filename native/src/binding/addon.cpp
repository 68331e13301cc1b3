#include <napi.h>

#include "binding/environment.h"
#include "binding/fabric_binding.h"
#include "binding/memory_binding.h"

namespace {

// NativeAddon of src/fabric/addon.ts. Runs once per environment: the main thread, and every worker that loads it.
Napi::Object initialize(Napi::Env env, Napi::Object exports) {
  using namespace fabrickv::binding;
  const auto environment = Environment::attach(env);
  if (environment == nullptr) {
    Napi::Error::New(env, "no handle can be opened on this event loop").ThrowAsJavaScriptException();
    return exports;
  }
#ifdef FABRICKV_HAVE_LIBFABRIC
  exports.Set("builtWithLibfabric", true);
#else
  exports.Set("builtWithLibfabric", false);
#endif
  exports.Set("completions", environment->make_completions());
  define_memory(exports);
  define_fabric(exports);
  return exports;
}

}  // namespace

NODE_API_MODULE(fabrickv, initialize)
