#include "binding/rail_table.h"

#include <utility>
#include <vector>

#include "binding/napi_util.h"
#include "binding/rail_values.h"

namespace fabrickv::binding {
namespace {

// Batches that one rail may deliver before the event loop gets its turn.
constexpr int kBatchesPerTurn = 8;

}  // namespace

uint64_t RailTable::add(std::unique_ptr<fabric::Rail> rail, napi_value handler) {
  auto entry = std::make_shared<RailEntry>();
  entry->rail = std::move(rail);
  napi_create_reference(environment_.env(), handler, 1, &entry->handler);
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
  napi_delete_reference(environment_.env(), std::exchange(entry->handler, nullptr));
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

  const napi_env env = environment_.env();
  auto& pairs = environment_.completions();
  napi_value details = nullptr;
  uint32_t detail_count = 0;
  for (size_t i = 0; i < count; i++) {
    const fabric::Outcome& outcome = outcomes[i];
    const bool is_transfer = outcome.kind == fabric::CompletionKind::kTransfer;
    pairs[2 * i] = is_transfer ? static_cast<double>(outcome.id) : static_cast<double>(outcome.token);
    pairs[2 * i + 1] = -1;
    napi_value detail = make_detail(env, outcome, entry.rail->info());
    if (detail == nullptr) continue;
    if (details == nullptr) napi_create_array(env, &details);
    napi_set_element(env, details, detail_count, detail);
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
  const std::array<napi_value, 2> arguments = {make_number(env, static_cast<double>(pair_count)),
                                               details == nullptr ? make_undefined(env) : details};
  environment_.call(entry.handler, arguments.size(), arguments.data());
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
