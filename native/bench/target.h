#pragma once

#include "arguments.h"

namespace fabrickv::bench {

// The second process: opens an endpoint, registers memory for remote writes, introduces itself over `socket`, and
// drives its progress until the socket closes. Returns the exit code.
int run_target(const Arguments& arguments, int socket);

}  // namespace fabrickv::bench
