#pragma once

#include <cstddef>
#include <cstdint>

namespace fabrickv::memory {

// CRC-32C by carry-less multiplication of 64 bytes at a time (VPCLMULQDQ with AVX-512): see crc32c_fold.cpp.

// Whether this CPU, and its operating system, have what it takes.
bool can_fold();

// Takes in as many bytes as it can, and returns how many: a multiple of 256, or none. `crc` is the running remainder,
// as the crc32 instruction keeps it.
size_t fold(uint32_t& crc, const uint8_t* data, size_t length);

}  // namespace fabrickv::memory
