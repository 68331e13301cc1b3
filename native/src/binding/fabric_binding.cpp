#include "binding/fabric_binding.h"

#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "binding/environment.h"
#include "binding/napi_util.h"
#include "binding/rail_table.h"
#include "binding/rail_values.h"
#include "binding/task.h"
#include "fabric/provider.h"

namespace fabrickv::binding {
namespace {

// A piece of a write in the Float64Array of NativeAddon.railWrite.
constexpr size_t kFieldsPerPiece = 5;
// A thread that has completed its closing ends within microseconds.
constexpr auto kJoinLimit = std::chrono::seconds(5);

napi_value load_library(napi_env env, napi_callback_info info) {
  const Arguments arguments(env, info);
  fabric::Error error;
  const fabric::Libfabric* library = fabric::load_libfabric(get_strings(env, arguments[0]), error);
  if (library == nullptr) return make_details(env, error);
  napi_value object = make_object(env);
  set(env, object, "path", make_string(env, library->path));
  set(env, object, "version", make_string(env, fabric::version_text(library->loaded_version)));
  set(env, object, "apiVersion", make_string(env, fabric::version_text(library->api_version)));
  set(env, object, "buildVersion",
      make_string(env, fabric::version_text(FI_VERSION(FI_MAJOR_VERSION, FI_MINOR_VERSION))));
  set(env, object, "removalFlushes", make_boolean(env, library->removal_flushes));
  return object;
}

class ListTask : public Task {
 public:
  explicit ListTask(fabric::EndpointQuery query) : query_(std::move(query)) {}

 private:
  void run() override { entries_ = fabric::list_endpoints(*fabric::loaded_libfabric(), query_, error_); }
  napi_value result(napi_env env, bool& failed) override {
    failed = entries_.empty();
    if (failed) return make_details(env, error_);
    napi_value list = nullptr;
    napi_create_array_with_length(env, entries_.size(), &list);
    for (size_t i = 0; i < entries_.size(); i++) {
      napi_set_element(env, list, static_cast<uint32_t>(i), describe(env, entries_[i]));
    }
    return list;
  }
  static napi_value describe(napi_env env, const fabric::ProviderEntry& entry) {
    napi_value object = make_object(env);
    set(env, object, "provider", make_string(env, entry.provider));
    set(env, object, "domain", make_string(env, entry.domain));
    set(env, object, "fabric", make_string(env, entry.fabric));
    set(env, object, "addressFormat", make_string(env, entry.address_format));
    set(env, object, "addressText", make_string(env, entry.address_text));
    set(env, object, "maxMessageBytes", make_number(env, static_cast<double>(entry.max_message_bytes)));
    set(env, object, "transmitCredits", make_number(env, static_cast<double>(entry.transmit_credits)));
    set(env, object, "keyBytes", make_number(env, static_cast<double>(entry.key_bytes)));
    set(env, object, "linkSpeedBitsPerSecond", make_number(env, static_cast<double>(entry.link_speed_bits_per_second)));
    set(env, object, "linkState", make_string(env, entry.link_state));
    set(env, object, "device", make_string(env, entry.device));
    return object;
  }

  fabric::EndpointQuery query_;
  fabric::Error error_;
  std::vector<fabric::ProviderEntry> entries_;
};

napi_value list_endpoints(napi_env env, napi_callback_info info) {
  const Arguments arguments(env, info);
  return Task::start(env,
                     std::make_unique<ListTask>(fabric::EndpointQuery{arguments.string(0), arguments.string(1), ""}));
}

// --- rails ---

napi_value unknown_rail(napi_env env) {
  return make_details(env, {"RAIL_CLOSED", "rail", "the rail is closed"});
}

RailEntry* find_rail(napi_env env, const Arguments& arguments) {
  return Environment::of(env).rails().find(arguments.count(0));
}

// A token, or an id, or why not.
template <typename Number>
napi_value answer(napi_env env, const std::optional<Number>& number, const fabric::Error& error) {
  Environment::of(env).rails().update_liveness();
  return number ? make_number(env, static_cast<double>(*number)) : make_details(env, error);
}

napi_value open_rail(napi_env env, napi_callback_info info) {
  const Arguments arguments(env, info);
  napi_value from = arguments[0];
  fabric::RailOptions options;
  options.query.provider = get_string(env, from, "provider");
  options.query.source_address = get_string(env, from, "sourceAddress");
  options.query.domain = get_string(env, from, "domain");
  options.spin_us = static_cast<uint32_t>(get_number(env, from, "spinUs"));
  options.chunk_bytes = static_cast<uint64_t>(get_number(env, from, "chunkBytes"));
  options.chunks_in_flight = static_cast<uint32_t>(get_number(env, from, "chunksInFlight"));
  options.chunks_in_flight_per_peer = static_cast<uint32_t>(get_number(env, from, "chunksInFlightPerPeer"));
  options.force_local_registration = get_boolean(env, from, "forceLocalRegistration");
  Environment& environment = Environment::of(env);
  fabric::Error error;
  auto rail = fabric::Rail::open(
      *fabric::loaded_libfabric(), std::move(options), [wakeup = environment.wakeup()] { wakeup->send(); }, error);
  if (rail == nullptr) return make_details(env, error);
  return make_number(env, static_cast<double>(environment.rails().add(std::move(rail), arguments[1])));
}

napi_value rail_register(napi_env env, napi_callback_info info) {
  const Arguments arguments(env, info);
  RailEntry* entry = find_rail(env, arguments);
  if (entry == nullptr) return unknown_rail(env);
  const auto& mappings = Environment::of(env).mappings;
  const auto mapping = mappings.find(arguments.count(1));
  if (mapping == mappings.end()) return make_details(env, {"INVALID_ARGUMENT", "register", "the mapping is closed"});
  fabric::Error error;
  const auto token = entry->rail->register_region(mapping->second, arguments.count(2), arguments.count(3),
                                                  arguments.boolean(4), error);
  return answer(env, token, error);
}

napi_value rail_deregister(napi_env env, napi_callback_info info) {
  const Arguments arguments(env, info);
  RailEntry* entry = find_rail(env, arguments);
  if (entry == nullptr) return unknown_rail(env);
  fabric::Error error;
  const auto token = entry->rail->deregister_region(arguments.count(1), error);
  return answer(env, token, error);
}

napi_value rail_insert_peer(napi_env env, napi_callback_info info) {
  const Arguments arguments(env, info);
  RailEntry* entry = find_rail(env, arguments);
  if (entry == nullptr) return unknown_rail(env);
  const std::span<std::byte> address = arguments.bytes(1);
  fabric::Error error;
  const auto token =
      entry->rail->insert_peer({reinterpret_cast<const uint8_t*>(address.data()), address.size()}, error);
  return answer(env, token, error);
}

napi_value rail_remove_peer(napi_env env, napi_callback_info info) {
  const Arguments arguments(env, info);
  RailEntry* entry = find_rail(env, arguments);
  if (entry == nullptr) return unknown_rail(env);
  fabric::Error error;
  const auto token = entry->rail->remove_peer(arguments.count(1), error);
  return answer(env, token, error);
}

napi_value rail_define_remote(napi_env env, napi_callback_info info) {
  const Arguments arguments(env, info);
  RailEntry* entry = find_rail(env, arguments);
  if (entry == nullptr) return unknown_rail(env);
  fabric::Error error;
  const auto remote = entry->rail->define_remote(arguments.count(1), arguments.bigint(2), arguments.bigint(3),
                                                 arguments.count(4), error);
  return remote ? make_number(env, static_cast<double>(*remote)) : make_details(env, error);
}

napi_value rail_forget_remote(napi_env env, napi_callback_info info) {
  const Arguments arguments(env, info);
  RailEntry* entry = find_rail(env, arguments);
  return make_boolean(env, entry != nullptr && entry->rail->forget_remote(arguments.count(1)));
}

napi_value rail_write(napi_env env, napi_callback_info info) {
  const Arguments arguments(env, info);
  Environment& environment = Environment::of(env);
  RailEntry* entry = find_rail(env, arguments);
  if (entry == nullptr) return unknown_rail(env);
  const std::span<const double> fields = arguments.doubles(2);
  // Keeps its capacity, so that a write allocates nothing once it is warm. The JS thread of one environment uses it.
  static thread_local std::vector<fabric::WritePiece> pieces;
  if (fields.size() % kFieldsPerPiece != 0) {
    return make_details(env, {"INVALID_ARGUMENT", "write", "packed segments are five numbers each"});
  }
  fabric::Error error;
  for (size_t at = 0; at < fields.size(); at += kFieldsPerPiece) {
    const auto mapping = environment.mappings.find(to_count(fields[at]));
    if (mapping == environment.mappings.end()) {
      pieces.clear();
      return make_details(env, {"INVALID_ARGUMENT", "write", "the mapping is closed"});
    }
    pieces.push_back({mapping->second, to_count(fields[at + 1]), to_count(fields[at + 2]), to_count(fields[at + 3]),
                      to_count(fields[at + 4])});
  }
  const auto transfer = entry->rail->write(arguments.count(1), pieces, error);
  pieces.clear();
  return answer(env, transfer, error);
}

napi_value rail_cancel(napi_env env, napi_callback_info info) {
  const Arguments arguments(env, info);
  RailEntry* entry = find_rail(env, arguments);
  return make_boolean(env, entry != nullptr && entry->rail->cancel(arguments.count(1)));
}

napi_value rail_bytes_completed(napi_env env, napi_callback_info info) {
  const Arguments arguments(env, info);
  RailEntry* entry = find_rail(env, arguments);
  return make_number(env, entry == nullptr ? 0 : static_cast<double>(entry->rail->bytes_completed(arguments.count(1))));
}

napi_value rail_chunks_in_flight(napi_env env, napi_callback_info info) {
  const Arguments arguments(env, info);
  RailEntry* entry = find_rail(env, arguments);
  return make_number(env, entry == nullptr ? 0 : entry->rail->chunks_in_flight(arguments.count(1)));
}

// In the order of RAIL_STATS_FIELDS in src/fabric/rail-types.ts.
napi_value rail_stats(napi_env env, napi_callback_info info) {
  const Arguments arguments(env, info);
  RailEntry* entry = find_rail(env, arguments);
  const std::span<const double> into = arguments.doubles(1);
  if (entry == nullptr) return nullptr;
  const fabric::Counters& counters = entry->rail->counters();
  const int64_t age =
      fabric::milliseconds(fabric::Clock::now()) - counters.heartbeat_ms.load(std::memory_order_relaxed);
  const auto read = [](const std::atomic<uint64_t>& counter) {
    return static_cast<double>(counter.load(std::memory_order_relaxed));
  };
  const std::array<double, 15> values = {static_cast<double>(age),
                                         read(counters.writes_posted),
                                         read(counters.writes_completed),
                                         read(counters.writes_failed),
                                         read(counters.bytes_written),
                                         read(counters.eagain),
                                         read(counters.registrations),
                                         read(counters.deregistrations),
                                         read(counters.regions_open),
                                         read(counters.peers),
                                         read(counters.transfers_active),
                                         read(counters.wakeups),
                                         static_cast<double>(entry->batches),
                                         read(counters.sleeps),
                                         read(counters.close_failures)};
  std::copy_n(values.begin(), std::min(values.size(), into.size()), const_cast<double*>(into.data()));
  return nullptr;
}

napi_value rail_close(napi_env env, napi_callback_info info) {
  const Arguments arguments(env, info);
  RailEntry* entry = find_rail(env, arguments);
  if (entry == nullptr || entry->close_announced) return unknown_rail(env);
  entry->rail->close();
  Environment::of(env).rails().update_liveness();
  return make_number(env, static_cast<double>(fabric::kClosedToken));
}

class JoinTask : public Task {
 public:
  explicit JoinTask(std::unique_ptr<fabric::Rail> rail) : rail_(std::move(rail)) {}

 private:
  void run() override {
    if (rail_ == nullptr) return;
    rail_->close();
    rail_->join(kJoinLimit);
  }
  napi_value result(napi_env env, bool&) override { return make_undefined(env); }

  std::unique_ptr<fabric::Rail> rail_;
};

napi_value rail_join(napi_env env, napi_callback_info info) {
  const Arguments arguments(env, info);
  return Task::start(env, std::make_unique<JoinTask>(Environment::of(env).rails().take(arguments.count(0))));
}

}  // namespace

void define_fabric(napi_env env, napi_value exports) {
  define(env, exports, "loadLibfabric", load_library);
  define(env, exports, "listEndpoints", list_endpoints);
  define(env, exports, "openRail", open_rail);
  define(env, exports, "railRegister", rail_register);
  define(env, exports, "railDeregister", rail_deregister);
  define(env, exports, "railInsertPeer", rail_insert_peer);
  define(env, exports, "railRemovePeer", rail_remove_peer);
  define(env, exports, "railDefineRemote", rail_define_remote);
  define(env, exports, "railForgetRemote", rail_forget_remote);
  define(env, exports, "railWrite", rail_write);
  define(env, exports, "railCancel", rail_cancel);
  define(env, exports, "railBytesCompleted", rail_bytes_completed);
  define(env, exports, "railChunksInFlight", rail_chunks_in_flight);
  define(env, exports, "railStats", rail_stats);
  define(env, exports, "railClose", rail_close);
  define(env, exports, "railJoin", rail_join);
}

}  // namespace fabrickv::binding
