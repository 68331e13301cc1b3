#pragma once

#include <sys/types.h>

#include <cstdint>
#include <vector>

namespace fabrickv::test {

// What a target does to end a writer's access.
enum class Revocation : uint8_t { kCloseRegion, kCloseRegionAndRemovePeer };

// A second process: this executable again, with --peer. It has a rail and one mapping that is registered for remote
// write, and does what it is told over a socket.
class PeerProcess {
 public:
  explicit PeerProcess(uint64_t size_bytes);
  // Kills it, if it still lives, and waits for it.
  ~PeerProcess();
  PeerProcess(const PeerProcess&) = delete;
  PeerProcess& operator=(const PeerProcess&) = delete;

  pid_t pid() const { return pid_; }
  const std::vector<uint8_t>& address() const { return address_; }
  uint64_t remote_address() const { return remote_address_; }
  uint64_t key() const { return key_; }
  uint64_t size_bytes() const { return size_bytes_; }

  // Makes a writer known to it, as a session's Hello would.
  void insert_peer(const std::vector<uint8_t>& address);
  // CRC-32C of a range of its mapping.
  uint32_t crc(uint64_t offset, uint64_t length);
  void fill(uint8_t byte);
  // Bytes of its mapping that are not `byte`.
  uint64_t count_other_than(uint8_t byte);
  // Waits until a write into memory that is full of `byte` has come some way, revokes the writer's access and, with the
  // proof of quiescence complete, fills the memory with `byte` again. Whether the write was in its middle.
  bool revoke_and_fill(uint8_t byte, Revocation revocation);
  // Registers the memory again.
  void introduce();
  void kill(int signal);
  // Ends it in order; ends this process unless its exit code is 0.
  void finish();

 private:
  uint64_t ask(uint8_t command, uint64_t first, uint64_t second);
  void read_introduction();

  pid_t pid_ = -1;
  int socket_ = -1;
  uint64_t size_bytes_;
  std::vector<uint8_t> address_;
  uint64_t remote_address_ = 0;
  uint64_t key_ = 0;
};

// What main() does before anything else: returns only when this process is not the second one.
void become_peer_if_asked(int argc, char** argv);

}  // namespace fabrickv::test
