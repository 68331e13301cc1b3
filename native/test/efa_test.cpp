// What can be known of EFA without the hardware: the decisions, the tables, and the calls that an endpoint gets.

#include "fabric/efa.h"

#include <sys/wait.h>
#include <unistd.h>

#include <array>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <map>
#include <string>

#include "check.h"
#include "fabric/provider.h"

using namespace fabrickv::fabric;

namespace {

using Variables = std::map<std::string, std::string>;

efa::EnvironmentDecision decide(const Variables& variables, const efa::Host& host = {}) {
  return efa::decide_environment(
      [&](const char* name) -> std::optional<std::string> {
        const auto found = variables.find(name);
        return found == variables.end() ? std::nullopt : std::optional(found->second);
      },
      host);
}

bool unsets(const efa::EnvironmentDecision& decision, const std::string& name) {
  return std::find(decision.unset.begin(), decision.unset.end(), name) != decision.unset.end();
}

bool remarks(const efa::EnvironmentDecision& decision, const std::string& part) {
  return std::any_of(decision.remarks.begin(), decision.remarks.end(),
                     [&](const std::string& remark) { return remark.find(part) != std::string::npos; });
}

constexpr efa::Host kOldHost = {true, efa::ForkSupport::kDisabled};
constexpr efa::Host kNewHost = {true, efa::ForkSupport::kUnneeded};

// An endpoint that has nothing but options. `answer` is what getopt and setopt return.
struct FakeEndpoint {
  explicit FakeEndpoint(int with_answer) : answer(with_answer) {
    ops.size = sizeof ops;
    ops.getopt = get;
    ops.setopt = set;
    ep.fid.fclass = FI_CLASS_EP;
    ep.fid.context = this;
    ep.ops = &ops;
  }

  static int get(fid* object, int level, int option, void* value, size_t* length) {
    auto& self = *static_cast<FakeEndpoint*>(object->context);
    CHECK_EQUAL(level, static_cast<int>(FI_OPT_ENDPOINT));
    if (self.answer != 0) return self.answer;
    CHECK_EQUAL(*length, sizeof(bool));
    const bool emulated = option == efa::kOptEmulatedRead ? self.emulated_read : self.emulated_write;
    CHECK(option == efa::kOptEmulatedRead || option == efa::kOptEmulatedWrite);
    *static_cast<bool*>(value) = emulated;
    return 0;
  }

  static int set(fid* object, int level, int option, const void* value, size_t length) {
    auto& self = *static_cast<FakeEndpoint*>(object->context);
    CHECK_EQUAL(level, static_cast<int>(FI_OPT_ENDPOINT));
    CHECK_EQUAL(option, efa::kOptSharedMemoryPermitted);
    CHECK_EQUAL(length, sizeof(bool));
    CHECK_EQUAL(*static_cast<const bool*>(value), false);
    self.times_set++;
    return self.answer;
  }

  int answer;
  bool emulated_read = false;
  bool emulated_write = false;
  int times_set = 0;
  fi_ops_ep ops{};
  fid_ep ep{};
};

std::vector<uint8_t> address_of(const efa::Traits& traits) {
  std::vector<uint8_t> address(32, 7);
  address.push_back(efa::trait_byte(traits));
  return address;
}

}  // namespace

TEST(knows_the_provider) {
  CHECK(efa::is_efa("efa"));
  CHECK(efa::is_efa("efa;ofi_hook_debug"));
  CHECK(!efa::is_efa("tcp;ofi_rxm"));
  CHECK(!efa::is_efa("verbs;ofi_rxm"));
  CHECK(!efa::is_efa("efax"));
  CHECK(!efa::is_efa(""));
}

TEST(asks_for_api_1_18_at_least) {
  // Debian 12's headers with what the EFA installer brings; the same with its own library; newer headers; an old
  // library under them.
  CHECK_EQUAL(efa::api_version(FI_VERSION(2, 6), FI_VERSION(1, 17)), FI_VERSION(1, 18));
  CHECK_EQUAL(efa::api_version(FI_VERSION(1, 17), FI_VERSION(1, 17)), FI_VERSION(1, 17));
  CHECK_EQUAL(efa::api_version(FI_VERSION(2, 6), FI_VERSION(1, 22)), FI_VERSION(1, 22));
  CHECK_EQUAL(efa::api_version(FI_VERSION(1, 20), FI_VERSION(2, 1)), FI_VERSION(1, 20));
}

TEST(the_fabric_is_named) {
  unsetenv("FABRICKV_EFA_FABRIC");
  CHECK_EQUAL(efa::fabric_name(), "efa");
  setenv("FABRICKV_EFA_FABRIC", "efa-direct", 1);
  CHECK_EQUAL(efa::fabric_name(), "efa-direct");
  unsetenv("FABRICKV_EFA_FABRIC");
}

TEST(shared_memory_is_always_off) {
  CHECK_EQUAL(decide({}).set.at("FI_EFA_ENABLE_SHM_TRANSFER"), "0");
  CHECK(decide({}).remarks.empty());
  CHECK(decide({{"FI_EFA_ENABLE_SHM_TRANSFER", "0"}}).remarks.empty());
  const auto decision = decide({{"FI_EFA_ENABLE_SHM_TRANSFER", "1"}});
  CHECK_EQUAL(decision.set.at("FI_EFA_ENABLE_SHM_TRANSFER"), "0");
  CHECK(remarks(decision, "FI_EFA_ENABLE_SHM_TRANSFER=1 was ignored"));
}

TEST(device_rdma_is_never_demanded) {
  for (const char* value : {"1", "true", "YES", "on", "maybe", ""}) {
    const auto decision = decide({{"FI_EFA_USE_DEVICE_RDMA", value}});
    CHECK(unsets(decision, "FI_EFA_USE_DEVICE_RDMA"));
    CHECK(remarks(decision, "was ignored"));
  }
  for (const char* value : {"0", "False", "no", "off"}) {
    const auto decision = decide({{"FI_EFA_USE_DEVICE_RDMA", value}});
    CHECK(decision.unset.empty());
    CHECK(remarks(decision, "emulated"));
  }
}

TEST(fork_support_where_it_is_needed) {
  CHECK_EQUAL(decide({}, kOldHost).set.at("FI_EFA_FORK_SAFE"), "1");
  CHECK_EQUAL(decide({}, {true, efa::ForkSupport::kUnknown}).set.at("FI_EFA_FORK_SAFE"), "1");
  CHECK(!decide({}, kNewHost).set.contains("FI_EFA_FORK_SAFE"));
  // Something else has turned it on; there is no device.
  CHECK(!decide({}, {true, efa::ForkSupport::kEnabled}).set.contains("FI_EFA_FORK_SAFE"));
  CHECK(!decide({}, {false, efa::ForkSupport::kDisabled}).set.contains("FI_EFA_FORK_SAFE"));
  for (const char* variable : {"RDMAV_FORK_SAFE", "IBV_FORK_SAFE"}) {
    const auto decision = decide({{variable, "1"}}, kOldHost);
    CHECK(!decision.set.contains("FI_EFA_FORK_SAFE"));
    CHECK(decision.remarks.empty());
  }
  // Nothing of libibverbs' own is ever touched.
  for (const auto& [name, value] : decide({}, kOldHost).set) CHECK(name.starts_with("FI_EFA_"));
}

TEST(fork_support_does_not_collide_with_huge_pages) {
  // The operator's huge pages win over what nobody asked for …
  for (const auto& [name, value] : Variables{{"FI_EFA_USE_HUGE_PAGE", "1"}, {"RDMAV_HUGEPAGES_SAFE", "1"}}) {
    const auto decision = decide({{name, value}}, kOldHost);
    CHECK(!decision.set.contains("FI_EFA_FORK_SAFE"));
    CHECK(decision.unset.empty());
    CHECK(remarks(decision, name + " excludes fork support"));
    CHECK(decide({{name, value}}, kNewHost).remarks.empty());
  }
  // … and fork support that was asked for over the one that would abort the process.
  for (const char* asked : {"FI_EFA_FORK_SAFE", "RDMAV_FORK_SAFE"}) {
    const auto both = decide({{asked, "1"}, {"FI_EFA_USE_HUGE_PAGE", "1"}}, kOldHost);
    CHECK(unsets(both, "FI_EFA_USE_HUGE_PAGE"));
    const auto refused = decide({{asked, "1"}, {"RDMAV_HUGEPAGES_SAFE", "1"}}, kOldHost);
    CHECK(remarks(refused, "EINVAL"));
    CHECK(refused.unset.empty());
  }
  CHECK(decide({{"FI_EFA_USE_HUGE_PAGE", "0"}}, kOldHost).set.contains("FI_EFA_FORK_SAFE"));
  const auto off = decide({{"FI_EFA_FORK_SAFE", "0"}}, kOldHost);
  CHECK(!off.set.contains("FI_EFA_FORK_SAFE"));
  CHECK(remarks(off, "aborted"));
}

TEST(finds_a_device) {
  const std::filesystem::path root = std::filesystem::temp_directory_path() / ("efa_test." + std::to_string(getpid()));
  CHECK(!efa::has_device(root));
  for (const auto& [name, vendor] : Variables{{"mlx5_0", "0x15b3"}, {"rdmap0s6", "0x1d0f"}}) {
    const auto device = root / "class" / "infiniband" / name / "device";
    std::filesystem::create_directories(device);
    std::ofstream(device / "vendor") << vendor << "\n";
  }
  CHECK(efa::has_device(root));
  std::filesystem::remove_all(root / "class" / "infiniband" / "rdmap0s6");
  CHECK(!efa::has_device(root));
  // An rxe device has no PCI device under it.
  std::filesystem::create_directories(root / "class" / "infiniband" / "rxe0");
  CHECK(!efa::has_device(root));
  std::filesystem::remove_all(root);
}

TEST(asks_libibverbs_without_a_crash) {
  const auto answer = static_cast<int>(efa::query_fork_support());
  CHECK(answer >= -1 && answer <= 2);
}

TEST(reads_the_options) {
  FakeEndpoint device(0);
  efa::Traits traits = efa::query_traits(&device.ep, "efa", FI_VERSION(2, 5));
  CHECK(!traits.direct);
  CHECK(!traits.emulated_read);
  CHECK(!traits.emulated_write);
  CHECK(!traits.exposes_local_regions);
  device.emulated_write = true;
  traits = efa::query_traits(&device.ep, "efa-direct", FI_VERSION(2, 4));
  CHECK(traits.direct);
  CHECK(traits.emulated_write);
  CHECK(traits.exposes_local_regions);
  // 1.17 does not know the options: the worse case.
  FakeEndpoint old(-FI_ENOPROTOOPT);
  traits = efa::query_traits(&old.ep, "efa", FI_VERSION(1, 17));
  CHECK(traits.emulated_read);
  CHECK(traits.emulated_write);
  old.ops.getopt = nullptr;
  CHECK(efa::query_traits(&old.ep, "efa", FI_VERSION(1, 17)).emulated_write);
}

TEST(switches_shared_memory_off) {
  FakeEndpoint endpoint(0);
  CHECK_EQUAL(efa::forbid_shared_memory(&endpoint.ep), 0);
  CHECK_EQUAL(endpoint.times_set, 1);
  FakeEndpoint old(-FI_ENOPROTOOPT);
  CHECK_EQUAL(efa::forbid_shared_memory(&old.ep), -FI_ENOPROTOOPT);
}

TEST(closing_a_region_proves_only_where_no_write_is_ever_emulated) {
  // Our device writes, and so do those that say so; who was not asked may emulate.
  CHECK(!efa::close_region_proves({.direct = false, .emulated_write = false}));
  CHECK(efa::close_region_proves({.direct = true, .emulated_write = false}));
  CHECK(!efa::close_region_proves({.direct = true, .emulated_write = true}));
  CHECK(!efa::close_region_proves({.direct = false, .emulated_write = true}));
  CHECK(!efa::close_region_proves({}));
}

TEST(peers_have_to_be_alike) {
  const efa::Traits device = {.direct = false, .emulated_write = false};
  const efa::Traits emulated = {.direct = false, .emulated_write = true};
  const efa::Traits direct = {.direct = true, .emulated_write = false};
  for (const efa::Traits& traits : {device, emulated, direct}) {
    CHECK_EQUAL(efa::refuse_peer(traits, address_of(traits)), "");
  }
  CHECK(efa::refuse_peer(device, address_of(emulated)).find("emulated by the peer") != std::string::npos);
  CHECK(efa::refuse_peer(emulated, address_of(device)).find("emulated here") != std::string::npos);
  CHECK(efa::refuse_peer(device, address_of(direct)).find("FABRICKV_EFA_FABRIC") != std::string::npos);
  CHECK(efa::refuse_peer(direct, address_of(device)).find("FABRICKV_EFA_FABRIC") != std::string::npos);
  // A bare address, and none.
  CHECK(!efa::refuse_peer(device, std::vector<uint8_t>(33, 0)).empty());
  CHECK(!efa::refuse_peer(device, {}).empty());
}

TEST(errors_in_words) {
  for (const efa::ErrorEntry& entry : efa::error_table()) {
    CHECK_EQUAL(efa::find_error(entry.code)->name, entry.name);
    CHECK(*entry.meaning != '\0');
  }
  CHECK_EQUAL(std::string(efa::find_error(7)->name), "REMOTE_ERROR_BAD_ADDRESS");
  CHECK_EQUAL(std::string(efa::find_error(13)->name), "LOCAL_ERROR_UNRESP_REMOTE");
  CHECK_EQUAL(std::string(efa::find_error(4124)->name), "ESTABLISHED_RECV_UNRESP");
  CHECK_EQUAL(std::string(efa::find_error(4127)->name), "PEER_ABORTED");
  for (const int unknown : {-1, 16, 17, 19, 4095, 4128}) CHECK(efa::find_error(unknown) == nullptr);
}

TEST(explains_an_error) {
  Error error;
  error.provider_errno = 15;
  error.provider_text = "Unreachable remote";
  efa::explain(error);
  CHECK_EQUAL(error.provider_text, "LOCAL_ERROR_UNREACH_REMOTE: the peer has never answered (Unreachable remote)");
  CHECK(error.hint.find("security group") != std::string::npos);

  Error known;
  known.provider_errno = 7;
  known.hint = "from elsewhere";
  efa::explain(known);
  CHECK_EQUAL(known.provider_text, "REMOTE_ERROR_BAD_ADDRESS: wrong remote key, address or access");
  CHECK_EQUAL(known.hint, "from elsewhere");

  Error unknown;
  unknown.provider_errno = 99;
  unknown.provider_text = "what the provider says";
  efa::explain(unknown);
  CHECK_EQUAL(unknown.provider_text, "what the provider says");
  CHECK(unknown.hint.empty());
}

TEST(registration_remedies) {
  CHECK(efa::registration_hint(-FI_ENOMEM, 4096).find("ulimit -l unlimited") != std::string::npos);
  CHECK(efa::registration_hint(-FI_ENOMEM, 4096).find("huge pages") != std::string::npos);
  CHECK(efa::registration_hint(-FI_EINVAL, 1 << 30).find("1073741824 bytes") != std::string::npos);
  CHECK(efa::registration_hint(-FI_EIO, 1).empty());
}

TEST(tells_the_operator) {
  CHECK(efa::remarks({.direct = true, .emulated_write = false}, {}).empty());
  CHECK(efa::remarks({.emulated_write = false}, {}).at(0).find("efa-direct") != std::string::npos);
  const auto all = efa::remarks({.emulated_write = true, .exposes_local_regions = true}, {"from the environment"});
  CHECK_EQUAL(all.size(), size_t{3});
  CHECK_EQUAL(all[0], "from the environment");
  CHECK(all[1].find("emulates") != std::string::npos);
  CHECK(all[2].find("below 2.5") != std::string::npos);
}

TEST(the_environment_is_set_before_libfabric_loads) {
  // In a process of its own: what is loaded stays.
  const pid_t child = fork();
  if (child == 0) {
    setenv("FI_EFA_ENABLE_SHM_TRANSFER", "1", 1);
    setenv("FI_EFA_USE_DEVICE_RDMA", "0", 1);
    Error error;
    // The caller's settings are judged like those that were there.
    const Libfabric* library = load_libfabric({{"FI_EFA_USE_DEVICE_RDMA", "1"}}, error);
    CHECK(library != nullptr);
    CHECK_EQUAL(std::string(std::getenv("FI_EFA_ENABLE_SHM_TRANSFER")), "0");
    CHECK(std::getenv("FI_EFA_USE_DEVICE_RDMA") == nullptr);
    CHECK(library->efa_shm_is_off);
    CHECK(library->efa_remarks.size() >= 2);
    // fi_getinfo takes the API version and the fabric's name; without a device it just has nothing.
    if (!efa::has_device("/sys")) {
      CHECK(list_endpoints(*library, {"efa", "", ""}, error).empty());
      CHECK_EQUAL(error.code, ErrorCode::kProviderMissing);
      CHECK_EQUAL(error.error_number, FI_ENODATA);
    }
    std::_Exit(0);
  }
  int status = 0;
  waitpid(child, &status, 0);
  CHECK(WIFEXITED(status));
  CHECK_EQUAL(WEXITSTATUS(status), 0);
}

int main(int argc, char** argv) {
  return fabrickv::test::run_tests(argc, argv);
}
