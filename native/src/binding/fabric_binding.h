#pragma once

#include <napi.h>

namespace fabrickv::binding {

// The libfabric and rail functions of NativeAddon in src/fabric/addon.ts.
void define_fabric(Napi::Object exports);

}  // namespace fabrickv::binding
