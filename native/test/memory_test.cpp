#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <random>
#include <string_view>
#include <vector>

#include "check.h"
#include "memory/crc32c.h"
#include "memory/crc32c_fold.h"
#include "memory/mapping.h"

using namespace fabrickv::memory;

namespace {

uint32_t bit_by_bit(const uint8_t* data, size_t length, uint32_t seed) {
  uint32_t crc = ~seed;
  for (size_t i = 0; i < length; i++) {
    crc ^= data[i];
    for (int bit = 0; bit < 8; bit++) crc = (crc & 1) != 0 ? (crc >> 1) ^ 0x82F63B78 : crc >> 1;
  }
  return ~crc;
}

std::vector<uint8_t> random_bytes(size_t length, uint32_t seed) {
  std::mt19937 generator(seed);
  std::vector<uint8_t> bytes(length);
  for (uint8_t& byte : bytes) byte = static_cast<uint8_t>(generator());
  return bytes;
}

bool no_mapping_is_left() {
  for (int i = 0; i < 5000 && Mapping::live_count() > 0; i++) usleep(1000);
  return Mapping::live_count() == 0;
}

}  // namespace

TEST(crc32c_known_vectors) {
  // RFC 3720, appendix B.4, and the check value of the polynomial.
  CHECK_EQUAL(crc32c("123456789", 9, 0), 0xE3069283u);
  std::vector<uint8_t> bytes(32, 0);
  CHECK_EQUAL(crc32c(bytes.data(), 32, 0), 0x8A9136AAu);
  std::fill(bytes.begin(), bytes.end(), 0xFF);
  CHECK_EQUAL(crc32c(bytes.data(), 32, 0), 0x62A8AB43u);
  for (size_t i = 0; i < 32; i++) bytes[i] = static_cast<uint8_t>(i);
  CHECK_EQUAL(crc32c(bytes.data(), 32, 0), 0x46DD794Eu);
  CHECK_EQUAL(crc32c(nullptr, 0, 0), 0u);
  CHECK_EQUAL(crc32c(nullptr, 0, 0x12345678), 0x12345678u);
}

TEST(crc32c_agrees_with_the_definition_for_every_length_alignment_and_seed) {
  const std::vector<uint8_t> bytes = random_bytes(3000, 1);
  for (size_t offset = 0; offset < 9; offset++) {
    for (size_t length = 0; length + offset <= bytes.size(); length += length < 100 ? 1 : 97) {
      const uint32_t seed = static_cast<uint32_t>(length * 2654435761u);
      const uint32_t should = bit_by_bit(bytes.data() + offset, length, seed);
      CHECK_EQUAL(crc32c(bytes.data() + offset, length, seed), should);
      CHECK_EQUAL(crc32c_table(bytes.data() + offset, length, seed), should);
    }
  }
}

TEST(folding_agrees_with_the_definition_at_every_number_of_steps) {
  if (!can_fold()) SKIP("this CPU has no VPCLMULQDQ with AVX-512");
  const std::vector<uint8_t> bytes = random_bytes(4200, 4);
  for (size_t length = 0; length <= 4100; length += 64) {
    uint32_t crc = ~uint32_t{7};
    const size_t taken = fold(crc, bytes.data() + length % 61, length);
    CHECK_EQUAL(taken, length / 256 * 256);
    CHECK_EQUAL(~crc, bit_by_bit(bytes.data() + length % 61, taken, 7));
  }
}

TEST(crc32c_streams) {
  // Long enough for the three-stream loops of both widths, and for their remainders.
  const std::vector<uint8_t> bytes = random_bytes(200'003, 2);
  const uint32_t whole = crc32c_table(bytes.data(), bytes.size(), 0);
  CHECK_EQUAL(crc32c(bytes.data(), bytes.size(), 0), whole);
  for (const size_t cut : {size_t{1}, size_t{7}, size_t{4096}, size_t{24'577}, bytes.size() - 1}) {
    const uint32_t head = crc32c(bytes.data(), cut, 0);
    CHECK_EQUAL(crc32c(bytes.data() + cut, bytes.size() - cut, head), whole);
  }
}

TEST(copy_crc32c_copies_and_checks) {
  const std::vector<uint8_t> bytes = random_bytes(100'001, 3);
  std::vector<uint8_t> copy(bytes.size() + 2, 0xAA);
  CHECK_EQUAL(copy_crc32c(copy.data() + 1, bytes.data(), bytes.size(), 5), crc32c_table(bytes.data(), bytes.size(), 5));
  CHECK_EQUAL(std::memcmp(copy.data() + 1, bytes.data(), bytes.size()), 0);
  CHECK_EQUAL(int{copy.front()}, 0xAA);
  CHECK_EQUAL(int{copy.back()}, 0xAA);
}

TEST(crc32c_is_in_hardware_where_the_cpu_has_it) {
  std::printf("    %s\n", crc32c_implementation());
#if defined(__x86_64__)
  const char* plain = __builtin_cpu_supports("sse4.2") ? "sse4.2" : "table";
  CHECK_EQUAL(std::string_view(crc32c_implementation()), can_fold() ? "vpclmulqdq" : plain);
#endif
}

TEST(mapping_is_zeroed_and_of_the_size_asked_for) {
  for (const bool prefault : {false, true}) {
    for (const bool huge : {false, true}) {
      for (const size_t size : {size_t{1}, size_t{4097}, size_t{2} << 20, (size_t{70} << 20) + 1}) {
        MapFailure failure;
        const auto mapping = Mapping::create({size, prefault, huge, nullptr}, failure);
        CHECK(mapping != nullptr);
        CHECK_EQUAL(mapping->size_bytes(), size);
        CHECK_EQUAL(int(mapping->base()[0]), 0);
        CHECK_EQUAL(int(mapping->base()[size - 1]), 0);
        mapping->base()[size - 1] = std::byte{7};
        if (huge && size >= size_t{2} << 20)
          CHECK_EQUAL(reinterpret_cast<uintptr_t>(mapping->base()) % (size_t{2} << 20), 0u);
      }
    }
  }
}

TEST(mapping_bounds_do_not_overflow) {
  MapFailure failure;
  const auto mapping = Mapping::create({4096, false, false, nullptr}, failure);
  CHECK(mapping->contains(0, 4096));
  CHECK(mapping->contains(4096, 0));
  CHECK(!mapping->contains(1, 4096));
  CHECK(!mapping->contains(4097, 0));
  CHECK(!mapping->contains(UINT64_MAX, 2));
  CHECK(!mapping->contains(2, UINT64_MAX));
}

TEST(mapping_failures_name_the_call) {
  MapFailure failure;
  CHECK(Mapping::create({0, false, false, nullptr}, failure) == nullptr);
  CHECK_EQUAL(failure.error_number, EINVAL);
  CHECK(Mapping::create({size_t{1} << 62, false, false, nullptr}, failure) == nullptr);
  CHECK_EQUAL(failure.error_number, ENOMEM);
  CHECK_EQUAL(std::string_view(failure.call), "mmap");
  CHECK(Mapping::create({SIZE_MAX, false, true, nullptr}, failure) == nullptr);
}

TEST(prefaulting_can_be_stopped) {
  const std::atomic<bool> stop{true};
  MapFailure failure;
  CHECK(Mapping::create({size_t{64} << 20, true, false, &stop}, failure) == nullptr);
  CHECK_EQUAL(failure.error_number, ECANCELED);
}

TEST(mappings_go_when_their_last_user_does) {
  // Large ones are unmapped by a thread of their own, and so are those of the tests before.
  CHECK(no_mapping_is_left());
  MapFailure failure;
  {
    const auto small = Mapping::create({4096, false, false, nullptr}, failure);
    const auto large = Mapping::create({size_t{64} << 20, false, false, nullptr}, failure);
    const auto user = large;
    CHECK_EQUAL(Mapping::live_count(), 2);
  }
  CHECK(no_mapping_is_left());
}

TEST(memory_comes_from_the_numa_node_that_is_named) {
  MapFailure failure;
  MapOptions options;
  options.size_bytes = 4096;
  options.prefault = true;
  options.numa_node = 0;
  CHECK(Mapping::create(options, failure) != nullptr);
  for (const int nowhere : {1023, 1024, 1 << 30}) {
    options.numa_node = nowhere;
    CHECK(Mapping::create(options, failure) == nullptr);
    CHECK_EQUAL(std::string_view(failure.call), "mbind");
    CHECK_EQUAL(failure.error_number, EINVAL);
  }
}

int main(int argc, char** argv) {
  return fabrickv::test::run_tests(argc, argv);
}
