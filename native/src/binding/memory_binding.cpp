#include "binding/memory_binding.h"

#include <cstring>
#include <string>
#include <system_error>

#include "binding/environment.h"
#include "binding/napi_util.h"
#include "binding/task.h"
#include "memory/crc32c.h"
#include "memory/mapping.h"

namespace fabrickv::binding {
namespace {

using memory::Mapping;
using MappingRef = std::shared_ptr<Mapping>;

// Copies and checks go in steps, between which a process that ends is noticed.
constexpr size_t kStepBytes = size_t{64} << 20;

MappingRef find_mapping(napi_env env, uint64_t id) {
  auto& mappings = Environment::of(env).mappings;
  const auto found = mappings.find(id);
  return found == mappings.end() ? nullptr : found->second;
}

napi_value out_of_bounds(napi_env env, const char* call) {
  return make_details(env, {"INVALID_ARGUMENT", call, "the range is outside the mapping, or the mapping is closed"});
}

// --- mapping ---

class MapTask : public Task {
 public:
  explicit MapTask(const memory::MapOptions& options) : options_(options) {}

 private:
  void run() override {
    options_.stop = &environment().stopping();
    mapping_ = Mapping::create(options_, failure_);
  }
  napi_value result(napi_env env, bool& failed) override {
    if (mapping_ == nullptr) {
      failed = true;
      const std::string text = "mapping " + std::to_string(options_.size_bytes) +
                               " bytes: " + std::generic_category().message(failure_.error_number);
      return make_details(env, {"MAPPING_FAILED", failure_.call, text, failure_.error_number});
    }
    const uint64_t id = mapping_->serial();
    napi_value object = make_object(env);
    set(env, object, "id", make_number(env, static_cast<double>(id)));
    set(env, object, "hugePages", make_boolean(env, mapping_->huge_pages()));
    environment().mappings[id] = std::move(mapping_);
    return object;
  }

  memory::MapOptions options_;
  memory::MapFailure failure_;
  MappingRef mapping_;
};

napi_value map_memory(napi_env env, napi_callback_info info) {
  const Arguments arguments(env, info);
  memory::MapOptions options;
  options.size_bytes = arguments.count(0);
  options.prefault = arguments.boolean(1);
  options.huge_pages = arguments.boolean(2);
  return Task::start(env, std::make_unique<MapTask>(options));
}

napi_value close_mapping(napi_env env, napi_callback_info info) {
  const Arguments arguments(env, info);
  Environment::of(env).mappings.erase(arguments.count(0));
  return nullptr;
}

napi_value stop_tasks(napi_env env, napi_callback_info) {
  Environment::of(env).stop_tasks();
  return nullptr;
}

napi_value live_mappings(napi_env env, napi_callback_info) {
  return make_number(env, static_cast<double>(Mapping::live_count()));
}

// --- views and loans ---

// What an external ArrayBuffer holds until its memory cannot be reached any more.
struct Hold {
  MappingRef mapping;
  std::shared_ptr<Environment> environment;
  bool is_loan;
  double loan;
};

void release_hold(napi_env, void*, void* hint) {
  const std::unique_ptr<Hold> hold(static_cast<Hold*>(hint));
  if (hold->is_loan) hold->environment->loan_returned(hold->loan);
}

napi_value make_view(napi_env env, std::unique_ptr<Hold> hold, uint64_t offset, uint64_t length, const char* call) {
  if (hold->mapping == nullptr || !hold->mapping->contains(offset, length)) return out_of_bounds(env, call);
  napi_value buffer = nullptr;
  napi_status status = napi_ok;
  if (length == 0) {
    // There is no memory to refer to, but a loan of nothing is returned like any other.
    void* unused = nullptr;
    status = napi_create_arraybuffer(env, 0, &unused, &buffer);
    if (status == napi_ok) {
      status = napi_add_finalizer(env, buffer, nullptr, release_hold, hold.get(), nullptr);
    }
  } else {
    status = napi_create_external_arraybuffer(env, hold->mapping->base() + offset, length, release_hold, hold.get(),
                                              &buffer);
  }
  if (status != napi_ok) {
    napi_value ignored = nullptr;
    napi_get_and_clear_last_exception(env, &ignored);
    return make_details(
        env, {"MAPPING_FAILED", "napi_create_external_arraybuffer", "this runtime has no external ArrayBuffers"});
  }
  [[maybe_unused]] Hold* owned_by_the_finalizer = hold.release();
  return buffer;
}

napi_value view_mapping(napi_env env, napi_callback_info info) {
  const Arguments arguments(env, info);
  auto hold = std::make_unique<Hold>(
      Hold{find_mapping(env, arguments.count(0)), Environment::of(env).shared_from_this(), false, 0});
  return make_view(env, std::move(hold), arguments.count(1), arguments.count(2), "buffer");
}

napi_value lend_mapping(napi_env env, napi_callback_info info) {
  const Arguments arguments(env, info);
  auto hold = std::make_unique<Hold>(
      Hold{find_mapping(env, arguments.count(0)), Environment::of(env).shared_from_this(), true, arguments.number(3)});
  return make_view(env, std::move(hold), arguments.count(1), arguments.count(2), "lend");
}

napi_value detach(napi_env env, napi_callback_info info) {
  const Arguments arguments(env, info);
  bool detached = false;
  if (napi_is_detached_arraybuffer(env, arguments[0], &detached) != napi_ok || detached)
    return make_boolean(env, false);
  return make_boolean(env, napi_detach_arraybuffer(env, arguments[0]) == napi_ok);
}

napi_value on_loans_returned(napi_env env, napi_callback_info info) {
  const Arguments arguments(env, info);
  Environment::of(env).set_loan_handler(arguments[0]);
  return nullptr;
}

// --- copying and checking ---

enum class Direction { kIn, kOut, kCheck };

class CopyTask : public Task {
 public:
  CopyTask(Direction direction, MappingRef mapping, std::span<std::byte> within, std::byte* other, uint32_t seed)
      : direction_(direction), mapping_(std::move(mapping)), within_(within), other_(other), crc_(seed) {}

 private:
  void run() override {
    for (size_t at = 0; at < within_.size(); at += kStepBytes) {
      if (environment().stopping().load(std::memory_order_relaxed)) return;
      const std::span<std::byte> step = within_.subspan(at, std::min(kStepBytes, within_.size() - at));
      switch (direction_) {
        case Direction::kIn:
          crc_ = memory::copy_crc32c(step.data(), other_ + at, step.size(), crc_);
          break;
        case Direction::kOut:
          crc_ = memory::copy_crc32c(other_ + at, step.data(), step.size(), crc_);
          break;
        case Direction::kCheck:
          crc_ = memory::crc32c(step.data(), step.size(), crc_);
          break;
      }
    }
  }
  napi_value result(napi_env env, bool&) override { return make_number(env, crc_); }

  const Direction direction_;
  const MappingRef mapping_;
  const std::span<std::byte> within_;
  std::byte* const other_;
  uint32_t crc_;
};

napi_value reject(napi_env env, napi_value reason) {
  napi_deferred deferred = nullptr;
  napi_value promise = nullptr;
  napi_create_promise(env, &deferred, &promise);
  napi_reject_deferred(env, deferred, reason);
  return promise;
}

napi_value start_copy(napi_env env, napi_callback_info info, Direction direction, const char* call) {
  const Arguments arguments(env, info);
  MappingRef mapping = find_mapping(env, arguments.count(0));
  const uint64_t offset = arguments.count(1);
  const std::span<std::byte> other = direction == Direction::kCheck ? std::span<std::byte>() : arguments.bytes(2);
  const uint64_t length = direction == Direction::kCheck ? arguments.count(2) : other.size();
  if (mapping == nullptr || !mapping->contains(offset, length)) return reject(env, out_of_bounds(env, call));
  const std::span<std::byte> within = mapping->range(offset, length);
  auto task = std::make_unique<CopyTask>(direction, std::move(mapping), within, other.data(), arguments.word(3));
  return Task::start(env, std::move(task), direction == Direction::kCheck ? nullptr : arguments[2]);
}

napi_value copy_in(napi_env env, napi_callback_info info) {
  return start_copy(env, info, Direction::kIn, "copyIn");
}

napi_value copy_out(napi_env env, napi_callback_info info) {
  return start_copy(env, info, Direction::kOut, "copyOut");
}

napi_value crc32c_of_mapping(napi_env env, napi_callback_info info) {
  return start_copy(env, info, Direction::kCheck, "crc32c");
}

napi_value copy_sync(napi_env env, napi_callback_info info, bool in) {
  const Arguments arguments(env, info);
  const MappingRef mapping = find_mapping(env, arguments.count(0));
  const uint64_t offset = arguments.count(1);
  const std::span<std::byte> other = arguments.bytes(2);
  if (mapping == nullptr || !mapping->contains(offset, other.size()))
    return out_of_bounds(env, in ? "writeSync" : "readSync");
  std::byte* within = mapping->base() + offset;
  if (other.empty()) return nullptr;
  std::memcpy(in ? within : other.data(), in ? other.data() : within, other.size());
  return nullptr;
}

napi_value write_sync(napi_env env, napi_callback_info info) {
  return copy_sync(env, info, true);
}

napi_value read_sync(napi_env env, napi_callback_info info) {
  return copy_sync(env, info, false);
}

napi_value crc32c(napi_env env, napi_callback_info info) {
  const Arguments arguments(env, info);
  const std::span<std::byte> bytes = arguments.bytes(0);
  return make_number(env, memory::crc32c(bytes.data(), bytes.size(), arguments.word(1)));
}

}  // namespace

void define_memory(napi_env env, napi_value exports) {
  set(env, exports, "crc32cImplementation", make_string(env, memory::crc32c_implementation()));
  define(env, exports, "mapMemory", map_memory);
  define(env, exports, "closeMapping", close_mapping);
  define(env, exports, "stopTasks", stop_tasks);
  define(env, exports, "liveMappings", live_mappings);
  define(env, exports, "viewMapping", view_mapping);
  define(env, exports, "lendMapping", lend_mapping);
  define(env, exports, "detach", detach);
  define(env, exports, "onLoansReturned", on_loans_returned);
  define(env, exports, "copyIn", copy_in);
  define(env, exports, "copyOut", copy_out);
  define(env, exports, "crc32cOfMapping", crc32c_of_mapping);
  define(env, exports, "writeSync", write_sync);
  define(env, exports, "readSync", read_sync);
  define(env, exports, "crc32c", crc32c);
}

}  // namespace fabrickv::binding
