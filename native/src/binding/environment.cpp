#include "binding/environment.h"

#include <vector>

#include "binding/rail_table.h"

namespace fabrickv::binding {

Environment::Environment(Napi::Env env) : env_(env) {}

Environment::~Environment() = default;

std::shared_ptr<Environment> Environment::attach(Napi::Env env) {
  auto environment = std::make_shared<Environment>(env);
  environment->wakeup_ = Wakeup::create(env, on_wakeup, environment.get());
  if (environment->wakeup_ == nullptr) return nullptr;
  environment->returned_loans_ = std::make_shared<ReturnedLoans>(environment->wakeup_);
  environment->rails_ = std::make_unique<RailTable>(*environment);
  // Not Napi::AsyncContext: Node holds the resource that it would pass weakly, and the context is lost with it.
  napi_async_init(env, nullptr, Napi::String::New(env, "fabrickv"), &environment->async_context_);
  // The instance data keeps the environment until Node has run every finalizer.
  env.SetInstanceData(new std::shared_ptr<Environment>(environment));
  napi_add_async_cleanup_hook(env, on_cleanup, environment.get(), &environment->cleanup_);
  return environment;
}

Environment& Environment::of(Napi::Env env) {
  return **env.GetInstanceData<std::shared_ptr<Environment>>();
}

Napi::Value Environment::make_completions() {
  const auto buffer = Napi::ArrayBuffer::New(env_, completions_.data(), sizeof completions_,
                                             [keep = shared_from_this()](Napi::Env, void*) {});
  return Napi::Float64Array::New(env_, completions_.size(), buffer, 0);
}

void Environment::on_wakeup(void* self) {
  auto& environment = *static_cast<Environment*>(self);
  // JavaScript may end the environment in between.
  const std::shared_ptr<Environment> keep = environment.shared_from_this();
  const Napi::HandleScope scope(environment.env_);
  environment.rails_->deliver();
  environment.deliver_loans();
}

void Environment::deliver_loans() {
  if (loan_handler_.IsEmpty()) return;
  const std::vector<double> returned = returned_loans_->take();
  if (returned.empty()) return;
  auto list = Napi::Array::New(env_, returned.size());
  for (uint32_t i = 0; i < returned.size(); i++) list.Set(i, returned[i]);
  call(loan_handler_, {list});
}

void Environment::call(const Napi::FunctionReference& function, std::initializer_list<napi_value> arguments) {
  const Napi::Function callee = function.Value();
  if (callee.IsEmpty()) return;
  // Not Function::MakeCallback, which would throw again what the function threw, with nobody to catch it. A receiver of
  // undefined would make the call fail without a word.
  const napi_status status =
      napi_make_callback(env_, async_context_, env_.Global(), callee, arguments.size(), arguments.begin(), nullptr);
  if (status != napi_pending_exception) return;
  napi_value thrown = nullptr;
  if (napi_get_and_clear_last_exception(env_, &thrown) == napi_ok) napi_fatal_exception(env_, thrown);
}

void Environment::on_cleanup(napi_async_cleanup_hook_handle handle, void* self) {
  auto& environment = *static_cast<Environment*>(self);
  environment.shut_down();
  environment.wakeup_->close([handle] { napi_remove_async_cleanup_hook(handle); });
}

void Environment::shut_down() {
  if (shut_down_) return;
  shut_down_ = true;
  stopping_.store(true);
  rails_->shut_down();
  mappings.clear();
  // While there still is an environment to delete the reference in.
  loan_handler_.Reset();
}

}  // namespace fabrickv::binding
