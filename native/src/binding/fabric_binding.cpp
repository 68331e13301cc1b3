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

Napi::Value load_library(const Napi::CallbackInfo& info) {
  const Napi::Env env = info.Env();
  fabric::Error error;
  const fabric::Libfabric* library = fabric::load_libfabric(to_strings(info[0]), error);
  if (library == nullptr) return make_details(env, error);
  auto object = Napi::Object::New(env);
  object.Set("path", library->path);
  object.Set("version", fabric::version_text(library->loaded_version));
  object.Set("apiVersion", fabric::version_text(library->api_version));
  object.Set("buildVersion", fabric::version_text(FI_VERSION(FI_MAJOR_VERSION, FI_MINOR_VERSION)));
  object.Set("removalFlushes", library->removal_flushes);
  return object;
}

class ListTask : public Task {
 public:
  ListTask(Napi::Env env, fabric::EndpointQuery query) : Task(env), query_(std::move(query)) {}

 private:
  void Execute() override { entries_ = fabric::list_endpoints(*fabric::loaded_libfabric(), query_, error_); }
  void OnOK() override {
    if (entries_.empty()) return reject(make_details(Env(), error_));
    auto list = Napi::Array::New(Env(), entries_.size());
    for (uint32_t i = 0; i < entries_.size(); i++) list.Set(i, describe(entries_[i]));
    resolve(list);
  }
  Napi::Object describe(const fabric::ProviderEntry& entry) const {
    auto object = Napi::Object::New(Env());
    object.Set("provider", entry.provider);
    object.Set("domain", entry.domain);
    object.Set("fabric", entry.fabric);
    object.Set("addressFormat", entry.address_format);
    object.Set("addressText", entry.address_text);
    object.Set("maxMessageBytes", entry.max_message_bytes);
    object.Set("transmitCredits", entry.transmit_credits);
    object.Set("keyBytes", entry.key_bytes);
    object.Set("linkSpeedBitsPerSecond", entry.link_speed_bits_per_second);
    object.Set("linkState", entry.link_state);
    object.Set("device", entry.device);
    return object;
  }

  fabric::EndpointQuery query_;
  fabric::Error error_;
  std::vector<fabric::ProviderEntry> entries_;
};

Napi::Value list_endpoints(const Napi::CallbackInfo& info) {
  fabric::EndpointQuery query{to_string(info[0]), to_string(info[1]), ""};
  return Task::start(std::make_unique<ListTask>(info.Env(), std::move(query)));
}

RailTable& rails(const Napi::CallbackInfo& info) {
  return Environment::of(info.Env()).rails();
}

RailEntry* find_rail(const Napi::CallbackInfo& info) {
  return rails(info).find(to_count(info[0]));
}

Napi::Value unknown_rail(Napi::Env env) {
  return make_details(env, {"RAIL_CLOSED", "rail", "the rail is closed"});
}

// Calls a rail for a token or an id, and answers with that, or with why not.
template <typename Call>
Napi::Value ask_rail(const Napi::CallbackInfo& info, Call call) {
  RailEntry* entry = find_rail(info);
  if (entry == nullptr) return unknown_rail(info.Env());
  fabric::Error error;
  const auto number = call(*entry->rail, error);
  rails(info).update_liveness();
  if (!number) return make_details(info.Env(), error);
  return Napi::Number::New(info.Env(), static_cast<double>(*number));
}

std::nullopt_t refuse(fabric::Error& error, const char* call, const char* text) {
  error.call = call;
  error.text = text;
  return std::nullopt;
}

Napi::Value open_rail(const Napi::CallbackInfo& info) {
  const auto from = info[0].As<Napi::Object>();
  fabric::RailOptions options;
  options.query.provider = to_string(from.Get("provider"));
  options.query.source_address = to_string(from.Get("sourceAddress"));
  options.query.domain = to_string(from.Get("domain"));
  const double spin_us = to_number(from.Get("spinUs"));
  options.spin_auto = spin_us < 0;
  if (!options.spin_auto) options.spin_us = static_cast<uint32_t>(spin_us);
  options.chunk_bytes = static_cast<uint64_t>(to_number(from.Get("chunkBytes")));
  options.chunks_in_flight = static_cast<uint32_t>(to_number(from.Get("chunksInFlight")));
  options.chunks_in_flight_per_peer = static_cast<uint32_t>(to_number(from.Get("chunksInFlightPerPeer")));
  options.force_local_registration = to_boolean(from.Get("forceLocalRegistration"));
  options.force_close_endpoint = to_boolean(from.Get("forceCloseEndpoint"));
  options.cpu = static_cast<int>(to_number(from.Get("cpu")));
  fabric::Error error;
  auto rail = fabric::Rail::open(
      *fabric::loaded_libfabric(), std::move(options),
      [wakeup = Environment::of(info.Env()).wakeup()] { wakeup->send(); }, error);
  if (rail == nullptr) return make_details(info.Env(), error);
  const uint64_t id = rails(info).add(std::move(rail), info[1].As<Napi::Function>());
  return Napi::Value::From(info.Env(), id);
}

Napi::Value rail_register(const Napi::CallbackInfo& info) {
  return ask_rail(info, [&](fabric::Rail& rail, fabric::Error& error) -> fabric::Rail::Token {
    const auto& mappings = Environment::of(info.Env()).mappings;
    const auto mapping = mappings.find(to_count(info[1]));
    if (mapping == mappings.end()) return refuse(error, "register", "the mapping is closed");
    return rail.register_region(mapping->second, to_count(info[2]), to_count(info[3]), to_boolean(info[4]), error);
  });
}

Napi::Value rail_deregister(const Napi::CallbackInfo& info) {
  return ask_rail(
      info, [&](fabric::Rail& rail, fabric::Error& error) { return rail.deregister_region(to_count(info[1]), error); });
}

Napi::Value rail_insert_peer(const Napi::CallbackInfo& info) {
  return ask_rail(info, [&](fabric::Rail& rail, fabric::Error& error) {
    const std::span<std::byte> address = to_bytes(info[1]);
    return rail.insert_peer({reinterpret_cast<const uint8_t*>(address.data()), address.size()}, error);
  });
}

Napi::Value rail_remove_peer(const Napi::CallbackInfo& info) {
  return ask_rail(info,
                  [&](fabric::Rail& rail, fabric::Error& error) { return rail.remove_peer(to_count(info[1]), error); });
}

Napi::Value rail_disconnect_peer(const Napi::CallbackInfo& info) {
  return ask_rail(
      info, [&](fabric::Rail& rail, fabric::Error& error) { return rail.disconnect_peer(to_count(info[1]), error); });
}

Napi::Value rail_prove(const Napi::CallbackInfo& info) {
  return ask_rail(info, [](fabric::Rail& rail, fabric::Error& error) { return rail.prove(error); });
}

Napi::Value rail_define_remote(const Napi::CallbackInfo& info) {
  return ask_rail(info, [&](fabric::Rail& rail, fabric::Error& error) {
    return rail.define_remote(to_count(info[1]), to_bigint(info[2]), to_bigint(info[3]), to_count(info[4]), error);
  });
}

Napi::Value rail_forget_remote(const Napi::CallbackInfo& info) {
  RailEntry* entry = find_rail(info);
  return Napi::Boolean::New(info.Env(), entry != nullptr && entry->rail->forget_remote(to_count(info[1])));
}

Napi::Value rail_write(const Napi::CallbackInfo& info) {
  return ask_rail(info, [&](fabric::Rail& rail, fabric::Error& error) -> std::optional<uint64_t> {
    // Keeps its capacity, so that a write allocates nothing once it is warm. The JS thread of one environment uses it.
    static thread_local std::vector<fabric::WritePiece> pieces;
    const auto& mappings = Environment::of(info.Env()).mappings;
    const std::span<const double> fields = to_doubles(info[2]);
    if (fields.size() % kFieldsPerPiece != 0) {
      return refuse(error, "write", "packed segments are five numbers each");
    }
    pieces.clear();
    for (size_t at = 0; at < fields.size(); at += kFieldsPerPiece) {
      const auto mapping = mappings.find(to_count(fields[at]));
      if (mapping == mappings.end()) {
        pieces.clear();
        return refuse(error, "write", "the mapping is closed");
      }
      pieces.push_back({mapping->second, to_count(fields[at + 1]), to_count(fields[at + 2]), to_count(fields[at + 3]),
                        to_count(fields[at + 4])});
    }
    const auto transfer = rail.write(to_count(info[1]), pieces, error);
    pieces.clear();
    return transfer;
  });
}

Napi::Value rail_ping_peer(const Napi::CallbackInfo& info) {
  return ask_rail(info, [&](fabric::Rail& rail, fabric::Error& error) {
    return rail.ping(to_count(info[1]), to_count(info[2]), error);
  });
}

Napi::Value rail_cancel(const Napi::CallbackInfo& info) {
  RailEntry* entry = find_rail(info);
  return Napi::Boolean::New(info.Env(), entry != nullptr && entry->rail->cancel(to_count(info[1])));
}

Napi::Value rail_bytes_completed(const Napi::CallbackInfo& info) {
  RailEntry* entry = find_rail(info);
  return Napi::Value::From(info.Env(), entry == nullptr ? 0 : entry->rail->bytes_completed(to_count(info[1])));
}

Napi::Value rail_chunks_in_flight(const Napi::CallbackInfo& info) {
  RailEntry* entry = find_rail(info);
  return Napi::Value::From(info.Env(), entry == nullptr ? 0 : entry->rail->chunks_in_flight(to_count(info[1])));
}

// In the order of RAIL_STATS_FIELDS in src/fabric/rail-types.ts.
void rail_stats(const Napi::CallbackInfo& info) {
  RailEntry* entry = find_rail(info);
  if (entry == nullptr) return;
  const std::span<double> into = to_doubles(info[1]);
  const fabric::Counters& counters = entry->rail->counters();
  const int64_t age =
      fabric::milliseconds(fabric::Clock::now()) - counters.heartbeat_ms.load(std::memory_order_relaxed);
  const auto read = [](const std::atomic<uint64_t>& counter) {
    return static_cast<double>(counter.load(std::memory_order_relaxed));
  };
  const std::array<double, 18> values = {static_cast<double>(age),
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
                                         read(counters.close_failures),
                                         read(counters.proofs),
                                         read(counters.peers_disconnected),
                                         read(counters.connections_ended)};
  std::copy_n(values.begin(), std::min(values.size(), into.size()), into.data());
}

Napi::Value rail_close(const Napi::CallbackInfo& info) {
  RailEntry* entry = find_rail(info);
  if (entry == nullptr || entry->close_announced) return unknown_rail(info.Env());
  entry->rail->close();
  rails(info).update_liveness();
  return Napi::Value::From(info.Env(), fabric::kClosedToken);
}

class JoinTask : public Task {
 public:
  JoinTask(Napi::Env env, std::unique_ptr<fabric::Rail> rail) : Task(env), rail_(std::move(rail)) {}

 private:
  void Execute() override {
    if (rail_ == nullptr) return;
    rail_->close();
    rail_->join(kJoinLimit);
  }
  void OnOK() override { resolve(Env().Undefined()); }

  std::unique_ptr<fabric::Rail> rail_;
};

Napi::Value rail_join(const Napi::CallbackInfo& info) {
  return Task::start(std::make_unique<JoinTask>(info.Env(), rails(info).take(to_count(info[0]))));
}

}  // namespace

void define_fabric(Napi::Object exports) {
  define<load_library>(exports, "loadLibfabric");
  define<list_endpoints>(exports, "listEndpoints");
  define<open_rail>(exports, "openRail");
  define<rail_register>(exports, "railRegister");
  define<rail_deregister>(exports, "railDeregister");
  define<rail_insert_peer>(exports, "railInsertPeer");
  define<rail_remove_peer>(exports, "railRemovePeer");
  define<rail_disconnect_peer>(exports, "railDisconnectPeer");
  define<rail_prove>(exports, "railProve");
  define<rail_define_remote>(exports, "railDefineRemote");
  define<rail_forget_remote>(exports, "railForgetRemote");
  define<rail_write>(exports, "railWrite");
  define<rail_ping_peer>(exports, "railPingPeer");
  define<rail_cancel>(exports, "railCancel");
  define<rail_bytes_completed>(exports, "railBytesCompleted");
  define<rail_chunks_in_flight>(exports, "railChunksInFlight");
  define<rail_stats>(exports, "railStats");
  define<rail_close>(exports, "railClose");
  define<rail_join>(exports, "railJoin");
}

}  // namespace fabrickv::binding
