#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "fabric/libfabric.h"

// Everything that is peculiar to the EFA provider. None of it has ever been run on EFA hardware: what it states was
// read in libfabric's sources, which are named with the release, as in "efa_mr.c, v2.5.0" (prov/efa/src/, or rdm/ below
// it). docs/efa.md says how to run it and what is not proved.
//
// What the rest of the fabric layer does anyway suits EFA, and is not repeated here:
// - The credits are tx_attr->size (max_sq_wr, rounded down to a power of two: efa_prov_info.c, v2.6.0), and the queue
// has
//   twice as many entries. The provider does not protect it from overruns (efa_fabric_comparison.md, v2.6.0): the
//   fabric `efa` raises its size to at least rx + tx, or 8192 (rdm/efa_rdm_cq.c), `efa-direct` takes ours as it is.
// - FI_INJECT is never passed, so inject sizes (0 on some devices) do not matter. No order is relied upon.
// - FI_MR_LOCAL is asked for. Then EFA opens no registration cache (efa_domain.c, v1.22.0 to v2.6.0): closing a region
//   deregisters it, whatever FI_MR_CACHE_… and FI_EFA_MR_… say.
// - Regions have at most 1 GiB, below any device's max_mr_size, which fi_info does not tell.
// - A peer is removed only when nothing is in flight to it: efa_rdm_peer_destruct (rdm/efa_rdm_peer.c, v2.6.0) frees
// the
//   operations without completions while their packets are still with the device.
namespace fabrickv::fabric::efa {

inline bool is_efa(std::string_view provider) {
  return provider == "efa" || provider.starts_with("efa;");
}

// ---- Endpoint options. rdma/fi_ext.h has them since 1.18 (RNR_RETRY since 1.17), rdma/fi_endpoint.h the last two
// since 1.18 and 1.21. efa.cpp asserts that the headers agree.

inline constexpr int kOptionBase = -(0xefa << 16);
// size_t, before fi_enable. Left alone: with resource management the provider itself tries again, and only its
// handshakes consume receive buffers at all.
inline constexpr int kOptRnrRetry = kOptionBase;
// bool, only to be read. They speak of this endpoint; what a peer does to us is the peer's affair: see Traits.
inline constexpr int kOptEmulatedRead = kOptionBase + 1;
inline constexpr int kOptEmulatedWrite = kOptionBase + 2;
inline constexpr int kOptEmulatedAtomics = kOptionBase + 3;
// bool, only to be set, API 1.18. Left alone: the default is what the device can do.
inline constexpr int kOptUseDeviceRdma = kOptionBase + 4;
// bool, only to be set. Left alone: nothing relies on the order of bytes. v2.6.0 refuses the first on the fabric `efa`.
inline constexpr int kOptSendrecvInOrder = kOptionBase + 5;
inline constexpr int kOptWriteInOrder = kOptionBase + 6;
// bool, only to be set, 2.2. Left alone: it skips the handshake that finds out whether a peer takes device writes, so a
// peer of another generation would get writes that it cannot take.
inline constexpr int kOptHomogeneousPeers = kOptionBase + 7;
// bool, only to be set, 2.6. Left alone: it concerns immediate data, which is not used.
inline constexpr int kOptUseUnsolicitedWriteRecv = kOptionBase + 8;
// bool. Left alone: it concerns GPU memory, which is not registered, and a host without CUDA refuses it with FI_EINVAL.
inline constexpr int kOptCudaApiPermitted = 10;
// bool. Set to false.
inline constexpr int kOptSharedMemoryPermitted = 11;

// ---- API version and fabric.

// The API version to ask EFA for. From 1.18 on RDMA is used where the device has it; below, 0xefa0 and 0xefa1 devices
// emulate every operation (rdm/efa_rdm_util.c, v1.18.0), and 1.17 has no device writes at all. Headers below 1.18 do
// not hinder: fi_info's layout belongs to the symbol (FABRIC_1.3 for 1.11 to 1.19), which passes the version on as it
// is (abi_1_0.c, v2.6.0), and between 1.17 and 1.19 only enumerators and one trailing field of fi_mr_attr were added.
constexpr uint32_t api_version(uint32_t loaded, uint32_t built) {
  const uint32_t wanted = built < FI_VERSION(1, 18) ? FI_VERSION(1, 18) : built;
  return loaded < wanted ? loaded : wanted;
}

// The fabric to ask for: FABRICKV_EFA_FABRIC, `efa` by default. Without a name, 2.1 and later offer `efa-direct` first
// (efa_prov.c, v2.1.0): device operations only, no protocol between the peers. It cannot talk to `efa`, which is all
// that older releases have, and its target has to know the writer's address beforehand.
std::string fabric_name();

// ---- Environment.

// libibverbs' answer, in its own numbers: IBV_FORK_DISABLED, IBV_FORK_ENABLED, IBV_FORK_UNNEEDED.
enum class ForkSupport { kUnknown = -1, kDisabled = 0, kEnabled = 1, kUnneeded = 2 };

struct Host {
  // Whether there is an EFA device at all.
  bool has_device = false;
  ForkSupport fork_support = ForkSupport::kUnknown;
};

struct EnvironmentDecision {
  std::map<std::string, std::string> set;
  std::vector<std::string> unset;
  // Sentences for the operator.
  std::vector<std::string> remarks;
};

using GetVariable = std::function<std::optional<std::string>(const char* name)>;

// What has to change in the environment before libfabric loads; it reads most of it once. Touches nothing but
// FI_EFA_… variables. A pure function.
EnvironmentDecision decide_environment(const GetVariable& get, const Host& host);

// Whether `root` ("/sys") lists an RDMA device by Amazon.
bool has_device(const std::string& root);

// ibv_is_fork_initialized(), unknown where there is no libibverbs, or one before rdma-core 35.
ForkSupport query_fork_support();

// decide_environment for this host, applied. Returns the remarks.
std::vector<std::string> prepare_environment();

// ---- What an endpoint turned out to be.

struct Traits {
  // The fabric is efa-direct: nothing is ever emulated, by us or by a peer.
  bool direct = false;
  // Whether our own reads and writes travel as packets that the target's libfabric copies. True where it does not say.
  bool emulated_read = true;
  bool emulated_write = true;
  // Whether every region, whatever access was asked for, is open to remote reads and writes where the device has them:
  // so it is before 2.5 (efa_mr.c, v1.22.0, v2.4.0 against v2.5.0).
  bool exposes_local_regions = false;
};

// Switches the provider's own use of shm off, after fi_endpoint and before fi_enable: its plain write checks neither
// key nor bounds. Unknown before 1.21, where FI_EFA_ENABLE_SHM_TRANSFER has to do. 0, or a negative errno.
int forbid_shared_memory(fid_ep* ep);

// What an operator should know about such an endpoint, behind what the environment gave occasion for.
std::vector<std::string> remarks(const Traits& traits, std::vector<std::string> environment);

Traits query_traits(fid_ep* ep, std::string_view fabric, uint32_t loaded_version);

// Whether closing a region proves that no peer's write to it can still land. It does for device writes, which the NIC
// checks one by one. A target checks the region of an emulated long write at its first packet only and copies the later
// ones wherever that one said (rdm/efa_rdm_pke_rtw.c and efa_rdm_pke_nonreq.c, v2.6.0). A write is a device write when
// both ends can do it (efa_both_support_rdma_write, rdm/efa_rdm_ep.h), so ours must, and every peer's: refuse_peer sees
// to that of those that say so. On the fabric `efa` that is the peer's word, and who was never announced gives none:
// whoever the security group lets in can send emulated writes, which libfabric takes there. On `efa-direct` it takes
// none, so there alone this is true. Where it is false only closing the endpoint proves anything: fi_av_remove ends
// neither our device's operations nor the peer's.
bool close_region_proves(const Traits& traits);

// What a rail tells of itself, one byte behind its fabric address.
uint8_t trait_byte(const Traits& traits);

// Why a peer with this address must not be inserted; empty when it may. Peers have to be alike: `efa` and `efa-direct`
// do not understand each other, and between one that writes by the device and one that cannot, writes are emulated.
std::string refuse_peer(const Traits& own, std::span<const uint8_t> address);

// ---- Errors.

struct ErrorEntry {
  int code;
  // As in efa_errno.h, without EFA_IO_COMP_STATUS_ and FI_EFA_ERR_.
  const char* name;
  const char* meaning;
  // Empty where there is nothing to do but to report it.
  const char* remedy;
};

// The codes of efa_errno.h, v2.6.0, and of what comes after it. Those below 4096 are the device's, the others the
// provider's; 1.17 has the same numbers up to 13 and up to 4123.
std::span<const ErrorEntry> error_table();

// Null for a number that is not known.
const ErrorEntry* find_error(int provider_errno);

// Completes an error of a completion queue: name and meaning in front of the provider's text, the remedy as the hint.
void explain(Error& error);

// What to do about a registration that EFA refused; `result` is negative.
std::string registration_hint(int result, uint64_t length);

}  // namespace fabrickv::fabric::efa
