#include "fabric/libfabric.h"

#include <dlfcn.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <climits>
#include <csignal>
#include <cstdlib>
#include <cstring>
#include <mutex>
#include <optional>
#include <string_view>
#include <utility>
#include <vector>

#include "fabric/efa.h"
#include "fabric/exit_guard.h"

namespace fabrickv::fabric {
namespace {

// fi_info's layout belongs to the version of the symbol that fills it in, so the symbols are pinned to the headers that
// we were compiled with; without a version dlsym would hand out the newest layout.
#if FI_MAJOR_VERSION == 1 && FI_MINOR_VERSION >= 11 && FI_MINOR_VERSION <= 19
constexpr const char* kInfoSymbolVersion = "FABRIC_1.3";
#elif FI_MAJOR_VERSION == 1 && FI_MINOR_VERSION >= 20
constexpr const char* kInfoSymbolVersion = "FABRIC_1.7";
#elif FI_MAJOR_VERSION == 2 && FI_MINOR_VERSION <= 4
constexpr const char* kInfoSymbolVersion = "FABRIC_1.8";
#elif FI_MAJOR_VERSION == 2
constexpr const char* kInfoSymbolVersion = "FABRIC_1.9";
#else
#error "libfabric's headers must be 1.11 or later, and of a version whose fi_info layout is known"
#endif

constexpr std::array kGuardedSignals = {SIGINT, SIGTERM, SIGSEGV, SIGBUS, SIGILL, SIGABRT};

// Debian's libfabric pulls in the PSM libraries, which take these signals over when they are loaded.
class SignalGuard {
 public:
  SignalGuard() {
    for (size_t i = 0; i < kGuardedSignals.size(); i++) sigaction(kGuardedSignals[i], nullptr, &saved_[i]);
  }
  ~SignalGuard() {
    for (size_t i = 0; i < kGuardedSignals.size(); i++) sigaction(kGuardedSignals[i], &saved_[i], nullptr);
  }
  SignalGuard(const SignalGuard&) = delete;
  SignalGuard& operator=(const SignalGuard&) = delete;

 private:
  std::array<struct sigaction, kGuardedSignals.size()> saved_{};
};

std::mutex load_mutex;
std::mutex info_mutex;
// Set once, under load_mutex, and never freed.
std::atomic<const Libfabric*> loaded{nullptr};

bool is_true(const char* value) {
  if (value == nullptr) return false;
  for (const char* word : {"1", "yes", "true", "on"}) {
    if (strcasecmp(value, word) == 0) return true;
  }
  return false;
}

bool is_zero(const char* name) {
  const char* value = std::getenv(name);
  return value != nullptr && std::string_view(value) == "0";
}

// Both are off when nothing is said of them.
bool tcp_was_told_to_wait() {
  return std::ranges::none_of(std::array{"FI_TCP_IO_URING", "FI_OFI_RXM_DATA_AUTO_PROGRESS"},
                              [](const char* name) { return std::getenv(name) != nullptr && !is_zero(name); });
}

// Returns the remarks on what EFA has there.
std::vector<std::string> set_environment(const std::map<std::string, std::string>& environment) {
  for (const auto& [name, value] : environment) setenv(name.c_str(), value.c_str(), 1);
  // Removing a peer must flush its operations: quiescence rests on it, so nobody may switch it off.
  setenv("FI_AV_REMOVE_CLEANUP", "1", 1);
  // A proof rests on the provider reading payloads itself, and only when it is told to (progress_proof.cpp): not by a
  // ring, nor by a thread of rxm's.
  setenv("FI_TCP_IO_URING", "0", 1);
  setenv("FI_OFI_RXM_DATA_AUTO_PROGRESS", "0", 1);
  // With the registration cache, writes to a region that was closed succeed on verbs.
  setenv("FI_MR_CACHE_MAX_COUNT", "0", 0);
  // rxm's bounce buffers are for messages, of which we send none: at their default of 16 KiB each, an endpoint takes
  // and touches 68 MiB for them (libfabric 1.17). Both sides of a connection must have the same.
  setenv("FI_OFI_RXM_BUFFER_SIZE", "1024", 0);
  return efa::prepare_environment();
}

std::vector<std::string> places_to_look() {
  const char* named = std::getenv("FABRICKV_LIBFABRIC");
  if (named != nullptr && *named != '\0') return {named};
  return {"libfabric.so.1", "/opt/amazon/efa/lib64/libfabric.so.1", "/opt/amazon/efa/lib/libfabric.so.1"};
}

Error missing(std::string call, std::string text) {
  Error error;
  error.code = ErrorCode::kLibfabricMissing;
  error.call = std::move(call);
  error.text = std::move(text);
  error.hint =
      "install libfabric (Debian, Ubuntu: apt-get install libfabric1; AWS: the EFA installer), or name the file in "
      "FABRICKV_LIBFABRIC; without it values travel inline only";
  return error;
}

template <typename Function>
bool resolve(void* handle, const char* name, const char* version, Function& function) {
  function = reinterpret_cast<Function>(dlvsym(handle, name, version));
  return function != nullptr;
}

// Null, with the reason in `text`.
std::unique_ptr<Libfabric> bind_symbols(void* handle, const std::string& place, std::string& text) {
  auto library = std::make_unique<Libfabric>();
  const std::array<std::pair<const char*, const char*>, 6> symbols = {{{"fi_getinfo", kInfoSymbolVersion},
                                                                       {"fi_freeinfo", kInfoSymbolVersion},
                                                                       {"fi_dupinfo", kInfoSymbolVersion},
                                                                       {"fi_fabric", "FABRIC_1.1"},
                                                                       {"fi_version", "FABRIC_1.0"},
                                                                       {"fi_strerror", "FABRIC_1.0"}}};
  const std::array<bool, 6> found = {resolve(handle, symbols[0].first, symbols[0].second, library->getinfo),
                                     resolve(handle, symbols[1].first, symbols[1].second, library->freeinfo),
                                     resolve(handle, symbols[2].first, symbols[2].second, library->dupinfo),
                                     resolve(handle, symbols[3].first, symbols[3].second, library->open_fabric),
                                     resolve(handle, symbols[4].first, symbols[4].second, library->version),
                                     resolve(handle, symbols[5].first, symbols[5].second, library->strerror)};
  for (size_t i = 0; i < found.size(); i++) {
    if (found[i]) continue;
    text = std::string(symbols[i].first) + "@" + symbols[i].second +
           " is not in it (the addon was built with the headers of " +
           version_text(FI_VERSION(FI_MAJOR_VERSION, FI_MINOR_VERSION)) +
           "; rebuild it, or install that version or a later one)";
    return nullptr;
  }
  Dl_info where{};
  std::array<char, PATH_MAX> resolved{};
  library->path = place;
  if (dladdr(reinterpret_cast<void*>(library->getinfo), &where) != 0 && where.dli_fname != nullptr &&
      realpath(where.dli_fname, resolved.data()) != nullptr) {
    library->path = resolved.data();
  }
  library->loaded_version = library->version();
  library->api_version = std::min<uint32_t>(library->loaded_version, FI_VERSION(FI_MAJOR_VERSION, FI_MINOR_VERSION));
  return library;
}

}  // namespace

std::string version_text(uint32_t version) {
  return std::to_string(FI_MAJOR(version)) + "." + std::to_string(FI_MINOR(version));
}

const Libfabric* loaded_libfabric() {
  return loaded.load(std::memory_order_acquire);
}

const Libfabric* load_libfabric(const std::map<std::string, std::string>& environment, Error& error) {
  const std::scoped_lock lock(load_mutex);
  if (const Libfabric* library = loaded_libfabric()) return library;
  const bool cleanup_was_set = is_true(std::getenv("FI_AV_REMOVE_CLEANUP"));
  const bool was_loaded = dlopen("libfabric.so.1", RTLD_NOW | RTLD_NOLOAD) != nullptr;
  const bool shm_was_off = is_zero("FI_EFA_ENABLE_SHM_TRANSFER");
  const bool cache_was_off = is_zero("FI_MR_CACHE_MAX_COUNT");
  const bool tcp_waited = tcp_was_told_to_wait();
  std::vector<std::string> efa_remarks = set_environment(environment);
  std::string tried;
  for (const std::string& place : places_to_look()) {
    const SignalGuard guard;
    std::string text;
    void* handle = dlopen(place.c_str(), RTLD_NOW | RTLD_LOCAL);
    if (handle == nullptr) {
      const char* reason = dlerror();
      text = reason == nullptr ? "dlopen failed" : reason;
    } else if (std::unique_ptr<Libfabric> library = bind_symbols(handle, place, text)) {
      library->removal_flushes = cleanup_was_set || !was_loaded;
      library->efa_shm_is_off = shm_was_off || !was_loaded;
      library->registration_cache_is_off = is_zero("FI_MR_CACHE_MAX_COUNT") && (cache_was_off || !was_loaded);
      library->tcp_reads_when_told = tcp_waited || !was_loaded;
      library->efa_remarks = std::move(efa_remarks);
      renew_exit_handler();
      loaded.store(library.release(), std::memory_order_release);
      return loaded_libfabric();
    } else {
      text = place + ": " + text;
    }
    tried += (tried.empty() ? "" : "; ") + text;
  }
  error = missing("dlopen", "libfabric cannot be loaded: " + tried);
  return nullptr;
}

int get_info(const Libfabric& library, uint32_t version, const char* node, uint64_t flags, const fi_info* hints,
             Info& info) {
  const std::scoped_lock lock(info_mutex);
  // Only the first call loads libraries that take signals over. Guarding the others would undo what the program itself
  // does to its handlers meanwhile.
  static bool providers_are_loaded = false;
  std::optional<SignalGuard> guard;
  if (!providers_are_loaded) guard.emplace();
  fi_info* list = nullptr;
  const int result = library.getinfo(version, node, nullptr, flags, hints, &list);
  info.reset(list);
  providers_are_loaded = true;
  return result;
}

}  // namespace fabrickv::fabric
