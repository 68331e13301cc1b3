#pragma once

#include <cstddef>
#include <cstdint>

namespace fabrickv::memory {

// CRC-32C (Castagnoli, reflected 0x82F63B78) of `length` bytes, continued from `seed`, the CRC of what came before; 0
// to begin with. crc32c(b, crc32c(a)) is crc32c(ab). Any alignment. Thread-safe.
uint32_t crc32c(const void* data, size_t length, uint32_t seed);

// Copies and checks in one pass over the cache: block by block, so that the CRC reads what the copy has just brought
// in.
uint32_t copy_crc32c(void* target, const void* source, size_t length, uint32_t seed);

// "vpclmulqdq", "sse4.2", "armv8" or "table": what this CPU got.
const char* crc32c_implementation();

// The portable implementation, for tests to compare with.
uint32_t crc32c_table(const void* data, size_t length, uint32_t seed);

}  // namespace fabrickv::memory
