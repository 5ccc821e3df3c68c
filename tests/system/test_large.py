# SPDX-License-Identifier: LGPL-2.1-or-later

"""Disks of 16 TiB, nearly empty or badly fragmented, cost no more time to mount and hardly more memory than others."""

import contextlib
import json
import os
import random
import re
import signal
import struct
import subprocess
import time
from pathlib import Path

import lib
from lib import MIB, Disk, Mount, Vm, run

GIB = 1024 * MIB
TIB = 1024 * GIB
CLUSTER = 64 * 1024

# What a badly fragmented disk may add to the daemon's memory.
MEMORY = 64 * MIB

# What is "at once" on a busy machine: far more than it takes, and far less than to find out all extents.
AT_ONCE = 15


def write_fragmented(image, size, pattern):
    """
    Makes a qcow2 image of SIZE bytes whose clusters are data and zero as PATTERN says, which is as long as an L2 table,
    and over and over again. All data clusters are one and the same, and all L2 tables, too: which an image with
    internal snapshots may have as well. It must not be written to.
    """
    table_entries = CLUSTER // 8
    tables = size // (table_entries * CLUSTER)
    l1_clusters = -(-tables * 8 // CLUSTER)
    l1, refcount_table, refcounts = CLUSTER, (1 + l1_clusters) * CLUSTER, (2 + l1_clusters) * CLUSTER
    l2, data = refcounts + CLUSTER, refcounts + 2 * CLUSTER
    header = struct.pack('>4sIQIIQIIQQIIQQQQII', b'QFI\xfb', 3, 0, 0, 16, size, 0, tables, l1, refcount_table, 1, 0, 0,
                         0, 0, 0, 4, 104)
    with open(image, 'wb') as file:
        for offset, content in (
                (0, header + bytes(8)),
                (l1, struct.pack('>Q', l2) * tables),
                (refcount_table, struct.pack('>Q', refcounts)),
                (refcounts, struct.pack('>H', 0xffff) * (data // CLUSTER + 1)),
                (l2, b''.join(struct.pack('>Q', data if is_data else 0) for is_data in pattern)),
                (data, random.Random(1).randbytes(CLUSTER))):
            file.seek(offset)
            file.write(content)
    assert len(pattern) == table_entries


class Large(lib.TestCase):
    """
    vdb has four extents on 16 TiB. vdc has 65,536 on 8 GiB, every other cluster. vdd has 122 millions on 16 TiB:
    mostly holes of one cluster, and some of eight, which alone can be remembered in bounded memory.
    """

    sparse = [(0, CLUSTER), (7 * TIB + GIB, 7 * TIB + GIB + 2 * CLUSTER), (15 * TIB, 15 * TIB + CLUSTER),
              (16 * TIB - CLUSTER, 16 * TIB)]
    alternating = [True, False] * 4096
    mixed = ([True] + [False] * 8 + [True, False] * 36) * 100 + [True, False] * 46

    @classmethod
    def make_vm(cls):
        writes = tuple(f'write -P {0x11 * (number + 1)} {start} {end - start}'
                       for number, (start, end) in enumerate(cls.sparse))
        vm = Vm([Disk(), Disk(size=16 * TIB, io=writes), Disk(size=8 * GIB), Disk(size=16 * TIB)])
        write_fragmented(vm.images['vdc'], 8 * GIB, cls.alternating)
        write_fragmented(vm.images['vdd'], 16 * TIB, cls.mixed)
        return vm

    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        begin = time.monotonic()
        with Mount(cls.vm, 'disks=vda') as mount:
            cls.mount_seconds = time.monotonic() - begin
            cls.memory = cls.peak_memory(mount)

    @staticmethod
    def peak_memory(mount):
        status = Path(f'/proc/{mount.daemon()}/status').read_text()
        return int(re.search(r'VmHWM:\s+(\d+) kB', status)[1]) * 1024

    @contextlib.contextmanager
    def within(self, seconds):
        begin = time.monotonic()
        yield
        self.assertLess(time.monotonic() - begin, seconds)

    def mount(self, disk):
        """Mounts one disk; gives the mount and the disk's file."""
        mount = Mount(self.vm, f'disks={disk}')
        with self.within(self.mount_seconds + AT_ONCE):
            self.enterContext(mount)
        return mount, mount / f'{disk}.raw'

    def check_samples(self, path, size, pattern, count):
        """Reads here and there, across the borders of clusters, what the pattern says must be there."""
        data = random.Random(1).randbytes(CLUSTER)
        chance = random.Random(2)
        with open(path, 'rb', buffering=0) as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_RANDOM)
            for _ in range(count):
                start = chance.randrange(size // CLUSTER - 1) * CLUSTER
                expected = b''.join(data if pattern[(start // CLUSTER + i) % len(pattern)] else bytes(CLUSTER)
                                    for i in range(2))
                skip = chance.randrange(CLUSTER)
                self.assertEqual(os.pread(file.fileno(), CLUSTER, start + skip), expected[skip:skip + CLUSTER], start)

    def test_sparse(self):
        """16 TiB with four extents: ls is immediate, SEEK_DATA goes straight to them, the far end can be read."""
        mount, path = self.mount('vdb')
        with self.within(AT_ONCE):
            self.assertIn(str(16 * TIB), run('ls', '-l', mount.point).stdout)
            self.assertEqual(path.stat().st_size, 16 * TIB)
        with self.within(AT_ONCE):
            self.assertEqual(lib.data_extents(path), self.sparse)
            lib.wait_until(lambda: self.known_bytes(mount, 'vdb') == 16 * TIB, 'all extents are known')
        self.assertEqual(path.stat().st_blocks, 5 * CLUSTER // 512)
        with self.within(AT_ONCE), open(path, 'rb', buffering=0) as file:
            for number, (start, end) in enumerate(self.sparse):
                data = bytes([0x11 * (number + 1)]) * (end - start)
                self.assertEqual(os.pread(file.fileno(), end - start, start), data)
                self.assertEqual(os.pread(file.fileno(), MIB, start - MIB if start else end), bytes(MIB))
            self.assertEqual(os.pread(file.fileno(), MIB, 16 * TIB - 10), b'\x44' * 10)
            self.assertEqual(os.pread(file.fileno(), MIB, 16 * TIB), b'')
        self.assertLess(self.peak_memory(mount), self.memory + MEMORY)

    def test_sparse_copy(self):
        """tar -S reads of 16 TiB what there is."""
        mount, _ = self.mount('vdb')
        archive = lib.SANDBOX / 'large.tar'
        with self.within(AT_ONCE):
            run('tar', '-cSf', archive, '-C', mount.point, 'vdb.raw')
        self.assertLess(archive.stat().st_size, MIB)
        self.assertIn(str(16 * TIB), run('tar', '-tvf', archive).stdout)

    def test_sparse_in_other_formats(self):
        """As an image, 16 TiB are as long as their data and a few tables; as an archive, as long as its headers."""
        for file_format, limit in (('qcow2', 4 * MIB), ('vma', 16 * TIB // CLUSTER // 59 * 512 + 4 * MIB)):
            mount = Mount(self.vm, f'disks=vdb,format={file_format}')
            with self.subTest(format=file_format), self.within(self.mount_seconds + AT_ONCE), mount:
                path = mount / f'{self.vm.name if file_format == "vma" else "vdb"}.{file_format}'
                self.assertLess(path.stat().st_size, limit)
                self.assertLess(self.peak_memory(mount), self.memory + MEMORY)
                with open(path, 'rb', buffering=0) as file:
                    self.assertEqual(len(os.pread(file.fileno(), MIB, path.stat().st_size - 100)), 100)
                if file_format == 'qcow2':
                    run('qemu-img', 'check', '-q', '-f', 'qcow2', path)
                    extents = json.loads(run('qemu-img', 'map', '-f', 'qcow2', '--output=json', path).stdout)
                    self.assertEqual([(each['start'], each['start'] + each['length'])
                                      for each in extents if each['data']], self.sparse)

    def test_clusters_too_small(self):
        """QEMU takes no tables of that length: that is known when the job has begun, which is ended again."""
        self.assert_refused(".*disk 'vdb' as qcow2: it is too large for clusters of 4096 bytes; use a larger .*",
                            'disks=vdb,format=qcow2,cluster_size=4k')

    def test_given_up_while_mapping(self):
        """Formats whose sizes follow from all extents wait for them, but not when nobody wants the mount any more."""
        for end in (lambda process: os.killpg(process.pid, signal.SIGINT), subprocess.Popen.kill):
            mount = Mount(self.vm, 'disks=vdd,format=qcow2')
            process = subprocess.Popen(['mount.vmsnap', self.vm.name, mount.point, '-o', mount.options], text=True,
                                       stdin=subprocess.DEVNULL, stderr=subprocess.PIPE, start_new_session=True)
            lib.wait_until(lambda: 'mode="pull"' in self.backup_xml().replace("'", '"'), 'the job has begun')
            time.sleep(0.5)
            self.assertIsNone(process.poll())
            # Nobody else is kept waiting.
            self.assertNotIn(str(mount.point), lib.mounts())
            end(process)
            self.assertIn('interrupted', process.communicate(timeout=AT_ONCE)[1])
            mount.wait_ended()
            mount.assert_nothing_left()

    def backup_xml(self):
        return self.vm.virsh('backup-dumpxml', self.vm.name, status=None)

    def test_fragmented(self):
        """65,536 extents: each is found where it is, no more and no less is counted as data, and memory is modest."""
        mount, path = self.mount('vdc')
        lib.wait_until(lambda: self.known_bytes(mount, 'vdc') == 8 * GIB, 'all extents are known')
        self.assertEqual(path.stat().st_blocks, 4 * GIB // 512)
        chance = random.Random(3)
        with open(path, 'rb', buffering=0) as file:
            for _ in range(2000):
                offset = chance.randrange(8 * GIB - CLUSTER)
                next_cluster = (offset // CLUSTER + 1) * CLUSTER
                is_data = self.alternating[offset // CLUSTER % 2]
                data, hole = (offset, next_cluster) if is_data else (next_cluster, offset)
                self.assertEqual(os.lseek(file.fileno(), offset, os.SEEK_DATA), data)
                self.assertEqual(os.lseek(file.fileno(), offset, os.SEEK_HOLE), hole)
        self.check_samples(path, 8 * GIB, self.alternating, 500)
        self.assertLess(self.peak_memory(mount), self.memory + MEMORY)

    def test_fragmented_and_large(self):
        """
        122 million extents are not all known for a minute or more. That delays neither mount nor readers nor umount;
        it takes bounded memory, for which small holes count as data, and none is invented.
        """
        mount, path = self.mount('vdd')
        with self.within(AT_ONCE):
            self.check_samples(path, 16 * TIB, self.mixed, 60)
        with self.within(AT_ONCE):
            run('ls', '-ls', mount.point)
        self.check_holes_of_window(path, 9 * TIB)
        self.check_holes_of_window(path, 16 * TIB - 2 * GIB)
        # By now 100 KiB a window would be more than what is allowed.
        lib.wait_until(lambda: self.known_bytes(mount, 'vdd') > 750 * 2 * GIB, 'a tenth of the extents are known')
        self.assertLess(self.known_bytes(mount, 'vdd'), 16 * TIB)
        self.assertLess(self.peak_memory(mount), self.memory + MEMORY)
        with self.within(AT_ONCE):
            mount.umount()

    def guest_seconds(self):
        """How long the guest takes at best for a few things that need the processor and the disk."""
        def measure():
            begin = time.monotonic()
            self.vm.run('for i in $(seq 20); do dd if=/dev/vda of=/dev/null bs=4k count=1 skip=$i iflag=direct; done')
            return time.monotonic() - begin

        return min(measure() for _ in range(3))

    def test_guest_runs_on_meanwhile(self):
        """
        QEMU looks for extents in the thread that also serves the guest. Even while it has nothing but extents to tell,
        the guest is several times slower, but does not stand still.
        """
        before = self.guest_seconds()
        mount, _ = self.mount('vdd')
        self.assertLess(self.guest_seconds(), 20 * before)
        self.assertLess(self.known_bytes(mount, 'vdd'), 16 * TIB)

    def known_bytes(self, mount, disk):
        status = mount.disk_status(disk)
        return status['data'] + status['zero-bytes']

    def check_holes_of_window(self, path, start):
        """All holes of 2 GiB are zeroes, the large ones are all there, and they are not too many."""
        holes, end = [], start + 2 * GIB
        with open(path, 'rb', buffering=0) as file:
            hole = os.lseek(file.fileno(), start, os.SEEK_HOLE)
            while hole < end:
                try:
                    data = os.lseek(file.fileno(), hole, os.SEEK_DATA)
                except OSError:
                    data = path.stat().st_size
                holes.append((hole, data))
                hole = os.lseek(file.fileno(), data, os.SEEK_HOLE) if data < end else end
        for hole, data in holes:
            self.assertFalse(any(self.mixed[at // CLUSTER % len(self.mixed)] for at in range(hole, data, CLUSTER)))
        # A large hole comes first in each hundredth part of the pattern.
        large = [start + (table * len(self.mixed) + unit * 81 + 1) * CLUSTER
                 for table in range(4) for unit in range(100)]
        self.assertLessEqual({(hole, hole + 8 * CLUSTER) for hole in large}, set(holes))
        self.assertLess(len(holes), 1000)
