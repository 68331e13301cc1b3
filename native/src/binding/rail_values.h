#pragma once

#include <napi.h>

#include "fabric/rail.h"

namespace fabrickv::binding {

// FabricErrorDetails of src/fabric/errors.ts.
Napi::Object make_details(Napi::Env env, const fabric::Error& error);

// Omit<RailInfo, "provider"> of src/fabric/rail-types.ts.
Napi::Object make_rail_info(Napi::Env env, const fabric::RailInfo& info);

// CompletionDetail of src/fabric/addon.ts, or empty when the outcome needs none.
Napi::Object make_detail(Napi::Env env, const fabric::Outcome& outcome, const fabric::RailInfo& info);

}  // namespace fabrickv::binding
