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

MappingRef find_mapping(const Napi::CallbackInfo& info) {
  auto& mappings = Environment::of(info.Env()).mappings;
  const auto found = mappings.find(to_count(info[0]));
  return found == mappings.end() ? nullptr : found->second;
}

Napi::Object out_of_bounds(Napi::Env env, const char* call) {
  return make_details(env, {"INVALID_ARGUMENT", call, "the range is outside the mapping, or the mapping is closed"});
}

class MapTask : public Task {
 public:
  MapTask(Napi::Env env, const memory::MapOptions& options) : Task(env), options_(options) {
    options_.stop = &environment().stopping();
  }

 private:
  void Execute() override { mapping_ = Mapping::create(options_, failure_); }
  void OnOK() override {
    if (mapping_ == nullptr) {
      const std::string text = "mapping " + std::to_string(options_.size_bytes) +
                               " bytes: " + std::generic_category().message(failure_.error_number);
      auto details = make_details(Env(), {"MAPPING_FAILED", failure_.call, text, failure_.error_number});
      if (std::strcmp(failure_.call, "mbind") == 0) {
        details.Set("hint", "there may be no NUMA node " + std::to_string(options_.numa_node) +
                                ": /sys/devices/system/node/online lists them; or a container's rules forbid mbind");
      }
      return reject(details);
    }
    const uint64_t id = mapping_->serial();
    auto object = Napi::Object::New(Env());
    object.Set("id", id);
    object.Set("hugePages", mapping_->huge_pages());
    environment().mappings[id] = std::move(mapping_);
    resolve(object);
  }

  memory::MapOptions options_;
  memory::MapFailure failure_;
  MappingRef mapping_;
};

Napi::Value map_memory(const Napi::CallbackInfo& info) {
  memory::MapOptions options;
  options.size_bytes = to_count(info[0]);
  options.prefault = to_boolean(info[1]);
  options.huge_pages = to_boolean(info[2]);
  options.numa_node = static_cast<int>(to_number(info[3]));
  return Task::start(std::make_unique<MapTask>(info.Env(), options));
}

void close_mapping(const Napi::CallbackInfo& info) {
  Environment::of(info.Env()).mappings.erase(to_count(info[0]));
}

void stop_tasks(const Napi::CallbackInfo& info) {
  Environment::of(info.Env()).stop_tasks();
}

Napi::Value live_mappings(const Napi::CallbackInfo& info) {
  return Napi::Number::New(info.Env(), static_cast<double>(Mapping::live_count()));
}

// What an external ArrayBuffer holds until its memory cannot be reached any more.
struct Hold {
  explicit Hold(MappingRef held) : mapping(std::move(held)) {}
  Hold(const Hold&) = delete;
  Hold& operator=(const Hold&) = delete;
  // Any thread.
  ~Hold() {
    mapping.reset();
    if (returned_loans != nullptr) returned_loans->add(loan);
  }

  MappingRef mapping;
  // Null unless it is a loan.
  std::shared_ptr<ReturnedLoans> returned_loans;
  double loan = 0;
  // The finalizer's reference.
  std::shared_ptr<Hold> self;
};
using HoldRef = std::shared_ptr<Hold>;

void release_hold(napi_env, void*, void* hint) {
  const HoldRef last = std::move(static_cast<Hold*>(hint)->self);
}

// By Node-API, or null with an exception that may be pending.
napi_value make_counted_buffer(napi_env env, std::byte* data, size_t length, const HoldRef& hold) {
  hold->self = hold;
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
    status = napi_create_external_arraybuffer(env, data, length, release_hold, hold.get(), &buffer);
  }
  if (status == napi_ok) return buffer;
  // Node may call the finalizer for what it refuses, too, now or later: it does for more than
  // buffer.constants.MAX_LENGTH on Node 20. So the finalizer keeps its reference, to next to nothing.
  hold->mapping.reset();
  return nullptr;
}

// Calls Node-API itself: that a runtime has no external ArrayBuffers is an answer, and not to be thrown.
Napi::Value make_view(const Napi::CallbackInfo& info, const char* call, bool is_loan) {
  const Napi::Env env = info.Env();
  const uint64_t offset = to_count(info[1]);
  const uint64_t length = to_count(info[2]);
  const auto hold = std::make_shared<Hold>(find_mapping(info));
  if (hold->mapping == nullptr || !hold->mapping->contains(offset, length)) return out_of_bounds(env, call);
  Environment& environment = Environment::of(env);
  std::byte* const data = hold->mapping->base() + offset;
  napi_value buffer = is_loan ? environment.uncounted_buffers().make(env, data, length, hold) : nullptr;
  if (buffer == nullptr) buffer = make_counted_buffer(env, data, length, hold);
  if (buffer == nullptr) {
    napi_value ignored = nullptr;
    napi_get_and_clear_last_exception(env, &ignored);
    return make_details(
        env, {"MAPPING_FAILED", "napi_create_external_arraybuffer", "this runtime has no external ArrayBuffers"});
  }
  if (is_loan) {
    hold->returned_loans = environment.returned_loans();
    hold->loan = to_number(info[3]);
  }
  return {env, buffer};
}

Napi::Value view_mapping(const Napi::CallbackInfo& info) {
  return make_view(info, "buffer", false);
}

Napi::Value lend_mapping(const Napi::CallbackInfo& info) {
  return make_view(info, "lend", true);
}

Napi::Value detach(const Napi::CallbackInfo& info) {
  bool detached = true;
  const bool is_attached = napi_is_detached_arraybuffer(info.Env(), info[0], &detached) == napi_ok && !detached;
  return Napi::Boolean::New(info.Env(), is_attached && napi_detach_arraybuffer(info.Env(), info[0]) == napi_ok);
}

void on_loans_returned(const Napi::CallbackInfo& info) {
  Environment::of(info.Env()).set_loan_handler(info[0].As<Napi::Function>());
}

enum class Direction { kIn, kOut, kCheck };

class CopyTask : public Task {
 public:
  // `other` is empty where there is only something to check.
  CopyTask(Napi::Env env, Direction direction, MappingRef mapping, std::span<std::byte> within,
           const Napi::Value& other, uint32_t seed)
      : Task(env, other),
        direction_(direction),
        mapping_(std::move(mapping)),
        within_(within),
        other_(to_bytes(other).data()),
        crc_(seed) {}

 private:
  void Execute() override {
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
  void OnOK() override { resolve(Napi::Number::New(Env(), crc_)); }

  const Direction direction_;
  const MappingRef mapping_;
  const std::span<std::byte> within_;
  std::byte* const other_;
  uint32_t crc_;
};

// A promise that is rejected. As in Task::start, it must not be garbage when a worker is being terminated.
Napi::Value rejected(Napi::Env env, napi_value reason) {
  napi_deferred deferred = nullptr;
  napi_value promise = nullptr;
  napi_create_promise(env, &deferred, &promise);
  napi_reject_deferred(env, deferred, reason);
  return {env, promise};
}

Napi::Value start_copy(const Napi::CallbackInfo& info, Direction direction, const char* call) {
  MappingRef mapping = find_mapping(info);
  const uint64_t offset = to_count(info[1]);
  const bool copies = direction != Direction::kCheck;
  const uint64_t length = copies ? to_bytes(info[2]).size() : to_count(info[2]);
  if (mapping == nullptr || !mapping->contains(offset, length)) {
    return rejected(info.Env(), out_of_bounds(info.Env(), call));
  }
  const std::span<std::byte> within = mapping->range(offset, length);
  return Task::start(std::make_unique<CopyTask>(info.Env(), direction, std::move(mapping), within,
                                                copies ? info[2] : Napi::Value(), to_word(info[3])));
}

Napi::Value copy_in(const Napi::CallbackInfo& info) {
  return start_copy(info, Direction::kIn, "copyIn");
}

Napi::Value copy_out(const Napi::CallbackInfo& info) {
  return start_copy(info, Direction::kOut, "copyOut");
}

Napi::Value crc32c_of_mapping(const Napi::CallbackInfo& info) {
  return start_copy(info, Direction::kCheck, "crc32c");
}

Napi::Value copy_sync(const Napi::CallbackInfo& info, bool in) {
  const MappingRef mapping = find_mapping(info);
  const uint64_t offset = to_count(info[1]);
  const std::span<std::byte> other = to_bytes(info[2]);
  if (mapping == nullptr || !mapping->contains(offset, other.size())) {
    return out_of_bounds(info.Env(), in ? "writeSync" : "readSync");
  }
  std::byte* within = mapping->base() + offset;
  if (!other.empty()) std::memcpy(in ? within : other.data(), in ? other.data() : within, other.size());
  return {};
}

Napi::Value write_sync(const Napi::CallbackInfo& info) {
  return copy_sync(info, true);
}

Napi::Value read_sync(const Napi::CallbackInfo& info) {
  return copy_sync(info, false);
}

Napi::Value crc32c(const Napi::CallbackInfo& info) {
  const std::span<std::byte> bytes = to_bytes(info[0]);
  return Napi::Number::New(info.Env(), memory::crc32c(bytes.data(), bytes.size(), to_word(info[1])));
}

Napi::Value yield_cpu(const Napi::CallbackInfo& info) {
  sched_yield();
  return info.Env().Undefined();
}

}  // namespace

void define_memory(Napi::Object exports) {
  exports.Set("crc32cImplementation", memory::crc32c_implementation());
  define<map_memory>(exports, "mapMemory");
  define<close_mapping>(exports, "closeMapping");
  define<stop_tasks>(exports, "stopTasks");
  define<live_mappings>(exports, "liveMappings");
  define<view_mapping>(exports, "viewMapping");
  define<lend_mapping>(exports, "lendMapping");
  define<detach>(exports, "detach");
  define<on_loans_returned>(exports, "onLoansReturned");
  define<copy_in>(exports, "copyIn");
  define<copy_out>(exports, "copyOut");
  define<crc32c_of_mapping>(exports, "crc32cOfMapping");
  define<write_sync>(exports, "writeSync");
  define<read_sync>(exports, "readSync");
  define<crc32c>(exports, "crc32c");
  define<yield_cpu>(exports, "yieldCpu");
}

}  // namespace fabrickv::binding
