#include "arguments.h"

#include <getopt.h>

#include <array>
#include <cerrno>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <sstream>

namespace fabrickv::bench {
namespace {

enum Option : int {
  kProvider = 1,
  kSourceAddress,
  kMemory,
  kSize,
  kInFlight,
  kChunk,
  kChunksInFlight,
  kChunksInFlightPerPeer,
  kSpin,
  kWait,
  kSourceBytes,
  kSinkBytes,
  kSeconds,
  kWarmup,
  kStdin,
  kHelp,
};

constexpr std::array<option, 17> kOptions = {
    {{"provider", required_argument, nullptr, kProvider},
     {"source-address", required_argument, nullptr, kSourceAddress},
     {"memory", required_argument, nullptr, kMemory},
     {"size", required_argument, nullptr, kSize},
     {"in-flight", required_argument, nullptr, kInFlight},
     {"chunk", required_argument, nullptr, kChunk},
     {"chunks-in-flight", required_argument, nullptr, kChunksInFlight},
     {"chunks-in-flight-per-peer", required_argument, nullptr, kChunksInFlightPerPeer},
     {"spin-us", required_argument, nullptr, kSpin},
     {"wait", required_argument, nullptr, kWait},
     {"source-bytes", required_argument, nullptr, kSourceBytes},
     {"sink-bytes", required_argument, nullptr, kSinkBytes},
     {"seconds", required_argument, nullptr, kSeconds},
     {"warmup", required_argument, nullptr, kWarmup},
     {"stdin", no_argument, nullptr, kStdin},
     {"help", no_argument, nullptr, kHelp},
     {nullptr, 0, nullptr, 0}}};

constexpr double kSecondsMax = 600;

bool parse_count(const char* text, uint64_t& count) {
  char* end = nullptr;
  errno = 0;
  count = std::strtoull(text, &end, 10);
  return errno == 0 && *text >= '0' && *text <= '9' && *end == '\0';
}

bool parse_count(const char* text, uint32_t& count) {
  uint64_t wide = 0;
  if (!parse_count(text, wide) || wide > UINT32_MAX) return false;
  count = static_cast<uint32_t>(wide);
  return true;
}

bool parse_seconds(const char* text, double& seconds) {
  char* end = nullptr;
  seconds = std::strtod(text, &end);
  return end != text && *end == '\0' && std::isfinite(seconds) && seconds >= 0 && seconds <= kSecondsMax;
}

bool parse_wait(const char* text, bool& block) {
  block = std::strcmp(text, "block") == 0;
  return block || std::strcmp(text, "spin") == 0;
}

// False when the value of the option makes no sense.
bool apply(int code, const char* value, Arguments& arguments) {
  Case& first = arguments.first;
  switch (code) {
    case kProvider:
      arguments.provider = value;
      return true;
    case kSourceAddress:
      arguments.source_address = value;
      return true;
    case kMemory:
      return parse_count(value, arguments.memory_bytes);
    case kSize:
      return parse_count(value, first.size_bytes);
    case kInFlight:
      return parse_count(value, first.in_flight);
    case kChunk:
      return parse_count(value, first.chunk_bytes);
    case kChunksInFlight:
      return parse_count(value, first.chunks_in_flight);
    case kChunksInFlightPerPeer:
      return parse_count(value, first.chunks_in_flight_per_peer);
    case kSpin:
      return parse_count(value, first.spin_us);
    case kWait:
      return parse_wait(value, first.block);
    case kSourceBytes:
      return parse_count(value, first.source_bytes);
    case kSinkBytes:
      return parse_count(value, first.sink_bytes);
    case kSeconds:
      return parse_seconds(value, first.seconds);
    case kWarmup:
      return parse_seconds(value, first.warmup_seconds);
    case kStdin:
      arguments.from_stdin = true;
      return true;
    default:
      arguments.help = true;
      return true;
  }
}

bool check(Arguments& arguments, std::string& problem) {
  Case& first = arguments.first;
  if (first.size_bytes == 0 || first.in_flight == 0 || first.chunk_bytes == 0 || first.chunks_in_flight == 0 ||
      first.chunks_in_flight_per_peer == 0) {
    problem = "--size, --in-flight, --chunk and the numbers of chunks must be at least 1";
    return false;
  }
  if (first.size_bytes > arguments.memory_bytes / first.in_flight) {
    problem = "--in-flight values of --size bytes do not fit into --memory";
    return false;
  }
  const uint64_t least = first.size_bytes * first.in_flight;
  for (uint64_t* bytes : {&first.source_bytes, &first.sink_bytes}) {
    if (*bytes == 0) *bytes = least;
    if (*bytes >= least && *bytes <= arguments.memory_bytes) continue;
    problem = "--source-bytes and --sink-bytes must hold --in-flight values and fit into --memory";
    return false;
  }
  return true;
}

}  // namespace

const char* const kUsage =
    "usage: raw_write [options]\n"
    "\n"
    "Delivery-complete RDMA writes from one process to another by plain libfabric: what a key-value store is measured\n"
    "against. It starts both processes itself, and prints JSON: one line about the fabric, one per case.\n"
    "Sizes are in bytes.\n"
    "\n"
    "  --provider NAME                libfabric's name (tcp;ofi_rxm)\n"
    "  --source-address IP            where both processes bind (wherever libfabric likes)\n"
    "  --memory N                     registered memory of each process (1 GiB)\n"
    "  --stdin                        read cases from standard input, one per line, in the options below\n"
    "\n"
    "  --size N                       one value (1 MiB)\n"
    "  --in-flight N                  values on their way at a time (1)\n"
    "  --chunk N                      the longest single write (1 MiB)\n"
    "  --chunks-in-flight N           chunks of one value (4)\n"
    "  --chunks-in-flight-per-peer N  chunks of all values, counted in bytes (4)\n"
    "  --wait spin|block              spin and yield before sleeping, or sleep at once (spin)\n"
    "  --spin-us N                    how long (50)\n"
    "  --source-bytes N               memory that values are taken from in turn (--in-flight values)\n"
    "  --sink-bytes N                 memory that values are written to in turn (--in-flight values)\n"
    "  --seconds S                    how long values are begun (1)\n"
    "  --warmup S                     the same, before it counts (0.2)\n";

bool parse_arguments(const std::vector<std::string>& words, Arguments& arguments, std::string& problem) {
  // getopt may reorder the pointers, but leaves the texts alone.
  std::vector<char*> pointers = {const_cast<char*>("raw_write")};
  for (const std::string& word : words) pointers.push_back(const_cast<char*>(word.c_str()));
  pointers.push_back(nullptr);
  // 0 makes glibc's getopt begin afresh.
  optind = 0;
  opterr = 0;
  const int count = static_cast<int>(words.size()) + 1;
  int index = 0;
  for (int code = 0; (code = getopt_long(count, pointers.data(), "", kOptions.data(), &index)) != -1;) {
    if (code == '?') {
      problem = std::string("unknown option, or one without its value: ") + pointers[static_cast<size_t>(optind) - 1];
      return false;
    }
    if (!apply(code, optarg, arguments)) {
      problem = std::string("--") + kOptions[static_cast<size_t>(index)].name + " cannot be " + optarg;
      return false;
    }
  }
  if (optind < count) {
    problem = std::string("unexpected argument: ") + pointers[static_cast<size_t>(optind)];
    return false;
  }
  return check(arguments, problem);
}

std::vector<std::string> split_words(const std::string& line) {
  std::istringstream stream(line);
  std::vector<std::string> words;
  for (std::string word; stream >> word;) words.push_back(word);
  return words;
}

}  // namespace fabrickv::bench
