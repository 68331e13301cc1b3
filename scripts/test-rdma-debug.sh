#!/usr/bin/env bash
# Finds out whether RDMA works between two machines, and if not, where it stops.
#
#   scripts/test-rdma-debug.sh server               on one: kv-server on all interfaces, its stages as they happen
#   scripts/test-rdma-debug.sh client <server-ip>   on the other: PUT small, PUT large, GET large by RDMA, the same GET inside
#                                                   gRPC; each side's stages as they happen; a verdict in words
#
# Variables: PORT (50051) of gRPC; SIZE (16MiB) of the large value; the settings of kv-server and kv-client, such as
# FABRICKV_PROVIDER=verbs or FABRICKV_FABRIC_ADDR=10.0.0.5. The client shows the server's stages too where it can read its log:
# on the same machine, or with FABRICKV_SERVER_LOG=FILE (the server half writes there too when it is set).
#
# Exit codes of the client half: 0 both planes work, 3 control plane, 5 data plane, 1 something else, 2 wrong usage.
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
port=${PORT:-50051}

usage() {
  sed -n '2,/^set -euo/{/^#/s/^# \{0,1\}//p}' "$0" >&2
  exit 2
}

[[ $port =~ ^[0-9]{1,5}$ ]] || {
  printf 'test-rdma-debug: PORT=%s is no port\n' "$port" >&2
  exit 2
}
[[ -e $root/dist/src/cli/rdma-debug-main.js ]] || {
  printf 'test-rdma-debug: FabricKV is not built here; run scripts/setup.sh first\n' >&2
  exit 2
}

# Where both halves look for the server's log on one machine: a directory that is this user's alone.
log_directory=${XDG_RUNTIME_DIR:-/tmp}/fabrickv-debug-$UID
server_log=${FABRICKV_SERVER_LOG:-$log_directory/server-$port.log}

own_log=false
server_pid=

clean_up() {
  [[ -z $server_pid ]] || kill -KILL "$server_pid" 2>/dev/null || true
  if $own_log; then
    rm -f "$server_log"
    rmdir "$log_directory" 2>/dev/null || true
  fi
}

run_server() {
  local status=0 show_pid
  if [[ -z ${FABRICKV_SERVER_LOG:-} ]]; then
    [[ -d $log_directory ]] || mkdir -m 0700 "$log_directory"
    [[ -O $log_directory && ! -L $log_directory ]] || {
      printf 'test-rdma-debug: %s is not a directory of yours; set FABRICKV_SERVER_LOG\n' "$log_directory" >&2
      exit 2
    }
    own_log=true
  fi
  trap clean_up EXIT
  : >"$server_log"

  # Both in sessions of their own: Ctrl-C is for this script, which asks the server to stop and shows its last words.
  exec 3> >(exec setsid node "$root/dist/src/cli/rdma-debug-main.js" show "$server_log")
  show_pid=$!
  setsid "$root/scripts/run-with-rdma.sh" node "$root/bin/kv-server.js" --listen-addr "0.0.0.0:$port" \
    --log-level debug --log-format json 2>&3 3>&- &
  server_pid=$!
  exec 3>&-
  trap 'kill -TERM "$server_pid" 2>/dev/null || true' INT TERM HUP
  # A signal ends the first wait; the server's own end is what counts.
  while kill -0 "$server_pid" 2>/dev/null; do
    status=0
    wait "$server_pid" || status=$?
  done
  server_pid=
  wait "$show_pid" 2>/dev/null || true
  return "$status"
}

case ${1:-} in
  server)
    (($# == 1)) || usage
    status=0
    run_server || status=$?
    exit "$status"
    ;;
  client)
    (($# == 2)) || usage
    PORT=$port FABRICKV_SERVER_LOG=$server_log exec "$root/scripts/run-with-rdma.sh" \
      node "$root/dist/src/cli/rdma-debug-main.js" client "$2"
    ;;
  *) usage ;;
esac
