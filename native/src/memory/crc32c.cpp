#include "memory/crc32c.h"

#include <algorithm>
#include <array>
#include <cstring>

#include "memory/crc32c_fold.h"

#if defined(__x86_64__)
#include <nmmintrin.h>
#elif defined(__aarch64__)
#include <arm_acle.h>
#include <asm/hwcap.h>
#include <sys/auxv.h>
#endif

namespace fabrickv::memory {
namespace {

constexpr uint32_t kPolynomial = 0x82F63B78;
constexpr size_t kCopyBlockBytes = 16 * 1024;

using Tables = std::array<std::array<uint32_t, 256>, 8>;

constexpr Tables make_tables() {
  Tables tables{};
  for (uint32_t byte = 0; byte < 256; byte++) {
    uint32_t crc = byte;
    for (int bit = 0; bit < 8; bit++) crc = (crc & 1) != 0 ? (crc >> 1) ^ kPolynomial : crc >> 1;
    tables[0][byte] = crc;
  }
  for (uint32_t byte = 0; byte < 256; byte++) {
    for (size_t k = 1; k < 8; k++) {
      tables[k][byte] = tables[0][tables[k - 1][byte] & 0xff] ^ (tables[k - 1][byte] >> 8);
    }
  }
  return tables;
}

constexpr Tables kTables = make_tables();

uint64_t load_u64(const uint8_t* from) {
  uint64_t value = 0;
  std::memcpy(&value, from, sizeof value);
  return value;
}

uint32_t table_bytes(uint32_t crc, const uint8_t* data, size_t length) {
  for (; length > 0; length--) crc = kTables[0][(crc ^ *data++) & 0xff] ^ (crc >> 8);
  return crc;
}

uint32_t run_table(uint32_t crc, const uint8_t* data, size_t length) {
#if __BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__
  for (; length >= 8; length -= 8, data += 8) {
    const uint64_t word = load_u64(data) ^ crc;
    crc = kTables[7][word & 0xff] ^ kTables[6][(word >> 8) & 0xff] ^ kTables[5][(word >> 16) & 0xff] ^
          kTables[4][(word >> 24) & 0xff] ^ kTables[3][(word >> 32) & 0xff] ^ kTables[2][(word >> 40) & 0xff] ^
          kTables[1][(word >> 48) & 0xff] ^ kTables[0][word >> 56];
  }
#endif
  return table_bytes(crc, data, length);
}

// Appending zero bytes to a message is a linear map of its CRC; as four tables of 256 it costs four look-ups.
struct ZerosOperator {
  std::array<std::array<uint32_t, 256>, 4> table;

  uint32_t apply(uint32_t crc) const {
    return table[0][crc & 0xff] ^ table[1][(crc >> 8) & 0xff] ^ table[2][(crc >> 16) & 0xff] ^ table[3][crc >> 24];
  }
};

using Matrix = std::array<uint32_t, 32>;

constexpr uint32_t times(const Matrix& matrix, uint32_t vector) {
  uint32_t sum = 0;
  for (size_t bit = 0; vector != 0; bit++, vector >>= 1) {
    if ((vector & 1) != 0) sum ^= matrix[bit];
  }
  return sum;
}

constexpr Matrix squared(const Matrix& matrix) {
  Matrix square{};
  for (size_t bit = 0; bit < 32; bit++) square[bit] = times(matrix, matrix[bit]);
  return square;
}

// The operator for `zero_bytes`, a power of two.
constexpr ZerosOperator make_operator(size_t zero_bytes) {
  Matrix one_bit{};
  one_bit[0] = kPolynomial;
  for (size_t bit = 1; bit < 32; bit++) one_bit[bit] = uint32_t{1} << (bit - 1);
  Matrix matrix = squared(squared(squared(one_bit)));
  for (; zero_bytes > 1; zero_bytes >>= 1) matrix = squared(matrix);
  ZerosOperator zeros{};
  for (uint32_t byte = 0; byte < 256; byte++) {
    for (uint32_t place = 0; place < 4; place++) zeros.table[place][byte] = times(matrix, byte << (8 * place));
  }
  return zeros;
}

constexpr size_t kLongBytes = 8192;
constexpr size_t kShortBytes = 256;
constexpr ZerosOperator kLongZeros = make_operator(kLongBytes);
constexpr ZerosOperator kShortZeros = make_operator(kShortBytes);

#if defined(__x86_64__)
#define FABRICKV_CRC_TARGET __attribute__((target("sse4.2")))
FABRICKV_CRC_TARGET inline uint64_t step8(uint64_t crc, uint64_t word) {
  return _mm_crc32_u64(crc, word);
}
FABRICKV_CRC_TARGET inline uint32_t step1(uint32_t crc, uint8_t byte) {
  return _mm_crc32_u8(crc, byte);
}
bool has_hardware() {
  return __builtin_cpu_supports("sse4.2") != 0;
}
constexpr const char* kHardwareName = "sse4.2";
#elif defined(__aarch64__)
#define FABRICKV_CRC_TARGET __attribute__((target("+crc")))
FABRICKV_CRC_TARGET inline uint64_t step8(uint64_t crc, uint64_t word) {
  return __crc32cd(static_cast<uint32_t>(crc), word);
}
FABRICKV_CRC_TARGET inline uint32_t step1(uint32_t crc, uint8_t byte) {
  return __crc32cb(crc, byte);
}
bool has_hardware() {
  return (getauxval(AT_HWCAP) & HWCAP_CRC32) != 0;
}
constexpr const char* kHardwareName = "armv8";
#endif

#if defined(FABRICKV_CRC_TARGET)

template <size_t kStreamBytes>
FABRICKV_CRC_TARGET inline uint64_t three_streams(uint64_t crc, const uint8_t* data, const ZerosOperator& zeros) {
  uint64_t second = 0;
  uint64_t third = 0;
  for (size_t at = 0; at < kStreamBytes; at += 8) {
    crc = step8(crc, load_u64(data + at));
    second = step8(second, load_u64(data + kStreamBytes + at));
    third = step8(third, load_u64(data + 2 * kStreamBytes + at));
  }
  crc = zeros.apply(static_cast<uint32_t>(crc)) ^ static_cast<uint32_t>(second);
  return zeros.apply(static_cast<uint32_t>(crc)) ^ static_cast<uint32_t>(third);
}

FABRICKV_CRC_TARGET uint32_t run_hardware(uint32_t seed, const uint8_t* data, size_t length) {
  uint32_t head = seed;
  for (; length > 0 && reinterpret_cast<uintptr_t>(data) % 8 != 0; length--) head = step1(head, *data++);
  uint64_t crc = head;
  for (; length >= 3 * kLongBytes; length -= 3 * kLongBytes, data += 3 * kLongBytes) {
    crc = three_streams<kLongBytes>(crc, data, kLongZeros);
  }
  for (; length >= 3 * kShortBytes; length -= 3 * kShortBytes, data += 3 * kShortBytes) {
    crc = three_streams<kShortBytes>(crc, data, kShortZeros);
  }
  for (; length >= 8; length -= 8, data += 8) crc = step8(crc, load_u64(data));
  auto tail = static_cast<uint32_t>(crc);
  for (; length > 0; length--) tail = step1(tail, *data++);
  return tail;
}

// Most of it by folding, the rest as above.
uint32_t run_folding(uint32_t crc, const uint8_t* data, size_t length) {
  const size_t taken = fold(crc, data, length);
  return run_hardware(crc, data + taken, length - taken);
}

#endif

using Run = uint32_t (*)(uint32_t crc, const uint8_t* data, size_t length);

struct Implementation {
  Run run;
  const char* name;
};

Implementation choose() {
#if defined(FABRICKV_CRC_TARGET)
  if (has_hardware() && can_fold()) return {run_folding, "vpclmulqdq"};
  if (has_hardware()) return {run_hardware, kHardwareName};
#endif
  return {run_table, "table"};
}

const Implementation& implementation() {
  static const Implementation chosen = choose();
  return chosen;
}

}  // namespace

uint32_t crc32c(const void* data, size_t length, uint32_t seed) {
  return ~implementation().run(~seed, static_cast<const uint8_t*>(data), length);
}

uint32_t copy_crc32c(void* target, const void* source, size_t length, uint32_t seed) {
  const Run run = implementation().run;
  auto* to = static_cast<uint8_t*>(target);
  const auto* from = static_cast<const uint8_t*>(source);
  uint32_t crc = ~seed;
  while (length > 0) {
    const size_t block = std::min(length, kCopyBlockBytes);
    std::memcpy(to, from, block);
    // Checked on the copy: what is published is what was checked, even if the source changes meanwhile.
    crc = run(crc, to, block);
    to += block;
    from += block;
    length -= block;
  }
  return ~crc;
}

const char* crc32c_implementation() {
  return implementation().name;
}

uint32_t crc32c_table(const void* data, size_t length, uint32_t seed) {
  return ~run_table(~seed, static_cast<const uint8_t*>(data), length);
}

}  // namespace fabrickv::memory
