#include "binding/uncounted_buffer.h"

#include <dlfcn.h>

#include <array>
#include <cstdlib>
#include <cstring>
#include <new>
#include <utility>

// V8's functions are called through declarations of our own, since node-api-headers has none of V8's. What they rely
// on, none of which depends on the layout of a class of V8's:
//
//  - The Itanium C++ ABI: the mangled names; a std::unique_ptr is returned through a hidden pointer, and a
//    std::shared_ptr passed by value is passed by reference and destroyed by the caller. The types below make the
//    compiler do just that.
//  - libstdc++ on both sides. The name of ArrayBuffer::New tells: libc++'s std::shared_ptr is std::__1::shared_ptr.
//  - v8::Local<T> is one pointer, returned in a register, and napi_value is the same pointer (js_native_api_v8.h,
//    JsValueFromV8LocalValue).
//  - A v8::BackingStore is destroyed by its destructor and freed by operator delete, as std::default_delete does.
//  - V8 keeps the std::shared_ptr that it was given for as long as it, or Node, may use the bytes, and hands it on
//    when they are transferred: so its end is theirs (JSArrayBuffer::Attach, ArrayBufferExtension). EmptyDeleter, by
//    which V8 knows not to count (BackingStore::PerIsolateAccountingLength), could not tell us.
//
// Checked with Node 20.19.0, 20.20.2, 22.12.0, 22.23.3, 24.0.0 and 24.21.0 (V8 11.3, 12.4, 13.6) on x86-64. Everything
// else, and whatever fails works() below, gets Node-API's ArrayBuffers: other majors of V8, Electron (a sandbox), Bun.

namespace fabrickv::binding {
namespace {

constexpr int kV8MajorMin = 11;
constexpr int kV8MajorMax = 13;

struct Isolate;
struct BackingStore;
struct DestroyBackingStore {
  void operator()(BackingStore* store) const;
};
using OwnedBackingStore = std::unique_ptr<BackingStore, DestroyBackingStore>;
using Deleter = void (*)(void* data, size_t length, void* deleter_data);

struct V8 {
  const char* (*version)() = nullptr;
  Isolate* (*current_isolate)() = nullptr;
  OwnedBackingStore (*new_backing_store)(void* data, size_t length, Deleter deleter, void* deleter_data) = nullptr;
  Deleter empty_deleter = nullptr;
  napi_value (*new_array_buffer)(Isolate* isolate, std::shared_ptr<BackingStore> store) = nullptr;
  void (*destroy_backing_store)(BackingStore* store) = nullptr;
};

// Whether there is such a function, and in the very library or program that Node-API is in.
template <typename Function>
bool find(Function& function, const char* name) {
  void* const address = dlsym(RTLD_DEFAULT, name);
  Dl_info found{};
  Dl_info node{};
  if (address == nullptr || dladdr(address, &found) == 0) return false;
  if (dladdr(reinterpret_cast<void*>(&napi_create_external_arraybuffer), &node) == 0) return false;
  if (found.dli_fbase != node.dli_fbase) return false;
  function = reinterpret_cast<Function>(address);
  return true;
}

// Electron's and others' versions do not say "-node."
bool is_known(const char* version) {
  const long major = std::strtol(version, nullptr, 10);
  return major >= kV8MajorMin && major <= kV8MajorMax && std::strstr(version, "-node.") != nullptr;
}

// Null where it is not the V8 that we know.
const V8* v8() {
  static const std::optional<V8> found = []() -> std::optional<V8> {
    V8 v8;
#if defined(__GLIBCXX__) && defined(__LP64__)
    if (find(v8.version, "_ZN2v82V810GetVersionEv") && is_known(v8.version()) &&
        find(v8.current_isolate, "_ZN2v87Isolate10GetCurrentEv") &&
        find(v8.new_backing_store, "_ZN2v811ArrayBuffer15NewBackingStoreEPvmPFvS1_mS1_ES1_") &&
        find(v8.empty_deleter, "_ZN2v812BackingStore12EmptyDeleterEPvmS1_") &&
        find(v8.new_array_buffer, "_ZN2v811ArrayBuffer3NewEPNS_7IsolateESt10shared_ptrINS_12BackingStoreEE") &&
        find(v8.destroy_backing_store, "_ZN2v812BackingStoreD1Ev")) {
      return v8;
    }
#endif
    return std::nullopt;
  }();
  return found ? &*found : nullptr;
}

void DestroyBackingStore::operator()(BackingStore* store) const {
  v8()->destroy_backing_store(store);
  ::operator delete(store);
}

// What V8's std::shared_ptr owns. Members are destroyed from the last to the first: what keeps the bytes goes last.
struct Store {
  ~Store() { *bytes_out -= length; }

  std::shared_ptr<std::atomic<size_t>> bytes_out;
  size_t length;
  std::shared_ptr<void> keep;
  OwnedBackingStore backing_store;
};

napi_value make_array_buffer(const V8& v8, void* data, size_t length, std::shared_ptr<void> keep,
                             const std::shared_ptr<std::atomic<size_t>>& bytes_out) {
  OwnedBackingStore backing_store = v8.new_backing_store(data, length, v8.empty_deleter, nullptr);
  if (backing_store == nullptr) return nullptr;
  *bytes_out += length;
  const std::shared_ptr<Store> store(new Store{bytes_out, length, std::move(keep), std::move(backing_store)});
  return v8.new_array_buffer(v8.current_isolate(), std::shared_ptr<BackingStore>(store, store->backing_store.get()));
}

// Tries one out: that this runtime allows external memory, that Node-API sees in the ArrayBuffer what we have put
// there, and that to detach it lets go of what keeps the bytes, once.
bool works(napi_env env) {
  static std::array<std::byte, 64> bytes;
  napi_value buffer = nullptr;
  // First, since V8 aborts the process where Node-API says napi_no_external_buffers_allowed.
  if (napi_create_external_arraybuffer(env, bytes.data(), bytes.size(), nullptr, nullptr, &buffer) != napi_ok) {
    napi_get_and_clear_last_exception(env, &buffer);
    return false;
  }
  const auto keep = std::make_shared<char>();
  const auto bytes_out = std::make_shared<std::atomic<size_t>>(0);
  buffer = make_array_buffer(*v8(), bytes.data(), bytes.size(), keep, bytes_out);
  bool is_array_buffer = false;
  void* data = nullptr;
  size_t length = 0;
  return buffer != nullptr && napi_is_arraybuffer(env, buffer, &is_array_buffer) == napi_ok && is_array_buffer &&
         napi_get_arraybuffer_info(env, buffer, &data, &length) == napi_ok && data == bytes.data() &&
         length == bytes.size() && keep.use_count() == 2 && napi_detach_arraybuffer(env, buffer) == napi_ok &&
         keep.use_count() == 1 && *bytes_out == 0;
}

}  // namespace

napi_value UncountedBuffers::make(napi_env env, std::byte* data, size_t length, std::shared_ptr<void> keep) {
  if (length < kBytesMin || length > kBytesMax || *bytes_out_ >= kBytesOutMax) return nullptr;
  if (!works_) works_ = v8() != nullptr && works(env);
  return *works_ ? make_array_buffer(*v8(), data, length, std::move(keep), bytes_out_) : nullptr;
}

}  // namespace fabrickv::binding
