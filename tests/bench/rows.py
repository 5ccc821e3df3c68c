# SPDX-License-Identifier: LGPL-2.1-or-later

"""
What is measured, on which disks, and what must be reached.

A Row is a line of the table. A Work is something to do that gives the figures of one or more rows, for one contestant
at a time.
"""

import contextlib
import json
import os
import re
import shutil
import time
from dataclasses import dataclass
from pathlib import Path

import images
import lib
import peers
from images import GIB, MIB, TIB
from lib import run
from peers import BRIDGES, NBDCOPY, VMSNAP

GB = 10 ** 9

VIRTNBDBACKUP = 'virtnbdbackup'
NBDCOPY_AND_JOB = 'nbdcopy and its job'
VIRSH = 'virsh backup-begin'

# What the daemon may need besides its read-ahead, and how much that is by default.
OTHER_MEMORY = 32 * MIB
DEFAULT_READAHEAD = 64 * MIB


@dataclass(frozen=True)
class Sizes:
    """How much is read."""
    dense: int
    slow: int  # of it, where blocks are small
    four: int  # each of four disks
    backup: int
    zero: int
    growth_sizes: tuple
    growth_extents: tuple
    growth_data: int  # in so many extents
    growth_distinct: int  # so much of it is different: more than what a processor keeps
    random: str  # fio's time


FULL = Sizes(dense=2 * GIB, slow=512 * MIB, four=512 * MIB, backup=8 * GIB, zero=100 * GIB,
             growth_sizes=(GIB, 4 * GIB, 16 * GIB), growth_extents=(10, 1000, 100_000),
             growth_data=100_000 * 16 * 1024, growth_distinct=512 * MIB, random='4s')
SMOKE = Sizes(dense=16 * MIB, slow=2 * MIB, four=4 * MIB, backup=256 * MIB, zero=512 * MIB,
              growth_sizes=(8 * MIB, 16 * MIB), growth_extents=(10, 100),
              growth_data=1000 * 16 * 1024, growth_distinct=8 * MIB, random='200ms')

SPARSE = [(0, 64 * 1024), (7 * TIB, 7 * TIB + MIB), (15 * TIB, 15 * TIB + 64 * 1024), (16 * TIB - MIB, 16 * TIB)]


def human(size):
    return f'{size / GIB:.3g}G' if size >= GIB else f'{size / MIB:.3g}M'


def disks(sizes):
    """All disks that there may be: {what: arguments of images.write}. lib needs 192 MiB of the first one."""
    found = {'backup': (sizes.backup, images.scattered(sizes.backup, 0.2)),
             'dense': (sizes.dense, images.dense(sizes.dense))}
    for number in range(4):
        found[f'four-{number}'] = (sizes.four, images.dense(sizes.four))
    found |= {'zero': (sizes.zero, []), 'sparse': (16 * TIB, SPARSE)}
    for size in sizes.growth_sizes:
        found[f'growth-{human(size)}'] = (size, images.dense(size), sizes.growth_distinct)
    for count in sizes.growth_extents:
        found[f'growth-{count}-extents'] = (2 * sizes.growth_data, images.alternating(sizes.growth_data, count),
                                            sizes.growth_distinct, 16 * 1024)
    return found


@dataclass(frozen=True)
class Target:
    """What a figure must be, compared with something; or only the comparison, if LIMIT is None."""
    op: str = '>='
    limit: object = None  # a number, or what makes one of the mount options
    peers: tuple = ()  # with the better of these; without any, the figure itself
    difference: bool = False  # less the peer's figure, not divided by it
    base: str = ''  # with the same contestant's figure in another row


@dataclass(frozen=True)
class Row:
    """A line of the table. NAME is for the command line, TITLE for people."""
    name: str
    title: str
    unit: str
    targets: tuple = ()
    in_chart: bool = False


@dataclass(frozen=True)
class Contestant:
    """vmsnap with certain mount options, or a peer, who reads the job of a mount with these options."""
    name: str
    kind: str
    options: str


class Work:
    """Base: the rows, the disks by what they are, and the peers that do it, too."""
    writable = False  # whether a guest may write meanwhile

    def __init__(self, rows, what, compared=()):
        self.rows, self.disks, self.compared = rows, what, compared

    def measure(self, arena, contestant):
        """Does the work and returns the figures, {row: figure}."""
        raise NotImplementedError


def dd(path, block, size, number=0):
    """Reads the part NUMBER of parts of SIZE bytes."""
    unit = {'k': 1024, 'M': MIB}[block[-1]] * int(block[:-1])
    return ['dd', f'if={path}', 'of=/dev/null', f'bs={block}', f'count={size // unit}',
            f'skip={number * (size // unit)}', 'status=none']


def dd_all(path):
    """Reads what there is, holes too."""
    return [['dd', f'if={path}', 'of=/dev/null', 'bs=1M', 'status=none']]


def dd_parts(path, size, parts):
    """PARTS readers, each of a part of its own, if there are as many of 1 MiB at least."""
    part = max(size // parts, MIB)
    return [dd(path, '1M', part, number % (size // part)) for number in range(parts)]


def throughput(timing, size):
    return size / GB / timing.seconds


def cpu_per_gib(timing, size):
    return timing.cpu / (size / GIB)


def qemu_per_gib(timing, size):
    return timing.qemu / (size / GIB)


class Read(Work):
    """Programs read files to /dev/null: COMMANDS(path) of each disk, all at once. FIGURES is {row: what makes it}."""
    writable = True

    def __init__(self, figures, what, size, commands, compared, fresh=False):
        super().__init__(list(figures), what, compared)
        self._figures, self._size, self._commands, self._fresh = figures, size, commands, fresh

    def measure(self, arena, contestant):
        if self._fresh and contestant.kind == VMSNAP:
            # Nothing is known yet of where the data is, as nothing is to nbdcopy.
            arena.close()
        names = arena.names(self.disks)
        session = arena.session(names, contestant.options)
        if contestant.kind == NBDCOPY:
            commands, servers = [['nbdcopy', session.uri(name), 'null:'] for name in names], ()
        else:
            files = session.files(contestant.kind)
            commands = [command for path in files.paths.values() for command in self._commands(path)]
            servers = files.servers
        timing = peers.time_commands(arena.vm, commands, servers)
        return {row: figure(timing, self._size) for row, figure in self._figures.items()}


class Format(Work):
    """The file that shows a dense disk in a format is read to its end."""

    def __init__(self, row, name, sizes):
        super().__init__([row], ['dense'])
        self._name, self._size = name, sizes.dense

    def measure(self, arena, contestant):
        [disk] = arena.names(self.disks)
        options = ','.join(filter(None, (contestant.options, f'format={self._name}')))
        files = arena.session([disk], options).files(VMSNAP)
        timing = peers.time_commands(arena.vm, dd_all(files.paths[disk]), files.servers)
        return {self.rows[0]: throughput(timing, self._size)}


class RandomRead(Work):
    """fio reads 4 KiB here and there, each job in a part of its own so that none finds what another has read."""

    def __init__(self, row, readers, sizes):
        super().__init__([row], ['dense'], BRIDGES)
        self._readers, self._sizes = readers, sizes

    def measure(self, arena, contestant):
        session = arena.session(arena.names(self.disks), contestant.options)
        [path] = session.files(contestant.kind).paths.values()
        output = lib.SANDBOX / 'fio.json'
        part = self._sizes.dense // self._readers
        run('fio', '--name=random', f'--filename={path}', '--readonly', '--ioengine=psync', '--rw=randread', '--bs=4k',
            '--direct=0', '--thread', f'--numjobs={self._readers}', f'--size={part}', f'--offset_increment={part}',
            f'--runtime={self._sizes.random}', '--group_reporting', '--output-format=json', f'--output={output}')
        return {self.rows[0]: json.loads(output.read_text())['jobs'][0]['read']['iops']}


class Zeroes(Work):
    """A disk without data is read to its end: how fast, and how much QEMU had to read for it."""

    def __init__(self, speed, bytes_read, sizes):
        super().__init__([speed, bytes_read], ['zero'])
        self._size = sizes.zero

    def measure(self, arena, contestant):
        [name] = arena.names(self.disks)
        session = arena.session([name], contestant.options)
        files = session.files(VMSNAP)
        timing = peers.time_commands(arena.vm, [dd(files.paths[name], '1M', self._size)], files.servers)
        return {self.rows[0]: throughput(timing, self._size),
                self.rows[1]: session.mount.disk_status(name)['read'] / MIB}


class Memory(Work):
    """The daemon's peak after all it has done so far, which ends with 64 readers at once."""

    def __init__(self, row, sizes):
        super().__init__([row], ['dense'])
        self._size = sizes.dense

    def measure(self, arena, contestant):
        [name] = arena.names(self.disks)
        session = arena.session([name], contestant.options)
        for parts in (1, 64):
            files = session.files(VMSNAP)
            peers.time_commands(arena.vm, dd_parts(files.paths[name], self._size, parts), files.servers)
        status = Path(f'/proc/{session.mount.daemon()}/status').read_text()
        return {self.rows[0]: int(re.search(r'VmHWM:\s+(\d+) kB', status)[1]) * 1024 / MIB}


class Begin(Work):
    """Mounts a very large, nearly empty disk, and looks for its data from end to end."""

    def __init__(self, mount, walk):
        super().__init__([mount, walk], ['sparse'], (VIRSH,))

    def measure(self, arena, contestant):
        arena.close()
        [name] = arena.names(self.disks)
        if contestant.kind == VIRSH:
            return {self.rows[0]: self._begin(peers.Job(arena.vm, name))}
        mount = peers.make_mount(arena.vm, [name], contestant.options)
        begin = time.monotonic()
        mount.mount()
        mounted = time.monotonic()
        with contextlib.ExitStack() as stack:
            stack.push(mount)
            found = lib.data_extents(mount / f'{name}.raw')
            walked = time.monotonic()
        if found != SPARSE:
            raise AssertionError(f'the data of the sparse disk is not where it is: {found}')
        return {self.rows[0]: mounted - begin, self.rows[1]: walked - mounted}

    @staticmethod
    def _begin(job):
        begin = time.monotonic()
        job.begin()
        seconds = time.monotonic() - begin
        job.end()
        job.wait_ended()
        return seconds


class Backup(Work):
    """A full backup to a file, with all that is needed for it: vmsnap's includes mount and umount."""

    def __init__(self, cp, tar, sizes):
        super().__init__([cp, tar], ['backup'], (NBDCOPY, NBDCOPY_AND_JOB, VIRTNBDBACKUP))
        self._cp, self._tar = cp, tar
        self._data = sizes.backup // 10  # less than that cannot be a backup

    def measure(self, arena, contestant):
        if contestant.kind == VMSNAP:
            return {self._cp: self._time(arena, contestant, self._mount_and_cp),
                    self._tar: self._time(arena, contestant, self._mount_and_tar)}
        way = {NBDCOPY: self._nbdcopy, NBDCOPY_AND_JOB: self._nbdcopy_and_job, VIRTNBDBACKUP: self._virtnbdbackup}
        return dict.fromkeys(self.rows, self._time(arena, contestant, way[contestant.kind]))

    def _time(self, arena, contestant, way):
        """
        How long a way to make a backup takes. WAY is a generator that pauses twice: before the time begins, and where
        it ends.
        """
        [name] = arena.names(self.disks)
        output = lib.make_directory('output')
        try:
            output.chmod(0o777)  # QEMU has its socket and scratch here, and runs as another user
            steps = way(arena, name, contestant.options, output)
            next(steps)
            lib.read_all(arena.vm.images[name])
            os.sync()
            begin = time.monotonic()
            next(steps)
            seconds = time.monotonic() - begin
            next(steps, None)
            written = sum(path.stat().st_blocks * 512 for path in output.rglob('*') if path.is_file())
            if written < self._data:
                raise AssertionError(f'a backup of {name} has only {written} bytes')
        finally:
            shutil.rmtree(output)
        return seconds

    @staticmethod
    def _mount_and_run(arena, name, options, command):
        """COMMAND is made of the mount."""
        arena.close()
        mount = peers.make_mount(arena.vm, [name], options)
        yield
        mount.mount()
        with contextlib.ExitStack() as stack:
            stack.push(mount)  # proves at last that nothing is left
            peers.time_commands(arena.vm, [command(mount)])
            mount.umount()
            yield

    def _mount_and_cp(self, arena, name, options, output):
        return self._mount_and_run(arena, name, options, lambda mount: [
            'cp', '--sparse=auto', mount / f'{name}.raw', output / 'disk.raw'])

    def _mount_and_tar(self, arena, name, options, output):
        return self._mount_and_run(arena, name, options, lambda mount: [
            'tar', '-S', '-c', '-f', output / 'disk.tar', '-C', mount.point, f'{name}.raw'])

    @staticmethod
    def _nbdcopy(arena, name, options, output):
        """Copies only: the job is there before, and after."""
        session = arena.session([name], options)
        yield
        peers.time_commands(arena.vm, [['nbdcopy', session.uri(name), output / 'disk.raw']])
        yield

    @staticmethod
    def _nbdcopy_and_job(arena, name, _, output):
        arena.close()
        job = peers.Job(arena.vm, name)
        yield
        job.begin()
        try:
            peers.time_commands(arena.vm, [['nbdcopy', peers.nbd_uri(job.socket, name), output / 'disk.raw']])
        finally:
            job.end()
        yield
        job.wait_ended()

    @staticmethod
    def _virtnbdbackup(arena, name, _, output):
        arena.close()
        yield
        # Level "copy" is a full one, too, and leaves no checkpoint in the machine.
        peers.time_commands(arena.vm, [[
            'virtnbdbackup', '--domain', arena.vm.name, '--level', 'copy', '--include', name, '--output',
            output / 'backup', '--socketfile', output / 'socket', '--scratchdir', output, '--noprogress']])
        yield


def memory_limit(options):
    """What the daemon's memory may be, in MiB, with these mount options."""
    found = re.search(r'(?:^|,)readahead=(\d+)([KMGT]?)', options, re.IGNORECASE)
    readahead = int(found[1]) << 10 * ' KMGT'.index(found[2].upper() or ' ') if found else DEFAULT_READAHEAD
    return (readahead + OTHER_MEMORY) / MIB


def all_works(sizes):
    """Everything, in the order of the table. The targets are those that the project has set itself."""
    def read(name, title, command, target, size=sizes.dense, compared=(NBDCOPY, *BRIDGES)):
        row = Row(name, f'{title}, {human(size)}', 'GB/s', (target,), in_chart=True)
        return Read({row: throughput}, ['dense'], size, lambda path: command(path, size), compared)

    def than_nbdcopy(limit):
        return Target('>=', limit, (NBDCOPY,))

    better_bridge = Target('>=', 1.3, BRIDGES)
    works = [
        read('dd-1M', 'dd bs=1M', lambda path, size: [dd(path, '1M', size)], than_nbdcopy(0.9)),
        read('dd-128k', 'dd bs=128k', lambda path, size: [dd(path, '128k', size)], than_nbdcopy(0.65)),
        read('cat', 'cat', lambda path, _: [['cat', path]], than_nbdcopy(0.65)),
        read('cp', 'cp to /dev/null', lambda path, _: [['cp', path, '/dev/null']], than_nbdcopy(0.65)),
        read('dd-10k', 'dd bs=10k', lambda path, size: [dd(path, '10k', size)], better_bridge, sizes.slow, BRIDGES),
        read('dd-4k', 'dd bs=4k', lambda path, size: [dd(path, '4k', size)], better_bridge, sizes.slow, BRIDGES),
        read('8-readers', '8 readers of 8 regions', lambda path, size: dd_parts(path, size, 8), than_nbdcopy(0.9)),
        Read({Row('4-disks', f'4 disks at once, {human(sizes.four)} each', 'GB/s', (than_nbdcopy(0.9),),
                  in_chart=True): throughput},
             [f'four-{number}' for number in range(4)], 4 * sizes.four, lambda path: [dd(path, '1M', sizes.four)],
             (NBDCOPY, *BRIDGES)),
        RandomRead(Row('random-1', '4 KiB at random, 1 reader', 'IOPS', (Target('>=', 1, BRIDGES),)), 1, sizes),
        RandomRead(Row('random-16', '4 KiB at random, 16 readers', 'IOPS', (Target('>=', 1, BRIDGES),)), 16, sizes),
        Read({Row('cpu', 'CPU: reader and its daemon', 's/GiB', (Target('<=', 1.5, (NBDCOPY,)),)): cpu_per_gib,
              Row('cpu-qemu', 'CPU: QEMU meanwhile', 's/GiB'): qemu_per_gib},
             ['dense'], sizes.dense, lambda path: [dd(path, '1M', sizes.dense)], (NBDCOPY, *BRIDGES)),
        Memory(Row('memory', "daemon's peak memory, 64 readers", 'MiB', (Target('<=', memory_limit),)), sizes),
        Backup(*(Row(f'backup-{tool}', f'full backup by {how}, {human(sizes.backup)}, 20 % data', 's',
                     (Target('<=', 0.4, (VIRTNBDBACKUP,)), Target('<=', 1.15, (NBDCOPY,))))
                 for tool, how in (('cp', 'cp'), ('tar', 'tar -S'))), sizes),
        Zeroes(Row('zero', f'dd bs=1M of zeroes, {human(sizes.zero)}', 'GB/s', (Target('>=', 4),)),
               Row('zero-read', 'NBD data read for it', 'MiB', (Target('<=', 0),)), sizes),
        Begin(Row('mount', 'mount, 16 TiB', 's', (Target('<', 0.3, (VIRSH,), difference=True),)),
              Row('sparse-walk', 'SEEK_DATA from end to end, 16 TiB', 's', (Target('<', 2),))),
    ]
    return works + format_works(sizes) + growth_works(sizes)


def format_works(sizes):
    """The same disk in each format."""
    works = []
    for name in ('raw', 'qcow2', 'vma'):
        targets = () if name == 'raw' else (Target('>=', 0.9, base='format-raw'),)
        works.append(Format(Row(f'format-{name}', f'dd bs=1M of format={name}', 'GB/s', targets), name, sizes))
    return works


def growth_works(sizes):
    """The same by the size of a disk, and by the number of its extents: the cost of a byte must stay what it was."""
    works = []
    for series in ([(f'growth-{human(size)}', f'dd bs=1M of {human(size)}', size) for size in sizes.growth_sizes],
                   [(f'growth-{count}-extents', f'{human(sizes.growth_data)} of data in {count:,} extents',
                     sizes.growth_data) for count in sizes.growth_extents]):
        for name, title, size in series:
            flat = () if name == series[0][0] else (Target('>=', 0.9, base=series[0][0]),)
            row = Row(name, title, 'GB/s', (*flat, Target(peers=(NBDCOPY,))))
            works.append(Read({row: throughput}, [name], size, dd_all, (NBDCOPY,), fresh=True))
    return works
