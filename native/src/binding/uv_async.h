#pragma once

// What we use of libuv, declared by hand: uv.h belongs to Node's headers, which node-api-headers does not carry and
// which cmake-js would otherwise download. Only functions and values that libuv's ABI keeps within its major version
// are here; the handle stays opaque, and its size is asked for at run time.

#include <cstddef>

extern "C" {

struct uv_loop_s;
struct uv_handle_s;
struct uv_async_s;

using uv_loop_t = uv_loop_s;
using uv_handle_t = uv_handle_s;
using uv_async_t = uv_async_s;
using uv_async_cb = void (*)(uv_async_t* handle);
using uv_close_cb = void (*)(uv_handle_t* handle);

// uv_handle_type: UV_UNKNOWN_HANDLE is 0 and UV_ASYNC comes first.
constexpr int kUvAsync = 1;

size_t uv_handle_size(int type);
int uv_async_init(uv_loop_t* loop, uv_async_t* async, uv_async_cb callback);
int uv_async_send(uv_async_t* async);
void uv_close(uv_handle_t* handle, uv_close_cb callback);
void uv_ref(uv_handle_t* handle);
void uv_unref(uv_handle_t* handle);
void* uv_handle_get_data(const uv_handle_t* handle);
void uv_handle_set_data(uv_handle_t* handle, void* data);

}  // extern "C"
