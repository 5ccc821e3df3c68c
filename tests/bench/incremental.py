#!/usr/bin/python3
# SPDX-License-Identifier: LGPL-2.1-or-later

"""
What an incremental backup costs: `tests/bench/run incremental` runs this in the sandbox. Each contestant makes a full
backup, the guest changes its disk, and the contestant makes an incremental one, in every round.

virtnbdbackup refuses a machine with checkpoints of others. So the contestants take turns, each with no checkpoints but
its own, and the guest makes the same changes for each of them. What was backed up is restored and compared with the
disk, after each incremental: figures of wrong bytes are worth nothing.
"""

import argparse
import contextlib
import json
import os
import shutil
import statistics
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
from images import GIB, MIB
from lib import Disk, Vm, run

TABLE, FIGURES = 'incremental.md', 'incremental.json'
PROGRAMS = {'libnbd': ('nbdcopy', '--version'), 'virtnbdbackup': ('virtnbdbackup', '-V')}
DISK = 'vda'
CLUSTER = 64 * 1024
FULL, INCREMENTAL = 'full', 'incremental'
QUANTITIES = ('seconds', 'read', 'stored')


@dataclass(frozen=True)
class Sizes:
    """The disk, and what the guest changes on it: BLOCKS can be halved some times, see change()."""
    disk: int
    data: int  # from the beginning
    blocks: int  # so many of 4 KiB, here and there
    run: int  # written in one
    cleared: int  # discarded, and as much overwritten with zeroes

    @property
    def scattered(self):
        """How much of the data, from its beginning on, the blocks lie in. What else is changed lies behind it."""
        return self.data * 3 // 4


LARGE = Sizes(disk=8 * GIB, data=2 * GIB, blocks=20_000, run=64 * MIB, cleared=32 * MIB)
SMALL = Sizes(disk=256 * MIB, data=64 * MIB, blocks=64, run=2 * MIB, cleared=MIB)


def parse_arguments():
    parser = argparse.ArgumentParser(
        prog='tests/bench/run incremental', description='Measures incremental backups of a machine.')
    parser.add_argument('--smoke', action='store_true', help='hardly any data and one round: only to see that it works')
    parser.add_argument('--rounds', type=int, metavar='N', help='how often each is measured (5)')
    parser.add_argument('--output', type=Path, default=ROOT / 'build-bench/results', metavar='DIRECTORY',
                        help='where table and figures go (build-bench/results)')
    options = parser.parse_args()
    options.rounds = options.rounds or (1 if options.smoke else 5)
    options.sizes = SMALL if options.smoke else LARGE
    return options


class Case:
    """Base: a line of the table. DIRECTORY is where its backups go, and WORK what else it makes."""

    def __init__(self, name, title):
        self.name, self.title = name, title

    def back_up(self, vm, level, directory, work):
        """Makes a backup, and returns when its job has ended."""
        raise NotImplementedError

    def restore(self, vm, directory, work):
        """Makes an image of the disk, of what the incremental and its full have stored. Returns it and its format."""
        raise NotImplementedError


class VirtNbdBackup(Case):
    def back_up(self, vm, level, directory, work):
        peers.time_commands(vm, [[
            'virtnbdbackup', '--domain', vm.name, '--level', {FULL: 'full', INCREMENTAL: 'inc'}[level], '--include',
            DISK, '--output', directory, '--socketfile', work / 'socket', '--scratchdir', work, '--noprogress']])

    def restore(self, vm, directory, work):
        run('virtnbdrestore', '--input', directory, '--output', work / 'restored', '--noprogress', '--logfile',
            work / 'log', timeout=600)
        image = work / 'restored' / vm.images[DISK].name
        # It has let qemu-nbd write, and does not wait for its end, which is when the image's tables are written.
        lib.wait_until(lambda: run('pgrep', '--full', image, status=None).returncode == 1, 'qemu-nbd has ended')
        return image, 'qcow2'


class Vmsnap(Case):
    """A mount, all of which is copied by cp. The first one of a machine without checkpoints is a full one."""

    def __init__(self, name, title, options):
        super().__init__(name, title)
        self._options = options

    def back_up(self, vm, level, directory, work):
        directory.mkdir(exist_ok=True)
        mount = peers.make_mount(vm, [DISK], self._options)
        mount.mount()
        with contextlib.ExitStack() as stack:
            stack.callback(mount.umount, status=None)
            peers.time_commands(vm, [['cp', '-r', '--sparse=auto', f'{mount.point}/.', directory]])
            mount.umount()
            stack.pop_all()
        # Not what else a test looks at: that writes to the disk, which is compared with the backup later.
        mount.assert_no_trace()
        mount.point.rmdir()
        [disk] = json.loads((directory / 'manifest.json').read_text())['disks']
        if bool(disk['since']) != (level == INCREMENTAL):
            raise AssertionError(f'{self.name}: this is no {level} backup: {disk}')

    def restore(self, vm, directory, work):
        full, image, kind = self._chain(directory)
        if is_same(full, kind, vm):
            raise AssertionError('nothing of what the guest has written is on its disk')
        self._apply(directory, full)
        return image, kind

    def _chain(self, directory):
        """The full one's image, what all together make, and the format of both."""
        # The name of each is that of its checkpoint, which is its time.
        full, last = sorted(directory.glob(f'{DISK}.*.qcow2'))
        return full, last, 'qcow2'

    def _apply(self, directory, full):
        """For images with a backing file there is nothing to do."""


class VmsnapChanged(Vmsnap):
    """The same with raw files, in the second of which there is only what has changed, and a map."""

    def _chain(self, directory):
        return directory / f'{DISK}.raw', directory / f'{DISK}.raw', 'raw'

    def _apply(self, directory, full):
        zeroes = bytes(MIB)
        with open(full, 'r+b') as target, open(directory / f'{DISK}.changed.raw', 'rb') as changed:
            for line in (directory / f'{DISK}.changed.map').read_text().splitlines():
                start, length, kind = line.split()
                if kind == 'same':
                    continue
                for at in range(int(start), int(start) + int(length), MIB):
                    size = min(MIB, int(start) + int(length) - at)
                    content = os.pread(changed.fileno(), size, at) if kind == 'data' else zeroes[:size]
                    if os.pwrite(target.fileno(), content, at) != size:
                        raise AssertionError(f'{full}: {size} bytes at {at} are not written, or not in the backup')


CASES = [VirtNbdBackup('virtnbdbackup', 'virtnbdbackup -l inc'),
         Vmsnap('vmsnap-qcow2', 'vmsnap incremental,format=qcow2; cp', 'incremental,format=qcow2'),
         VmsnapChanged('vmsnap-changed', 'vmsnap incremental,only_changed; cp', 'incremental,only_changed')]


def is_same(image, kind, vm):
    """Whether an image is what the disk of a paused machine is."""
    result = run('qemu-img', 'compare', '-U', '-f', kind, '-F', 'qcow2', image, vm.images[DISK], status=None,
                 timeout=600)
    if result.returncode > 1:
        raise lib.CommandFailed(f'qemu-img compare: {result.stderr}')
    return result.returncode == 0


def check(vm, case, directory, work):
    """What was backed up is the disk."""
    vm.pause()
    try:
        if not is_same(*case.restore(vm, directory, work), vm):
            raise AssertionError(f'{case.name}: what was restored is not what the disk is')
    finally:
        vm.resume()


def noise(vm, start, size, source='/dev/urandom'):
    step = min(size, MIB)
    vm.run(f'dd if={source} of=/dev/{DISK} bs={step} count={size // step} seek={start // step} oflag=direct '
           'conv=notrunc')


def change(vm, sizes, number):
    """
    The guest changes the disk: the NUMBERth time as ever, but for the blocks, which are all a cluster further on each
    time. So there are as many clusters to back up each time, and what is written to a place was not there before.
    """
    seconds = max(sizes.blocks // 2000, 1)
    while True:
        # At such a pace that all are written, to the same places as before if that was not so.
        pace = sizes.blocks // seconds
        assert pace * seconds == sizes.blocks, 'a guest that is as slow as that can do nothing else'
        said = vm.run(f'latency {number * CLUSTER} {sizes.scattered} {pace} {seconds} /dev/{DISK}',
                      timeout=seconds + lib.PATIENCE).split()
        if said[said.index('written') + 1] == str(sizes.blocks):
            break
        seconds *= 2
    behind = sizes.data - sizes.run - 2 * sizes.cleared
    if sizes.scattered + number * CLUSTER > behind:
        raise AssertionError('so many rounds do not fit on the disk')
    noise(vm, behind, sizes.run)
    noise(vm, behind + sizes.run, sizes.cleared, '/dev/zero')
    vm.run(f'blkdiscard -o {behind + sizes.run + sizes.cleared} -l {sizes.cleared} /dev/{DISK}')


def fill(vm, sizes):
    """Data is again what the last change has cleared."""
    noise(vm, sizes.data - 2 * sizes.cleared, 2 * sizes.cleared)


def delete_checkpoints(vm):
    for name in vm.virsh('checkpoint-list', vm.name, '--name').split():
        vm.virsh('checkpoint-delete', vm.name, name)


def files(directory):
    """All files: {path: (what tells whether it was written meanwhile, bytes on the disk)}."""
    found = {path: path.stat() for path in directory.rglob('*') if path.is_file()}
    return {path: ((stat.st_ino, stat.st_mtime_ns, stat.st_ctime_ns), stat.st_blocks * 512)
            for path, stat in found.items()}


def bytes_read(vm):
    """What QEMU has read so far with read(2) and its like: of images, for the guest is idle, and not of sockets."""
    return int(Path(f'/proc/{vm.pid()}/io').read_text().split()[1])  # rchar


def measure_level(vm, case, level, directory, work):
    # Neither what was written last nor where the image is read from is to count.
    lib.read_all(vm.images[DISK])
    os.sync()
    known = files(directory)
    read, begin = bytes_read(vm), time.monotonic()
    case.back_up(vm, level, directory, work)
    figures = {'seconds': time.monotonic() - begin, 'read': bytes_read(vm) - read}
    figures['stored'] = sum(size for path, (state, size) in files(directory).items()
                            if path not in known or known[path][0] != state)
    figures['load'] = os.getloadavg()[0]  # whether the computer had other work, too
    return figures


def measure(vm, sizes, case, number):
    """The figures of one case in one round."""
    work = lib.make_directory('work')
    work.chmod(0o777)  # QEMU has its socket and scratch here, and runs as another user
    directory = work / 'backup'
    try:
        fill(vm, sizes)
        figures = {FULL: measure_level(vm, case, FULL, directory, work)}
        change(vm, sizes, number)
        figures[INCREMENTAL] = measure_level(vm, case, INCREMENTAL, directory, work)
        check(vm, case, directory, work)
        delete_checkpoints(vm)
    finally:
        shutil.rmtree(work)
    # The blocks are on so many clusters at most, and zeroes may be read. Less than a run cannot be a backup.
    most = sizes.blocks * CLUSTER + sizes.run + 2 * sizes.cleared
    if not sizes.run < figures[INCREMENTAL]['read'] < most + sizes.data // 16:
        raise AssertionError(f'{case.name}: this was not what was to be measured: {figures}')
    return figures


def progress(case, figures):
    """Tells those who wait."""
    for level in (FULL, INCREMENTAL):
        of = figures[level]
        print(f'  {case.title:40} {level:12} {report.number(of["seconds"])} s, read {report.number(of["read"] / 1e6)} '
              f'MB, stored {report.number(of["stored"] / 1e6)} MB (load {of["load"]:.0f})', file=sys.stderr, flush=True)


class Results:
    """The figures of each case: one set of each round."""

    def __init__(self):
        self.rounds = {case: [] for case in CASES}

    def median(self, case, level, quantity):
        return statistics.median(figures[level][quantity] for figures in self.rounds[case])

    def compared(self, case, quantity):
        """The median of what an incremental's figure is to virtnbdbackup's in the same round."""
        return statistics.median(own[INCREMENTAL][quantity] / other[INCREMENTAL][quantity]
                                 for own, other in zip(self.rounds[case], self.rounds[CASES[0]]))


def markdown(results, sizes, about):
    lines = [['backup', 'full, s', 'incremental, s', 'of the first', 'read, MB', 'stored, MB']]
    lines.append(['---'] * len(lines[0]))
    for case in results.rounds:
        read, stored = (report.number(results.median(case, INCREMENTAL, quantity) / 1e6)
                        for quantity in ('read', 'stored'))
        lines.append([case.title, report.number(results.median(case, FULL, 'seconds')),
                      report.number(results.median(case, INCREMENTAL, 'seconds')),
                      report.number(results.compared(case, 'seconds')), read, stored])
    table = ''.join(f'| {" | ".join(line)} |\n' for line in lines)
    loads = [figures[level]['load'] for rounds in results.rounds.values() for figures in rounds
             for level in (FULL, INCREMENTAL)]
    return (f'{table}\nMedians of {about["rounds"]} round(s), in turn; what is compared is compared within each '
            'round. Each incremental comes after a full one of the same kind, in a machine that has no other '
            f'checkpoints. The disk is a qcow2 of {sizes.disk // MIB} MiB with {sizes.data // MIB} MiB of data, in the '
            'page cache (with cache=unsafe, so that the changes are there sooner). Between the two the guest writes '
            f'{sizes.blocks:,} blocks of 4 KiB at random in {sizes.scattered // MIB} MiB and {sizes.run // MIB} MiB in '
            f'one run, overwrites {sizes.cleared // MIB} MiB with zeroes and discards {sizes.cleared // MIB} MiB; then '
            "it is idle. Time is that of all commands: vmsnap's are mount, cp -r and umount. Read is what QEMU has "
            'read of its files meanwhile (rchar of /proc/PID/io). Stored is the room on disk of all files that were '
            "written, with the machine's kernel and initrd, which all of them store each time. After each "
            'incremental, what can be restored of it and its full is the same as the disk (qemu-img compare). '
            f"The computer's load was {min(loads):.0f} to {max(loads):.0f}, with what else ran there. "
            f"{report.computer(about)} {about['date']}.\n")


def write(results, options):
    """Writes table and figures of all rounds so far."""
    options.output.mkdir(parents=True, exist_ok=True)
    sizes = options.sizes
    about = report.about_here(PROGRAMS) | {'rounds': max(map(len, results.rounds.values()))}
    (options.output / TABLE).write_text(markdown(results, sizes, about))
    figures = about | {
        'size': sizes.disk, 'data': sizes.data, 'blocks': sizes.blocks, 'run': sizes.run, 'cleared': sizes.cleared,
        'cases': [{'name': case.name, 'title': case.title, 'rounds': rounds,
                   'median': {level: {quantity: results.median(case, level, quantity) for quantity in QUANTITIES}
                              for level in (FULL, INCREMENTAL)}}
                  for case, rounds in results.rounds.items()]}
    (options.output / FIGURES).write_text(json.dumps(figures, indent=2) + '\n')


def play(vm, options, results):
    begin = time.monotonic()
    for number in range(options.rounds):
        print(f'round {number + 1} of {options.rounds}, after {time.monotonic() - begin:.0f} s', file=sys.stderr)
        # Who begins changes with the round.
        first = number % len(CASES)
        for place, case in enumerate(CASES[first:] + CASES[:first]):
            results.rounds[case].append(measure(vm, options.sizes, case, number * len(CASES) + place))
            progress(case, results.rounds[case][-1])
        # After each: what there is outlives an end before the end.
        write(results, options)


def main():
    peers.signal_to_exit()
    options = parse_arguments()
    # The image, a full and an incremental, what is restored of them, and scratch.
    room = 5 * options.sizes.data
    if shutil.disk_usage(lib.SANDBOX).free < room:
        sys.exit(f'incremental: needs {room // MIB} MiB in {lib.SANDBOX.parent}')
    with Vm([Disk(size=options.sizes.disk, driver='cache="unsafe" discard="unmap"')]) as vm:
        images.write(vm.images[DISK], options.sizes.disk, images.dense(options.sizes.data))
        play(vm.start(), options, Results())
    print((options.output / TABLE).read_text(), end='')
    print(f'{TABLE} and {FIGURES} are in {options.output}', file=sys.stderr)


try:
    main()
except (lib.CommandFailed, AssertionError) as error:
    sys.exit(f'incremental: FAILED: {error}')
