#pragma once

#include <cstdio>
#include <cstdlib>
#include <functional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

// A test harness of one page: TEST(name) { … } registers a case, CHECK(condition) and CHECK_EQUAL(is, should) end the
// process with the place and the values, SKIP(reason) leaves the case and says so, and run_tests() runs all of them, or
// those whose names contain argv[1].

namespace fabrickv::test {

struct Case {
  const char* name;
  std::function<void()> body;
};

inline std::vector<Case>& cases() {
  static std::vector<Case> all;
  return all;
}

inline int& skipped() {
  static int count = 0;
  return count;
}

struct Registration {
  Registration(const char* name, std::function<void()> body) { cases().push_back({name, std::move(body)}); }
};

inline void fail(const char* file, int line, const std::string& what) {
  std::fprintf(stderr, "%s:%d: %s\n", file, line, what.c_str());
  std::_Exit(1);
}

template <typename T>
std::string show(const T& value) {
  if constexpr (std::is_convertible_v<T, std::string_view>) {
    return std::string(std::string_view(value));
  } else if constexpr (std::is_enum_v<T>) {
    return std::to_string(static_cast<long long>(value));
  } else {
    return std::to_string(value);
  }
}

inline int run_tests(int argc, char** argv) {
  const std::string_view filter = argc > 1 ? argv[1] : "";
  int count = 0;
  for (const Case& test : cases()) {
    if (std::string_view(test.name).find(filter) == std::string_view::npos) continue;
    std::printf("  %s\n", test.name);
    std::fflush(stdout);
    test.body();
    count++;
  }
  std::printf("%d tests passed, %d skipped\n", count - skipped(), skipped());
  // A filter that finds nothing is a mistake.
  return count > 0 ? 0 : 1;
}

}  // namespace fabrickv::test

#define TEST(name)                                                                   \
  static void test_##name();                                                         \
  static const fabrickv::test::Registration registration_##name(#name, test_##name); \
  static void test_##name()

// test/verbs/native.test.ts reads this line.
#define SKIP(reason)                            \
  do {                                          \
    std::printf("    skipped: %s\n", (reason)); \
    fabrickv::test::skipped()++;                \
    return;                                     \
  } while (false)

#define CHECK(condition) ((condition) ? void() : fabrickv::test::fail(__FILE__, __LINE__, "not true: " #condition))

#define CHECK_EQUAL(is, should)                                                                                      \
  do {                                                                                                               \
    const auto is_value = (is);                                                                                      \
    const auto should_value = (should);                                                                              \
    if (!(is_value == should_value)) {                                                                               \
      fabrickv::test::fail(                                                                                          \
          __FILE__, __LINE__,                                                                                        \
          std::string(#is " is ") + fabrickv::test::show(is_value) + ", not " + fabrickv::test::show(should_value)); \
    }                                                                                                                \
  } while (false)
