#!/usr/bin/env bash
# Prepares this clone: Debian packages, npm packages, the native addon, dist/, and the two commands for npx.
#
#   scripts/setup.sh
#
# It can be run again at any time: what is there is left alone, and a run with nothing to do takes seconds and needs no
# network. It changes nothing outside of the clone but the Debian packages. Two at a time wait for each other.
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
cd "$root"
# shellcheck source=scripts/debian.sh
source "$root/scripts/debian.sh"

say() { printf 'setup: %s\n' "$*" >&2; }
die() {
  say "$1"
  say "remedy: $2"
  exit 2
}

# The clone itself is what is locked, so that no lock file is left.
exec 9<"$root"
if ! flock --nonblock 9; then
  say 'another set-up runs in this clone; waiting for it'
  flock 9
fi

# What compiles the addon, what it loads, and what the tests run beside Node.
readonly packages=(g++ make cmake pkg-config libfabric-dev libfabric-bin iproute2 nftables clang-format shellcheck)
# Without these there is no native addon, so no data plane and no native tests.
readonly essential_commands=(g++ make cmake)

require_node() {
  command -v node >/dev/null || die 'there is no node' 'install Node.js 20.19 or newer (https://nodejs.org), with npm'
  command -v npm >/dev/null || die 'there is no npm' 'install npm; it comes with Node.js'
  node -e 'const [major, minor] = process.versions.node.split(".").map(Number);
    process.exit(major > 20 || (major === 20 && minor >= 19) ? 0 : 1)' ||
    die "Node.js $(node --version) is too old" 'install Node.js 20.19 or newer'
}

require_compiler() {
  local command absent=()
  for command in "${essential_commands[@]}"; do
    command -v "$command" >/dev/null || absent+=("$command")
  done
  ((${#absent[@]} == 0)) ||
    die "cannot build the native addon without ${absent[*]}" "as root: apt-get install ${packages[*]}"
  [[ -e /usr/include/rdma/fabric.h || -e /opt/amazon/efa/include/rdma/fabric.h ]] ||
    say "libfabric's headers are not there: FabricKV will have no data plane (apt-get install libfabric-dev)"
}

# A digest of what a step is made from, to tell whether it has been done.
digest() { { "$@"; } | sha256sum | cut --delimiter=' ' --fields=1; }

npm_inputs() {
  cat package.json package-lock.json
  node --version
}

native_inputs() {
  find native/CMakeLists.txt native/src -type f -print0 | sort --zero-terminated | xargs --null sha256sum
  # The addon is another one with libfabric's headers than without.
  cat /usr/include/rdma/fabric.h /opt/amazon/efa/include/rdma/fabric.h 2>/dev/null || true
}

install_npm_packages() {
  local stamp=node_modules/.fabrickv-setup want
  want=$(digest npm_inputs)
  if [[ -f $stamp && $(<"$stamp") == "$want" ]]; then
    say 'npm packages: all there'
    return 0
  fi
  say 'installing npm packages'
  # The addon is built below, where its failure is not passed over as it is for somebody who only wants the client.
  local flags=(--ignore-scripts --no-audit --no-fund)
  if npm ci --dry-run "${flags[@]}" >/dev/null 2>&1; then
    npm ci "${flags[@]}" >&2
  else
    # A lock file that was written behind a registry without the optional packages of other platforms lacks them, and npm ci
    # refuses it; npm install takes the versions that it has, and --no-save leaves it as it is.
    say 'npm ci will not have package-lock.json here; npm install --no-save follows it as far as it goes'
    npm install --no-save "${flags[@]}" >&2
  fi
  printf '%s\n' "$want" >"$stamp"
}

build_native() {
  local addon=native/build/Release/fabrickv.node stamp=native/build/.fabrickv-setup want
  want=$(digest native_inputs)
  if [[ -f $addon && -f $stamp && $(<"$stamp") == "$want" ]]; then
    say 'native addon: up to date'
    return 0
  fi
  say 'building the native addon'
  npm run --silent build:native >&2
  [[ -f $addon ]] || die "the build left no $addon" 'read what the compiler said above'
  printf '%s\n' "$want" >"$stamp"
}

build_typescript() {
  say 'building dist/'
  # A test whose source is gone must not go on running.
  local output source
  while IFS= read -r -d '' output; do
    source=${output#dist/}
    [[ -e ${source%.js}.ts ]] || rm -f "$output" "${output%.js}.d.ts" "$output.map"
  done < <(find dist -name '*.js' -print0 2>/dev/null)
  npm run --silent build >&2
}

# npm links a package's commands where it is installed, but not in its own clone; this is what npx looks for there.
link_commands() {
  local command
  for command in kv-server kv-client; do
    ln --symbolic --force --no-dereference "../../bin/$command.js" "node_modules/.bin/$command"
  done
}

require_node
# What is essential is looked for below, whoever has installed it.
install_packages "${packages[@]}" || true
require_compiler
install_npm_packages
build_native
build_typescript
link_commands
say 'done'
