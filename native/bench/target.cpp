#include "target.h"

#include <cstdio>
#include <memory>

#include "channel.h"
#include "open.h"
#include "waiter.h"

namespace fabrickv::bench {

int run_target(const Arguments& arguments, int socket) {
  Opened opened;
  if (!opened.open(arguments, FI_REMOTE_WRITE)) return 1;
  const auto& address = opened.endpoint->info().address;
  const Introduction introduction = {opened.remote_address(), opened.key(), address.size()};
  if (!send_message(socket, introduction) || !send_all(socket, address.data(), address.size())) return 0;

  Waiter waiter(*opened.endpoint, socket);
  fi_cq_data_entry entry;
  while (true) {
    // A target has no completions of its own: reading the queue is what drives the provider.
    const ssize_t count = fi_cq_read(opened.endpoint->cq(), &entry, 1);
    if (count == -FI_EAVAIL) {
      fi_cq_err_entry error{};
      fi_cq_readerr(opened.endpoint->cq(), &error, 0);
    } else if (count < 0 && count != -FI_EAGAIN && count != -FI_EINTR) {
      std::fprintf(stderr, "raw_write: target: fi_cq_read: %s\n",
                   opened.endpoint->library().error_text(static_cast<int>(count)).c_str());
      return 1;
    }
    if (!waiter.wait()) continue;
    Tuning tuning;
    if (!receive_message(socket, tuning)) return 0;
    waiter.tune(tuning.spin_us, tuning.block != 0);
    // It is connected, and its queue's fd wakes it for what arrives.
    waiter.sleep_at_most(fabric::kSleepMax);
  }
}

}  // namespace fabrickv::bench
