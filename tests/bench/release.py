#!/usr/bin/python3
# SPDX-License-Identifier: LGPL-2.1-or-later

"""
What `release` spares the guest over the course of a backup: `tests/bench/run release` runs this in the sandbox. A guest
of a QEMU without libvirt writes at a steady pace to random places of a dense disk (tests/guest/latency.c), while one
program reads the disk from its beginning to its end, once with and once without `release`, in every round.

The progress is what the reader has got, in tenths of the disk; a write belongs to the tenth in which it was due.
"""

import argparse
import bisect
import dataclasses
import json
import math
import os
import shutil
import statistics
import subprocess
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
sys.path.insert(0, str(ROOT / 'tests/system'))

import images
import lib
import peers
import report
from lib import Disk
from traced import TracedVm

TABLE, FIGURES, CHART = 'release.md', 'release.json', 'release.svg'
DISK = 'vda'
TENTHS = 10
LATENCIES = ('p50', 'p99')


@dataclass(frozen=True)
class Case:
    """A backup with these options."""
    name: str
    title: str
    options: str


CASES = (Case('plain', 'without release', ''), Case('release', 'with release', 'release'))


def parse_arguments():
    parser = argparse.ArgumentParser(
        prog='tests/bench/run release',
        description='Measures scratch and how long writes of a guest take over the course of a backup.')
    parser.add_argument('--smoke', action='store_true', help='a short one of one round: only to see that it works')
    parser.add_argument('--rounds', type=int, metavar='N', help='how often each is measured (3)')
    parser.add_argument('--speed', type=int, metavar='N', help='MiB a second that are read (20)')
    parser.add_argument('--pace', type=int, default=50, metavar='N', help='writes a second (50)')
    parser.add_argument('--output', type=Path, default=ROOT / 'build-bench/results', metavar='DIRECTORY',
                        help='where table, figures and chart go (build-bench/results)')
    options = parser.parse_args()
    options.rounds = options.rounds or (1 if options.smoke else 3)
    options.speed = options.speed or (64 if options.smoke else 20)
    options.size = (256 if options.smoke else 1024) * lib.MIB
    # Of a guest without a backup.
    options.seconds = 2 if options.smoke else 10
    return options


class Writes:
    """A run of latency on the whole disk, beside which other things can be done."""

    def __init__(self, vm, options, seconds):
        self._vm, self._pace = vm, options.pace
        self._command = f'latency 0 {options.size} {options.pace} {seconds} /dev/{DISK} each'
        self._patience = seconds + lib.PATIENCE
        self._said = None
        self._thread = threading.Thread(target=self._run)

    def _run(self):
        self._said = self._vm.run(self._command, timeout=self._patience)

    def __enter__(self):
        self._log = self._vm.log_size()
        self.begin = time.time()
        self._thread.start()
        return self

    def __exit__(self, *_):
        self._thread.join()

    def in_qemu(self):
        """The same as QEMU saw them, in seconds from the beginning on."""
        return [dataclasses.replace(write, begin=write.begin - self.begin, end=write.end - self.begin)
                for write in self._vm.writes(self._log)]

    def latencies(self):
        """In the order in which they were due, in microseconds; those that were not done with the time they waited."""
        if self._said is None:
            raise AssertionError('the guest has not told how long its writes took')
        *each, line = self._said.strip().splitlines()
        figures = dict(zip(line.split()[::2], map(int, line.split()[1::2])))
        waited = (figures['elapsed'] - i * 10**6 // self._pace for i in range(figures['written'], figures['due']))
        return [int(line.split()[1]) for line in each] + list(waited)


def percentile(values, percent):
    """The least of them that so many of a hundred do not exceed, as latency has it."""
    return sorted(values)[math.ceil(len(values) * percent / 100) - 1]


def summary(latencies):
    return {'writes': len(latencies), 'p50': percentile(latencies, 50), 'p99': percentile(latencies, 99)}


def share_copied(writes):
    return sum(write.copied for write in writes) / len(writes)


def read_all(mount, samples, begin):
    """Reads the disk to its end, and notes (seconds, what was read, scratch) meanwhile."""
    reader = subprocess.Popen(['dd', f'if={mount / DISK}.raw', 'of=/dev/null', 'bs=1M', 'status=none'],
                              stdin=subprocess.DEVNULL)
    try:
        while True:
            ended = reader.poll() is not None
            disk = mount.disk_status(DISK)
            samples.append((time.time() - begin, disk['read'], disk['scratch-used']))
            if ended:
                break
            time.sleep(0.1)
    finally:
        reader.kill()
        reader.wait()
    if reader.returncode:
        raise AssertionError(f'dd has ended with {reader.returncode}')


def in_tenths(samples, latencies, writes, options):
    """For each tenth of the progress: the writes that were due in it, and the scratch at its end."""
    read = [sample[1] for sample in samples]
    found, begin = [], 0
    for tenth in range(1, TENTHS + 1):
        end, _, scratch = samples[bisect.bisect_left(read, options.size * tenth // TENTHS)]
        due = latencies[math.ceil(begin * options.pace):math.ceil(end * options.pace)]
        done = [write for write in writes if begin <= write.begin < end]
        if not due or not done:
            raise AssertionError(f'the guest did not write from {begin:.1f} to {end:.1f} s')
        found.append(summary(due) | {
            'seconds': end, 'scratch': scratch, 'copied': share_copied(done),
            'in-qemu': statistics.median(write.end - write.begin for write in done) * 1e6})
        begin = end
    return found


def measure(vm, options, case):
    """The figures of one backup."""
    lib.read_all(vm.images[DISK])  # where it is read from is not to count
    samples = []
    with peers.make_mount(vm, [DISK], f'{case.options},speed={options.speed}M'.lstrip(',')) as mount:
        # Enough for the whole of it, if no one else needs the computer.
        with Writes(vm, options, options.size // lib.MIB // options.speed + 2) as guest:
            read_all(mount, samples, guest.begin)
    seconds, _, scratch = samples[-1]
    latencies = guest.latencies()
    writes = [write for write in guest.in_qemu() if write.begin < seconds]
    took = {copied: statistics.median(write.end - write.begin for write in writes if write.copied == copied) * 1e6
            for copied in (True, False)}
    return summary(latencies[:math.ceil(seconds * options.pace)]) | {
        'seconds': seconds, 'scratch': scratch, 'scratch-most': max(sample[2] for sample in samples),
        'copied': sum(write.copied for write in writes), 'share': share_copied(writes),
        'in-qemu': statistics.median(write.end - write.begin for write in writes) * 1e6,
        'in-qemu-copied': took[True], 'in-qemu-others': took[False],
        'load': os.getloadavg()[0], 'tenths': in_tenths(samples, latencies, writes, options)}


def measure_without(vm, options):
    """The figures of the guest alone."""
    lib.read_all(vm.images[DISK])
    with Writes(vm, options, options.seconds) as guest:
        pass
    return summary(guest.latencies()) | {'load': os.getloadavg()[0]}


class Results:
    """The figures of each case, and of the guest without a backup: one set of each round."""

    def __init__(self):
        self.rounds = {case: [] for case in CASES}
        self.without = []

    def median(self, case, quantity, tenth=None):
        return statistics.median((figures if tenth is None else figures['tenths'][tenth])[quantity]
                                 for figures in self.rounds[case])

    def median_without(self, quantity):
        return statistics.median(figures[quantity] for figures in self.without)


def milliseconds(value):
    return report.number(value / 1000)


def mebibytes(value):
    return report.number(value / lib.MIB)


def percent(value):
    return f'{100 * value:.0f}'


def line(results, quantities, tenth=None):
    """The cells of a line of the table: each quantity of each case."""
    return [text(results.median(case, quantity, tenth)) for quantity, text in quantities for case in CASES]


def markdown(results, options, about):
    quantities = [('scratch', mebibytes), ('copied', percent), ('in-qemu', milliseconds), ('p50', milliseconds),
                  ('p99', milliseconds)]
    names = ['scratch, MiB', 'copied, %', 'p50 in QEMU, ms', 'p50, ms', 'p99, ms']
    lines = [['progress', *(f'{name}, {case.title}' for name in names for case in CASES)]]
    lines.append(['---'] * len(lines[0]))
    lines += [[f'{(tenth + 1) * 100 // TENTHS} %', *line(results, quantities, tenth)] for tenth in range(TENTHS)]
    lines.append(['whole', *line(results, [('scratch-most', mebibytes), ('share', percent), *quantities[2:]])])
    table = ''.join(f'| {" | ".join(cells)} |\n' for cells in lines)
    loads = [figures['load'] for rounds in (*results.rounds.values(), results.without) for figures in rounds]
    totals = ' '.join(
        f'{case.title.capitalize()}, {report.number(results.median(case, "copied"))} of '
        f'{report.number(results.median(case, "writes"))} writes had to be copied, and '
        f'{mebibytes(results.median(case, "scratch"))} MiB of scratch were in use at the end.' for case in CASES)
    copied, others = (milliseconds(statistics.median(results.median(case, f'in-qemu-{which}') for case in CASES))
                      for which in ('copied', 'others'))
    return (f'{table}\nMedians of {len(results.without)} round(s), in turn. Scratch is that at the end of a tenth, and '
            f'in the last line the most that there was; "copied" are the writes before which QEMU had to copy what was '
            f'there. {totals} Inside of QEMU, one that was copied took {copied} ms, another one '
            f'{others} ms (medians). Without a backup, half of the writes took the guest no more than '
            f'{milliseconds(results.median_without("p50"))} ms, and 99 % {milliseconds(results.median_without("p99"))} '
            f'ms.\n\n{options.pace} writes a second are due, of 4 KiB at random in all of a dense qcow2 of '
            f'{options.size // lib.MIB} MiB, one after the other with O_DIRECT and O_DSYNC; a write takes from when it '
            f'is due until it is done. QEMU has the image with cache=unsafe, so that nobody waits for the disk of this '
            f'computer, which others use: what is measured is the copy, from memory to memory. The reader is dd bs=1M '
            f'of a mount of qmp:, with speed={options.speed}M. The load was {min(loads):.0f} to {max(loads):.0f}, with '
            f"what else ran there. {report.computer(about)} {about['date']}.\n")


def figures(results, options, about):
    """Everything, for programs."""
    return about | {
        'pace': options.pace, 'size': options.size, 'speed': options.speed * lib.MIB, 'without': results.without,
        'cases': [{'name': case.name, 'title': case.title, 'rounds': rounds}
                  for case, rounds in results.rounds.items()]}


def draw(results, options, path):
    def lines(quantity, unit, title='', place=0.5):
        """The figures of a tenth are at its middle, unless they are those of its end."""
        return {f'{title}{case.title}': [((tenth + place) * 100 / TENTHS, results.median(case, quantity, tenth) / unit)
                                         for tenth in range(TENTHS)] for case in CASES}

    scratch = {title: [(0, 0), *points] for title, points in lines('scratch', lib.MIB, place=1).items()}
    latency = lines('in-qemu', 1000, 'in QEMU, p50 ') | lines('p50', 1000, 'p50 ') | lines('p99', 1000, 'p99 ')
    report.draw_lines(
        path, f'A guest that writes all over a disk of {options.size // lib.MIB} MiB during a backup: median of '
        f'{len(results.without)} round(s)', 'progress of the backup, %',
        [report.Panel('scratch in use, MiB', scratch), report.Panel('writes that are copied, %', lines('copied', 0.01)),
         report.Panel('latency of writes, ms', latency, logarithmic=True)])


def write(results, options):
    """Writes table, figures and chart of all rounds so far."""
    options.output.mkdir(parents=True, exist_ok=True)
    about = report.about_here() | {'rounds': len(results.without)}
    (options.output / TABLE).write_text(markdown(results, options, about))
    (options.output / FIGURES).write_text(json.dumps(figures(results, options, about), indent=2) + '\n')
    draw(results, options, options.output / CHART)


def progress(title, figures):
    """Tells those who wait."""
    more = ''
    if 'copied' in figures:
        more = (f' {figures["copied"]} of {figures["writes"]} copied, in {milliseconds(figures["in-qemu-copied"])} ms, '
                f'others {milliseconds(figures["in-qemu-others"])} ms; scratch {mebibytes(figures["scratch-most"])} '
                f'MiB, at the end {mebibytes(figures["scratch"])}')
    print(f'  {title:20} p50 {milliseconds(figures["p50"])} ms p99 {milliseconds(figures["p99"])} ms{more} '
          f'(load {figures["load"]:.0f})', file=sys.stderr, flush=True)


def play(vm, options, results):
    begin = time.monotonic()
    with Writes(vm, options, 2):
        pass  # emulated, the same does not go as fast the first time
    for number in range(options.rounds):
        print(f'round {number + 1} of {options.rounds}, after {time.monotonic() - begin:.0f} s', file=sys.stderr)
        results.without.append(measure_without(vm, options))
        progress('no backup', results.without[-1])
        # Who begins changes with the round.
        for case in CASES if number % 2 == 0 else reversed(CASES):
            results.rounds[case].append(measure(vm, options, case))
            progress(case.title, results.rounds[case][-1])
        # After each: what there is outlives an end before the end.
        write(results, options)


def main():
    peers.signal_to_exit()
    options = parse_arguments()
    if shutil.disk_usage(lib.SANDBOX).free < 2 * options.size:
        sys.exit(f'release: needs {2 * options.size // lib.MIB} MiB in {lib.SANDBOX.parent}')
    with TracedVm([Disk(size=options.size, driver='cache="unsafe"')]) as vm:
        images.write(vm.images[DISK], options.size, images.dense(options.size))
        play(vm.start(), options, Results())
    print((options.output / TABLE).read_text(), end='')
    print(f'{TABLE}, {FIGURES} and {CHART} are in {options.output}', file=sys.stderr)


try:
    main()
except (lib.CommandFailed, AssertionError) as error:
    sys.exit(f'release: FAILED: {error}')
