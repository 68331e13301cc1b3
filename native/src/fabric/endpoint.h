#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "fabric/efa.h"
#include "fabric/libfabric.h"
#include "fabric/provider.h"

namespace fabrickv::fabric {

// What proves that no write of anybody's to a closed region can still land.
enum class Quiescence {
  // The region's close has returned.
  kCloseRegion,
  // The region is closed, and then every connection fenced or ended: see progress_proof.cpp.
  kFence,
  // Only the endpoint's close.
  kCloseEndpoint,
};

// What a rail turned out to be. See RailInfo in src/fabric/rail-types.ts.
struct RailInfo {
  std::string provider;
  std::string domain;
  // What a peer inserts: fi_getname's, and on EFA efa::trait_byte behind it.
  std::vector<uint8_t> address;
  std::string address_text;
  std::string address_format;
  size_t max_message_bytes = 0;
  size_t transmit_credits = 0;
  int mr_mode = 0;
  size_t key_bytes = 0;
  size_t chunk_bytes = 0;
  bool needs_local_registration = false;
  // Whether removing a peer flushes the operations outstanding to it.
  bool removal_flushes = false;
  bool has_wait_fd = false;
  Quiescence quiescence = Quiescence::kCloseEndpoint;
  // Only on EFA.
  std::optional<efa::Traits> efa;
  std::vector<std::string> efa_remarks;
};

// Owns one libfabric object. Its close is checked: by whoever calls close(), or counted when the destructor does it.
template <typename T>
class Fid {
 public:
  explicit Fid(std::atomic<uint64_t>& close_failures) : close_failures_(close_failures) {}
  ~Fid() { close(); }
  Fid(const Fid&) = delete;
  Fid& operator=(const Fid&) = delete;

  T* get() const { return object_; }
  T* operator->() const { return object_; }
  T** out() { return &object_; }
  struct fid* fid() const {
    return &object_->fid;
  }

  // 0, or a negative errno; what libfabric refuses to close is left to the process's end.
  int close() {
    if (object_ == nullptr) return 0;
    const int result = fi_close(&object_->fid);
    object_ = nullptr;
    if (result != 0) close_failures_.fetch_add(1, std::memory_order_relaxed);
    return result;
  }
  // Leaves the object open for good.
  void abandon() { object_ = nullptr; }

 private:
  T* object_ = nullptr;
  std::atomic<uint64_t>& close_failures_;
};

// Fabric, domain, completion queue, address vector and endpoint of one NIC. Belongs to the progress thread.
class Endpoint {
 public:
  // `credits` limits the writes in flight and sizes the queue. Null on failure.
  static std::unique_ptr<Endpoint> open(const Libfabric& library, const EndpointQuery& query, size_t credits_max,
                                        std::atomic<uint64_t>& close_failures, Error& error);

  const RailInfo& info() const { return description_; }
  // From here on it behaves as where only closing it proves that no write can still land.
  void distrust();
  // The same, but removing a peer still flushes what is outstanding to it.
  void distrust_fences();
  const Libfabric& library() const { return library_; }
  fid_domain* domain() const { return domain_.get(); }
  fid_cq* cq() const { return cq_.get(); }
  fid_av* av() const { return av_.get(); }
  fid_ep* ep() const { return ep_.get(); }
  // -1 where the provider has none.
  int wait_fd() const { return wait_fd_; }
  // Whether it is safe to sleep on wait_fd(): false means that there is something to read already.
  bool may_sleep();

  // Closes the endpoint alone. From then on nothing lands in any region, and the queue must not be read if operations
  // were outstanding (tcp;ofi_rxm crashes). 0, or a negative errno.
  int close_endpoint() { return ep_.close(); }

  Endpoint(const Libfabric& library, std::atomic<uint64_t>& close_failures);

 private:
  bool open_all(const EndpointQuery& query, size_t credits_max, Error& error);
  bool open_queue(size_t size, Error& error);
  bool open_address_vector(Error& error);
  bool open_endpoint(Error& error);
  bool describe(Error& error);
  Quiescence find_quiescence() const;
  bool fail(const char* call, int result, Error& error) const;

  const Libfabric& library_;
  // Where it was to be opened, for errors.
  std::string place_;
  // In the order of opening: destruction closes endpoint, address vector, queue, domain and fabric, in this order. Each
  // refuses to close while what follows it is open.
  Info info_;
  RailInfo description_;
  Fid<fid_fabric> fabric_;
  Fid<fid_domain> domain_;
  Fid<fid_cq> cq_;
  Fid<fid_av> av_;
  Fid<fid_ep> ep_;
  int wait_fd_ = -1;
};

}  // namespace fabrickv::fabric
