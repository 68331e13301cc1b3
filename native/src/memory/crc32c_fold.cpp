// Folding, as in Gopal et al., "Fast CRC Computation for Generic Polynomials Using PCLMULQDQ Instruction" (Intel,
// 2009).
//
// Everything is reflected: the first bit of a message is the lowest bit of its first word, and has the highest power of
// x. A 128-bit lane {lo, hi} stands for lo(x)·x^64 + hi(x). To move it N bits towards the end of the message, where it
// is added to what is there, is to multiply it by x^N, of which only the remainder modulo the polynomial matters:
// lo·(x^(N+64) mod P) + hi·(x^N mod P). The product of two reflected words has a factor of x too many, hence N - 1
// below.

#include "memory/crc32c_fold.h"

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace fabrickv::memory {

#if defined(__x86_64__)

namespace {

constexpr uint32_t kPolynomial = 0x82F63B78;
constexpr size_t kVectorBytes = 64;
constexpr size_t kVectors = 4;
constexpr size_t kStepBytes = kVectors * kVectorBytes;

// x^n mod P as a reflected 64-bit word.
constexpr uint64_t remainder_of_power(unsigned n) {
  uint32_t remainder = 0x80000000;
  for (; n > 0; n--) remainder = (remainder & 1) != 0 ? (remainder >> 1) ^ kPolynomial : remainder >> 1;
  return uint64_t{remainder} << 32;
}

// What a lane is multiplied with to move it so many bits.
struct Factors {
  uint64_t lo;
  uint64_t hi;
};
constexpr Factors factors_for(unsigned bits) {
  return {remainder_of_power(bits + 64 - 1), remainder_of_power(bits - 1)};
}

constexpr Factors kByOneLane = factors_for(128);
constexpr Factors kByOneVector = factors_for(8 * kVectorBytes);
constexpr Factors kByOneStep = factors_for(8 * kStepBytes);

#define FABRICKV_FOLD_TARGET __attribute__((target("avx512f,avx512bw,avx512vl,vpclmulqdq,pclmul,sse4.2")))

FABRICKV_FOLD_TARGET inline __m512i load(const uint8_t* data) {
  return _mm512_loadu_si512(data);
}

FABRICKV_FOLD_TARGET inline __m512i broadcast(Factors factors) {
  return _mm512_broadcast_i32x4(_mm_set_epi64x(static_cast<long long>(factors.hi), static_cast<long long>(factors.lo)));
}

// `vector` moved by what the factors say, plus `onto`.
FABRICKV_FOLD_TARGET inline __m512i moved(__m512i vector, __m512i factors, __m512i onto) {
  const __m512i lo = _mm512_clmulepi64_epi128(vector, factors, 0x00);
  const __m512i hi = _mm512_clmulepi64_epi128(vector, factors, 0x11);
  constexpr int kXorOfThree = 0x96;
  return _mm512_ternarylogic_epi64(lo, hi, onto, kXorOfThree);
}

FABRICKV_FOLD_TARGET inline __m128i moved(__m128i lane, __m128i factors, __m128i onto) {
  const __m128i lo = _mm_clmulepi64_si128(lane, factors, 0x00);
  const __m128i hi = _mm_clmulepi64_si128(lane, factors, 0x11);
  return _mm_xor_si128(_mm_xor_si128(lo, hi), onto);
}

FABRICKV_FOLD_TARGET size_t fold_steps(uint32_t& crc, const uint8_t* data, size_t length) {
  const size_t taken = length / kStepBytes * kStepBytes;
  const uint8_t* end = data + taken;
  // The remainder of what came before belongs to the first four bytes.
  __m512i first = _mm512_xor_si512(load(data), _mm512_zextsi128_si512(_mm_cvtsi32_si128(static_cast<int>(crc))));
  __m512i second = load(data + kVectorBytes);
  __m512i third = load(data + 2 * kVectorBytes);
  __m512i fourth = load(data + 3 * kVectorBytes);
  const __m512i by_step = broadcast(kByOneStep);
  for (data += kStepBytes; data < end; data += kStepBytes) {
    first = moved(first, by_step, load(data));
    second = moved(second, by_step, load(data + kVectorBytes));
    third = moved(third, by_step, load(data + 2 * kVectorBytes));
    fourth = moved(fourth, by_step, load(data + 3 * kVectorBytes));
  }
  const __m512i by_vector = broadcast(kByOneVector);
  const __m512i all = moved(moved(moved(first, by_vector, second), by_vector, third), by_vector, fourth);
  const __m128i by_lane = _mm_set_epi64x(static_cast<long long>(kByOneLane.hi), static_cast<long long>(kByOneLane.lo));
  __m128i lane = _mm512_extracti32x4_epi32(all, 0);
  lane = moved(lane, by_lane, _mm512_extracti32x4_epi32(all, 1));
  lane = moved(lane, by_lane, _mm512_extracti32x4_epi32(all, 2));
  lane = moved(lane, by_lane, _mm512_extracti32x4_epi32(all, 3));
  // The last 128 bits are a message like any other.
  uint64_t rest = _mm_crc32_u64(0, static_cast<uint64_t>(_mm_extract_epi64(lane, 0)));
  rest = _mm_crc32_u64(rest, static_cast<uint64_t>(_mm_extract_epi64(lane, 1)));
  crc = static_cast<uint32_t>(rest);
  return taken;
}

}  // namespace

bool can_fold() {
  return __builtin_cpu_supports("avx512f") != 0 && __builtin_cpu_supports("avx512bw") != 0 &&
         __builtin_cpu_supports("avx512vl") != 0 && __builtin_cpu_supports("vpclmulqdq") != 0 &&
         __builtin_cpu_supports("sse4.2") != 0;
}

size_t fold(uint32_t& crc, const uint8_t* data, size_t length) {
  return length < kStepBytes ? 0 : fold_steps(crc, data, length);
}

#else

bool can_fold() {
  return false;
}

size_t fold(uint32_t&, const uint8_t*, size_t) {
  return 0;
}

#endif

}  // namespace fabrickv::memory
