#!/usr/bin/env bash
# What scripts/test-verbs-vm.sh runs in its virtual machine, as root, over the host's files: it makes a soft-RoCE device and
# runs the tests of test/verbs. "report" is the one directory that the host sees as well.
set -euo pipefail

readonly report=/run/report
readonly address=198.51.100.1

# PATH of the host, and LIMIT_SECONDS of all tests together.
# shellcheck source=/dev/null
source "$report/settings"

ip link set lo up
[[ -e /sys/class/net/dummy0 ]] || ip link add dummy0 type dummy
ip address add "$address/24" dev dummy0
ip link set dummy0 up
rdma link add rxe0 type rxe netdev dummy0
rdma link

# For the native tests and the product alike; run-with-rdma.sh would set the same.
export FI_UNIVERSE_SIZE=16
ulimit -l unlimited
export TMPDIR=/run/tmp HOME=/run/tmp
export FABRICKV_TEST_PROVIDER='verbs;ofi_rxm' FABRICKV_TEST_SOURCE_ADDRESS=$address

# In memory: file by file over 9p, Node.js takes twice as long to start.
mkdir /run/clone
tar --directory /run/clone --blocking-factor 1024 --extract --file "$report/clone.tar"
cd /run/clone
mapfile -d '' -t files < <(find dist/test/verbs -name '*.test.js' -print0 | sort --zero-terminated)
timeout --kill-after=5 "$LIMIT_SECONDS" node --test --test-concurrency=1 \
  --test-reporter=spec --test-reporter-destination=stdout \
  --test-reporter=/run/clone/scripts/count-reporter.mjs --test-reporter-destination="$report/counts.json" \
  "${files[@]}"
