#include "binding/wakeup.h"

#include <cstdlib>
#include <utility>

namespace fabrickv::binding {

std::shared_ptr<Wakeup> Wakeup::create(Napi::Env env, Callback callback, void* context) {
  uv_loop_t* loop = nullptr;
  if (napi_get_uv_event_loop(env, &loop) != napi_ok) return nullptr;
  auto wakeup = std::make_shared<Wakeup>();
  auto* async = static_cast<uv_async_t*>(std::calloc(1, uv_handle_size(kUvAsync)));
  if (async == nullptr || uv_async_init(loop, async, on_async) != 0) {
    std::free(async);
    return nullptr;
  }
  wakeup->async_ = async;
  wakeup->callback_ = callback;
  wakeup->context_ = context;
  wakeup->self_ = wakeup;
  uv_handle_set_data(wakeup->handle(), wakeup.get());
  uv_unref(wakeup->handle());
  return wakeup;
}

void Wakeup::send() {
  const std::scoped_lock lock(mutex_);
  if (async_ != nullptr) uv_async_send(async_);
}

void Wakeup::keep_alive(bool alive) {
  if (alive == alive_ || async_ == nullptr) return;
  alive_ = alive;
  (alive ? uv_ref : uv_unref)(handle());
}

void Wakeup::close(std::function<void()> closed) {
  uv_handle_t* closing = handle();
  if (closing == nullptr) return;
  closed_ = std::move(closed);
  {
    const std::scoped_lock lock(mutex_);
    async_ = nullptr;
  }
  uv_close(closing, on_close);
}

void Wakeup::on_async(uv_async_t* async) {
  auto* wakeup = static_cast<Wakeup*>(uv_handle_get_data(reinterpret_cast<uv_handle_t*>(async)));
  wakeup->callback_(wakeup->context_);
}

void Wakeup::on_close(uv_handle_t* handle) {
  auto* wakeup = static_cast<Wakeup*>(uv_handle_get_data(handle));
  std::free(handle);
  const std::function<void()> closed = std::move(wakeup->closed_);
  wakeup->self_.reset();
  if (closed) closed();
}

}  // namespace fabrickv::binding
