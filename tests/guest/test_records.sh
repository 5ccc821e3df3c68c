#!/bin/sh
# SPDX-License-Identifier: LGPL-2.1-or-later
#
# The proof must be able to fail: check accepts what writer wrote, and refuses every way in which a copy can be wrong.
#
#     test_records.sh WRITER CHECK

set -u

writer=$(realpath "$1")
check=$(realpath "$2")
dir=$(mktemp -d -p /var/tmp) # tmpfs has no O_DIRECT
trap 'rm -rf "$dir"' EXIT
cd "$dir" || exit 1

slots=64
start=8192
count=0

# Lets the writer write until it has reported that often, every 64 records.
write_until() {
  : >log
  "$writer" $start $slots 0 a b >log &
  while [ "$(grep -c alive log)" -lt "$1" ]; do sleep 0.02; done
  kill $!
  wait $!
}

# Makes both files empty disks of that size.
fresh() {
  rm -f a b
  truncate -s "$1" a b
}

report() {
  count=$((count + 1))
  if [ "$1" -eq 0 ]; then
    echo "ok $count - $2"
  else
    echo "not ok $count - $2"
    cat newest reason log | sed 's/^/# /'
  fi
}

check() { "$check" $start $slots a b >newest 2>reason; }
accepted() { check; report $? "$1"; }
refused() { ! check && grep -q "$2" reason; report $? "$1"; }

: >log
fresh 1M
refused "no record at all" "no record in 'b'"

cp a empty
write_until 3
accepted "a ring that has come round"
cp a a1
cp b b1
write_until 3
accepted "goes on where it was stopped"

newest=$(cat newest)
cp a a2
cp b b2
cp a1 a
refused "disk A is older than disk B" "not one instant"
cp a2 a
cp b1 b
refused "disk B is older than disk A" "not one instant"
cp b2 b
# Neither the newest, which would only make the ring an older one, nor the first.
slot=$(((newest + 10) % slots))
[ $slot -ne 0 ] || slot=20
block=$((start / 4096 + slot))
dd if=a1 of=a bs=4096 skip=$block seek=$block count=1 conv=notrunc status=none
refused "one block is older" "a: slot $slot has record"
cp a2 a
dd if=empty of=b bs=4096 skip=$block seek=$block count=1 conv=notrunc status=none
refused "one block is missing" "b: slot $slot has record -1"
cp b2 b
dd if=a2 of=a bs=4096 skip=$((block - slot)) seek=$block count=1 conv=notrunc status=none
refused "one block is at another's place" "a: slot $slot is neither"
cp a1 a
cp b1 b
printf 'not this' | dd of=b bs=8 seek=$(((start + 11 * 4096) / 8 - 1)) conv=notrunc status=none
refused "one word is wrong" "b: slot 10 is neither"
cp b1 b
truncate -s $((start + (slots - 1) * 4096)) b
refused "the file is too short" "b: failed to read slot 63: end of file"
cp a1 b
refused "one disk twice" "b: slot 0 is neither"

slots=20000
fresh 128M
write_until 2
accepted "a ring that has not come round"

echo "1..$count"
