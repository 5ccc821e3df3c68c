#!/bin/sh
# SPDX-License-Identifier: LGPL-2.1-or-later
#
# Makes what boots the test VM out of Debian's packages:
#
#     build.sh OUTDIR INIT PROGRAM...   ->  OUTDIR/vmlinuz, OUTDIR/initrd
#
# The kernel package is not installed, since that would touch this machine's initramfs and boot loader: where the
# machine does not have that kernel anyway, the package is unpacked into a cache.

set -eu

out=$1
init=$2
shift 2

# Prints the newest kernel below the given root for which there are modules, too.
find_kernel() {
  for kernel in "$1"/boot/vmlinuz-*-cloud-amd64; do
    [ ! -d "$1/lib/modules/${kernel##*/vmlinuz-}" ] || echo "$kernel"
  done | sort --version-sort | tail -n 1
}

# Unpacks what is needed of the kernel package into the present directory.
fetch_kernel() {
  package=$(apt-cache depends linux-image-cloud-amd64 | sed -n 's/.*Depends: \(linux-image-.*\)/\1/p')
  [ -n "$package" ] && apt-get download --quiet=2 "$package" || return
  dpkg-deb --fsys-tarfile "$package"_*.deb | tar -x --wildcards './boot/vmlinuz-*' '*/virtio*.ko'
  rm "$package"_*.deb
}

root=
kernel=$(find_kernel "$root")
if [ -z "$kernel" ]; then
  root=${XDG_CACHE_HOME:-$HOME/.cache}/vmsnap/kernel
  kernel=$(find_kernel "$root")
fi
if [ -z "$kernel" ]; then
  mkdir -p "$root"
  cd "$root"
  fetch_kernel || { apt-get update --quiet=2 && fetch_kernel; }
  cd "$OLDPWD"
  kernel=$(find_kernel "$root")
fi
modules=$root/lib/modules/${kernel##*/vmlinuz-}/kernel/drivers

stage=$(mktemp -d)
trap 'rm -rf "$stage"' EXIT
mkdir "$stage/bin" "$stage/modules" "$stage/dev" "$stage/proc" "$stage/sys"
cp "$init" "$stage/init"
cp /bin/busybox "$@" "$stage/bin"
cp "$modules"/virtio/virtio*.ko "$modules/block/virtio_blk.ko" "$stage/modules"

cp "$kernel" "$out/vmlinuz"
# Not compressed: to unpack it would take the emulated processor longer than to load it.
(cd "$stage" && find . | cpio --quiet --create --format=newc --owner=0:0) >"$out/initrd"
