#include "binding/rail_table.h"

#include <utility>
#include <vector>

#include "binding/rail_values.h"

namespace fabrickv::binding {
namespace {

// Batches that one rail may deliver before the event loop gets its turn.
constexpr int kBatchesPerTurn = 8;

}  // namespace

uint64_t RailTable::add(std::unique_ptr<fabric::Rail> rail, Napi::Function handler) {
  auto entry = std::make_shared<RailEntry>();
  entry->rail = std::move(rail);
  entry->handler = Napi::Persistent(handler);
  const uint64_t id = next_id_++;
  rails_[id] = std::move(entry);
  update_liveness();
  return id;
}

RailEntry* RailTable::find(uint64_t id) {
  const auto found = rails_.find(id);
  return found == rails_.end() ? nullptr : found->second.get();
}

std::unique_ptr<fabric::Rail> RailTable::take(uint64_t id) {
  const auto found = rails_.find(id);
  if (found == rails_.end()) return nullptr;
  const std::shared_ptr<RailEntry> entry = found->second;
  rails_.erase(found);
  entry->handler.Reset();
  update_liveness();
  return std::move(entry->rail);
}

void RailTable::deliver() {
  std::vector<std::shared_ptr<RailEntry>> entries;
  for (const auto& [id, entry] : rails_) entries.push_back(entry);
  for (const auto& entry : entries) {
    for (int batch = 0; deliver_batch(*entry); batch++) {
      if (batch < kBatchesPerTurn) continue;
      environment_.wakeup()->send();
      break;
    }
  }
  update_liveness();
}

// False when there was nothing to deliver.
bool RailTable::deliver_batch(RailEntry& entry) {
  // JavaScript may have taken the rail out in an earlier batch.
  if (entry.rail == nullptr) return false;
  std::array<fabric::Outcome, Environment::kBatch - 1> outcomes;
  const size_t count = entry.rail->drain(outcomes);
  const bool announce_close = count < outcomes.size() && entry.rail->closed() && !entry.close_announced;
  if (count == 0 && !announce_close) return false;

  const Napi::Env env = environment_.env();
  auto& pairs = environment_.completions();
  Napi::Array details;
  uint32_t detail_count = 0;
  for (size_t i = 0; i < count; i++) {
    const fabric::Outcome& outcome = outcomes[i];
    const bool is_transfer = outcome.kind == fabric::CompletionKind::kTransfer;
    pairs[2 * i] = is_transfer ? static_cast<double>(outcome.id) : static_cast<double>(outcome.token);
    pairs[2 * i + 1] = -1;
    const Napi::Object detail = make_detail(env, outcome, entry.rail->info());
    if (detail.IsEmpty()) continue;
    if (details.IsEmpty()) details = Napi::Array::New(env);
    details.Set(detail_count, detail);
    pairs[2 * i + 1] = detail_count++;
  }
  size_t pair_count = count;
  if (announce_close) {
    entry.close_announced = true;
    pairs[2 * pair_count] = static_cast<double>(fabric::kClosedToken);
    pairs[2 * pair_count + 1] = -1;
    pair_count++;
  }
  entry.batches++;
  environment_.call(entry.handler, {Napi::Value::From(env, pair_count), details.IsEmpty() ? env.Undefined() : details});
  return count == outcomes.size();
}

void RailTable::update_liveness() {
  bool pending = false;
  for (const auto& [id, entry] : rails_)
    pending = pending || entry->rail->pending() > 0 || (entry->rail->closing() && !entry->close_announced);
  environment_.wakeup()->keep_alive(pending);
}

void RailTable::shut_down() {
  const auto deadline = fabric::Clock::now() + fabric::kExitTimeout;
  for (auto entry = rails_.rbegin(); entry != rails_.rend(); ++entry) entry->second->rail->close();
  for (auto entry = rails_.rbegin(); entry != rails_.rend(); ++entry) {
    const auto left = deadline - fabric::Clock::now();
    entry->second->rail->join(std::max(left, fabric::Clock::duration::zero()));
  }
  rails_.clear();
}

}  // namespace fabrickv::binding
