#!/bin/sh
# SPDX-License-Identifier: LGPL-2.1-or-later
#
# Makes what boots the test VM out of Debian's packages:
#
#     build.sh OUTDIR INIT AGENT PROGRAM...   ->  OUTDIR/vmlinuz, OUTDIR/initrd, OUTDIR/initrd-agent, OUTDIR/modules.path
#
# The last one names the directory of all the kernel's modules, for those who build a guest of their own: libguestfs.
# initrd-agent has the real QEMU guest agent besides, which more than doubles it: for the machines that want it.
#
# No package is installed, since that would touch this machine's initramfs and boot loader, and the agent is a service
# with a udev rule: where the machine does not have them anyway, the packages are unpacked into a cache.

set -eu

out=$1
init=$2
agent=$3
shift 3
cache=${XDG_CACHE_HOME:-$HOME/.cache}/vmsnap

# Unpacks those files of a package that match the patterns into the present directory.
unpack() {
  package=$1
  shift
  apt-get download --quiet=2 "$package" || return
  dpkg-deb --fsys-tarfile "$package"_*.deb | tar -x --wildcards "$@" && rm "$package"_*.deb
}

# Makes a directory and runs a command in it that unpacks a package. The package lists may be missing or old.
fetch() (
  mkdir -p "$1"
  cd "$1"
  shift
  "$@" || { apt-get update --quiet=2 && "$@"; }
)

# Prints the newest kernel below the given root for which there are modules, too.
find_kernel() {
  for kernel in "$1"/boot/vmlinuz-*-cloud-amd64; do
    [ ! -d "$1/lib/modules/${kernel##*/vmlinuz-}" ] || echo "$kernel"
  done | sort --version-sort | tail -n 1
}

unpack_kernel() {
  package=$(apt-cache depends linux-image-cloud-amd64 | sed -n 's/.*Depends: \(linux-image-.*\)/\1/p')
  [ -n "$package" ] && unpack "$package" './boot/vmlinuz-*' './lib/modules/*' &&
    for modules in lib/modules/*; do /sbin/depmod --basedir . "${modules##*/}"; done
}

unpack_agent() {
  unpack qemu-guest-agent ./usr/sbin/qemu-ga
}

root=
kernel=$(find_kernel "$root")
if [ -z "$kernel" ]; then
  root=$cache/kernel
  kernel=$(find_kernel "$root")
fi
if [ -z "$kernel" ]; then
  fetch "$root" unpack_kernel
  kernel=$(find_kernel "$root")
fi
modules=$root/lib/modules/${kernel##*/vmlinuz-}
drivers=$modules/kernel/drivers

qemu_ga=/usr/sbin/qemu-ga
if [ ! -e "$qemu_ga" ]; then
  qemu_ga=$cache/agent/usr/sbin/qemu-ga
  [ -e "$qemu_ga" ] || fetch "$cache/agent" unpack_agent
fi

stage=$(mktemp -d)
trap 'rm -rf "$stage"' EXIT

# Prints a directory as the kernel wants it. Not compressed: to unpack it would take the emulated processor longer than
# to load it.
archive() (
  cd "$1"
  find . | cpio --quiet --create --format=newc --owner=0:0
)

base=$stage/base
mkdir -p "$base/bin" "$base/modules" "$base/dev" "$base/proc" "$base/sys"
cp "$init" "$base/init"
cp /bin/busybox "$@" "$base/bin"
cp "$drivers"/virtio/virtio*.ko "$drivers/block/virtio_blk.ko" "$base/modules"

# What is only there with the agent. It is dynamic; lines of ldd are "NAME => PATH (ADDRESS)", the loader's only PATH.
more=$stage/more
mkdir -p "$more/bin" "$more/modules"
cp "$agent" "$qemu_ga" "$more/bin"
ldd "$qemu_ga" | grep -o '/[^ ]*' | xargs cp --dereference --parents --target-directory="$more"
cp "$drivers/char/virtio_console.ko" "$more/modules"

cp "$kernel" "$out/vmlinuz"
echo "$modules" >"$out/modules.path"
archive "$base" >"$out/initrd"
# The kernel unpacks archives one after the other.
archive "$more" | cat "$out/initrd" - >"$out/initrd-agent"
