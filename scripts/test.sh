#!/usr/bin/env bash
# Sets this clone up and runs everything that checks it. The last line counts: "N passed, N failed, N skipped"; the exit
# code is 0 only when nothing failed.
#
#   scripts/test.sh              all steps
#   scripts/test.sh unit fault   the named steps only (set-up included)
#
# Steps: lint format types shell native unit fabric integration host fault verbs package
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
cd "$root"

readonly all_steps=(lint format types shell native unit fabric integration host fault verbs package)
steps=("$@")
((${#steps[@]} > 0)) || steps=("${all_steps[@]}")
for step in "${steps[@]}"; do
  if [[ " ${all_steps[*]} " != *" $step "* ]]; then
    printf 'test.sh: unknown step "%s"; the steps are %s\n' "$step" "${all_steps[*]}" >&2
    exit 2
  fi
done

results=$(mktemp --directory "${TMPDIR:-/tmp}/fabrickv-results-XXXXXX")
trap 'rm -rf "$results"' EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

# Seconds that one kind of tests may take before it is killed: a hang is a failure, not a wait.
readonly limit_seconds=420

title() { printf '\n── %s ── %ss\n' "$1" "$SECONDS"; }

# Runs a step that passes or fails as a whole.
check() {
  local name=$1
  shift
  title "$name"
  if "$@"; then
    printf 'passed\n' >"$results/$name.step"
  else
    printf 'failed: %s\n' "$*" >"$results/$name.step"
  fi
}

check_formats() {
  npx --no-install biome format . || return 1
  local sources
  mapfile -d '' -t sources < <(find native/src native/test native/bench -name '*.cpp' -print0 -o -name '*.h' -print0 2>/dev/null)
  clang-format --dry-run -Werror "${sources[@]}"
}

check_shell() {
  shellcheck scripts/*.sh scripts/verbs-vm/* .ci/run
}

run_native_tests() {
  title native
  local build=native/build-test
  if ! { cmake -S native -B "$build" -DFABRICKV_TESTS=ON -DFABRICKV_STRICT=ON -DFABRICKV_SANITIZE=address,undefined \
    -DCMAKE_BUILD_TYPE=RelWithDebInfo -DCMAKE_CXX_FLAGS_RELWITHDEBINFO="-O1 -g1" >"$results/cmake.log" && cmake --build "$build" --parallel "$(nproc)"; }; then
    cat "$results/cmake.log"
    printf 'failed: the native tests do not build\n' >"$results/native-build.step"
    return 0
  fi
  timeout --kill-after=10 "$limit_seconds" ctest --test-dir "$build" --parallel 3 --output-on-failure --no-tests=error \
    --output-junit "$results/native.xml" ||
    { [[ -s $results/native.xml ]] || printf 'failed: ctest\n' >"$results/native-run.step"; }
}

# Runs the node:test files of one kind.
run_node_tests() {
  local kind=$1 concurrency=$2 files
  mapfile -d '' -t files < <(find "dist/test/$kind" -name '*.test.js' -print0 2>/dev/null | sort --zero-terminated)
  ((${#files[@]} > 0)) || return 0
  title "$kind"
  local status=0
  timeout --kill-after=10 "$limit_seconds" node --test --test-concurrency="$concurrency" \
    --test-reporter=spec --test-reporter-destination=stdout \
    --test-reporter="$root/scripts/count-reporter.mjs" --test-reporter-destination="$results/$kind.json" \
    "${files[@]}" </dev/null || status=$?
  # 1 means failed tests, which the reporter has counted; anything else, or no count, is a failure of the run itself.
  if ((status > 1)) || [[ ! -s $results/$kind.json ]]; then
    printf 'failed: node --test ended with %s (124: it took over %s s)\n' "$status" "$limit_seconds" >"$results/$kind-run.step"
  fi
}

# The tests of test/verbs, in a virtual machine that has an RDMA device.
run_verbs_tests() {
  title verbs
  local status=0
  scripts/test-verbs-vm.sh "$results/verbs.json" || status=$?
  # 1 means failed tests, which have been counted.
  if ((status > 1)) || [[ ! -s $results/verbs.json ]]; then
    printf 'failed: scripts/test-verbs-vm.sh ended with %s\n' "$status" >"$results/verbs-run.step"
  fi
}

title set-up
scripts/setup.sh

for step in "${steps[@]}"; do
  case $step in
    lint) check lint npm run --silent lint ;;
    format) check format check_formats ;;
    types) check types npx --no-install tsc -p tsconfig.json --noEmit --incremental false ;;
    shell) check shell check_shell ;;
    native) run_native_tests ;;
    verbs) run_verbs_tests ;;
    # These measure how soon an operation ends: one file at a time, so that each has the machine that its deadlines expect.
    fault) run_node_tests fault 1 ;;
    # Most of these wait for processes that start, or for time to pass.
    unit | integration) run_node_tests "$step" 3 ;;
    *) run_node_tests "$step" 2 ;;
  esac
done

title 'all steps done'
rm -f "$results/cmake.log"
node scripts/test-total.mjs "$results"
