#!/usr/bin/python3
# SPDX-License-Identifier: LGPL-2.1-or-later

"""
An export that somebody else has begun, as a file: `tests/bench/run nbd` runs this in the sandbox. There is no machine,
only qemu-nbd with an image in the page cache, which all contestants read in turn.
"""

import argparse
import dataclasses
import json
import os
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
from images import GIB, MIB
from peers import VMSNAP
from rows import Contestant
from servers import QemuNbd

TABLE, FIGURES = 'nbd.md', 'nbd.json'
PROGRAMS = {'libnbd': ('nbdcopy', '--version'), 'fio': ('fio', '--version')}
DISK, IDLE = 'vda', 'idle'

LARGE = dataclasses.replace(rows.FULL, dense=GIB, slow=256 * MIB, random='2s')
SMALL = dataclasses.replace(rows.SMOKE, dense=16 * MIB)


def parse_arguments():
    parser = argparse.ArgumentParser(
        prog='tests/bench/run nbd', description='Measures vmsnap on the export of an NBD server that somebody else runs.')
    parser.add_argument('--smoke', action='store_true', help='hardly any data and one round: only to see that it works')
    parser.add_argument('--rounds', type=int, metavar='N', help='how often each is measured (3)')
    parser.add_argument('--output', type=Path, default=ROOT / 'build-bench/results', metavar='DIRECTORY',
                        help='where table and figures go (build-bench/results)')
    options = parser.parse_args()
    options.rounds = options.rounds or (1 if options.smoke else 3)
    options.sizes = SMALL if options.smoke else LARGE
    return options


def without_targets(row):
    """What a mount of a machine must reach is not what this is about."""
    return dataclasses.replace(row, targets=tuple(
        dataclasses.replace(target, limit=None) for target in row.targets if target.peers))


def works_of_one_disk(sizes):
    """All that reads one dense disk, and that others do, too."""
    works = [work for work in rows.all_works(sizes) if work.disks == ['dense'] and work.compared]
    return [(work, [without_targets(row) for row in work.rows]) for work in works]


def play_round(arena, works, number, contestant, results):
    """Everything once. Who begins changes with the round."""
    for work, wanted in works:
        contestants = [contestant] + [Contestant(name, name, '') for name in work.compared]
        first = number % len(contestants)
        for each in contestants[first:] + contestants[:first]:
            figures = work.measure(arena, each)
            for row, measured in zip(wanted, work.rows):
                results.add(row, IDLE, each.name, figures[measured])
                report.progress(row, IDLE, each.name, figures[measured])


def write(results, options, loads, seconds):
    """Writes table and figures of all rounds so far."""
    options.output.mkdir(parents=True, exist_ok=True)
    about = report.about_here(PROGRAMS) | {'rounds': results.rounds(), 'seconds': round(seconds)}
    table = report.markdown(results, about)
    (options.output / TABLE).write_text(
        f'{table}\nThe export is that of qemu-nbd --read-only --persistent --shared=0, of a dense qcow2 of '
        f'{options.sizes.dense // MIB} MiB in the page cache, over a unix socket. QEMU is the process of qemu-nbd. '
        f'The load was {min(loads):.0f} to {max(loads):.0f}, with what else ran there. {about["date"]}.\n')
    (options.output / FIGURES).write_text(json.dumps(report.figures(results, about), indent=2) + '\n')


def main():
    peers.signal_to_exit()
    options = parse_arguments()
    begin = time.monotonic()
    works = works_of_one_disk(options.sizes)
    contestant = Contestant(VMSNAP, VMSNAP, '')
    loads = []
    results = report.Results([(row, IDLE) for _, wanted in works for row in wanted], [contestant])
    with QemuNbd(options.sizes.dense, named=DISK) as server:
        images.write(server.images[DISK], options.sizes.dense, images.dense(options.sizes.dense))
        os.sync()
        server.start()
        with peers.Arena(server, {'dense': DISK}) as arena:
            for number in range(options.rounds):
                print(f'round {number + 1} of {options.rounds}, after {time.monotonic() - begin:.0f} s',
                      file=sys.stderr)
                play_round(arena, works, number, contestant, results)
                loads.append(os.getloadavg()[0])
                # After each: what there is outlives an end before the end.
                write(results, options, loads, time.monotonic() - begin)
    print((options.output / TABLE).read_text(), end='')
    print(f'{TABLE} and {FIGURES} are in {options.output}', file=sys.stderr)


try:
    main()
except (lib.CommandFailed, AssertionError) as error:
    sys.exit(f'nbd: FAILED: {error}')
