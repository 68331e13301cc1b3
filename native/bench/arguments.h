#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace fabrickv::bench {

// One measurement: what is written, and within which limits. The limits mean what RailTuning in
// src/fabric/rail-types.ts means by them.
struct Case {
  uint64_t size_bytes = uint64_t{1} << 20;
  // Values that are on their way at a time.
  uint32_t in_flight = 1;
  uint64_t chunk_bytes = uint64_t{1} << 20;
  uint32_t chunks_in_flight = 4;
  // Counted in bytes of full-size chunks, so that small values pipeline deeper.
  uint32_t chunks_in_flight_per_peer = 4;
  uint32_t spin_us = 50;
  // Sleep on the queue's fd at once, instead of spinning first.
  bool block = false;
  // The memory that values are taken from, and written to, in turn; 0 means in_flight values.
  uint64_t source_bytes = 0;
  uint64_t sink_bytes = 0;
  double seconds = 1;
  double warmup_seconds = 0.2;
};

struct Arguments {
  // libfabric's own name.
  std::string provider = "tcp;ofi_rxm";
  // Where both processes bind; empty: wherever libfabric likes.
  std::string source_address;
  // Of each process.
  uint64_t memory_bytes = uint64_t{1} << 30;
  // Read cases from standard input, one per line, in these same options, until it ends.
  bool from_stdin = false;
  bool help = false;
  Case first;
};

extern const char* const kUsage;

// Reads a command line without the program's name. False, with the reason in `problem`, when it makes no sense.
bool parse_arguments(const std::vector<std::string>& words, Arguments& arguments, std::string& problem);

// Splits a line at its blanks.
std::vector<std::string> split_words(const std::string& line);

}  // namespace fabrickv::bench
