#include "fabric/endpoint.h"

#include <algorithm>
#include <array>

#include "fabric/limits.h"

namespace fabrickv::fabric {
namespace {

std::string remedy(const char* call, int result) {
  if (result == -FI_EADDRINUSE || result == -FI_EADDRNOTAVAIL)
    return "check that the source address belongs to this host";
  if (result == -FI_EMFILE) return "raise the limit of open files (ulimit -n)";
  if (result == -FI_ENOMEM)
    return "raise the limit of locked memory (ulimit -l), and see FI_UNIVERSE_SIZE on soft-RoCE";
  return std::string("run with FI_LOG_LEVEL=warn to see what the provider says about ") + call;
}

}  // namespace

std::unique_ptr<Endpoint> Endpoint::open(const Libfabric& library, const EndpointQuery& query, size_t credits_max,
                                         std::atomic<uint64_t>& close_failures, Error& error) {
  auto endpoint = std::make_unique<Endpoint>(library, close_failures);
  if (!endpoint->open_all(query, credits_max, error)) return nullptr;
  return endpoint;
}

Endpoint::Endpoint(const Libfabric& library, std::atomic<uint64_t>& close_failures)
    : library_(library),
      fabric_(close_failures),
      domain_(close_failures),
      cq_(close_failures),
      av_(close_failures),
      ep_(close_failures) {}

bool Endpoint::fail(const char* call, int result, Error& error) const {
  error.code = ErrorCode::kProviderMissing;
  error.call = call;
  error.error_number = -result;
  error.text = library_.error_text(result) + place_;
  error.provider = description_.provider;
  error.hint = remedy(call, result);
  if (efa::is_efa(description_.provider)) {
    for (const std::string& remark : library_.efa_remarks) error.hint += "; " + remark;
  }
  return false;
}

bool Endpoint::open_all(const EndpointQuery& query, size_t credits_max, Error& error) {
  description_.provider = query.provider;
  if (!query.source_address.empty()) place_ = " (source address " + query.source_address + ")";
  if (const int result = query_endpoints(library_, query, info_); result != 0) {
    error = provider_missing(library_, query, result);
    return false;
  }
  // One is kept back for probes: without a credit rxm puts a post off as it does without a connection.
  description_.transmit_credits = std::clamp<size_t>(info_->tx_attr->size, 2, credits_max) - 1;
  if (const int result = library_.open_fabric(info_->fabric_attr, fabric_.out(), nullptr); result != 0) {
    return fail("fi_fabric", result, error);
  }
  if (const int result = fi_domain(fabric_.get(), info_.get(), domain_.out(), nullptr); result != 0) {
    return fail("fi_domain", result, error);
  }
  // EFA's queue has no protection against overruns: room for every operation, and for as many events of its own.
  if (!open_queue(2 * description_.transmit_credits, error)) return false;
  if (!open_address_vector(error)) return false;
  return open_endpoint(error) && describe(error);
}

bool Endpoint::open_queue(size_t size, Error& error) {
  fi_cq_attr attributes{};
  attributes.size = size;
  attributes.format = FI_CQ_FORMAT_DATA;
  attributes.wait_obj = FI_WAIT_FD;
  int result = fi_cq_open(domain_.get(), &attributes, cq_.out(), nullptr);
  if (result == 0) {
    if (fi_control(cq_.fid(), FI_GETWAIT, &wait_fd_) == 0 && wait_fd_ >= 0) return true;
    wait_fd_ = -1;
    if (const int closed = cq_.close(); closed != 0) return fail("fi_close(cq)", closed, error);
  }
  attributes.wait_obj = FI_WAIT_NONE;
  result = fi_cq_open(domain_.get(), &attributes, cq_.out(), nullptr);
  return result == 0 || fail("fi_cq_open", result, error);
}

bool Endpoint::open_address_vector(Error& error) {
  fi_av_attr attributes{};
  attributes.type = FI_AV_TABLE;
  attributes.count = 64;
  const int result = fi_av_open(domain_.get(), &attributes, av_.out(), nullptr);
  return result == 0 || fail("fi_av_open", result, error);
}

bool Endpoint::open_endpoint(Error& error) {
  if (const int result = fi_endpoint(domain_.get(), info_.get(), ep_.out(), nullptr); result != 0) {
    return fail("fi_endpoint", result, error);
  }
  int result = fi_ep_bind(ep_.get(), av_.fid(), 0);
  const char* call = "fi_ep_bind(av)";
  if (result == 0) {
    result = fi_ep_bind(ep_.get(), cq_.fid(), FI_TRANSMIT | FI_RECV);
    call = "fi_ep_bind(cq)";
  }
  if (result != 0) {
    // Closing an endpoint of tcp;ofi_rxm that was never bound is a segmentation fault.
    ep_.abandon();
    return fail(call, result, error);
  }
  if (efa::is_efa(info_->fabric_attr->prov_name)) {
    result = efa::forbid_shared_memory(ep_.get());
    if (result != 0 && !library_.efa_shm_is_off)
      return fail("fi_setopt(FI_OPT_SHARED_MEMORY_PERMITTED)", result, error);
  }
  result = fi_enable(ep_.get());
  return result == 0 || fail("fi_enable", result, error);
}

bool Endpoint::describe(Error& error) {
  std::array<uint8_t, kAddressBytesMax> address{};
  size_t length = address.size();
  if (const int result = fi_getname(ep_.fid(), address.data(), &length); result != 0) {
    return fail("fi_getname", result, error);
  }
  // Op tables may be shorter than the headers', and an op may be missing from them.
  if (!FI_CHECK_OP(ep_->rma, fi_ops_rma, writemsg)) return fail("fi_writemsg", -FI_ENOSYS, error);
  RailInfo& info = description_;
  info.provider = info_->fabric_attr->prov_name;
  info.domain = info_->domain_attr->name;
  info.address.assign(address.begin(), address.begin() + static_cast<ptrdiff_t>(length));
  info.address_text = address_text(info_->addr_format, address.data(), length);
  info.address_format = address_format_name(info_->addr_format);
  info.max_message_bytes = info_->ep_attr->max_msg_size;
  info.mr_mode = info_->domain_attr->mr_mode;
  info.key_bytes = info_->domain_attr->mr_key_size;
  info.needs_local_registration = (info.mr_mode & FI_MR_LOCAL) != 0;
  info.removal_flushes = library_.removal_flushes && info.provider.ends_with(";ofi_rxm");
  info.has_wait_fd = wait_fd_ >= 0;
  if (efa::is_efa(info.provider)) {
    info.efa = efa::query_traits(ep_.get(), info_->fabric_attr->name, library_.loaded_version);
    info.efa_remarks = efa::remarks(*info.efa, library_.efa_remarks);
    info.address.push_back(efa::trait_byte(*info.efa));
  }
  info.quiescence = find_quiescence();
  return true;
}

Quiescence Endpoint::find_quiescence() const {
  const std::string& provider = description_.provider;
  // Device writes on both sides, checked against the region by the NIC.
  if (provider.starts_with("verbs") && library_.registration_cache_is_off) return Quiescence::kCloseRegion;
  if (description_.efa && efa::close_region_proves(*description_.efa)) return Quiescence::kCloseRegion;
  // A fence is answered by the peer's libfabric, and so proves nothing of what its device writes.
  const bool fences = description_.removal_flushes && library_.tcp_reads_when_told && provider.starts_with("tcp");
  return fences ? Quiescence::kFence : Quiescence::kCloseEndpoint;
}

void Endpoint::distrust() {
  description_.removal_flushes = false;
  distrust_fences();
}

void Endpoint::distrust_fences() {
  description_.quiescence = Quiescence::kCloseEndpoint;
}

bool Endpoint::may_sleep() {
  struct fid* queue = cq_.fid();
  return fi_trywait(fabric_.get(), &queue, 1) == 0;
}

}  // namespace fabrickv::fabric
