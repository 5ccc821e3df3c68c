#!/usr/bin/python3
# SPDX-License-Identifier: LGPL-2.1-or-later

"""
The benchmark that tests/bench/run runs in the sandbox: makes a machine with disks of many kinds, and lets each
contestant do all works (rows.py) once in every round, so that what changes on this computer changes for all of them.
"""

import argparse
import contextlib
import fnmatch
import os
import shutil
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
sys.path.insert(0, str(ROOT / 'tests/system'))

import images
import lib
import peers
import report
import rows
from lib import Disk, Vm
from peers import VMSNAP
from rows import Contestant

IDLE, WRITING = 'idle', 'writing'


def patterns(text):
    return [pattern for pattern in text.split(',') if pattern]


def matches(name, wanted):
    return any(fnmatch.fnmatchcase(name, pattern) for pattern in wanted)


def parse_arguments():
    parser = argparse.ArgumentParser(
        prog='tests/bench/run', description='Measures vmsnap against other ways to read the instant of a machine.',
        epilog='ROWS are names as in the first column of the table, separated by commas, with * and ? as in the shell.')
    parser.add_argument('--smoke', action='store_true', help='hardly any data and one round: only to see that it works')
    parser.add_argument('--rounds', type=int, metavar='N', help='how often each is measured (5)')
    parser.add_argument('--rows', type=patterns, default=['*'], help='measure only these')
    parser.add_argument('--skip', type=patterns, default=[], metavar='ROWS', help='do not measure these, e.g. growth-*')
    parser.add_argument('--writing', type=patterns, default=patterns('dd-1M,dd-128k,cat,cp'), metavar='ROWS',
                        help='measure these with a writing guest, too (dd-1M,dd-128k,cat,cp)')
    parser.add_argument('--option', default='', metavar='OPTIONS', help='mount options for vmsnap')
    parser.add_argument('--variant', action='append', default=[], metavar='NAME=OPTIONS',
                        help='one more contestant: vmsnap with these mount options instead; may be repeated')
    parser.add_argument('--output', type=Path, default=ROOT / 'build-bench/results', metavar='DIRECTORY',
                        help='where table, figures and chart go (build-bench/results)')
    options = parser.parse_args()
    options.rounds = options.rounds or (1 if options.smoke else 5)
    options.contestants = [Contestant(VMSNAP, VMSNAP, options.option)]
    for variant in options.variant:
        name, separator, mount_options = variant.partition('=')
        if not separator or name in {contestant.name for contestant in options.contestants}:
            parser.error(f'--variant {variant}: a new NAME, = and mount options are needed')
        options.contestants.append(Contestant(name, VMSNAP, mount_options))
    return options


def is_wanted(row, options):
    return matches(row.name, options.rows) and not matches(row.name, options.skip)


def schedule(works, options):
    """What to do in a round: a list of (guest, work, rows of it)."""
    todo = []
    for guest in (IDLE, WRITING):
        for work in works:
            wanted = [row for row in work.rows if is_wanted(row, options)]
            if guest == WRITING:
                wanted = [row for row in wanted if matches(row.name, options.writing) and work.writable
                          and work.disks == ['dense']]
            if wanted:
                todo.append((guest, work, wanted))
    return todo


def make_vm(sizes, needed):
    """A machine with the disks that are NEEDED, and what they are called, {what: name}."""
    data = {what: arguments for what, arguments in rows.disks(sizes).items() if what == 'backup' or what in needed}
    stored = sum(min(sum(end - start for start, end in extents), *distinct[:1] or (1 << 63,))
                 for _, extents, *distinct in data.values())
    # A backup of the first disk, and scratch for all of the second, may come to that.
    room, free = stored + sizes.backup // 4 + sizes.dense, shutil.disk_usage(lib.SANDBOX).free
    if free < room:
        sys.exit(f'bench: needs {room >> 20} MiB in {lib.SANDBOX.parent}, which has {free >> 20}')
    vm = Vm([Disk(size=size) for size, *_ in data.values()])
    for image, arguments in zip(vm.images.values(), data.values()):
        images.write(image, *arguments)
    os.sync()
    return vm, dict(zip(data, vm.images))


def measure(arena, work, wanted, guest, contestants, results):
    for contestant in contestants:
        figures = work.measure(arena, contestant)
        for row in wanted:
            if row in figures:
                results.add(row, guest, contestant.name, figures[row])
                report.progress(row, guest, contestant.name, figures[row])


def play_round(arena, todo, number, options, sizes, results):
    """Everything once. Who begins changes with the round: nobody is always the one to warm things up."""
    for guest in (IDLE, WRITING):
        now = [(work, wanted) for when, work, wanted in todo if when == guest]
        if not now:
            continue
        with contextlib.ExitStack() as stack:
            # A session belongs to the guest's state: in one that has begun before, there may be nothing left to copy.
            stack.push(arena)
            if guest == WRITING:
                stack.enter_context(arena.writing('dense', sizes.dense))
            for work, wanted in now:
                contestants = options.contestants + [Contestant(name, name, options.option) for name in work.compared]
                first = number % len(contestants)
                measure(arena, work, wanted, guest, contestants[first:] + contestants[:first], results)


def main():
    peers.signal_to_exit()
    options = parse_arguments()
    begin = time.monotonic()
    sizes = rows.SMOKE if options.smoke else rows.FULL
    todo = schedule(rows.all_works(sizes), options)
    if not todo:
        sys.exit('bench: there are no such rows')
    results = report.Results([(row, guest) for guest, _, wanted in todo for row in wanted], options.contestants)
    vm, names = make_vm(sizes, {what for _, work, _ in todo for what in work.disks})
    with vm:
        arena = peers.Arena(vm.start(), names)
        for number in range(options.rounds):
            print(f'round {number + 1} of {options.rounds}, after {time.monotonic() - begin:.0f} s', file=sys.stderr)
            play_round(arena, todo, number, options, sizes, results)
            # After each: what there is outlives an end before the end.
            report.write(results, options.output, time.monotonic() - begin)
    print((options.output / report.TABLE).read_text(), end='')
    print(f'{report.TABLE}, {report.FIGURES} and {report.CHART} are in {options.output}', file=sys.stderr)


try:
    main()
except (lib.CommandFailed, AssertionError) as error:
    sys.exit(f'bench: FAILED: {error}')
