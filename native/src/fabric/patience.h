#pragma once

#include "fabric/limits.h"

namespace fabrickv::fabric {

// How long a peer is waited for that owes an answer.
class Patience {
 public:
  void begin(Clock::time_point now) { began_ = alive_ = now; }
  // It has done something else: a slow link delays the answer, too.
  void note_life(Clock::time_point now) { alive_ = now; }
  // It was not the peer that was slow, but we.
  void excuse(Clock::duration stall) {
    began_ += stall;
    alive_ += stall;
  }
  // While there is still something to be read, the answer may be in it.
  bool is_over(Clock::time_point now, bool nothing_to_read) const {
    return now - began_ >= kFenceTimeoutMax || (nothing_to_read && now - alive_ >= kFenceTimeout);
  }

 private:
  Clock::time_point began_{};
  Clock::time_point alive_{};
};

}  // namespace fabrickv::fabric
