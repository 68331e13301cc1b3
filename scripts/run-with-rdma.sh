#!/usr/bin/env bash
# Runs a command with what libfabric and RDMA devices need.
#
#   scripts/run-with-rdma.sh COMMAND [ARGUMENT…]
#   scripts/run-with-rdma.sh npx --no-install kv-server --provider verbs
#
# It finds libfabric (FABRICKV_LIBFABRIC, the dynamic linker's own places, the EFA installer's), raises the limit of locked
# memory as far as it may, and sets what a device here is known to need and you have not set. It says what it did in one
# line on stderr. The command takes its place, so signals and the exit code are the command's.
set -euo pipefail

if (($# == 0)); then
  printf 'usage: %s COMMAND [ARGUMENT…]\n' "${0##*/}" >&2
  exit 2
fi

notes=()

find_libfabric() {
  if [[ -n ${FABRICKV_LIBFABRIC:-} ]]; then
    if [[ -e $FABRICKV_LIBFABRIC ]]; then
      notes+=("libfabric $FABRICKV_LIBFABRIC (FABRICKV_LIBFABRIC)")
    else
      notes+=("FABRICKV_LIBFABRIC is $FABRICKV_LIBFABRIC, which does not exist")
    fi
    return 0
  fi
  local ldconfig known
  ldconfig=$(command -v ldconfig || printf '/sbin/ldconfig')
  known=$("$ldconfig" -p 2>/dev/null | sed -n 's/^[[:space:]]*libfabric\.so\.1 .*=> //p' | head -n 1 || true)
  if [[ -n $known ]]; then
    notes+=("libfabric $known")
    return 0
  fi
  local candidate
  for candidate in /opt/amazon/efa/lib64/libfabric.so.1 /opt/amazon/efa/lib/libfabric.so.1; do
    if [[ -e $candidate ]]; then
      export FABRICKV_LIBFABRIC=$candidate
      notes+=("libfabric $candidate")
      return 0
    fi
  done
  notes+=('no libfabric (Debian: apt-get install libfabric1; EC2: the EFA installer)')
}

raise_memlock() {
  local before
  before=$(ulimit -S -l)
  if [[ $before == unlimited ]]; then
    notes+=('memlock unlimited')
  elif ulimit -l unlimited 2>/dev/null || { ulimit -S -l "$(ulimit -H -l)" 2>/dev/null && [[ $(ulimit -S -l) != "$before" ]]; }; then
    notes+=("memlock raised from $before to $(ulimit -S -l) KiB")
  else
    notes+=("memlock stays $before KiB (root may raise it: /etc/security/limits.conf, or LimitMEMLOCK= of systemd)")
  fi
}

set_unless_set() {
  local name=$1 value=$2 why=$3
  [[ -z ${!name+set} ]] || return 0
  export "$name=$value"
  notes+=("$name=$value ($why)")
}

# Whether the running kernel copies a parent's registered pages at fork by itself (5.13 and newer).
kernel_forks_safely() {
  local major minor
  IFS=. read -r major minor _ < <(uname -r)
  ((major > 5 || (major == 5 && ${minor%%[^0-9]*} >= 13)))
}

prepare_devices() {
  local devices=()
  local path
  for path in /sys/class/infiniband/*; do
    [[ -e $path ]] && devices+=("${path##*/}")
  done
  if ((${#devices[@]} == 0)); then
    notes+=('no RDMA device, so tcp')
    return 0
  fi
  notes+=("RDMA devices ${devices[*]}")
  # A soft-RoCE device has too few queue pairs for libfabric's default of 256 peers.
  if [[ " ${devices[*]}" == *" rxe"* ]]; then set_unless_set FI_UNIVERSE_SIZE 16 'soft-RoCE'; fi
  if ! kernel_forks_safely; then
    set_unless_set FI_EFA_FORK_SAFE 1 'old kernel'
    set_unless_set RDMAV_FORK_SAFE 1 'old kernel'
  fi
}

find_libfabric
raise_memlock
prepare_devices
joined=$(printf '; %s' "${notes[@]}")
printf 'run-with-rdma: %s\n' "${joined#; }" >&2
exec "$@"
