// The rate that the fabric itself gives: delivery-complete writes between two processes by plain libfabric, within the
// same limits as the product's, with nothing of the product around them.

#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include <csignal>
#include <cstdio>
#include <iostream>
#include <string>

#include "arguments.h"
#include "initiator.h"
#include "target.h"

namespace fabrickv::bench {
namespace {

constexpr int kUsageExit = 2;

int usage(const std::string& problem) {
  std::fprintf(stderr, "raw_write: %s\n\n%s", problem.c_str(), kUsage);
  return kUsageExit;
}

void print_fabric(const fabric::Endpoint& endpoint) {
  const fabric::Libfabric& library = endpoint.library();
  std::printf("{\"provider\":\"%s\",\"libfabric\":\"%s\",\"address\":\"%s\",\"maxMessageBytes\":%zu}\n",
              endpoint.info().provider.c_str(), fabric::version_text(library.loaded_version).c_str(),
              endpoint.info().address_text.c_str(), endpoint.info().max_message_bytes);
  std::fflush(stdout);
}

bool measure_and_print(Initiator& initiator, const Case& what) {
  const std::optional<Measurement> result = initiator.measure(what);
  if (!result) return false;
  std::printf(
      "{\"sizeBytes\":%lu,\"inFlight\":%u,\"values\":%lu,\"bytes\":%lu,\"seconds\":%.6f,\"p50Us\":%.2f,\"p99Us\":%.2f,"
      "\"p999Us\":%.2f,\"cpuSeconds\":%.6f}\n",
      what.size_bytes, what.in_flight, result->values, result->bytes, result->seconds, result->p50_us, result->p99_us,
      result->p999_us, result->cpu_seconds);
  return std::fflush(stdout) == 0;
}

int run_initiator(const Arguments& arguments, int socket, pid_t target) {
  Initiator initiator(socket, target);
  if (!initiator.connect(arguments)) return 1;
  print_fabric(initiator.endpoint());
  if (!arguments.from_stdin) return measure_and_print(initiator, arguments.first) ? 0 : 1;
  for (std::string line; std::getline(std::cin, line);) {
    Arguments next = arguments;
    next.first = {};
    std::string problem;
    if (!parse_arguments(split_words(line), next, problem)) return usage(problem);
    if (!measure_and_print(initiator, next.first)) return 1;
  }
  return 0;
}

int run(int argc, char** argv) {
  Arguments arguments;
  std::string problem;
  if (!parse_arguments({argv + 1, argv + argc}, arguments, problem)) return usage(problem);
  if (arguments.help) {
    std::fputs(kUsage, stdout);
    return 0;
  }
  int sockets[2] = {-1, -1};
  if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, sockets) != 0) {
    std::perror("raw_write: socketpair");
    return 1;
  }
  // Before libfabric is loaded: nothing of it is in both processes.
  const pid_t parent = getpid();
  const pid_t target = fork();
  if (target < 0) {
    std::perror("raw_write: fork");
    return 1;
  }
  if (target == 0) {
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    if (getppid() != parent) return 1;
    close(sockets[0]);
    return run_target(arguments, sockets[1]);
  }
  close(sockets[1]);
  const int code = run_initiator(arguments, sockets[0], target);
  close(sockets[0]);
  int status = 0;
  waitpid(target, &status, 0);
  return code;
}

}  // namespace
}  // namespace fabrickv::bench

int main(int argc, char** argv) {
  return fabrickv::bench::run(argc, argv);
}
