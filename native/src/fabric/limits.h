#pragma once

#include <chrono>
#include <cstddef>
#include <cstdint>

namespace fabrickv::fabric {

using Clock = std::chrono::steady_clock;

// Commands and transfers of one rail that have not been settled; past it, BUSY.
constexpr size_t kPendingMax = 8192;
// What begins something (writes, registrations, peers) stops here. The rest is kept for what ends something, or frees
// it: who has filled the table must be able to empty it.
constexpr size_t kPendingBeginnings = kPendingMax / 8 * 7;
// A transfer can be cancelled once, and a cancel is not counted as pending; those of transfers that have settled
// meanwhile may still be in the ring.
constexpr size_t kCommandRing = 4 * kPendingMax;
// Everything pending settles once; the two extra ones are "opened" and "failed". A power of two.
constexpr size_t kCompletionRing = 2 * kPendingMax;
// Transfer ids are slot + generation * this; TRANSFER_SLOTS of src/fabric/rail.ts is the same number.
constexpr uint64_t kTransferSlots = 16384;
constexpr size_t kPeersMax = 4096;
// Addresses of removed peers that are still in the vector; past it no peer is inserted.
constexpr size_t kLingeringMax = 1024;
// How many of them are taken out at a time: each may take a socket.
constexpr int kLingeringBatch = 64;
constexpr size_t kRemotesMax = 65536;
constexpr size_t kRegionsMax = 65536;
// Chunks of one rail in flight, whatever the provider would take.
constexpr size_t kOperationsMax = 4096;
// Chunks to one peer in flight, however small they are.
constexpr uint32_t kOperationsPerPeerMax = 64;
// Pieces of one write. A value of 64 GiB has 4,096 extents.
constexpr size_t kSegmentsMax = 65536;
constexpr size_t kRegionBytesMax = size_t{1} << 30;
constexpr size_t kAddressBytesMax = 256;

// How long a removal waits for writes in flight to come back.
constexpr auto kRemovalTimeout = std::chrono::seconds(2);
// How long a connection that may be coming up is waited for, before its peer is removed without one.
constexpr auto kConnectingGrace = std::chrono::milliseconds(20);
// When the address of such a peer is taken out of the vector: by then its attempt to connect has ended, one way or
// other.
constexpr auto kLingerTime = std::chrono::seconds(2);
// How long a proof waits for a sign of life from a peer before it ends the connection …
constexpr auto kFenceTimeout = std::chrono::milliseconds(200);
// … and how long for its answer, however lively it is.
constexpr auto kFenceTimeoutMax = std::chrono::seconds(2);
// How long a round of proof takes at most before it gives up.
constexpr auto kRoundTimeout = std::chrono::seconds(5);
// The progress thread was held up when it goes round less often than this; it never sleeps so long during a proof.
constexpr auto kStallMin = std::chrono::milliseconds(20);
// How long closing waits for the same, before it closes the endpoint over them.
constexpr auto kCloseTimeout = std::chrono::seconds(1);
// How long the end of the process waits for all rails together.
constexpr auto kExitTimeout = std::chrono::seconds(3);
// The longest sleep of a progress thread, and so the coarsest heartbeat.
constexpr auto kSleepMax = std::chrono::milliseconds(100);
// While something connects: connection events do not reliably wake the CQ's fd (1.05 s with a cap of 1 s).
constexpr auto kConnectingSleepMax = std::chrono::milliseconds(1);
constexpr auto kConnectingWindow = std::chrono::seconds(2);
// After a wake-up that brought no completion, something may be connecting to us.
constexpr auto kUnexplainedWakeWindow = std::chrono::milliseconds(50);
// Sleeps that something ended sooner than this, so often in a row, mean that the rail is busy: as a target of bulk
// writes, of which it sees no completions, or with operations that follow one another …
constexpr auto kBusySleep = std::chrono::milliseconds(1);
constexpr int kBusyStreak = 3;
// … and then it spins for this long before it sleeps. Waking up is dear where an idle CPU halts: in a virtual machine
// of two, GETs of 1 MiB took 640 µs without it, 450 with it.
constexpr auto kBusySpin = std::chrono::milliseconds(1);

}  // namespace fabrickv::fabric
