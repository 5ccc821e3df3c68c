#!/bin/sh
# SPDX-License-Identifier: LGPL-2.1-or-later
#
# latency writes where and as often as it is told, and hides no stall.
#
#     test_latency.sh LATENCY

set -u

latency=$(realpath "$1")
dir=$(mktemp -d -p /var/tmp) # tmpfs has no O_DIRECT
trap 'rm -rf "$dir"' EXIT
cd "$dir" || exit 1

count=0

report() {
  count=$((count + 1))
  if [ "$1" -eq 0 ]; then
    echo "ok $count - $2"
  else
    echo "not ok $count - $2"
    cat output complaint | sed 's/^/# /'
  fi
}

run() { "$latency" "$@" >output 2>complaint; }

# The figure with that name.
figure() { sed -n "s/.*\\b$1 \\([0-9]*\\).*/\\1/p" output; }

# Tries wrong arguments.
misused() {
  what=$1
  shift
  run "$@"
  [ $? -eq 2 ] && [ ! -s output ] && grep -q '^usage: latency' complaint
  report $? "usage: $what"
}

# Measures, and lets it stand still after half a second for that many seconds.
run_stalled() {
  stall=$1
  shift
  "$latency" "$@" >output 2>complaint &
  sleep 0.5
  kill -STOP $!
  sleep "$stall"
  kill -CONT $!
  wait $!
}

truncate -s 1M disk
misused "no arguments"
misused "one too few" 0 4096 10 1
misused "a word that it does not know" 0 4096 10 1 disk more
misused "one too many" 0 4096 10 1 disk each more
misused "start is not a block's" 512 4096 10 1 disk
misused "size is not of blocks" 0 5000 10 1 disk
misused "no size" 0 0 10 1 disk
misused "no pace" 0 4096 0 1 disk
misused "no time" 0 4096 10 0 disk
misused "a sign" 0 4096 -10 1 disk
misused "a unit" 0 4096 10 1s disk
misused "no number" '' 4096 10 1 disk
misused "more than there is memory for" 0 4096 1000000 1000000 disk

run 0 4096 10 1 nothing
[ $? -eq 1 ] && grep -qx "latency: failed to open 'nothing': No such file or directory" complaint
report $? "a disk that is not there"

run 262144 131072 100 1 disk && grep -qxE 'due 100 written [0-9]+ elapsed [0-9]+ p50 [0-9]+ p99 [0-9]+ max [0-9]+' output
report $? "one line"
[ "$(figure written)" -gt 0 ] && [ "$(figure p50)" -gt 0 ] && [ "$(figure p50)" -le "$(figure p99)" ] &&
  [ "$(figure p99)" -le "$(figure max)" ] && [ "$(figure elapsed)" -ge 900000 ]
report $? "figures in their order"
cmp -s -n 262144 disk /dev/zero && ! cmp -s -n 131072 -i 262144:0 disk /dev/zero &&
  cmp -s -n 655360 -i 393216:0 disk /dev/zero
report $? "writes in its region, and nowhere else"

# One write is slow, or none, but all that become due meanwhile are late.
run_stalled 1 0 1048576 100 3 disk
[ "$(figure due)" -eq 300 ] && [ "$(figure max)" -ge 900000 ] && [ "$(figure p99)" -ge 700000 ]
report $? "a stall is one for all that wait"
run_stalled 2 0 1048576 100 2 disk
[ "$(figure due)" -eq 200 ] && [ "$(figure written)" -lt 150 ] && [ "$(figure p50)" -ge 400000 ]
report $? "what is not written in time counts, too"


run 0 1048576 100 1 disk each
[ "$(wc -l <output)" -eq $(($(figure written) + 1)) ] &&
  [ "$(sed '$d' output | cut -d ' ' -f 1 | sed -n '1p;2p;11p' | tr '\n' ' ')" = "0 10000 100000 " ] &&
  [ "$(sed '$d' output | cut -d ' ' -f 2 | sort -n | tail -n 1)" -le "$(figure max)" ]
report $? "each write, in its order"

echo "1..$count"
