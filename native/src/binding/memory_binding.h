#pragma once

#include <node_api.h>

namespace fabrickv::binding {

// The memory functions of NativeAddon in src/fabric/addon.ts.
void define_memory(napi_env env, napi_value exports);

}  // namespace fabrickv::binding
