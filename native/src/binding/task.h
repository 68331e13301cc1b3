#pragma once

#include <napi.h>

#include <memory>

#include "binding/environment.h"

namespace fabrickv::binding {

// Work on libuv's pool that ends in a promise: Execute() runs there and calls nothing of Node-API, OnOK() runs on the
// JS thread and calls resolve() or reject(). It keeps the event loop alive. Node waits for it before it ends the
// environment, so that OnOK() always runs, though it may not reach JavaScript any more; then the task is deleted.
class Task : public Napi::AsyncWorker {
 public:
  // Starts it and returns the promise.
  static Napi::Value start(std::unique_ptr<Task> task) {
    const Napi::Env env = task->Env();
    napi_value promise = nullptr;
    // Both stay null when this fails because a worker is being terminated. Napi::Promise::Deferred would be garbage.
    napi_create_promise(env, &task->deferred_, &promise);
    task.release()->Queue();
    return {env, promise};
  }

 protected:
  // `kept`, if any, is a JavaScript object that the work reads or writes.
  explicit Task(Napi::Env env, const Napi::Value& kept = {})
      : AsyncWorker(env, "fabrickv"), environment_(Environment::of(env).shared_from_this()) {
    if (kept.IsObject()) kept_ = Napi::Persistent(kept.As<Napi::Object>());
  }

  Environment& environment() const { return *environment_; }
  void resolve(napi_value value) { napi_resolve_deferred(Env(), deferred_, value); }
  void reject(napi_value reason) { napi_reject_deferred(Env(), deferred_, reason); }

 private:
  const std::shared_ptr<Environment> environment_;
  napi_deferred deferred_ = nullptr;
  Napi::ObjectReference kept_;
};

}  // namespace fabrickv::binding
