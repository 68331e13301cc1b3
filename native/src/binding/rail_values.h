#pragma once

#include <node_api.h>

#include "fabric/rail.h"

namespace fabrickv::binding {

// FabricErrorDetails of src/fabric/errors.ts.
napi_value make_details(napi_env env, const fabric::Error& error);

// Omit<RailInfo, "provider"> of src/fabric/rail-types.ts.
napi_value make_rail_info(napi_env env, const fabric::RailInfo& info);

// CompletionDetail of src/fabric/addon.ts, or null when the outcome needs none.
napi_value make_detail(napi_env env, const fabric::Outcome& outcome, const fabric::RailInfo& info);

}  // namespace fabrickv::binding
