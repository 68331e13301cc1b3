#pragma once

#include <napi.h>

#include <array>
#include <atomic>
#include <cstdint>
#include <initializer_list>
#include <memory>
#include <unordered_map>

#include "binding/returned_loans.h"
#include "binding/uncounted_buffer.h"
#include "binding/wakeup.h"
#include "memory/mapping.h"

namespace fabrickv::binding {

class RailTable;

// What one Node environment (the main thread, or one worker) has of us. Everything belongs to the environment's thread
// except what says otherwise.
class Environment : public std::enable_shared_from_this<Environment> {
 public:
  // Pairs of a batch of completions.
  static constexpr size_t kBatch = 512;

  explicit Environment(Napi::Env env);
  ~Environment();

  // Binds itself to the environment: instance data, the wake-up, the clean-up hook.
  static std::shared_ptr<Environment> attach(Napi::Env env);
  static Environment& of(Napi::Env env);

  Napi::Env env() const { return env_; }
  // Tasks on libuv's pool give up at their next step: the process is about to end, and would wait for them.
  void stop_tasks() { stopping_.store(true); }
  // Any thread: true when tasks on libuv's pool should give up.
  const std::atomic<bool>& stopping() const { return stopping_; }
  const std::shared_ptr<Wakeup>& wakeup() const { return wakeup_; }
  RailTable& rails() { return *rails_; }

  // By serial, which is their id in JavaScript.
  std::unordered_map<uint64_t, std::shared_ptr<memory::Mapping>> mappings;

  // The Float64Array of addon.ts, which batches of completions are written into.
  Napi::Value make_completions();
  std::array<double, 2 * kBatch>& completions() { return completions_; }

  void set_loan_handler(Napi::Function handler) { loan_handler_ = Napi::Persistent(handler); }
  // What is added to it is told to JavaScript in the next batch.
  const std::shared_ptr<ReturnedLoans>& returned_loans() const { return returned_loans_; }
  UncountedBuffers& uncounted_buffers() { return uncounted_buffers_; }

  // Calls a function of JavaScript's from the event loop. What it throws becomes an uncaught exception.
  void call(const Napi::FunctionReference& function, std::initializer_list<napi_value> arguments);

 private:
  static void on_wakeup(void* self);
  static void on_cleanup(napi_async_cleanup_hook_handle handle, void* self);
  void deliver_loans();
  void shut_down();

  const Napi::Env env_;
  std::atomic<bool> stopping_{false};
  bool shut_down_ = false;
  napi_async_context async_context_ = nullptr;
  napi_async_cleanup_hook_handle cleanup_ = nullptr;
  Napi::FunctionReference loan_handler_;
  std::shared_ptr<ReturnedLoans> returned_loans_;
  UncountedBuffers uncounted_buffers_;
  std::array<double, 2 * kBatch> completions_{};
  std::shared_ptr<Wakeup> wakeup_;
  // Before the wake-up goes, the rails' threads that use it have to.
  std::unique_ptr<RailTable> rails_;
};

}  // namespace fabrickv::binding
