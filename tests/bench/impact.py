#!/usr/bin/python3
# SPDX-License-Identifier: LGPL-2.1-or-later

"""
What a backup costs the guest: `tests/bench/run impact` runs this in the sandbox. A guest writes at a steady pace and
tells how long each write took (tests/guest/latency.c), without a backup and during each kind of one, in every round.

The disk is dense, and a backup begins anew before each measurement: the first write to each of its clusters has to wait
until what was there is saved. How a backup begins and ends is not in the figures.
"""

import argparse
import contextlib
import json
import os
import shutil
import statistics
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
sys.path.insert(0, str(ROOT / 'tests/system'))

import images
import lib
import peers
import report
from lib import Disk, Vm

TABLE, FIGURES, CHART = 'impact.md', 'impact.json', 'impact.svg'
PROGRAMS = {'nbdkit': ('nbdkit', '--version'), 'nbdfuse': ('nbdfuse', '--version')}
DISK = 'vda'
BACKUP = '9'  # VIR_DOMAIN_JOB_OPERATION_BACKUP

# In microseconds, but for the last two, which are numbers a second.
LATENCIES = ('p50', 'p99', 'max')
QUANTITIES = (*LATENCIES, 'writes', 'backup')


def parse_arguments():
    parser = argparse.ArgumentParser(
        prog='tests/bench/run impact', description='Measures how long writes of a guest take during a backup.')
    parser.add_argument('--smoke', action='store_true', help='a short one of one round: only to see that it works')
    parser.add_argument('--rounds', type=int, metavar='N', help='how often each is measured (3)')
    parser.add_argument('--seconds', type=int, metavar='N', help='how long each time (25)')
    parser.add_argument('--pace', type=int, default=50, metavar='N', help='writes a second (50)')
    parser.add_argument('--speed', type=int, default=10, metavar='N',
                        help="MiB a second of the limited reader and the push backup's target (10)")
    parser.add_argument('--output', type=Path, default=ROOT / 'build-bench/results', metavar='DIRECTORY',
                        help='where table, figures and chart go (build-bench/results)')
    options = parser.parse_args()
    options.rounds = options.rounds or (1 if options.smoke else 3)
    options.seconds = options.seconds or (2 if options.smoke else 25)
    options.size = (256 if options.smoke else 1024) * lib.MIB
    return options


@contextlib.contextmanager
def no_backup(*_):
    yield None


@contextlib.contextmanager
def mounted(vm, options, mount_options):
    """A mount of the disk, which is read from its beginning to its end and again."""
    with peers.make_mount(vm, [DISK], mount_options) as mount:
        # One program for all the time, which has closed the file when it is gone.
        reader = subprocess.Popen(['cat', *[mount / f'{DISK}.raw'] * 1000], stdin=subprocess.DEVNULL,
                                  stdout=subprocess.DEVNULL)

        def moved():
            if reader.poll() is not None:
                raise AssertionError(f'the reader has ended with {reader.returncode}')
            # Not what the status says, which counts what is read again only once.
            return int(Path(f'/proc/{reader.pid}/io').read_text().split()[1])  # rchar

        try:
            lib.wait_until(lambda: moved() > lib.MIB, 'the reader reads')
            yield moved
        finally:
            reader.kill()
            reader.wait()


@contextlib.contextmanager
def pushed(vm, options, target):
    """libvirt's push backup, which is QEMU's blockdev-backup."""
    job = peers.PushJob(vm, DISK, target)
    before = lib.left_behind(vm)
    job.begin()
    try:
        yield lambda: int(peers.job_stats(vm)['disk_processed'])
    finally:
        job.end()
        job.wait_ended()
    left = lib.left_behind(vm) - before
    if left:
        raise AssertionError(f'left behind: {left}')


@dataclass(frozen=True)
class Case:
    """A line of the table. BACKUP makes a context, whose value tells how many bytes the backup has moved so far."""
    name: str
    title: str
    backup: object
    argument: object = None


def all_cases(options, target):
    speed = f'{options.speed} MiB/s'
    return [Case('none', 'no backup', no_backup),
            Case('vmsnap-limited', f'vmsnap, speed={options.speed}M', mounted, f'speed={options.speed}M'),
            Case('vmsnap', 'vmsnap, unlimited', mounted, ''),
            Case('push', f'push backup, target of {speed}', pushed, target)]


def slow_file(options):
    """A file as large as the disk that takes only so many bytes a second, and keeps none of them."""
    return peers.fuse_file('slow', f'{DISK}.raw', lambda point, pid_file: [
        'nbdfuse', '-o', 'allow_other', '-P', pid_file, point,
        '[', 'nbdkit', '--exit-with-parent', '--filter=rate', 'null', str(options.size),
        f'rate={8 * options.speed * lib.MIB}', ']'])


def measure(vm, options, case):
    """The figures of one case in one round."""
    # Neither what was written last nor where the image is read from is to count.
    lib.read_all(vm.images[DISK])
    os.sync()
    with case.backup(vm, options, case.argument) as moved:
        begin, before = time.monotonic(), moved and moved()
        said = vm.run(f'latency {options.size // 4} {options.size // 2} {options.pace} {options.seconds} /dev/{DISK}',
                      timeout=options.seconds + lib.PATIENCE).split()
        figures = {name: int(value) for name, value in zip(said[::2], said[1::2])}
        figures['writes'] = figures['written'] / figures['elapsed'] * 1e6
        figures['backup'] = (moved() - before) / (time.monotonic() - begin) if moved else 0
        figures['load'] = os.getloadavg()[0]  # whether the computer had other work, too
        figures['job'] = peers.job_stats(vm).get('operation') == BACKUP
    if figures['job'] != bool(moved) or (moved and not figures['backup']):
        raise AssertionError(f'{case.name}: this was not what was to be measured: {figures}')
    return figures


def progress(case, figures):
    """Tells those who wait."""
    latencies = ' '.join(f'{name} {report.number(figures[name] / 1000)} ms' for name in LATENCIES)
    print(f'  {case.title:32} {latencies}',
          f'{report.number(figures["writes"])} writes/s {report.number(figures["backup"] / 1e6)} MB/s '
          f'(load {figures["load"]:.0f})',
          file=sys.stderr, flush=True)


class Results:
    """The figures of each case: one set of each round."""

    def __init__(self, cases):
        self.rounds = {case: [] for case in cases}

    def median(self, case, quantity):
        return statistics.median(figures[quantity] for figures in self.rounds[case])

    def is_bound(self, case, quantity):
        """
        Whether the median of a latency would be larger if all writes had been waited for: those that were not even
        begun when the time was over would have taken longer. A hundredth of all, as when the last one has to wait a
        little, is not counted; and a round above the median does not change it.
        """
        median = self.median(case, quantity)
        return any(figures['written'] < 0.99 * figures['due'] and figures[quantity] <= median
                   for figures in self.rounds[case])


def text(results, case, quantity):
    """A latency, in milliseconds."""
    value = report.number(results.median(case, quantity) / 1000)
    return f'>= {value}' if results.is_bound(case, quantity) else value


def markdown(results, options, about):
    lines = [['guest writes with', 'p50, ms', 'p99, ms', 'max, ms', 'writes/s', 'backup, MB/s']]
    lines.append(['---'] * len(lines[0]))
    for case, rounds in results.rounds.items():
        backup = results.median(case, 'backup')
        lines.append([case.title, *(text(results, case, quantity) for quantity in LATENCIES),
                      report.number(results.median(case, 'writes')), report.number(backup / 1e6) if backup else ''])
    table = ''.join(f'| {" | ".join(line)} |\n' for line in lines)
    loads = [figures['load'] for rounds in results.rounds.values() for figures in rounds]
    bounds = ''
    if any(results.is_bound(case, quantity) for case in results.rounds for quantity in LATENCIES):
        bounds = 'Where it says ">=", more than 1 % of the writes were still waiting at the end, and count with that. '
    return (f'{table}\nMedians of {len(rounds)} round(s) of {options.seconds} s, in turn. {options.pace} writes a '
            f'second are due, of 4 KiB at random in {options.size // 2 // lib.MIB} MiB of a dense qcow2 of '
            f'{options.size // lib.MIB} MiB, one after the other with O_DIRECT and O_DSYNC; a write takes from when it '
            f"is due until it is on the disk. {bounds}vmsnap's reader is cat, again and again; its scratch is where "
            "the disk is. The push backup is virsh backup-begin, to a file of nbdfuse's over nbdkit's rate filter. The "
            f"computer's load was {min(loads):.0f} to {max(loads):.0f}, with what else ran there. "
            f"{report.computer(about)} {about['date']}.\n")


def figures(results, options, about):
    """Everything, for programs."""
    return about | {
        'pace': options.pace, 'size': options.size, 'limit': options.speed * lib.MIB,
        'cases': [{'name': case.name, 'title': case.title, 'rounds': rounds,
                   'median': {quantity: results.median(case, quantity) for quantity in QUANTITIES}}
                  for case, rounds in results.rounds.items()]}


def write(results, options):
    """Writes table, figures and chart of all rounds so far."""
    options.output.mkdir(parents=True, exist_ok=True)
    rounds = max(map(len, results.rounds.values()))
    about = report.about_here(PROGRAMS) | {'rounds': rounds, 'seconds': options.seconds}
    (options.output / TABLE).write_text(markdown(results, options, about))
    (options.output / FIGURES).write_text(json.dumps(figures(results, options, about), indent=2) + '\n')
    report.draw_bars(
        options.output / CHART,
        f'Writes in a guest during a backup: median of {rounds} round(s) of {options.seconds} s',
        'ms from when a write was due until it was on the disk', [case.title for case in results.rounds],
        {quantity: {i: results.median(case, quantity) / 1000 for i, case in enumerate(results.rounds)}
         for quantity in LATENCIES},
        label_of=report.number, logarithmic=True)


def play(vm, options, results):
    begin = time.monotonic()
    cases = list(results.rounds)
    for number in range(options.rounds):
        print(f'round {number + 1} of {options.rounds}, after {time.monotonic() - begin:.0f} s', file=sys.stderr)
        # Who begins changes with the round.
        first = number % len(cases)
        for case in cases[first:] + cases[:first]:
            results.rounds[case].append(measure(vm, options, case))
            progress(case, results.rounds[case][-1])
        # After each: what there is outlives an end before the end.
        write(results, options)


def main():
    peers.signal_to_exit()
    options = parse_arguments()
    if shutil.disk_usage(lib.SANDBOX).free < 2 * options.size:
        sys.exit(f'impact: needs {2 * options.size // lib.MIB} MiB in {lib.SANDBOX.parent}')
    with contextlib.ExitStack() as stack:
        # Before the machine: QEMU sees what was mounted when it began.
        target, _ = stack.enter_context(slow_file(options))
        vm = stack.enter_context(Vm([Disk(size=options.size)]))
        images.write(vm.images[DISK], options.size, images.dense(options.size))
        play(vm.start(), options, Results(all_cases(options, target)))
    print((options.output / TABLE).read_text(), end='')
    print(f'{TABLE}, {FIGURES} and {CHART} are in {options.output}', file=sys.stderr)


try:
    main()
except (lib.CommandFailed, AssertionError) as error:
    sys.exit(f'impact: FAILED: {error}')
