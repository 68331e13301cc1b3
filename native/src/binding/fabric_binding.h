#pragma once

#include <node_api.h>

namespace fabrickv::binding {

// The libfabric and rail functions of NativeAddon in src/fabric/addon.ts.
void define_fabric(napi_env env, napi_value exports);

}  // namespace fabrickv::binding
