#!/usr/bin/python3
# SPDX-License-Identifier: LGPL-2.1-or-later

"""
How long a guest's requests stand still for the instant: `tests/bench/run instant` runs this in the sandbox. A QEMU
without libvirt is told in three ways to keep the present state of some of its disks, all at one instant, while its
guest writes to another disk without a pause:

- reopen: vmsnap's way. A filter that does nothing is under each device beforehand; then one blockdev-reopen puts
  copy-before-write under all of these
- stop: stop, put copy-before-write under each device, cont
- transaction: one of blockdev-backup with sync=none

Each is undone before the next one. When a write was done is told by QEMU, not the guest, whose clock stops with it.
"""

import argparse
import itertools
import json
import os
import re
import shutil
import statistics
import sys
import threading
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
sys.path.insert(0, str(ROOT / 'tests/system'))

import images
import lib
import peers
import report
from lib import Disk
from traced import TracedVm

TABLE, FIGURES = 'instant.md', 'instant.json'
# Where the guest writes meanwhile; the others are those whose state is kept.
WRITTEN = 'vda'
# More than what can be done: a write follows the other.
PACE = 20000
QUANTITIES = ('command', 'gap', 'before', 'after')


def parse_arguments():
    parser = argparse.ArgumentParser(
        prog='tests/bench/run instant', description="Measures how long a guest's requests stand still for the instant.")
    parser.add_argument('--smoke', action='store_true', help='little data and one round: only to see that it works')
    parser.add_argument('--rounds', type=int, metavar='N', help='how often each is measured (3)')
    parser.add_argument('--output', type=Path, default=ROOT / 'build-bench/results', metavar='DIRECTORY',
                        help='where table and figures go (build-bench/results)')
    options = parser.parse_args()
    options.rounds = options.rounds or (1 if options.smoke else 3)
    options.dirty = (16 if options.smoke else 1024) * lib.MIB
    options.counts = (2,) if options.smoke else (1, 2, 8)
    return options


class Way:
    """To keep the present state of some disks. All are used once: prepare(), then instant(), then undo()."""
    name = title = ''

    def __init__(self, vm, disks):
        self.vm, self.disks = vm, disks
        nodes = {block.get('qdev'): block['inserted']['node-name'] for block in vm.call('query-block')
                 if 'inserted' in block}
        self.nodes = {disk: nodes[self.device(disk)] for disk in disks}
        self.slowest = 0

    @staticmethod
    def device(disk):
        return f'/machine/peripheral/{disk}/virtio-backend'

    def call(self, command, **arguments):
        """Any command may keep the guest waiting, so the slowest one is noted."""
        begin = time.monotonic()
        answer = self.vm.call(command, **arguments)
        self.slowest = max(self.slowest, time.monotonic() - begin)
        return answer

    def put_under(self, disk, node):
        self.call('qom-set', path=self.device(disk), property='drive', value=node)

    def add_scratch(self):
        for disk in self.disks:
            path = self.vm.make_scratch(disk)
            self.call('blockdev-add', driver='qcow2', node_name=f'{disk}-scratch',
                      file={'driver': 'file', 'filename': str(path)})

    def add_filters(self):
        self.add_scratch()
        for disk in self.disks:
            self.call('blockdev-add', driver='copy-before-write', node_name=f'{disk}-cbw', file=self.nodes[disk],
                      target=f'{disk}-scratch', on_cbw_error='break-snapshot')

    def delete(self, *kinds):
        for disk in self.disks:
            for kind in kinds:
                self.call('blockdev-del', node_name=f'{disk}-{kind}')


class Nothing(Way):
    name = 'none'
    title = 'nothing'

    def prepare(self):
        pass

    def instant(self):
        self.call('query-status')

    def undo(self):
        pass


class Reopen(Way):
    name = 'reopen'
    title = 'blockdev-reopen'

    @staticmethod
    def passing(disk, node):
        return {'driver': 'raw', 'node-name': f'{disk}-pass', 'file': node}

    def prepare(self):
        self.add_filters()
        for disk in self.disks:
            self.call('blockdev-add', **self.passing(disk, self.nodes[disk]))
            self.put_under(disk, f'{disk}-pass')

    def instant(self):
        self.call('blockdev-reopen', options=[self.passing(disk, f'{disk}-cbw') for disk in self.disks])

    def undo(self):
        self.call('blockdev-reopen', options=[self.passing(disk, self.nodes[disk]) for disk in self.disks])
        for disk in self.disks:
            self.put_under(disk, self.nodes[disk])
        self.delete('pass', 'cbw', 'scratch')


class Stop(Way):
    name = 'stop'
    title = 'stop, qom-set of each, cont'

    def prepare(self):
        self.add_filters()

    def instant(self):
        self.call('stop')
        for disk in self.disks:
            self.put_under(disk, f'{disk}-cbw')
        self.call('cont')

    def undo(self):
        for disk in self.disks:
            self.put_under(disk, self.nodes[disk])
        self.delete('cbw', 'scratch')


class Transaction(Way):
    name = 'transaction'
    title = 'transaction of blockdev-backup'

    def prepare(self):
        self.add_scratch()

    def instant(self):
        self.call('transaction', actions=[
            {'type': 'blockdev-backup', 'data': {'job-id': disk, 'device': self.nodes[disk], 'sync': 'none',
                                                 'target': f'{disk}-scratch'}} for disk in self.disks])

    def undo(self):
        for disk in self.disks:
            self.call('block-job-cancel', device=disk)
        lib.wait_until(lambda: not self.vm.call('query-jobs'), 'the jobs have ended')
        self.delete('scratch')


WAYS = (Reopen, Stop, Transaction)
# What is in the page cache of the images and not yet on their disk: {name: what the table says}.
STATES = {'clean': 'little', 'dirty': 'much', 'synced': 'much, then fdatasync'}


class Machine(TracedVm):
    """A machine with room for what is copied."""

    def __init__(self, disks):
        super().__init__(disks)
        self._sizes = {name: disk.size for name, disk in zip(self.images, disks)}

    def writes_done(self):
        """How many of the guest to the disk that is written to."""
        return next(disk['stats']['wr_operations'] for disk in self.call('query-blockstats')
                    if disk.get('device') == f'drive-{WRITTEN}')

    def make_scratch(self, disk):
        path = self.directory / f'{disk}.scratch'
        path.unlink(missing_ok=True)
        lib.run('qemu-img', 'create', '-q', '-f', 'qcow2', path, self._sizes[disk])
        self._own(path)
        return path


def sync(vm, disks):
    for disk in disks:
        with open(vm.images[disk]) as image:
            os.fdatasync(image.fileno())


def dirty_bytes():
    """Of the whole computer."""
    text = Path('/proc/meminfo').read_text()
    return sum(int(re.search(rf'^{name}: +(\d+) kB', text, re.MULTILINE)[1]) for name in ('Dirty', 'Writeback')) * 1024


def overwrite(vm, disks, size):
    """The guest writes that much, as much to each disk."""
    for disk in disks:
        vm.run(f'dd if=/dev/zero of=/dev/{disk} bs=1M count={size // len(disks) // lib.MIB} oflag=direct conv=notrunc')


def longest_gap(done, begin, end):
    """Between two requests, of those gaps that have a part between BEGIN and END."""
    gaps = [after - before for before, after in itertools.pairwise(done) if after >= begin and before <= end]
    if not gaps or done[0] >= begin or done[-1] <= end:
        raise AssertionError('the guest did not write before and after the instant')
    return max(gaps)


def measure_instant(vm, way, seconds):
    """The seconds that the command takes, and the longest gap around it; the guest writes for so long."""
    before, log = vm.writes_done(), vm.log_size()
    guest = threading.Thread(target=vm.run, args=(f'latency 0 {lib.MIB} {PACE} {seconds} /dev/{WRITTEN}',))
    guest.start()
    try:
        lib.wait_until(lambda: vm.writes_done() > before + 50, 'the guest writes')
        time.sleep(0.2)
        begin = time.time()
        way.instant()
        end = time.time()
    finally:
        guest.join()
    return {'command': end - begin, 'gap': longest_gap(vm.requests_done(log), begin, end)}


def measure(vm, options, kind, state, count):
    """The figures of one instant, in seconds."""
    disks = [disk for disk in vm.images if disk != WRITTEN][:count]
    sync(vm, vm.images)
    dirty = dirty_bytes()
    if state != 'clean':
        overwrite(vm, disks, options.dirty)
    way = kind(vm, disks)
    way.prepare()
    if state == 'synced':
        sync(vm, disks)
    figures = {'dirty': max(dirty_bytes() - dirty, 0), 'before': way.slowest}
    figures |= measure_instant(vm, way, 3 if state == 'dirty' else 1)
    sync(vm, disks)
    way.slowest = 0
    way.undo()
    left = vm.traces()
    if left:
        raise AssertionError(f'left behind by {way.name}: {left}')
    return figures | {'after': way.slowest, 'load': os.getloadavg()[0]}


class Results:
    """The figures of each way, state and number of disks: one set of each round."""

    def __init__(self):
        self.rounds = {}

    def add(self, kind, state, count, figures):
        self.rounds.setdefault((kind, state, count), []).append(figures)

    def values(self, kind, state, count, quantity):
        return [figures[quantity] for figures in self.rounds[kind, state, count]]

    def count(self):
        return max(map(len, self.rounds.values()))

    def all(self, quantity, kind=None, state=None):
        return [figures[quantity] for (a_kind, a_state, _), rounds in self.rounds.items() for figures in rounds
                if kind in (None, a_kind) and state in (None, a_state)]


def text(seconds):
    """In milliseconds: the median, and the most."""
    return f'{report.number(statistics.median(seconds) * 1000)} ({report.number(max(seconds) * 1000)})'


def markdown(results, options, about):
    lines = [['in the page cache', 'disks',
              *(f'{way.title}: {what}, ms' for way in WAYS for what in ('command', 'gap'))]]
    lines.append(['---'] * len(lines[0]))
    for state, title in STATES.items():
        lines += [[title, str(count), *(text(results.values(way, state, count, quantity)) for way in WAYS
                                        for quantity in ('command', 'gap'))] for count in options.counts]
    table = ''.join(f'| {" | ".join(line)} |\n' for line in lines)
    noise = ', '.join(f'{text(results.all("gap", Nothing, state))} with {title}' for state, title in STATES.items())
    others = '; '.join(f'{way.title} {text(results.all("before", way))} and {text(results.all("after", way))}'
                       for way in WAYS)
    dirty = report.number(statistics.median(results.all('dirty', state='dirty')) / lib.MIB)
    loads = results.all('load')
    return (f'{table}\nMedians of {results.count()} round(s), and the longest of them in brackets. The guest writes '
            f'4 KiB after 4 KiB to another disk, which is not of the snapshot and never flushed; a gap is the longest '
            f'time between two writes that were done, of those that have a part in the command. What is only noise: '
            f'around a command that does nothing (query-status), the gap was {noise}. "Much" is {dirty} MiB that the '
            f'guest has just written to the disks, as much to each; qcow2, cache=writeback, no iothread.\n\n'
            f'The slowest single command of those that make all ready before it, and of those that undo it after an '
            f'fdatasync, in ms: {others}. The load was {min(loads):.0f} to {max(loads):.0f}, with what else ran there. '
            f'{report.computer(about)} {about["date"]}.\n')


def figures(results, options, about):
    """Everything, for programs."""
    return about | {'dirty': options.dirty, 'instants': [
        {'way': kind.name, 'page-cache': state, 'disks': count, 'rounds': rounds,
         'median': {quantity: statistics.median(figures[quantity] for figures in rounds) for quantity in QUANTITIES}}
        for (kind, state, count), rounds in results.rounds.items()]}


def write(results, options):
    """Writes table and figures of all rounds so far."""
    options.output.mkdir(parents=True, exist_ok=True)
    about = report.about_here() | {'rounds': results.count()}
    (options.output / TABLE).write_text(markdown(results, options, about))
    (options.output / FIGURES).write_text(json.dumps(figures(results, options, about), indent=2) + '\n')


def play(vm, options, results):
    begin = time.monotonic()
    for number in range(options.rounds):
        print(f'round {number + 1} of {options.rounds}, after {time.monotonic() - begin:.0f} s', file=sys.stderr)
        # Who begins changes with the round.
        ways = WAYS[number % len(WAYS):] + WAYS[:number % len(WAYS)]
        for state in STATES:
            cells = [(Nothing, 1), *((way, count) for count in options.counts for way in ways)]
            for way, count in cells:
                figures = measure(vm, options, way, state, count)
                results.add(way, state, count, figures)
                print(f'  {way.name:12} {state:8} {count} disk(s)',
                      ' '.join(f'{quantity} {report.number(figures[quantity] * 1000)} ms' for quantity in QUANTITIES),
                      f'({figures["dirty"] // lib.MIB} MiB dirty, load {figures["load"]:.0f})',
                      file=sys.stderr, flush=True)
        # After each: what there is outlives an end before the end.
        write(results, options)


def main():
    peers.signal_to_exit()
    options = parse_arguments()
    # As large as what is written to one of so many.
    sizes = [options.dirty // next(count for count in (1, *options.counts) if count > place)
             for place in range(max(options.counts))]
    if shutil.disk_usage(lib.SANDBOX).free < 2 * sum(sizes):
        sys.exit(f'instant: needs {2 * sum(sizes) // lib.MIB} MiB in {lib.SANDBOX.parent}')
    with Machine([Disk(size=lib.MIB, driver='cache="unsafe"'), *(Disk(size=size) for size in sizes)]) as vm:
        for image, size in zip(list(vm.images.values())[1:], sizes):
            images.write(image, size, images.dense(size))
        play(vm.start(), options, Results())
    print((options.output / TABLE).read_text(), end='')
    print(f'{TABLE} and {FIGURES} are in {options.output}', file=sys.stderr)


try:
    main()
except (lib.CommandFailed, AssertionError) as error:
    sys.exit(f'instant: FAILED: {error}')
