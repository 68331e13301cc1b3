#pragma once

#include <napi.h>

namespace fabrickv::binding {

// The memory functions of NativeAddon in src/fabric/addon.ts.
void define_memory(Napi::Object exports);

}  // namespace fabrickv::binding
