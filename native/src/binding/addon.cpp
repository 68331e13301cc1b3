#include <node_api.h>

#include "binding/environment.h"
#include "binding/fabric_binding.h"
#include "binding/memory_binding.h"
#include "binding/napi_util.h"

// NativeAddon of src/fabric/addon.ts. Runs once per environment: the main thread, and every worker that loads it.
NAPI_MODULE_INIT() {
  using namespace fabrickv::binding;
  const auto environment = Environment::attach(env);
  if (environment == nullptr) {
    napi_throw_error(env, nullptr, "no handle can be opened on this event loop");
    return nullptr;
  }
#ifdef FABRICKV_HAVE_LIBFABRIC
  set(env, exports, "builtWithLibfabric", make_boolean(env, true));
#else
  set(env, exports, "builtWithLibfabric", make_boolean(env, false));
#endif
  set(env, exports, "completions", environment->make_completions());
  define_memory(env, exports);
  define_fabric(env, exports);
  return exports;
}
