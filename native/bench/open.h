#pragma once

#include <atomic>
#include <cstdint>
#include <memory>

#include "arguments.h"
#include "fabric/endpoint.h"
#include "memory/mapping.h"

namespace fabrickv::bench {

// An endpoint and a piece of prefaulted memory that is registered on it; what each of the two processes has. Library,
// environment and hints are the product's.
class Opened {
 public:
  Opened() = default;
  ~Opened();
  Opened(const Opened&) = delete;
  Opened& operator=(const Opened&) = delete;

  // False, after saying why on standard error.
  bool open(const Arguments& arguments, uint64_t access);

  std::byte* base() const { return mapping_->base(); }
  void* descriptor() const { return fi_mr_desc(registration_); }
  uint64_t key() const { return fi_mr_key(registration_); }
  // What a peer adds its offsets to.
  uint64_t remote_address() const;

  std::unique_ptr<fabric::Endpoint> endpoint;

 private:
  std::atomic<uint64_t> close_failures_{0};
  std::shared_ptr<memory::Mapping> mapping_;
  fid_mr* registration_ = nullptr;
};

}  // namespace fabrickv::bench
