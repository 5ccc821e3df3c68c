# SPDX-License-Identifier: LGPL-2.1-or-later

"""
A mount shows the bytes of its instant and nothing else: however they are read, whatever the guest does meanwhile, on
whatever kind of image; and where an image has zeroes, the file has a hole that costs nothing.
"""

import concurrent.futures
import contextlib
import errno
import json
import mmap
import os
import random
import tempfile
from pathlib import Path

import lib
from lib import MIB, Disk, Mount, Vm, run

SECTOR = 512
READERS = 32


def make_noise(name, size):
    path = lib.SANDBOX / name
    path.write_bytes(random.Random(name).randbytes(size))
    path.chmod(0o644)
    return path


def make_zoo():
    """
    Images of many kinds, each with data, holes and stored zeroes. The first two have room for the writer, and none ends
    at a round number: a disk is made of sectors, and an image format of whatever it likes.
    """
    noise = make_noise('noise', 4 * MIB)
    backing = lib.SANDBOX / 'backing.raw'
    with open(backing, 'wb') as file:
        file.truncate(9 * MIB + 5 * SECTOR)
        for start in (0, 3 * MIB + SECTOR, 8 * MIB):
            file.seek(start)
            file.write(noise.read_bytes()[:MIB])
    backing.chmod(0o644)

    def some_of_each(size):
        end = size // MIB * MIB
        return (f'write -s {noise} 1M 2M', f'write -s {noise} 8193k 3k', f'write -P 0x55 {end - MIB} 65k',
                f'write -z 2M 512k', 'write -P 0 5M 256k', f'write -P 0xaa {size - SECTOR} {SECTOR}')

    def disk(size, **options):
        return Disk(size=size, io=some_of_each(size) + options.pop('io', ()), **options)

    unmap = 'discard="unmap"'
    return [
        disk(256 * MIB, driver=unmap),
        disk(256 * MIB + 3 * SECTOR, format='raw', driver=unmap),
        disk(24 * MIB + 7 * SECTOR, options='cluster_size=4k', driver='discard="unmap" detect_zeroes="unmap"'),
        disk(21 * MIB + SECTOR, options='cluster_size=2M', driver=unmap),
        disk(16 * MIB + 9 * SECTOR, options='extended_l2=on,cluster_size=128k', driver=unmap),
        disk(16 * MIB + 64 * 1024, io=(f'write -c -s {noise} 12M 1M',), driver=unmap),
        disk(16 * MIB + 33 * SECTOR, options=f'backing_file={backing},backing_fmt=raw'),
        # Its clusters are all there, and most are zeroes all the same, since the file has holes in their place.
        disk(12 * MIB, options='preallocation=metadata'),
        Disk(size=3 * SECTOR, format='raw', io=(f'write -s {noise} 0 1536',)),
    ]


class Truth:
    """What each disk holds at the instant, to compare with what is read."""

    def __init__(self, vm):
        directory = Path(tempfile.mkdtemp(prefix='truth-', dir=lib.SANDBOX))
        self.files = {f'{disk}.raw': vm.disk_raw(disk, directory / f'{disk}.raw') for disk in vm.images}
        self._maps = {}
        for name, path in self.files.items():
            with open(path, 'rb') as file:
                self._maps[name] = mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ)

    def size(self, name):
        return len(self._maps[name])

    def check(self, name, offset, data, how):
        expected = self._maps[name][offset:offset + len(data)]
        if data != expected:
            first = next((i for i, (a, b) in enumerate(zip(data, expected)) if a != b), len(expected))
            raise AssertionError(f'{how}: {name}: reading {len(data)} bytes at {offset} gives something else than the '
                                 f'instant from byte {offset + first} on')

    def check_length(self, name, offset, length, data, how):
        if len(data) != max(0, min(length, self.size(name) - offset)):
            raise AssertionError(f'{how}: {name}: reading {length} bytes at {offset} gives {len(data)}')
        self.check(name, offset, data, how)

    def difference(self, other, name, start, end, block=64 * 1024):
        """How many of the blocks in a range are not as in another truth."""
        return sum(self._maps[name][at:at + block] != other._maps[name][at:at + block]
                   for at in range(start, end, block))


def read_forward(mount, truth, name):
    offset = 0
    with open(mount / name, 'rb', buffering=0) as file:
        while data := file.read(MIB):
            truth.check(name, offset, data, 'forward')
            offset += len(data)
    if offset != truth.size(name):
        raise AssertionError(f'forward: {name} ends after {offset} bytes')


def read_backward(mount, truth, name, length=477_773):
    with open(mount / name, 'rb', buffering=0) as file:
        for offset in reversed(range(0, truth.size(name), length)):
            truth.check_length(name, offset, length, os.pread(file.fileno(), length, offset), 'backward')


def read_at_random(mount, truth, seed, count=120):
    """One reader among many: ranges of all sizes and alignments, on all disks, some of them across the end."""
    chance = random.Random(seed)
    with contextlib.ExitStack() as stack:
        files = {name: stack.enter_context(open(mount / name, 'rb', buffering=0)) for name in truth.files}
        for _ in range(count):
            name = chance.choice(list(files))
            length = chance.randrange(1, 1 << chance.randrange(1, 19))
            # More often where something is than in the wide holes.
            offset = min(chance.choice((chance.randrange(truth.size(name)), chance.randrange(16 * MIB),
                                        truth.size(name) - chance.randrange(1, length + 1))), truth.size(name) + 1)
            offset = max(offset, 0)
            truth.check_length(name, offset, length, os.pread(files[name].fileno(), length, offset), f'seed {seed}')


def read_mapped(mount, truth, name):
    """Through a private mapping, which may even be written to: nobody else sees that."""
    with open(mount / name, 'rb') as file:
        mapped = mmap.mmap(file.fileno(), truth.size(name), mmap.MAP_PRIVATE, mmap.PROT_READ | mmap.PROT_WRITE)
    with mapped:
        for offset in range(0, len(mapped), 4 * MIB):
            truth.check(name, offset, mapped[offset:offset + 4 * MIB], 'mmap')
        mapped[:SECTOR] = bytes(range(256)) * 2
    with open(mount / name, 'rb', buffering=0) as file:
        truth.check(name, 0, file.read(SECTOR), 'read after a private change')


def read_direct(mount, truth, name, length=MIB):
    """Past the kernel's page cache, into memory that is aligned as O_DIRECT wants it."""
    buffer = mmap.mmap(-1, length)
    fd = os.open(mount / name, os.O_RDONLY | os.O_DIRECT)
    try:
        for offset in range(0, truth.size(name), length):
            got = os.preadv(fd, [buffer], offset)
            truth.check_length(name, offset, length, buffer[:got], 'O_DIRECT')
    finally:
        os.close(fd)


def read_in_every_way(mount, truth, seed):
    for name in truth.files:
        lib.drop_cache(mount / name)
    with concurrent.futures.ThreadPoolExecutor(READERS) as pool:
        for reader in [pool.submit(read_at_random, mount, truth, seed + i) for i in range(READERS)]:
            reader.result()
    for way in (read_forward, read_backward, read_mapped, read_direct):
        for name in truth.files:
            # Otherwise all but the first would look at the kernel's memory.
            lib.drop_cache(mount / name)
            way(mount, truth, name)


def image_extents(vm, disk):
    """QEMU's own view of an image: where it has data, and not zeroes, as (start, end)."""
    found = []
    for entry in json.loads(run('qemu-img', 'map', '-U', '--output=json', vm.images[disk]).stdout):
        start, end = entry['start'], entry['start'] + entry['length']
        if entry['zero']:
            continue
        if found and found[-1][1] == start:
            start, _ = found.pop()
        found.append((start, end))
    return found


class Zoo(lib.TestCase):
    """One guest with disks on images of many kinds."""

    # Where the guest overwrites, in MiB: what there is on the small disks, and part of the big ones.
    overwritten = {'vda': 12, 'vdb': 12, 'vdc': 24, 'vdd': 21, 'vde': 16, 'vdf': 16, 'vdg': 16}

    @classmethod
    def make_vm(cls):
        return Vm(make_zoo())

    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        cls.vm.run('dd if=/dev/urandom of=/tmp/noise bs=1M count=1 status=none')

    def take_truth(self):
        """Stops the guest: what its disks hold now is the instant of a mount that is begun before it goes on."""
        self.vm.pause()
        return Truth(self.vm)

    def overwrite(self):
        """
        The guest writes, discards and zeroes a third of each region first, then writes all of it. Returns at once; the
        guest then has a file /tmp/done when it is done.
        """
        regions = ' '.join(f'{disk}:{size}' for disk, size in self.overwritten.items())
        self.vm.run(
            'rm -f /tmp/done; (for region in ' + regions + '; do d=/dev/${region%:*}; n=${region#*:}; t=$((n / 3)); '
            'for i in $(seq 0 $((t - 1))); do dd if=/tmp/noise of=$d bs=1M seek=$i oflag=direct; done; '
            'blkdiscard -o $((t * 1048576)) -l $((t * 1048576)) $d; '
            'dd if=/dev/zero of=$d bs=1M seek=$((2 * t)) count=$((n - 2 * t)) oflag=direct; '
            'for i in $(seq 0 $((n - 1))); do dd if=/tmp/noise of=$d bs=1M seek=$i oflag=direct; done; '
            'done; echo done >/tmp/done) >/tmp/log 2>&1 &')

    def wait_overwritten(self):
        lib.wait_until(lambda: self.vm.run('cat /tmp/done', status=None) == 'done\n', 'the guest has overwritten all')

    def test_every_byte_in_every_way(self):
        """While the guest overwrites what is read, and after, each way to read gives the instant."""
        truth = self.take_truth()
        with Mount(self.vm) as mount:
            self.vm.resume()
            self.overwrite()
            read_in_every_way(mount, truth, seed=1000)
            self.wait_overwritten()
            read_in_every_way(mount, truth, seed=2000)
            for name in truth.files:
                run('cmp', mount / name, truth.files[name])
            later = self.take_truth()
            self.vm.resume()
        for disk, size in self.overwritten.items():
            # Otherwise all this would prove nothing.
            blocks = size * MIB // (64 * 1024)
            self.assertGreaterEqual(truth.difference(later, f'{disk}.raw', 0, size * MIB), 0.99 * blocks, disk)

    def test_each_mount_has_its_own_instant(self):
        """A later snapshot shows later content, though the file has the same name and inode number."""
        block = 20 * MIB // 4096
        inodes = set()
        for number in range(3):
            self.vm.run(f'dd if=/dev/urandom of=/dev/vdc bs=4096 seek={block} count=16 oflag=direct status=none')
            truth = self.take_truth()
            with Mount(self.vm, 'disks=vdc') as mount:
                self.vm.resume()
                inodes.add(os.stat(mount / 'vdc.raw').st_ino)
                self.vm.run(f'dd if=/dev/zero of=/dev/vdc bs=4096 seek={block} count=16 oflag=direct status=none')
                read_forward(mount, truth, 'vdc.raw')
        self.assertEqual(len(inodes), 1)

    def test_one_instant_over_two_disks(self):
        """
        Each of several snapshots in a row cuts both disks at the same record, not before the last one that the guest
        reported before the mount began, nor behind the first that it began after the mount was there.
        """
        self.vm.start_writer(pause_us=0)
        newest = -1
        for _ in range(5):
            reported_before = self.vm.alive()
            with Mount(self.vm) as mount:
                self.vm.wait_written()
                self.vm.wait_written()
                reported_after = self.vm.alive()
                previous, newest = newest, lib.check_instant(mount / 'vda.raw', mount / 'vdb.raw')
                self.assertGreater(newest, previous)
                self.assertGreaterEqual(newest, reported_before)
                self.assertLessEqual(newest, reported_after)
                # The guest goes round its rings, and the snapshot stays where it is.
                lib.wait_until(lambda: self.vm.alive() > reported_after + lib.RING_SLOTS, 'the rings are overwritten')
                for disk in ('vda.raw', 'vdb.raw'):
                    lib.drop_cache(mount / disk)
                self.assertEqual(lib.check_instant(mount / 'vda.raw', mount / 'vdb.raw'), newest)
        self.vm.stop_writer()
        self.assertGreater(self.vm.check(), newest)

    def test_holes_are_the_zeroes_of_the_image(self):
        """
        SEEK_DATA and SEEK_HOLE find what QEMU says of the image, to the byte, on every kind of image; so do st_blocks,
        du and ls. It stays that way when the guest fills holes and empties what was full.
        """
        # Whatever the other tests made of the disks, there are holes and stored zeroes on all of them.
        for disk in self.overwritten:
            self.vm.run(f'blkdiscard -o {9 * MIB} -l {2 * MIB} /dev/{disk} && '
                        f'dd if=/tmp/noise of=/dev/{disk} bs=512 seek=20001 count=11 oflag=direct status=none')
        self.vm.pause()
        expected = {disk: image_extents(self.vm, disk) for disk in self.vm.images}
        with Mount(self.vm) as mount:
            self.check_holes(mount, expected)
            self.vm.resume()
            self.overwrite()
            self.wait_overwritten()
            self.check_holes(mount, expected)
        self.assertTrue(all(expected.values()))
        for disk in ('vda', 'vdb', 'vdc', 'vde', 'vdh'):
            self.assertGreater(len(expected[disk]), 1, f'{disk} has no hole between data')

    def check_holes(self, mount, expected):
        for disk, extents in expected.items():
            with self.subTest(disk=disk):
                path = mount / f'{disk}.raw'
                size = int(self.vm.run(f'blockdev --getsize64 /dev/{disk}')) if self.vm.state() == 'running' else None
                self.assertEqual(lib.data_extents(path), extents)
                data = sum(end - start for start, end in extents)
                status = path.stat()
                self.assertEqual(status.st_blocks, data // 512)
                self.assertIn(size, (None, status.st_size))
                self.assertEqual(int(run('du', '--block-size=1', path).stdout.split()[0]), data)
                self.assertEqual(int(run('du', '--block-size=1', '--apparent-size', path).stdout.split()[0]),
                                 status.st_size)
                self.assertEqual(int(run('ls', '-s', '--block-size=512', path).stdout.split()[0]), data // 512)
                self.assertEqual(mount.disk_status(disk)['data'], data)
                self.check_seek_from_anywhere(path, extents, status.st_size)

    def check_seek_from_anywhere(self, path, extents, size):
        """The answer at each edge of an extent, one byte before and behind it, and at the end of the file."""
        def expect(offset, whence):
            if offset >= size:
                return errno.ENXIO
            for start, end in extents:
                if offset < end:
                    if whence == os.SEEK_DATA:
                        return max(offset, start)
                    return offset if offset < start else end
            return errno.ENXIO if whence == os.SEEK_DATA else offset

        edges = {0, size} | {edge for extent in extents[:50] + extents[-50:] for edge in extent}
        with open(path, 'rb', buffering=0) as file:
            for offset in sorted({edge + delta for edge in edges for delta in (-1, 0, 1)} - {-1}):
                for whence in (os.SEEK_DATA, os.SEEK_HOLE):
                    try:
                        found = os.lseek(file.fileno(), offset, whence)
                    except OSError as error:
                        found = error.errno
                    self.assertEqual(found, expect(offset, whence), f'{path.name}: from {offset}, whence {whence}')

    def bytes_read_by_qemu(self):
        return int(Path(f'/proc/{self.vm.pid()}/io').read_text().split()[1])

    def test_holes_cost_no_nbd_read(self):
        """
        Whoever reads a hole, even without looking for holes, causes no read in QEMU. On a raw image, where QEMU has to
        read the file for every NBD read, zero or not, that shows in QEMU's own count of bytes.
        """
        self.vm.pause()
        self.addCleanup(lambda: self.vm.state() == 'paused' and self.vm.resume())
        extents = image_extents(self.vm, 'vdb')
        data = sum(end - start for start, end in extents)
        size = self.vm.images['vdb'].stat().st_size
        hole = next(start for start, end in zip([end for _, end in extents], [start for start, _ in extents[1:]])
                    if end - start > 16 * MIB)
        with Mount(self.vm, 'disks=vdb') as mount:
            path = mount / 'vdb.raw'
            self.assertEqual(lib.data_extents(path), extents)
            before = self.bytes_read_by_qemu()

            fd = os.open(path, os.O_RDONLY | os.O_DIRECT)
            buffer = mmap.mmap(-1, MIB)
            for offset in range(hole, hole + 16 * MIB, MIB):
                self.assertEqual(os.preadv(fd, [buffer], offset // 4096 * 4096 + 4096), MIB)
            os.close(fd)
            self.assertEqual(mount.disk_status('vdb')['read'], 0)
            self.assertLess(self.bytes_read_by_qemu() - before, 64 * 1024)

            lib.read_all(path)
            read_by_qemu = self.bytes_read_by_qemu() - before
            self.assertGreaterEqual(read_by_qemu, data)
            self.assertLess(read_by_qemu, data + 64 * 1024)
            self.assertLess(data, size // 4)
            # Progress is counted in blocks of 4 KiB.
            self.assertGreaterEqual(mount.disk_status('vdb')['read'], data)
            self.assertLess(mount.disk_status('vdb')['read'], data + 8192 * len(extents))
            status = mount.status()
            self.assertEqual(status['total'], size)
            self.assertEqual(status['zero-bytes'], size - data)
            self.assertGreaterEqual(status['transferred'], size)
        self.vm.resume()
