#pragma once

#include <memory>
#include <mutex>
#include <utility>
#include <vector>

#include "binding/wakeup.h"

namespace fabrickv::binding {

// Loans on their way back to JavaScript. V8 frees an ArrayBuffer's memory on whatever thread it likes, and after the
// environment has ended, too: therefore apart from Environment, which must not be destroyed there.
class ReturnedLoans {
 public:
  explicit ReturnedLoans(std::shared_ptr<Wakeup> wakeup) : wakeup_(std::move(wakeup)) {}

  // Any thread, at any time: a lent ArrayBuffer's memory cannot be reached any more. After the end of the environment
  // nobody is told.
  void add(double loan) {
    {
      const std::scoped_lock lock(mutex_);
      loans_.push_back(loan);
    }
    wakeup_->send();
  }

  // What has come back since the last call.
  std::vector<double> take() {
    const std::scoped_lock lock(mutex_);
    return std::exchange(loans_, {});
  }

 private:
  const std::shared_ptr<Wakeup> wakeup_;
  std::mutex mutex_;
  std::vector<double> loans_;
};

}  // namespace fabrickv::binding
