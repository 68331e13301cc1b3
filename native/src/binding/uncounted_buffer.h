#pragma once

#include <napi.h>

#include <atomic>
#include <cstddef>
#include <memory>
#include <optional>

namespace fabrickv::binding {

// External ArrayBuffers whose bytes V8 does not count as external memory. One per environment; belongs to its thread.
//
// Why: V8 collects garbage when its external memory has grown by 64 MiB, which every loan of that size makes it do:
// measured 257 mark-compacts in 300 loans by Node-API, and 68 ms of CPU instead of 34 for a GET of 64 MiB. V8 counts
// nothing for a backing store whose deleter is v8::BackingStore::EmptyDeleter. Node-API cannot make one, but every Node
// exports the functions of V8 that can.
//
// The price: V8 does not know what it would free, and collects for other reasons only. So not more than kBytesOutMax
// are out when one is made; who wants more gets counted ones, and V8 soon looks for what was dropped.
class UncountedBuffers {
 public:
  // Below, 64 of Node-API's have to be out at a time before V8 collects.
  static constexpr size_t kBytesMin = size_t{1} << 20;
  // Above, Node-API refuses on Node 20 (buffer.constants.MAX_LENGTH), and the collection is a small part of the work.
  static constexpr size_t kBytesMax = size_t{4} << 30;
  // The default of the client's receive pool.
  static constexpr size_t kBytesOutMax = size_t{256} << 20;

  // An ArrayBuffer over `data`, or null: then it is to be made by Node-API. `keep` is let go, on any thread, when
  // nothing can reach the bytes any more, be it through this ArrayBuffer or one that its bytes were transferred to.
  napi_value make(napi_env env, std::byte* data, size_t length, std::shared_ptr<void> keep);

 private:
  std::optional<bool> works_;
  const std::shared_ptr<std::atomic<size_t>> bytes_out_ = std::make_shared<std::atomic<size_t>>(0);
};

}  // namespace fabrickv::binding
