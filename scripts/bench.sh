#!/usr/bin/env bash
# Sets this clone up, so that what is measured is what its sources say, and runs a benchmark suite.
#
#   npm run bench -- data-plane                  a table
#   npm run bench -- peers --html report.html    beside Redis and memcached, which it installs where they are missing
#   npm run bench -- inline-threshold            where the inline path and RDMA cross
#   npm run --silent bench -- data-plane --json  one JSON object
#   npm run bench -- --help                      the suites and their options
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
cd "$root"
# shellcheck source=scripts/debian.sh
source "$root/scripts/debian.sh"

say() { printf 'bench: %s\n' "$*" >&2; }

scripts/setup.sh
if [[ ${1:-} == peers && " $* " != *' --help '* ]]; then
  # What is still missing, the suite says where it needs it: not with --peer.
  install_packages redis-server memcached || true
fi
exec node dist/bench/main.js "$@"
