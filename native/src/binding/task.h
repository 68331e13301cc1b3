#pragma once

#include <node_api.h>

#include <memory>
#include <utility>

#include "binding/environment.h"
#include "binding/napi_util.h"

namespace fabrickv::binding {

// Work on libuv's pool that ends in a promise. It keeps the event loop alive, and Node waits for it before it ends the
// environment.
class Task {
 public:
  virtual ~Task() = default;

  // Starts it and returns the promise. `kept`, if any, is a JavaScript object that the work reads or writes.
  static napi_value start(napi_env env, std::unique_ptr<Task> task, napi_value kept = nullptr) {
    napi_value promise = nullptr;
    napi_create_promise(env, &task->deferred_, &promise);
    if (kept != nullptr) napi_create_reference(env, kept, 1, &task->kept_);
    task->environment_ = Environment::of(env).shared_from_this();
    Task* raw = task.release();
    napi_create_async_work(
        env, nullptr, make_string(env, "fabrickv"), [](napi_env, void* data) { static_cast<Task*>(data)->run(); },
        [](napi_env done_env, napi_status, void* data) {
          finish(done_env, std::unique_ptr<Task>(static_cast<Task*>(data)));
        },
        raw, &raw->work_);
    napi_queue_async_work(env, raw->work_);
    return promise;
  }

 protected:
  // On libuv's pool: no call of Node-API here.
  virtual void run() = 0;
  // On the JS thread: the promise's value, or with `failed` set what it is rejected with.
  virtual napi_value result(napi_env env, bool& failed) = 0;
  Environment& environment() const { return *environment_; }

 private:
  static void finish(napi_env env, std::unique_ptr<Task> task) {
    bool failed = false;
    napi_value value = task->result(env, failed);
    (failed ? napi_reject_deferred : napi_resolve_deferred)(env, task->deferred_, value);
    if (task->kept_ != nullptr) napi_delete_reference(env, task->kept_);
    napi_delete_async_work(env, task->work_);
  }

  std::shared_ptr<Environment> environment_;
  napi_deferred deferred_ = nullptr;
  napi_async_work work_ = nullptr;
  napi_ref kept_ = nullptr;
};

}  // namespace fabrickv::binding
