#include "fabric/efa.h"

#include <dlfcn.h>
#include <rdma/fi_ext.h>
#include <strings.h>

#include <algorithm>
#include <array>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <system_error>

namespace fabrickv::fabric::efa {
namespace {

#if FI_MAJOR_VERSION > 1 || FI_MINOR_VERSION >= 17
static_assert(kOptRnrRetry == FI_OPT_EFA_RNR_RETRY);
#endif
#if FI_MAJOR_VERSION > 1 || FI_MINOR_VERSION >= 18
static_assert(kOptEmulatedRead == FI_OPT_EFA_EMULATED_READ);
static_assert(kOptEmulatedWrite == FI_OPT_EFA_EMULATED_WRITE);
static_assert(kOptEmulatedAtomics == FI_OPT_EFA_EMULATED_ATOMICS);
static_assert(kOptUseDeviceRdma == FI_OPT_EFA_USE_DEVICE_RDMA);
static_assert(kOptSendrecvInOrder == FI_OPT_EFA_SENDRECV_IN_ORDER_ALIGNED_128_BYTES);
static_assert(kOptWriteInOrder == FI_OPT_EFA_WRITE_IN_ORDER_ALIGNED_128_BYTES);
static_assert(kOptCudaApiPermitted == FI_OPT_CUDA_API_PERMITTED);
#endif
#if FI_MAJOR_VERSION > 1 || FI_MINOR_VERSION >= 21
static_assert(kOptSharedMemoryPermitted == FI_OPT_SHARED_MEMORY_PERMITTED);
#endif
#if FI_MAJOR_VERSION > 2 || (FI_MAJOR_VERSION == 2 && FI_MINOR_VERSION >= 2)
static_assert(kOptHomogeneousPeers == FI_OPT_EFA_HOMOGENEOUS_PEERS);
#endif
#if FI_MAJOR_VERSION > 2 || (FI_MAJOR_VERSION == 2 && FI_MINOR_VERSION >= 6)
static_assert(kOptUseUnsolicitedWriteRecv == FI_OPT_EFA_USE_UNSOLICITED_WRITE_RECV);
#endif

constexpr const char* kDirectFabric = "efa-direct";
constexpr const char* kAmazonVendor = "0x1d0f";

// The bits of trait_byte. The highest one tells the byte from a zero that something else put there.
constexpr uint8_t kTraitPresent = 0x80;
constexpr uint8_t kTraitDirect = 0x01;
constexpr uint8_t kTraitEmulatedWrite = 0x02;

// libfabric's own spelling of booleans (src/var.c, v2.6.0). Anything else makes EFA abort the process.
enum class Boolean { kTrue, kFalse, kInvalid };

Boolean parse(const std::string& text) {
  const auto is = [&](const char* word) { return strcasecmp(text.c_str(), word) == 0; };
  if (is("1") || is("true") || is("yes") || is("on")) return Boolean::kTrue;
  if (is("0") || is("false") || is("no") || is("off")) return Boolean::kFalse;
  return Boolean::kInvalid;
}

void decide_shared_memory(const GetVariable& get, EnvironmentDecision& decision) {
  constexpr const char* kVariable = "FI_EFA_ENABLE_SHM_TRANSFER";
  const auto value = get(kVariable);
  decision.set[kVariable] = "0";
  if (!value || *value == "0") return;
  decision.remarks.push_back(std::string(kVariable) + "=" + *value +
                             " was ignored: libfabric's shm writes check neither key nor bounds");
}

// Setting it to true adds nothing from API 1.18 on, except that the process is aborted where the device cannot do it,
// or where the value is no boolean (rdm/efa_rdm_util.c, v1.18.0 and v2.6.0).
void decide_device_rdma(const GetVariable& get, EnvironmentDecision& decision) {
  constexpr const char* kVariable = "FI_EFA_USE_DEVICE_RDMA";
  const auto value = get(kVariable);
  if (!value) return;
  const std::string setting = std::string(kVariable) + "=" + *value;
  switch (parse(*value)) {
    case Boolean::kTrue:
    case Boolean::kInvalid:
      decision.unset.emplace_back(kVariable);
      decision.remarks.push_back(setting +
                                 " was ignored: RDMA is used where the device has it, and asking for it aborts the "
                                 "process where the device does not");
      return;
    case Boolean::kFalse:
      decision.remarks.push_back(setting +
                                 ": writes are emulated, so only closing the endpoint makes a peer's memory reusable");
  }
}

// EFA's fork handler aborts the process at its first fork() unless fork support is on or not needed
// (efa_fork_support.c, v1.17.0 and v2.6.0). Not needed: kernel 5.13 with rdma-core 35, which libibverbs itself finds
// out. Otherwise FI_EFA_FORK_SAFE turns it on, for EFA alone; RDMAV_FORK_SAFE (or IBV_FORK_SAFE) does so for every user
// of libibverbs in the process, verbs included, so that one is left to the operator. Two things do not go with it: with
// FI_EFA_USE_HUGE_PAGE=1 the process is aborted, with RDMAV_HUGEPAGES_SAFE fi_domain fails with FI_EINVAL. Transparent
// huge pages, which our mappings have, are not meant by either.
void decide_fork(const GetVariable& get, const Host& host, EnvironmentDecision& decision) {
  constexpr const char* kVariable = "FI_EFA_FORK_SAFE";
  constexpr const char* kHugePage = "FI_EFA_USE_HUGE_PAGE";
  constexpr const char* kHugePagesSafe = "RDMAV_HUGEPAGES_SAFE";
  if (!host.has_device || host.fork_support == ForkSupport::kUnneeded) return;
  const auto own = get(kVariable);
  const bool asked =
      (own && parse(*own) == Boolean::kTrue) || get("RDMAV_FORK_SAFE").has_value() || get("IBV_FORK_SAFE").has_value();
  const auto huge = get(kHugePage);
  const bool wants_huge = huge && parse(*huge) == Boolean::kTrue;
  const bool huge_pages_safe = get(kHugePagesSafe).has_value();
  const std::string aborts =
      ": the process is aborted when it starts another one (child_process); kernel 5.13 with rdma-core 35 makes fork "
      "support unnecessary";

  if (asked) {
    if (wants_huge) {
      decision.unset.emplace_back(kHugePage);
      decision.remarks.push_back(std::string(kHugePage) + " was ignored: it aborts the process beside fork support");
    }
    if (huge_pages_safe) {
      decision.remarks.push_back(std::string(kHugePagesSafe) +
                                 " makes EFA fail with fi_domain: EINVAL beside fork support; unset one of them");
    }
    return;
  }
  if (host.fork_support == ForkSupport::kEnabled) return;
  if (own && parse(*own) == Boolean::kFalse) {
    decision.remarks.push_back(std::string(kVariable) + "=" + *own + aborts);
  } else if (wants_huge || huge_pages_safe) {
    decision.remarks.push_back(std::string(wants_huge ? kHugePage : kHugePagesSafe) + " excludes fork support" +
                               aborts);
  } else {
    decision.set[kVariable] = "1";
  }
}

std::optional<std::string> get_variable(const char* name) {
  const char* value = std::getenv(name);
  return value == nullptr ? std::nullopt : std::optional<std::string>(value);
}

bool get_bool(fid_ep* ep, int option, bool otherwise) {
  if (!FI_CHECK_OP(ep->ops, fi_ops_ep, getopt)) return otherwise;
  bool value = otherwise;
  size_t length = sizeof value;
  const int result = fi_getopt(&ep->fid, FI_OPT_ENDPOINT, option, &value, &length);
  return result == 0 && length == sizeof value ? value : otherwise;
}

constexpr const char* kReport = "";
constexpr const char* kPeerGone =
    "the peer's process or endpoint is gone: it has to reconnect with a new address; if both are up, check the "
    "security "
    "group";
constexpr const char* kSecurityGroup =
    "check that one security group holds both network interfaces and allows all traffic, in and out, to and from "
    "itself; "
    "that both are in the same subnet or availability zone; and that the peer runs";
constexpr const char* kLocalMemory = "the limit of locked memory, or the NIC's page table, may be exhausted";

constexpr auto kErrors = std::to_array<ErrorEntry>({
    {0, "OK", "success", kReport},
    {1, "FLUSHED", "flushed: the queue pair was being destroyed", "another error or a close came first: look for it"},
    {2, "LOCAL_ERROR_QP_INTERNAL_ERROR", "internal error of the local queue pair",
     "reopen the rail; if it comes back, look at the kernel log (dmesg) for the efa driver"},
    {3, "LOCAL_ERROR_UNSUPPORTED_OP", "the device does not have this operation",
     "the instance type may lack RDMA write; see rail.info.efa.emulatedWrite"},
    {4, "LOCAL_ERROR_INVALID_AH", "invalid address handle", "the peer was removed meanwhile: insert it again"},
    {5, "LOCAL_ERROR_INVALID_LKEY", "the local memory is not registered for this", "its region was closed too early"},
    {6, "LOCAL_ERROR_BAD_LENGTH", "the message is too long for the device", "make chunkBytes smaller"},
    {7, "REMOTE_ERROR_BAD_ADDRESS", "wrong remote key, address or access",
     "the peer has closed that region, or never opened these bytes to remote writes: ask it for a fresh one"},
    {8, "REMOTE_ERROR_ABORT", "the peer reset the connection", kPeerGone},
    {9, "REMOTE_ERROR_BAD_DEST_QPN", "the peer's queue pair does not exist or is in error", kPeerGone},
    {10, "REMOTE_ERROR_RNR", "the peer has no receive buffer ready",
     "the peer's progress thread does not run: look at its heartbeat"},
    {11, "REMOTE_ERROR_BAD_LENGTH", "the peer's receive buffer is too short", kReport},
    {12, "REMOTE_ERROR_BAD_STATUS", "the peer's device answered with an unexpected status", kReport},
    {13, "LOCAL_ERROR_UNRESP_REMOTE", "the peer, which used to answer, does not any more", kSecurityGroup},
    {14, "REMOTE_ERROR_UNKNOWN_PEER", "the peer's device has no address handle for us",
     "the peer has to insert our address before we write (always on efa-direct); after a reconnect it may hold an old "
     "one"},
    {15, "LOCAL_ERROR_UNREACH_REMOTE", "the peer has never answered", kSecurityGroup},
    {18, "REMOTE_ERROR_FEATURE_MISMATCH", "the two devices do not have the same features",
     "use the same instance type, EFA driver and libfabric on both hosts"},
    {4096, "OTHER", "unknown error of the provider", "run with FI_LOG_LEVEL=warn"},
    {4097, "DEPRECATED_PKT_TYPE", "packet of a deprecated type", "use the same libfabric on both hosts"},
    {4098, "INVALID_PKT_TYPE", "packet of an invalid type", "use the same libfabric and the same fabric on both hosts"},
    {4099, "UNKNOWN_PKT_TYPE", "packet of an unknown type", "use the same libfabric and the same fabric on both hosts"},
    {4100, "PKT_POST", "a packet could not be posted", kReport},
    {4101, "PKT_SEND", "a packet could not be sent", kReport},
    {4102, "PKT_PROC_MSGRTM", "an untagged message could not be processed", kReport},
    {4103, "PKT_PROC_TAGRTM", "a tagged message could not be processed", kReport},
    {4104, "PKT_ALREADY_PROCESSED", "a packet came twice", kReport},
    {4105, "OOM", "out of memory", "give the process more memory"},
    {4106, "MR_DEREG", "a registration could not be closed", kReport},
    {4107, "RXE_COPY", "received data could not be copied to its place", kReport},
    {4108, "RXE_POOL_EXHAUSTED", "too many receives at once", "fewer transfers in flight"},
    {4109, "TXE_POOL_EXHAUSTED", "too many operations at once", "fewer transfers in flight"},
    {4110, "AV_INSERT", "an address could not be inserted", kReport},
    {4111, "RMA_ADDR", "an emulated write named a wrong key or range",
     "the region was closed: the writer has to ask for a fresh one"},
    {4112, "INTERNAL_RX_BUF_POST", "receive buffers of the provider could not be posted", kLocalMemory},
    {4113, "PEER_HANDSHAKE", "the handshake with a peer could not be posted", kSecurityGroup},
    {4114, "WR_POST_SEND", "work requests could not be posted", kReport},
    {4115, "RTM_MISMATCH", "a message was longer than its receive buffer", kReport},
    {4116, "READ_POST", "a read could not be posted", kReport},
    {4117, "RDMA_READ_POST", "a device read could not be posted", kLocalMemory},
    {4118, "INVALID_DATATYPE", "invalid data type", kReport},
    {4119, "WRITE_SEND_COMP", "a send completion could not be written", "the completion queue is full"},
    {4120, "WRITE_RECV_COMP", "a receive completion could not be written", "the completion queue is full"},
    {4121, "DGRAM_CQ_READ", "the queue of a datagram endpoint could not be read", kReport},
    {4122, "SHM_INTERNAL_ERROR", "error in the shm provider", "FI_EFA_ENABLE_SHM_TRANSFER must be 0"},
    {4123, "WRITE_SHM_CQ_ENTRY", "a completion of the shm provider could not be written",
     "FI_EFA_ENABLE_SHM_TRANSFER must be 0"},
    {4124, "ESTABLISHED_RECV_UNRESP", "the peer shook hands, but does not answer any more", kPeerGone},
    {4125, "INVALID_PKT_TYPE_ZCPY_RX", "packet of an invalid type in zero-copy mode", kReport},
    {4126, "UNESTABLISHED_RECV_UNRESP", "the peer's device answers, its process does not shake hands",
     "the peer's progress thread does not run, its process has ended, or it uses the other fabric (efa, efa-direct)"},
    // After v2.6.0.
    {4127, "PEER_ABORTED", "the peer closed its region or endpoint in the middle", kPeerGone},
});
static_assert(std::ranges::is_sorted(kErrors, {}, &ErrorEntry::code));

}  // namespace

std::string fabric_name() {
  return get_variable("FABRICKV_EFA_FABRIC").value_or("efa");
}

EnvironmentDecision decide_environment(const GetVariable& get, const Host& host) {
  EnvironmentDecision decision;
  decide_shared_memory(get, decision);
  decide_device_rdma(get, decision);
  decide_fork(get, host, decision);
  return decision;
}

bool has_device(const std::string& root) {
  std::error_code failure;
  const std::filesystem::directory_iterator devices(root + "/class/infiniband", failure);
  if (failure) return false;
  return std::ranges::any_of(begin(devices), end(devices), [](const std::filesystem::directory_entry& device) {
    std::string vendor;
    std::ifstream(device.path() / "device" / "vendor") >> vendor;
    return vendor == kAmazonVendor;
  });
}

ForkSupport query_fork_support() {
  // libfabric links it, too. Never unloaded, like libfabric itself.
  void* library = dlopen("libibverbs.so.1", RTLD_NOW | RTLD_LOCAL);
  if (library == nullptr) return ForkSupport::kUnknown;
  const auto is_initialized = reinterpret_cast<int (*)()>(dlsym(library, "ibv_is_fork_initialized"));
  if (is_initialized == nullptr) return ForkSupport::kUnknown;
  const int answer = is_initialized();
  return answer >= 0 && answer <= 2 ? static_cast<ForkSupport>(answer) : ForkSupport::kUnknown;
}

std::vector<std::string> prepare_environment() {
  Host host;
  host.has_device = has_device("/sys");
  if (host.has_device) host.fork_support = query_fork_support();
  EnvironmentDecision decision = decide_environment(get_variable, host);
  for (const auto& [name, value] : decision.set) setenv(name.c_str(), value.c_str(), 1);
  for (const std::string& name : decision.unset) unsetenv(name.c_str());
  return std::move(decision.remarks);
}

int forbid_shared_memory(fid_ep* ep) {
  if (!FI_CHECK_OP(ep->ops, fi_ops_ep, setopt)) return -FI_ENOSYS;
  const bool permitted = false;
  return fi_setopt(&ep->fid, FI_OPT_ENDPOINT, kOptSharedMemoryPermitted, &permitted, sizeof permitted);
}

Traits query_traits(fid_ep* ep, std::string_view fabric, uint32_t loaded_version) {
  Traits traits;
  traits.direct = fabric == kDirectFabric;
  traits.emulated_read = get_bool(ep, kOptEmulatedRead, true);
  traits.emulated_write = get_bool(ep, kOptEmulatedWrite, true);
  traits.exposes_local_regions = FI_VERSION_LT(loaded_version, FI_VERSION(2, 5));
  return traits;
}

std::vector<std::string> remarks(const Traits& traits, std::vector<std::string> environment) {
  if (traits.emulated_write) {
    environment.emplace_back(
        "EFA emulates RDMA writes here (no RDMA write in the device, libfabric below 1.18, or "
        "FI_EFA_USE_DEVICE_RDMA=0): "
        "they are slow, and memory that a peer could write is reusable only when the endpoint is closed");
  } else if (!traits.direct) {
    environment.emplace_back(
        "on the fabric `efa` whoever the security group lets in may send writes that libfabric copies: memory that a "
        "peer could write is reusable only when the endpoint is closed; FABRICKV_EFA_FABRIC=efa-direct, on every host "
        "(libfabric 2.1 or later), has no such writes");
  }
  if (traits.exposes_local_regions) {
    environment.emplace_back(
        "libfabric below 2.5 opens every EFA registration to remote reads and writes where the device has them: "
        "whoever "
        "guesses a key can read and write all values; use 2.5 or later, or trust every host in the security group");
  }
  return environment;
}

bool close_region_proves(const Traits& traits) {
  return traits.direct && !traits.emulated_write;
}

uint8_t trait_byte(const Traits& traits) {
  return static_cast<uint8_t>(kTraitPresent | (traits.direct ? kTraitDirect : 0) |
                              (traits.emulated_write ? kTraitEmulatedWrite : 0));
}

std::string refuse_peer(const Traits& own, std::span<const uint8_t> address) {
  const uint8_t peer = address.empty() ? 0 : address.back();
  if ((peer & kTraitPresent) == 0) return "an address that does not say how its owner writes";
  const bool peer_is_direct = (peer & kTraitDirect) != 0;
  if (peer_is_direct != own.direct) {
    return std::string("the peer uses the fabric ") + (peer_is_direct ? "efa-direct" : "efa") + ", this rail " +
           (own.direct ? "efa-direct" : "efa") + ": set FABRICKV_EFA_FABRIC alike on both hosts";
  }
  const bool peer_emulates = (peer & kTraitEmulatedWrite) != 0;
  if (peer_emulates != own.emulated_write) {
    return std::string("RDMA writes are emulated ") + (peer_emulates ? "by the peer" : "here") + " and not " +
           (peer_emulates ? "here" : "by the peer") +
           ": use instance types and libfabric releases (1.18 or later) that are alike";
  }
  return "";
}

std::span<const ErrorEntry> error_table() {
  return kErrors;
}

const ErrorEntry* find_error(int provider_errno) {
  const auto found = std::ranges::lower_bound(kErrors, provider_errno, {}, &ErrorEntry::code);
  return found != kErrors.end() && found->code == provider_errno ? &*found : nullptr;
}

void explain(Error& error) {
  if (!error.provider_errno) return;
  const ErrorEntry* entry = find_error(*error.provider_errno);
  if (entry == nullptr) return;
  const std::string said = error.provider_text;
  error.provider_text = std::string(entry->name) + ": " + entry->meaning;
  if (!said.empty()) error.provider_text += " (" + said + ")";
  if (error.hint.empty()) error.hint = entry->remedy;
}

std::string registration_hint(int result, uint64_t length) {
  const std::string what = "registering " + std::to_string(length) + " bytes on EFA: ";
  // One device's table has some 22-24 million entries, as others have measured; how many pages an entry covers is up to
  // the kernel driver.
  constexpr const char* kPages =
      "EFA counts pages, some 22 million a NIC (88 GB in pages of 4 KiB): enable transparent huge pages, or use a "
      "smaller "
      "--memory";
  switch (-result) {
    case FI_ENOMEM:
    case FI_EPERM:
    case FI_EAGAIN:
      return what + "raise the limit of locked memory (ulimit -l unlimited, or LimitMEMLOCK=infinity); if it is, " +
             kPages;
    case FI_EINVAL:
    case FI_ENOSPC:
      return what + "the device limits the size, the number or the pages of its regions; " + kPages;
    case FI_EOPNOTSUPP:
      return what + "the device has no RDMA write, which efa-direct needs: unset FABRICKV_EFA_FABRIC";
    default:
      return "";
  }
}

}  // namespace fabrickv::fabric::efa
