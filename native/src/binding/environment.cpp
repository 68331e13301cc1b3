#include "binding/environment.h"

#include "binding/napi_util.h"
#include "binding/rail_table.h"

namespace fabrickv::binding {

Environment::Environment(napi_env env) : env_(env) {}

Environment::~Environment() = default;

std::shared_ptr<Environment> Environment::attach(napi_env env) {
  auto environment = std::make_shared<Environment>(env);
  environment->wakeup_ = Wakeup::create(env, on_wakeup, environment.get());
  if (environment->wakeup_ == nullptr) return nullptr;
  environment->rails_ = std::make_unique<RailTable>(*environment);
  napi_async_init(
      env, nullptr,
      [env] {
        napi_value name = nullptr;
        napi_create_string_utf8(env, "fabrickv", NAPI_AUTO_LENGTH, &name);
        return name;
      }(),
      &environment->async_context_);
  // The instance data keeps the environment until Node has run every finalizer; finalizers keep it themselves as well.
  napi_set_instance_data(
      env, new std::shared_ptr<Environment>(environment),
      [](napi_env, void* data, void*) { delete static_cast<std::shared_ptr<Environment>*>(data); }, nullptr);
  napi_add_async_cleanup_hook(env, on_cleanup, environment.get(), &environment->cleanup_);
  return environment;
}

Environment& Environment::of(napi_env env) {
  void* data = nullptr;
  napi_get_instance_data(env, &data);
  return **static_cast<std::shared_ptr<Environment>*>(data);
}

napi_value Environment::make_completions() {
  napi_value buffer = nullptr;
  napi_value array = nullptr;
  auto* keep = new std::shared_ptr<Environment>(shared_from_this());
  const napi_status status = napi_create_external_arraybuffer(
      env_, completions_.data(), sizeof completions_,
      [](napi_env, void*, void* hint) { delete static_cast<std::shared_ptr<Environment>*>(hint); }, keep, &buffer);
  if (status != napi_ok) {
    delete keep;
    return nullptr;
  }
  napi_create_typedarray(env_, napi_float64_array, completions_.size(), buffer, 0, &array);
  return array;
}

void Environment::set_loan_handler(napi_value handler) {
  if (loan_handler_ != nullptr) napi_delete_reference(env_, loan_handler_);
  napi_create_reference(env_, handler, 1, &loan_handler_);
}

void Environment::loan_returned(double loan) {
  if (shut_down_) return;
  returned_loans_.push_back(loan);
  wakeup_->send();
}

void Environment::on_wakeup(void* self) {
  auto& environment = *static_cast<Environment*>(self);
  // JavaScript may end the environment in between.
  const std::shared_ptr<Environment> keep = environment.shared_from_this();
  napi_handle_scope scope = nullptr;
  if (napi_open_handle_scope(environment.env_, &scope) != napi_ok) return;
  environment.rails_->deliver();
  environment.deliver_loans();
  napi_close_handle_scope(environment.env_, scope);
}

void Environment::deliver_loans() {
  if (returned_loans_.empty() || loan_handler_ == nullptr) return;
  const std::vector<double> returned = std::move(returned_loans_);
  returned_loans_.clear();
  napi_value list = nullptr;
  napi_create_array_with_length(env_, returned.size(), &list);
  for (size_t i = 0; i < returned.size(); i++) {
    napi_set_element(env_, list, static_cast<uint32_t>(i), make_number(env_, returned[i]));
  }
  call(loan_handler_, 1, &list);
}

void Environment::call(napi_ref function, size_t count, const napi_value* arguments) {
  napi_value receiver = nullptr;
  napi_value callee = nullptr;
  // A receiver of undefined would make napi_make_callback fail without a word.
  napi_get_global(env_, &receiver);
  if (napi_get_reference_value(env_, function, &callee) != napi_ok || callee == nullptr) return;
  const napi_status status = napi_make_callback(env_, async_context_, receiver, callee, count, arguments, nullptr);
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
}

}  // namespace fabrickv::binding
