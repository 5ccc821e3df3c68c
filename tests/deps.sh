#!/bin/sh
# SPDX-License-Identifier: LGPL-2.1-or-later
#
# Installs what building and testing vmsnap needs on Debian 12, and nothing that is there already: a second run only
# asks dpkg. No service is started by it.

set -eu

packages="
  gcc libc6-dev meson ninja-build pkg-config
  libfuse3-dev libnbd-dev libvirt-dev libglib2.0-dev libjson-glib-dev uuid-dev libxml2-dev libmount-dev libcap-ng-dev
  fuse3 libnbd-bin nbdkit libvirt-clients libvirt-daemon-system qemu-system-x86 qemu-utils
  busybox-static cpio e2fsprogs python3 iproute2 procps mount util-linux
  attr autofs borgbackup guestfish jq kmod ovmf restic rsync systemd tar zstd
  fio gnuplot-nox virtnbdbackup
"

# dpkg-query complains about names that it has never heard of: those are missing, too.
installed=$(dpkg-query --show --showformat='${db:Status-Status} ${Package}\n' 2>/dev/null | sed -n 's/^installed //p')
missing=
for package in $packages; do
  echo "$installed" | grep -qx "$package" || missing="$missing $package"
done
[ -n "$missing" ] || exit 0

echo "installing:$missing"

# Packages ask this program before they start a service. One that is there already is the administrator's word.
policy=/usr/sbin/policy-rc.d
if [ ! -e "$policy" ]; then
  trap 'rm -f "$policy"' EXIT
  printf '#!/bin/sh\nexit 101\n' >"$policy"
  chmod 755 "$policy"
fi

export DEBIAN_FRONTEND=noninteractive
install="apt-get install --yes --quiet=2 --no-install-recommends $missing"
log=$(mktemp)
# The package lists may be missing or old: only then is the time for an update well spent.
if ! $install >"$log" 2>&1 && ! { apt-get update --quiet=2 >>"$log" 2>&1 && $install >>"$log" 2>&1; }; then
  cat "$log" >&2
  rm -f "$log"
  exit 1
fi
rm -f "$log"
