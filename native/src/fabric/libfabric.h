#pragma once

#include <rdma/fabric.h>
#include <rdma/fi_cm.h>
#include <rdma/fi_domain.h>
#include <rdma/fi_endpoint.h>
#include <rdma/fi_eq.h>
#include <rdma/fi_errno.h>
#include <rdma/fi_rma.h>

#include <map>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "fabric/error.h"

namespace fabrickv::fabric {

// libfabric, loaded by dlopen and never unloaded: its threads and atexit handlers would outlive it. Only the functions
// that are exported need loading; the rest are inline calls through op tables.
struct Libfabric {
  int (*getinfo)(uint32_t version, const char* node, const char* service, uint64_t flags, const fi_info* hints,
                 fi_info** info) = nullptr;
  void (*freeinfo)(fi_info* info) = nullptr;
  fi_info* (*dupinfo)(const fi_info* info) = nullptr;
  int (*open_fabric)(fi_fabric_attr* attr, fid_fabric** fabric, void* context) = nullptr;
  uint32_t (*version)() = nullptr;
  const char* (*strerror)(int errnum) = nullptr;

  // The file, symbolic links resolved.
  std::string path;
  uint32_t loaded_version = 0;
  // The lower of what is loaded and what the headers are.
  uint32_t api_version = 0;
  // Whether rxm flushes a peer's operations when it is removed. It reads FI_AV_REMOVE_CLEANUP only once, so this is
  // false when something else in the process had loaded libfabric before us without that variable.
  bool removal_flushes = false;
  // Whether EFA has read that it must not use shm: false when something else had loaded libfabric before us without it.
  bool efa_shm_is_off = false;
  // Whether verbs has read that it must not cache registrations (FI_MR_CACHE_MAX_COUNT=0), and tcp;ofi_rxm that it must
  // read from its sockets only when it is told to (FI_TCP_IO_URING, FI_OFI_RXM_DATA_AUTO_PROGRESS): recorded as the
  // library loads, for what the environment says later means nothing to it.
  bool registration_cache_is_off = false;
  bool tcp_reads_when_told = false;
  // What was changed in the environment for EFA, and what is wrong in it, in sentences for the operator.
  std::vector<std::string> efa_remarks;

  // fi_strerror of a positive or negative error number.
  std::string error_text(int error_number) const { return strerror(error_number < 0 ? -error_number : error_number); }
};

std::string version_text(uint32_t version);

// Sets the environment (see libfabric.cpp), loads libfabric and keeps it. Idempotent and thread-safe: later calls
// return what the first one loaded. Signal handlers that the library installs are undone. Null on failure.
const Libfabric* load_libfabric(const std::map<std::string, std::string>& environment, Error& error);

// What was loaded, or null.
const Libfabric* loaded_libfabric();

struct InfoDeleter {
  void operator()(fi_info* info) const { loaded_libfabric()->freeinfo(info); }
};
using Info = std::unique_ptr<fi_info, InfoDeleter>;

// fi_getinfo, one call at a time and with the signal handlers saved around it: providers install theirs on first use.
// `version` is the API that is asked for. Takes 10-100 ms; not for the JS thread. Negative errno on failure.
int get_info(const Libfabric& library, uint32_t version, const char* node, uint64_t flags, const fi_info* hints,
             Info& info);

}  // namespace fabrickv::fabric
