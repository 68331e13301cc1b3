#!/usr/bin/env bash
# Runs the tests of test/verbs over real verbs: in a virtual machine, emulated in software, whose kernel has a soft-RoCE
# device (rdma_rxe). The guest sees this machine's own files, read-only, and runs a copy of this clone after scripts/setup.sh.
#
#   scripts/test-verbs-vm.sh [COUNTS]
#
# COUNTS is a file for the counts that scripts/test-total.mjs adds up. The script ends within three minutes; with
# FABRICKV_TEST_FULL=1, which runs all of the tests, within ten. Exit codes:
# 0 all passed, or skipped because there can be no such machine here (said loudly); 1 tests failed; 2 the machine did.
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
cd "$root"
# shellcheck source=scripts/debian.sh
source "$root/scripts/debian.sh"

# Of the machine, once it is prepared.
limit_seconds=175
[[ ${FABRICKV_TEST_FULL:-} != 1 ]] || limit_seconds=580
readonly limit_seconds
readonly machine=native/build-verbs-vm
readonly native_tests=native/build-verbs

say() { printf 'verbs-vm: %s\n' "$*" >&2; }

counts=${1:-/dev/null}
report=$(mktemp --directory "${TMPDIR:-/tmp}/fabrickv-verbs-XXXXXX")
trap 'rm -rf "$report"' EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

skip() {
  say "SKIPPED: $1"
  printf '{"passed":0,"failed":0,"skipped":1,"failures":[],"skips":["all of it: %s"]}\n' "$1" >"$counts"
  exit 0
}

die() {
  say "$1"
  exit 2
}

require_qemu() {
  # The guest runs this machine's programs.
  [[ $(uname -m) == x86_64 ]] || skip "the virtual machine is an x86_64, and this one is not"
  command -v apt-get >/dev/null || skip "no Debian, whose kernel it boots"
  command -v qemu-system-x86_64 >/dev/null || install_packages qemu-system-x86 || skip "qemu-system-x86 cannot be installed"
}

# Without sanitizers: software emulation is slow enough.
build_native_tests() {
  if ! { cmake -S native -B "$native_tests" -DFABRICKV_TESTS=ON -DCMAKE_BUILD_TYPE=RelWithDebInfo &&
    cmake --build "$native_tests" --parallel "$(nproc)" --target rail_test rail_fault_test; } >"$report/cmake.log"; then
    cat "$report/cmake.log" >&2
    die 'the native tests do not build'
  fi
}

# What the guest needs of this clone.
pack_clone() {
  local modules
  mapfile -t modules < <(npm ls --omit=dev --all --parseable 2>/dev/null |
    awk '{ at = index($0, "/node_modules/"); if (at > 0) print substr($0, at + 1) }' | sort --unique)
  tar --create --dereference --file "$report/clone.tar" package.json bin proto scripts/count-reporter.mjs dist/src dist/test \
    native/build/Release "$native_tests/test/rail_test" "$native_tests/test/rail_fault_test" "${modules[@]}"
}

run_machine() {
  {
    printf 'export PATH=%q\n' "$PATH"
    # The guest's own limit comes first, so that there are results to tell; it boots in five seconds.
    printf 'LIMIT_SECONDS=%q\n' "$((limit_seconds - 15))"
    printf 'export FABRICKV_TEST_FULL=%q\n' "${FABRICKV_TEST_FULL:-}"
  } >"$report/settings"
  cp scripts/verbs-vm/guest.sh "$report/"
  say "booting, with $limit_seconds s to go"
  timeout --kill-after=5 "$limit_seconds" qemu-system-x86_64 -machine q35 -accel tcg,thread=multi -cpu max -smp 2 -m 3G \
    -nodefaults -display none -no-reboot \
    -kernel "$machine/vmlinuz" -initrd "$machine/initramfs.gz" \
    -append 'console=ttyS0 loglevel=4 panic=-1 oops=panic mitigations=off no_timer_check' \
    -serial "file:$report/console" -serial stdio \
    -virtfs local,path=/,mount_tag=host,security_model=none,readonly=on,multidevs=remap \
    -virtfs "local,path=$report,mount_tag=report,security_model=none" </dev/null ||
    say "qemu ended with $? (124: it had run for $limit_seconds s)"
}

[[ -d dist/test/verbs && -e native/build/Release/fabrickv.node ]] || die 'not built; run scripts/setup.sh first'
require_qemu
scripts/verbs-vm/make-machine.sh "$machine" || skip 'no kernel can be downloaded'
build_native_tests
pack_clone
run_machine

status=$(cat "$report/status" 2>/dev/null || printf 'nothing')
say "the guest ended with $status, after $SECONDS s in all"
if [[ -s $report/counts.json ]]; then
  cat "$report/counts.json" >"$counts"
  # 1 means failed tests, which have been counted.
  [[ $status != [01] ]] || exit "$status"
fi
say 'the end of the console:'
tail -n 60 "$report/console" >&2 || true
exit 2
