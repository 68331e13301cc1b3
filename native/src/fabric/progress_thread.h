#pragma once

#include <deque>
#include <memory>
#include <string>
#include <unordered_map>
#include <vector>

#include "fabric/endpoint.h"
#include "fabric/inbound.h"
#include "fabric/scheduler.h"
#include "fabric/shared_state.h"

namespace fabrickv::fabric {

// The objects of a table know their index, so that taking one out takes no search.
template <typename T>
void enter(std::vector<T*>& table, T& element) {
  element.index = table.size();
  table.push_back(&element);
}

template <typename T>
void strike(std::vector<T*>& table, T& element) {
  table[element.index] = table.back();
  table[element.index]->index = element.index;
  table.pop_back();
}

// A rail's thread: it opens the endpoint, executes commands, posts and reads completions until it is told to stop, and
// closes everything. All libfabric objects of the rail live and die on it.
class ProgressThread final : public Scheduler::Listener {
 public:
  explicit ProgressThread(SharedState& shared) : shared_(shared) {}

  // The thread's body; returns when everything is closed.
  void run();

 private:
  struct Removal {
    Peer* peer;
    int64_t token;
    Clock::time_point began;
    // The removal was reported as timed out; only the bookkeeping is left.
    bool reported;
  };
  enum class TakenOut {
    // The address is out of the vector, and a connection that there was is closed.
    kYes,
    // There is no connection, or not yet.
    kNotConnected,
    // libfabric does not say whether there is one.
    kUnknown,
    // libfabric refuses.
    kRefused,
  };
  // A disconnection that waits for what was in flight to come back.
  struct Disconnection {
    Peer* peer;
    int64_t token;
    Clock::time_point began;
  };
  // An address that could not be taken out of the vector when its peer went.
  struct Lingering {
    fi_addr_t fi_addr;
    // Names its AddressUse.
    std::string address;
    Clock::time_point due;
    // The rounds of proof in which it was found without a connection, once and again in a later iteration.
    uint64_t put_off_round = 0;
    uint64_t proved_round = 0;
  };

  bool open();
  void loop();
  bool execute_commands();
  void execute(const Command& command);
  void register_region(Region& region, int64_t token);
  void request_close(Region& region, int64_t token);
  void close_region(Region& region);
  void insert_peer(Peer& peer, int64_t token);
  void begin_removal(Peer& peer, int64_t token);
  void check_removals();
  bool check_removal(size_t i);
  TakenOut take_out_of_vector(Peer& peer, int& result);
  bool may_be_connecting(const Peer& peer) const;
  int put_into_vector(Peer& peer);
  void put_back(Peer& peer);
  void share_address(Peer& peer);
  void leave_address(Peer& peer);
  void linger(Peer& peer);
  // The lingering address is gone from the list: what is known of its use is, too, if nobody else has it.
  void stop_lingering(const Lingering& lingering);
  bool is_in_use(const Lingering& lingering) const;
  TakenOut probe(fi_addr_t address);
  void fail(const char* call, int result);
  void begin_disconnection(Peer& peer, int64_t token);
  void check_disconnections();
  void end_disconnection(const Disconnection& disconnection, std::unique_ptr<Error> error);
  void remove_lingering();
  void remove_first_lingering();
  void on_settled(Transfer& transfer) override;
  void on_connection_failed(Peer& peer) override;
  void on_fenced(Peer& peer, uint64_t connection, uint64_t round, bool answered) override;
  void reconnect_failed_peers();

  void prove(int64_t token);
  bool advance_proof();
  void begin_round();
  void end_round();
  void fail_round(Error error);
  void join_round(Peer& peer);
  void excuse_stall(Clock::duration stall);
  bool advance_fence(Peer& peer);
  void post_fence(Peer& peer);
  void note_put_off(Peer& peer);
  void end_connection(Peer& peer);
  bool end_lingering_connections();
  void forget_fence(Peer& peer);
  void abandon_proofs();

  bool bind_to_cpu(Error& error) const;
  void shut_down();
  void flush_in_flight();
  void close_everything();

  void wait();
  Clock::duration spin_time() const;
  Clock::duration sleep_limit(Clock::time_point now) const;
  void note_sleep(Clock::duration slept, bool queue_woke_us, bool command_woke_us, Clock::time_point now);
  bool must_not_sleep() const;

  void push(CompletionKind kind, int64_t token, void* object, std::unique_ptr<Error> error);
  void wake_owner();
  Error make_error(ErrorCode code, const char* call, int result) const;
  Error closed_error(const char* call) const;

  SharedState& shared_;
  std::unique_ptr<Endpoint> endpoint_;
  std::unique_ptr<Scheduler> scheduler_;
  // Where the rail is proved by fences.
  std::unique_ptr<Inbound> inbound_;
  // What stands in the way of fences, where they would do otherwise.
  std::string unprovable_because_;
  std::vector<Removal> removals_;
  std::vector<Disconnection> disconnections_;
  // Calls of prove() that wait for the next round, and those that the one under way answers.
  std::vector<int64_t> waiting_proofs_;
  std::vector<int64_t> running_proofs_;
  Clock::time_point round_began_{};
  // Counts the rounds.
  uint64_t round_ = 0;
  bool may_end_for_credit_ = false;
  // Whether the queue had nothing to be read in this iteration.
  bool queue_was_empty_ = false;
  // The peers of the round that have not settled.
  std::vector<Peer*> fenced_;
  // In the order in which they are due.
  std::deque<Lingering> lingering_;
  // By address, in bytes. Peers and lingering addresses keep their entry alive.
  std::unordered_map<std::string, AddressUse> addresses_;
  // What is open, so that closing finds it; each element knows its index.
  std::vector<Peer*> peers_;
  std::vector<Region*> regions_;
  // Peers whose connection has failed, to be closed before anything more is posted.
  std::vector<Peer*> failed_peers_;
  // Why the rail failed by itself.
  std::unique_ptr<Error> failure_;
  bool pushed_ = false;
  size_t remote_write_regions_ = 0;

  Clock::time_point now_{};
  Clock::time_point last_activity_{};
  Clock::time_point last_connect_{};
  Clock::time_point last_unexplained_wake_{};
  int short_sleeps_ = 0;
};

}  // namespace fabrickv::fabric
