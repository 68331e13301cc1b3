#pragma once

#include <napi.h>

#include <functional>
#include <memory>
#include <mutex>

#include "binding/uv_async.h"

namespace fabrickv::binding {

// Wakes the event loop from any thread. Wake-ups coalesce: however often it is sent, the callback runs once per turn.
//
// uv_async rather than a thread-safe function of Node-API: measured 30 % faster at 64 KiB.
class Wakeup : public std::enable_shared_from_this<Wakeup> {
 public:
  using Callback = void (*)(void* context);

  // Null when the loop will not have it. The callback runs on the loop's thread. The handle does not keep the loop
  // alive until keep_alive(true).
  static std::shared_ptr<Wakeup> create(Napi::Env env, Callback callback, void* context);

  // Any thread, at any time; does nothing after close().
  void send();

  // Loop's thread: whether a process that has nothing else to do waits for us.
  void keep_alive(bool alive);

  // Loop's thread. `closed` is called when libuv has let go of the handle. Idempotent: later calls do nothing.
  void close(std::function<void()> closed);

 private:
  static void on_async(uv_async_t* async);
  static void on_close(uv_handle_t* handle);
  uv_handle_t* handle() const { return reinterpret_cast<uv_handle_t*>(async_); }

  Callback callback_ = nullptr;
  void* context_ = nullptr;
  bool alive_ = false;
  std::function<void()> closed_;
  // Keeps us until on_close has run.
  std::shared_ptr<Wakeup> self_;
  // Guards async_ against send() during close().
  std::mutex mutex_;
  uv_async_t* async_ = nullptr;
};

}  // namespace fabrickv::binding
