#include "initiator.h"

#include <time.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdio>

#include "fabric/limits.h"

namespace fabrickv::bench {
namespace {

using fabric::Clock;

constexpr auto kStuckAfter = std::chrono::seconds(10);
constexpr size_t kPollBatch = 64;
constexpr uint64_t kValueAlignment = 64;

double seconds_of(Clock::duration duration) {
  return std::chrono::duration<double>(duration).count();
}

double percentile(std::vector<double>& sorted, double share) {
  if (sorted.empty()) return 0;
  const auto rank = static_cast<size_t>(std::ceil(share * static_cast<double>(sorted.size())));
  return sorted[std::clamp<size_t>(rank, 1, sorted.size()) - 1];
}

double cpu_seconds_of(pid_t pid) {
  clockid_t clock{};
  timespec time{};
  if (clock_getcpuclockid(pid, &clock) != 0 || clock_gettime(clock, &time) != 0) return 0;
  return static_cast<double>(time.tv_sec) + static_cast<double>(time.tv_nsec) / 1e9;
}

}  // namespace

bool Initiator::connect(const Arguments& arguments) {
  if (!opened_.open(arguments, FI_WRITE)) return false;
  std::vector<uint8_t> address;
  bool met = receive_message(socket_, target_);
  if (met) {
    address.resize(target_.address_length);
    met = receive_all(socket_, address.data(), address.size());
  }
  if (!met) {
    std::fprintf(stderr, "raw_write: the target did not start\n");
    return false;
  }
  const int inserted = fi_av_insert(opened_.endpoint->av(), address.data(), 1, &target_address_, 0, nullptr);
  if (inserted != 1) return fail("fi_av_insert", inserted);
  operations_.resize(opened_.endpoint->info().transmit_credits);
  for (Operation& operation : operations_) free_operations_.push_back(&operation);
  waiter_.emplace(*opened_.endpoint, -1);
  // The first write connects; that belongs to no measurement.
  Case hello;
  hello.size_bytes = hello.source_bytes = hello.sink_bytes = 1;
  hello.seconds = hello.warmup_seconds = 0;
  return measure(hello).has_value();
}

std::optional<Measurement> Initiator::measure(const Case& what) {
  case_ = what;
  case_.chunk_bytes = std::min<uint64_t>(case_.chunk_bytes, opened_.endpoint->info().max_message_bytes);
  waiter_->tune(what.spin_us, what.block);
  const Tuning tuning = {what.spin_us, what.block ? 1U : 0U};
  values_.assign(what.in_flight, {});
  turn_ = 0;
  if (!send_message(socket_, tuning)) {
    std::fprintf(stderr, "raw_write: the target is gone\n");
    return {};
  }
  std::vector<double> latencies_us;
  latencies_us.reserve(1 << 16);
  if (!run(what.warmup_seconds, nullptr)) return {};
  const double cpu_before = cpu_seconds();
  const Clock::time_point before = Clock::now();
  if (!run(what.seconds, &latencies_us)) return {};
  Measurement result;
  result.seconds = seconds_of(Clock::now() - before);
  result.cpu_seconds = cpu_seconds() - cpu_before;
  result.values = latencies_us.size();
  result.bytes = result.values * what.size_bytes;
  std::sort(latencies_us.begin(), latencies_us.end());
  result.p50_us = percentile(latencies_us, 0.5);
  result.p99_us = percentile(latencies_us, 0.99);
  result.p999_us = percentile(latencies_us, 0.999);
  return result;
}

// At least one value for each place in flight, however short the time.
bool Initiator::run(double seconds, std::vector<double>* latencies_us) {
  last_completion_ = Clock::now();
  const Clock::time_point end =
      last_completion_ + std::chrono::duration_cast<Clock::duration>(std::chrono::duration<double>(seconds));
  for (Value& value : values_) begin(value);
  while (true) {
    if (!post_all() || !poll(latencies_us)) return false;
    if (active_values_ == values_.size()) continue;
    if (last_completion_ < end) {
      for (Value& value : values_) {
        if (!value.active) begin(value);
      }
    } else if (active_values_ == 0) {
      return true;
    }
  }
}

void Initiator::begin(Value& value) {
  const uint64_t stride = (case_.size_bytes + kValueAlignment - 1) / kValueAlignment * kValueAlignment;
  const auto place = [&](uint64_t bytes) { return begun_values_ % std::max<uint64_t>(1, bytes / stride) * stride; };
  value = {};
  value.source = place(case_.source_bytes);
  value.sink = place(case_.sink_bytes);
  value.active = true;
  value.started_at = Clock::now();
  begun_values_++;
  active_values_++;
}

// Posts what the limits allow, a chunk of each value in turn.
bool Initiator::post_all() {
  size_t idle = 0;
  while (idle < values_.size()) {
    Value& value = values_[turn_];
    turn_ = turn_ + 1 == values_.size() ? 0 : turn_ + 1;
    if (!may_post(value)) {
      idle++;
      continue;
    }
    const int posted = post(value);
    if (posted < 0) return false;
    if (posted == 0) return true;
    idle = 0;
  }
  return true;
}

bool Initiator::may_post(const Value& value) const {
  return value.active && value.posted_bytes < case_.size_bytes && value.chunks_in_flight < case_.chunks_in_flight &&
         bytes_in_flight_ < case_.chunk_bytes * case_.chunks_in_flight_per_peer && !free_operations_.empty() &&
         operations_.size() - free_operations_.size() < fabric::kOperationsPerPeerMax;
}

int Initiator::post(Value& value) {
  Operation& operation = *free_operations_.back();
  operation.value = &value;
  operation.length = std::min(case_.chunk_bytes, case_.size_bytes - value.posted_bytes);
  const iovec local = {opened_.base() + value.source + value.posted_bytes, operation.length};
  const fi_rma_iov remote = {target_.remote_address + value.sink + value.posted_bytes, operation.length, target_.key};
  void* descriptor = opened_.descriptor();
  fi_msg_rma message{};
  message.msg_iov = &local;
  message.desc = descriptor == nullptr ? nullptr : &descriptor;
  message.iov_count = 1;
  message.addr = target_address_;
  message.rma_iov = &remote;
  message.rma_iov_count = 1;
  message.context = &operation.context;
  const ssize_t result = fi_writemsg(opened_.endpoint->ep(), &message, FI_COMPLETION | FI_DELIVERY_COMPLETE);
  if (result == -FI_EAGAIN) return 0;
  if (result != 0) {
    fail("fi_writemsg", result);
    return -1;
  }
  free_operations_.pop_back();
  value.posted_bytes += operation.length;
  value.chunks_in_flight++;
  bytes_in_flight_ += operation.length;
  return 1;
}

bool Initiator::poll(std::vector<double>* latencies_us) {
  std::array<fi_cq_data_entry, kPollBatch> entries;
  const ssize_t count = fi_cq_read(opened_.endpoint->cq(), entries.data(), entries.size());
  if (count > 0) {
    last_completion_ = Clock::now();
    for (ssize_t i = 0; i < count; i++) {
      void* context = entries[static_cast<size_t>(i)].op_context;
      if (context != nullptr) complete(*reinterpret_cast<Operation*>(context), latencies_us);
    }
    waiter_->note_activity();
    return true;
  }
  if (count == -FI_EAVAIL) {
    fi_cq_err_entry error{};
    fi_cq_readerr(opened_.endpoint->cq(), &error, 0);
    return fail("a write", -error.err);
  }
  if (count != 0 && count != -FI_EAGAIN && count != -FI_EINTR) return fail("fi_cq_read", count);
  if (Clock::now() - last_completion_ > kStuckAfter) {
    std::fprintf(stderr, "raw_write: nothing has completed for 10 s\n");
    return false;
  }
  waiter_->wait();
  return true;
}

void Initiator::complete(Operation& operation, std::vector<double>* latencies_us) {
  Value& value = *operation.value;
  free_operations_.push_back(&operation);
  bytes_in_flight_ -= operation.length;
  value.chunks_in_flight--;
  if (value.posted_bytes < case_.size_bytes || value.chunks_in_flight > 0) return;
  value.active = false;
  active_values_--;
  if (latencies_us == nullptr) return;
  latencies_us->push_back(seconds_of(last_completion_ - value.started_at) * 1e6);
}

bool Initiator::fail(const char* call, int64_t result) const {
  std::fprintf(stderr, "raw_write: %s: %s\n", call,
               opened_.endpoint->library().error_text(static_cast<int>(result)).c_str());
  return false;
}

double Initiator::cpu_seconds() const {
  return cpu_seconds_of(0) + cpu_seconds_of(target_pid_);
}

}  // namespace fabrickv::bench
