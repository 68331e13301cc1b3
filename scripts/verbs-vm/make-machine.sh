#!/usr/bin/env bash
# Makes the two files that scripts/test-verbs-vm.sh boots from: Debian's generic kernel (the cloud one has no rdma_rxe) and
# an initramfs with busybox, the kernel modules that are needed, and init. Neither package is installed.
#
#   scripts/verbs-vm/make-machine.sh DIRECTORY
#
# What is there already and was made from the same init is left alone; delete the directory for a newer kernel.
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
say() { printf 'make-machine: %s\n' "$*" >&2; }
# shellcheck source=scripts/debian.sh
source "$here/../debian.sh"

(($# == 1)) || {
  say "usage: ${0##*/} DIRECTORY"
  exit 2
}
mkdir -p "$1"
directory=$(cd "$1" && pwd)

stamp=$directory/stamp
want=$(cat "$here/init" "$here/make-machine.sh" | sha256sum)
if [[ -f $stamp && $(<"$stamp") == "$want" ]]; then exit 0; fi

work=$(mktemp --directory "$directory/work-XXXXXX")
trap 'rm -rf "$work"' EXIT

# linux-image-amd64 is an empty package that depends on the newest kernel.
download() {
  local kernel
  kernel=$(apt-cache depends linux-image-amd64 2>/dev/null | sed -n 's/^ *Depends: \(linux-image-[0-9].*\)/\1/p' | head -n 1)
  [[ -n $kernel ]] && (cd "$work" && "${apt_get[@]}" download "$kernel" busybox-static >&2)
}

unpack() {
  local package
  for package in "$work"/*.deb; do dpkg-deb --extract "$package" "$work/packages"; done
}

# The modules that init loads and those that they need, with the table that tells which those are.
collect_modules() {
  local tree=$1 into=$2 module file
  "$work/packages/bin/busybox" depmod -b "$work/packages" "${tree##*/}"
  mkdir -p "$into"
  cp "$tree/modules.dep" "$tree/modules.alias" "$into/"
  sed -n 's/^for module in \(.*\); do$/\1/p' "$here/init" | tr ' ' '\n' | while read -r module; do
    # A module's name has underscores where its file may have dashes.
    sed -n "\|/${module//_/[-_]}\.ko:|{s/://;p}" "$tree/modules.dep"
  done | tr ' ' '\n' | sort --unique | while read -r file; do
    [[ -z $file ]] || install -D --mode=0644 "$tree/$file" "$into/$file"
  done
}

say 'downloading a kernel and busybox'
# A bare machine has no package lists, and an old one has lists of versions that are gone.
download || { as_root "${apt_get[@]}" update >&2 && download; }
unpack
tree=$(find "$work/packages/lib/modules" -mindepth 1 -maxdepth 1 -type d)
collect_modules "$tree" "$work/initramfs/lib/modules/${tree##*/}"
install -D "$work/packages/bin/busybox" "$work/initramfs/bin/busybox"
install "$here/init" "$work/initramfs/init"
(cd "$work/initramfs" && find . | "$work/packages/bin/busybox" cpio -o -H newc 2>/dev/null) | gzip -1 >"$directory/initramfs.gz"
cp "$work/packages/boot/vmlinuz-${tree##*/}" "$directory/vmlinuz"
printf '%s\n' "$want" >"$stamp"
