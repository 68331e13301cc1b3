#pragma once

#include <cstdint>
#include <optional>
#include <vector>

#include "arguments.h"
#include "channel.h"
#include "open.h"
#include "waiter.h"

namespace fabrickv::bench {

// What a case came to.
struct Measurement {
  uint64_t values = 0;
  uint64_t bytes = 0;
  double seconds = 0;
  // Of the time from a value's first post to its last completion.
  double p50_us = 0;
  double p99_us = 0;
  double p999_us = 0;
  // Of both processes.
  double cpu_seconds = 0;
};

// The process that writes: one thread, posting and polling in a loop.
class Initiator {
 public:
  Initiator(int socket, int target_pid) : socket_(socket), target_pid_(target_pid) {}

  // Opens its endpoint, meets the target and writes to it once. False, after saying why on standard error.
  bool connect(const Arguments& arguments);

  const fabric::Endpoint& endpoint() const { return *opened_.endpoint; }

  // Empty, after saying why on standard error, when the fabric fails; nothing else can be measured then.
  std::optional<Measurement> measure(const Case& what);

 private:
  struct Value {
    uint64_t source = 0;
    uint64_t sink = 0;
    uint64_t posted_bytes = 0;
    uint32_t chunks_in_flight = 0;
    bool active = false;
    fabric::Clock::time_point started_at;
  };
  struct Operation {
    fi_context2 context{};
    Value* value = nullptr;
    uint64_t length = 0;
  };

  bool run(double seconds, std::vector<double>* latencies_us);
  void begin(Value& value);
  bool post_all();
  bool may_post(const Value& value) const;
  // 1: posted, 0: not now, -1: failed.
  int post(Value& value);
  bool poll(std::vector<double>* latencies_us);
  void complete(Operation& operation, std::vector<double>* latencies_us);
  bool fail(const char* call, int64_t result) const;
  double cpu_seconds() const;

  const int socket_;
  const int target_pid_;
  Opened opened_;
  Introduction target_;
  fi_addr_t target_address_ = FI_ADDR_UNSPEC;
  std::optional<Waiter> waiter_;
  std::vector<Operation> operations_;
  std::vector<Operation*> free_operations_;

  Case case_;
  std::vector<Value> values_;
  // Whose turn it is to post.
  size_t turn_ = 0;
  size_t active_values_ = 0;
  uint64_t begun_values_ = 0;
  uint64_t bytes_in_flight_ = 0;
  fabric::Clock::time_point last_completion_;
};

}  // namespace fabrickv::bench
