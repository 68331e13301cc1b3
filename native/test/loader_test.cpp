// The loader, each case in a process of its own, since what is loaded stays.

#include <dlfcn.h>
#include <sys/wait.h>
#include <unistd.h>

#include <array>
#include <csignal>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <string>

#include "check.h"
#include "fabric/libfabric.h"
#include "fabric/provider.h"

using namespace fabrickv::fabric;

namespace {

void in_child(const std::function<void()>& body) {
  const pid_t child = fork();
  if (child == 0) {
    body();
    // Not exit(): leaks of libfabric's own loading are not ours to report.
    std::_Exit(0);
  }
  int status = 0;
  waitpid(child, &status, 0);
  CHECK(WIFEXITED(status));
  CHECK_EQUAL(WEXITSTATUS(status), 0);
}

void handler(int) {}

}  // namespace

TEST(loads_and_reports_versions) {
  in_child([] {
    Error error;
    CHECK(loaded_libfabric() == nullptr);
    const Libfabric* library = load_libfabric({}, error);
    CHECK(library != nullptr);
    CHECK(library->path.find("libfabric") != std::string::npos);
    CHECK(library->loaded_version >= library->api_version);
    CHECK(library->api_version <= FI_VERSION(FI_MAJOR_VERSION, FI_MINOR_VERSION));
    CHECK(library->removal_flushes);
    CHECK_EQUAL(library->error_text(-FI_ECANCELED), library->error_text(FI_ECANCELED));
    // Idempotent, whatever the environment.
    CHECK(load_libfabric({{"FI_LOG_LEVEL", "warn"}}, error) == library);
    CHECK(std::getenv("FI_LOG_LEVEL") == nullptr);
  });
}

TEST(keeps_the_signal_handlers) {
  in_child([] {
    const std::array signals = {SIGINT, SIGTERM, SIGSEGV, SIGBUS, SIGILL, SIGABRT};
    for (const int number : signals) {
      struct sigaction action {};
      action.sa_handler = handler;
      sigaction(number, &action, nullptr);
    }
    Error error;
    const Libfabric* library = load_libfabric({}, error);
    CHECK(library != nullptr);
    CHECK(!list_endpoints(*library, {"tcp;ofi_rxm", "127.0.0.1", ""}, error).empty());
    for (const int number : signals) {
      struct sigaction action {};
      sigaction(number, nullptr, &action);
      CHECK(action.sa_handler == handler);
    }
  });
}

TEST(sets_the_environment) {
  in_child([] {
    setenv("FI_MR_CACHE_MAX_COUNT", "17", 1);
    unsetenv("FI_UNIVERSE_SIZE");
    Error error;
    CHECK(load_libfabric({{"FI_AV_REMOVE_CLEANUP", "0"}, {"FI_TCP_IFACE", "lo"}}, error) != nullptr);
    // Forced; the user's; the caller's; a default; left alone.
    CHECK_EQUAL(std::string(std::getenv("FI_AV_REMOVE_CLEANUP")), "1");
    CHECK_EQUAL(std::string(std::getenv("FI_MR_CACHE_MAX_COUNT")), "17");
    CHECK_EQUAL(std::string(std::getenv("FI_TCP_IFACE")), "lo");
    CHECK_EQUAL(std::string(std::getenv("FI_EFA_ENABLE_SHM_TRANSFER")), "0");
    CHECK(std::getenv("FI_UNIVERSE_SIZE") == nullptr);
  });
}

TEST(what_it_read_before_counts) {
  struct Case {
    const char* cache;
    const char* ring;
    const char* thread;
    bool cache_is_off;
    bool tcp_waits;
  };
  for (const Case& is : {Case{nullptr, nullptr, nullptr, false, true}, Case{"0", "0", "0", true, true},
                         Case{"0", "1", nullptr, true, false}, Case{"17", nullptr, "1", false, false}}) {
    for (const bool before : {true, false}) {
      in_child([&] {
        const auto set = [](const char* name, const char* value) {
          value == nullptr ? unsetenv(name) : setenv(name, value, 1);
        };
        set("FI_MR_CACHE_MAX_COUNT", is.cache);
        set("FI_TCP_IO_URING", is.ring);
        set("FI_OFI_RXM_DATA_AUTO_PROGRESS", is.thread);
        if (before) CHECK(dlopen("libfabric.so.1", RTLD_NOW) != nullptr);
        Error error;
        const Libfabric* library = load_libfabric({}, error);
        const bool user_wants_a_cache = is.cache != nullptr && std::string(is.cache) != "0";
        CHECK_EQUAL(library->registration_cache_is_off, before ? is.cache_is_off : !user_wants_a_cache);
        CHECK_EQUAL(library->tcp_reads_when_told, !before || is.tcp_waits);
        // Later it makes no difference.
        setenv("FI_MR_CACHE_MAX_COUNT", "5", 1);
        CHECK_EQUAL(std::string(std::getenv("FI_OFI_RXM_DATA_AUTO_PROGRESS")), "0");
      });
    }
  }
}

TEST(missing_library_says_where_it_looked) {
  in_child([] {
    setenv("FABRICKV_LIBFABRIC", "/nowhere/libfabric.so.1", 1);
    Error error;
    CHECK(load_libfabric({}, error) == nullptr);
    CHECK_EQUAL(error.code, ErrorCode::kLibfabricMissing);
    CHECK(error.text.find("/nowhere/libfabric.so.1") != std::string::npos);
    CHECK(error.hint.find("apt-get install") != std::string::npos);
    // The only place tried: the system's own would have been found.
    CHECK(error.text.find("/opt/amazon") == std::string::npos);
  });
}

TEST(another_library_is_refused) {
  in_child([] {
    setenv("FABRICKV_LIBFABRIC", "libm.so.6", 1);
    Error error;
    CHECK(load_libfabric({}, error) == nullptr);
    CHECK_EQUAL(error.code, ErrorCode::kLibfabricMissing);
    CHECK(error.text.find("fi_getinfo") != std::string::npos);
  });
}

TEST(lists_providers_and_reports_missing_ones) {
  in_child([] {
    Error error;
    const Libfabric* library = load_libfabric({}, error);
    const auto entries = list_endpoints(*library, {"tcp;ofi_rxm", "127.0.0.1", ""}, error);
    CHECK(!entries.empty());
    CHECK_EQUAL(entries[0].provider, "tcp;ofi_rxm");
    CHECK_EQUAL(entries[0].address_format, "FI_SOCKADDR_IN");
    CHECK(entries[0].address_text.starts_with("127.0.0.1:"));
    CHECK(list_endpoints(*library, {"no-such-provider", "", ""}, error).empty());
    CHECK_EQUAL(error.code, ErrorCode::kProviderMissing);
    CHECK_EQUAL(error.call, "fi_getinfo");
    CHECK_EQUAL(error.error_number, FI_ENODATA);
  });
}

TEST(addresses_in_words) {
  const std::array<uint8_t, 16> ipv4 = {2, 0, 0x12, 0x67, 10, 0, 0, 1};
  CHECK_EQUAL(address_text(FI_SOCKADDR_IN, ipv4.data(), ipv4.size()), "10.0.0.1:4711");
  std::array<uint8_t, 28> ipv6 = {10, 0, 0x12, 0x67};
  ipv6[23] = 1;
  CHECK_EQUAL(address_text(FI_SOCKADDR_IN6, ipv6.data(), ipv6.size()), "[::1]:4711");
  std::array<uint8_t, 32> efa = {0xfe, 0x80};
  efa[15] = 1;
  efa[16] = 3;
  CHECK_EQUAL(address_text(FI_ADDR_EFA, efa.data(), efa.size()), "fe80::1/qpn 3");
  CHECK_EQUAL(address_text(FI_ADDR_STR, ipv4.data(), 4), "02001267");
  CHECK_EQUAL(address_text(FI_SOCKADDR_IN, nullptr, 0), "");
}

int main(int argc, char** argv) {
  return fabrickv::test::run_tests(argc, argv);
}
