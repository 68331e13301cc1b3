#!/usr/bin/env bash
# Shows FabricKV at work, from nothing: sets this clone up, starts a server on a free port, puts a short text and a real
# file of at least 50 MB by one process each, gets both back by others, compares SHA-256, prints one table and the stages of
# the large GET on both sides, and stops the server. Nothing is left behind, also when something fails.
#
#   scripts/demo.sh
#
# The settings of kv-server and kv-client can be given as variables, as in FABRICKV_PROVIDER=none scripts/demo.sh.
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
cd "$root"

readonly large_bytes_min=50000000
readonly greeting='Hello from FabricKV: this text travels inside gRPC.'
readonly ready_seconds=30
readonly stop_seconds=20

say() { printf 'demo: %s\n' "$*"; }
fail() {
  printf 'demo: %s\n' "$*" >&2
  exit 1
}

directory=$(mktemp --directory "${TMPDIR:-/tmp}/fabrickv-demo-XXXXXX")
server_pid=

# Asks the server to stop and waits; one that does not stop in its time is not left running. Answers with its exit code.
stop_server() {
  [[ -n $server_pid ]] || return 0
  local deadline=$((SECONDS + stop_seconds)) status=0
  kill -TERM "$server_pid" 2>/dev/null || true
  while kill -0 "$server_pid" 2>/dev/null && ((SECONDS < deadline)); do sleep 0.1; done
  kill -KILL "$server_pid" 2>/dev/null || true
  wait "$server_pid" 2>/dev/null || status=$?
  server_pid=
  return "$status"
}

clean_up() {
  local status=$?
  trap - EXIT INT TERM
  stop_server || true
  if ((status != 0)) && [[ -s $directory/server.log ]]; then
    printf 'demo: failed; the end of the server log:\n' >&2
    tail -n 20 "$directory/server.log" >&2
  fi
  rm -rf "$directory"
  exit "$status"
}
trap clean_up EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

# A file that is there anyway: node itself; where that is only a small starter, its library.
large_file() {
  local candidate
  candidate=$(readlink -f "$(command -v node)")
  if (($(stat --format=%s "$candidate") >= large_bytes_min)); then
    printf '%s\n' "$candidate"
    return 0
  fi
  find /usr/lib /usr/local/lib /usr/bin /opt -xdev -type f -readable -size "+$((large_bytes_min / 1024 + 1))k" \
    -size -2048M -print -quit 2>/dev/null
}

start_server() {
  local memory_bytes=$1
  scripts/run-with-rdma.sh node bin/kv-server.js --listen-addr 127.0.0.1:0 --memory "$memory_bytes" \
    --log-level debug --log-format json 2>"$directory/server.log" &
  server_pid=$!
  local deadline=$((SECONDS + ready_seconds))
  until address=$(node dist/src/cli/demo-report-main.js address "$directory/server.log"); do
    kill -0 "$server_pid" 2>/dev/null || fail 'the server did not start'
    ((SECONDS < deadline)) || fail "the server was not ready after $ready_seconds s"
    sleep 0.1
  done
}

client() { node bin/kv-client.js --server-addr "$address" --log-level debug --log-format json "$@"; }

# Runs kv-client, keeping its result and its log under a name.
step() {
  local name=$1 log=$2
  shift 2
  client --json "$@" >"$directory/$name.json" 2>"$directory/$log.log" || {
    local status=$?
    tail -n 5 "$directory/$log.log" >&2
    fail "kv-client $1 ended with $status"
  }
}

same() { [[ $(sha256sum <"$1") == "$(sha256sum <"$2")" ]]; }

scripts/setup.sh

file=$(large_file)
[[ -n $file ]] || fail "found no file of at least $large_bytes_min bytes to put"
size=$(stat --format=%s "$file")
say "the large value is $file ($size bytes)"

start_server $((size + 64 * 1024 * 1024))
say "kv-server listens at $address"

printf '%s' "$greeting" >"$directory/greeting"
step 1-put-small put-small put greeting "$greeting"
step 2-put-large put-large put large --file "$file"
step 3-get-small get-small get greeting --out "$directory/greeting.back"
step 4-get-large get-large get large --out "$directory/large.back"

same "$directory/greeting" "$directory/greeting.back" || fail 'the short text came back changed'
same "$file" "$directory/large.back" || fail 'the large file came back changed'
say "SHA-256 of both values is the same: $(sha256sum <"$file" | cut --delimiter=' ' --fields=1)"

node dist/src/cli/demo-report-main.js report "$directory"

if [[ ${FABRICKV_PROVIDER:-auto} != none ]] && ! grep --quiet '"path":"rdma"' "$directory/4-get-large.json"; then
  fail 'the large value travelled inline: there is no data plane here (see "No data plane" in the log below)'
fi
stop_server || fail "the server ended with $?"
say 'the server has stopped; all is well'
