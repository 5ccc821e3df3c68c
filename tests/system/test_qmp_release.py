# SPDX-License-Identifier: LGPL-2.1-or-later

"""
-o release: what has been read is given back to QEMU, so that the guest's writes there cost nothing any more; what nobody
has got is not, and what was given back can be read no more.
"""

import errno
import mmap
import os
import signal
import subprocess
import threading
import time
from pathlib import Path

import lib
from bare import BareVm
from lib import MIB, Disk, Mount, complaint, run

SIZE = 64 * MIB
UNIT = MIB


def read(path, offset, length):
    with open(path, 'rb', buffering=0) as file:
        return os.pread(file.fileno(), length, offset)


class Release(lib.TestCase):
    """A machine whose processor never runs; its dense disk is written to by QEMU."""

    usable_options = 'release'

    @classmethod
    def setUpClass(cls):
        noise = lib.SANDBOX / 'noise'
        noise.write_bytes(os.urandom(4 * MIB))
        noise.chmod(0o644)
        dense = Disk(size=SIZE, io=tuple(f'write -s {noise} {at}M 4M' for at in range(0, SIZE // MIB, 4)))
        # Data and zeroes by turns, and an end that is no whole unit.
        sparse = Disk(size=16 * MIB + 512, io=tuple(f'write -P 7 {at}M 100k' for at in range(0, 16, 2)))
        cls.vm = cls.enterClassContext(BareVm([dense, sparse]))
        cls.vm.start_paused()

    def setUp(self):
        self.truth = {name: self.vm.disk_raw(name, lib.SANDBOX / f'truth-{name}.raw') for name in self.vm.images}
        self.mount = Mount(self.vm, 'release')
        self.mount.mount()

    def tearDown(self):
        if str(self.mount.point) in lib.mounts():
            self.mount.umount()
        self.mount.assert_nothing_left()

    def disk(self, name='vda'):
        return self.mount / f'{name}.raw'

    def wait_released(self, size, name='vda'):
        lib.wait_until(lambda: self.mount.disk_status(name)['released'] >= size, 'it is released', timeout=10)
        self.assertEqual(self.mount.disk_status(name)['released'], size)

    def scratch_used(self):
        return self.mount.disk_status('vda')['scratch-used']

    def assert_gone(self, offset, length=4096, name='vda'):
        with self.assertRaises(OSError) as raised:
            read(self.disk(name), offset, length)
        self.assertEqual(raised.exception.errno, errno.EIO)

    def test_tools_read_once(self):
        """Each of them gets all of it, and then all but the last unit is gone."""
        for name, command in {'cp': 'cp "$0" "$1"', 'dd': 'dd if="$0" of="$1" bs=10k status=none',
                              'cat': 'cat "$0" >"$1"', 'rsync': 'rsync --whole-file "$0" "$1"',
                              'qemu-img': 'qemu-img convert -f raw -O raw "$0" "$1"',
                              'tar': 'tar -cSf - -C "${0%/*}" "${0##*/}" | tar -xOf - >"$1"'}.items():
            with self.subTest(name):
                if str(self.mount.point) not in lib.mounts():
                    self.mount.mount()
                for disk, released in (('vda', SIZE - UNIT), ('vdb', 16 * MIB)):
                    copy = lib.SANDBOX / 'copy'
                    run('sh', '-c', command, self.disk(disk), copy)
                    run('cmp', copy, self.truth[disk])
                    self.wait_released(released, disk)
                    copy.unlink()
                self.assert_gone(0)
                self.mount.umount()

    def test_writes_cost_nothing_after(self):
        """Scratch takes what the guest overwrites before it was read, gives it back, and takes nothing more then."""
        empty = self.scratch_used()
        self.vm.qemu_io('vda', 'write -P 1 0 16M')
        self.assertGreaterEqual(self.scratch_used(), empty + 16 * MIB)
        run('cmp', f'--bytes={32 * MIB}', self.disk(), self.truth['vda'])
        # cmp may read a little more than it compares.
        lib.wait_until(lambda: self.mount.disk_status('vda')['released'] >= 31 * MIB, 'it is released')
        self.assertLess(self.scratch_used(), empty + MIB)
        used = self.scratch_used()
        self.vm.qemu_io('vda', 'write -P 2 0 31M')
        self.assertLess(self.scratch_used(), used + MIB)
        self.vm.qemu_io('vda', 'write -P 3 40M 16M')
        self.assertGreaterEqual(self.scratch_used(), used + 16 * MIB)
        run('cmp', f'--ignore-initial={40 * MIB}', self.disk(), self.truth['vda'])

    def test_what_nobody_got_stays(self):
        """Read-ahead, the beginning of a file, and a reader that was killed take nothing away."""
        file = os.open(self.disk(), os.O_RDONLY)
        for offset in range(0, 4 * MIB, 128 * 1024):
            os.pread(file, 128 * 1024, offset)
        self.wait_released(4 * MIB)
        time.sleep(0.3)
        self.wait_released(4 * MIB)
        os.close(file)
        expected = self.truth['vda'].read_bytes()
        for _ in range(2):
            self.assertEqual(read(self.disk(), 4 * MIB, UNIT - 1), expected[4 * MIB:5 * MIB - 1])
        self.assertEqual(read(self.disk(), 5 * MIB - 1, 1), expected[5 * MIB - 1:5 * MIB])
        self.wait_released(5 * MIB)
        self.assert_gone(4 * MIB)
        self.assertEqual(read(self.disk(), 5 * MIB, SIZE), expected[5 * MIB:])

    def test_small_reads_make_whole_units(self):
        """Readers of odd sizes, in any order; the last unit can be read again and again."""
        expected = self.truth['vda'].read_bytes()
        pieces = [(at, min(10239, 3 * MIB - at)) for at in range(0, 3 * MIB, 10239)]
        for at, length in pieces[::2] + pieces[1::2]:
            self.assertEqual(read(self.disk(), at, length), expected[at:at + length])
        self.wait_released(3 * MIB)
        for _ in range(2):
            self.assertEqual(read(self.disk(), SIZE - UNIT, UNIT), expected[SIZE - UNIT:])

    def test_what_was_known_stays_known(self):
        """Sizes, holes, and the block map are as they were."""
        def look():
            return (lib.data_extents(self.disk('vdb')), self.disk('vdb').stat().st_blocks, self.disk('vdb').stat().st_size,
                    (self.mount / '.vmsnap/map/vdb.borg').read_text())

        before = look()
        lib.read_all(self.disk('vdb'))
        self.wait_released(16 * MIB, 'vdb')
        self.assertEqual(look(), before)
        # Holes can be read again.
        hole = before[0][0][1]
        self.assertEqual(read(self.disk('vdb'), hole, 65536), bytes(65536))

    def test_mapped(self):
        """A mapping takes the pages that are touched, one by one."""
        expected = self.truth['vda'].read_bytes()
        with open(self.disk(), 'rb') as file:
            mapped = mmap.mmap(file.fileno(), SIZE, mmap.MAP_PRIVATE, mmap.PROT_READ)
        with mapped:
            self.assertEqual(mapped[8 * MIB:8 * MIB + 4096], expected[8 * MIB:8 * MIB + 4096])
        self.assertEqual(read(self.disk(), 8 * MIB, UNIT), expected[8 * MIB:9 * MIB])

    def test_formats(self):
        """An image and an archive give back what they are made of, too."""
        self.mount.umount()
        for options, name in (('format=qcow2', 'vda.qcow2'), ('format=vma', f'{self.vm.name}.vma')):
            with self.subTest(options), Mount(self.vm, f'release,{options}') as mount:
                copy = lib.SANDBOX / name
                run('cp', mount / name, copy)
                lib.wait_until(lambda: mount.disk_status('vda')['released'] >= SIZE - UNIT, 'it is released')
                if name.endswith('.qcow2'):
                    run('qemu-img', 'compare', '-f', 'qcow2', '-F', 'raw', copy, self.truth['vda'])
                with self.assertRaises(OSError):
                    read(mount / name, SIZE // 2, MIB)
                # Its tables are computed.
                self.assertEqual(read(mount / name, 0, 4096), copy.read_bytes()[:4096])

    def test_loss_is_noticed(self):
        """That a range was given back is not taken for a loss, and a loss is noticed when all has been given back."""
        lib.read_all(self.disk())
        self.wait_released(SIZE - UNIT)
        time.sleep(1.5)
        self.assertEqual(self.mount.status()['status'], 'active')
        scratch, = Path('/var/lib/vmsnap').glob('*/vda.qcow2')
        self.vm.kill(signal.SIGKILL)
        self.assertIn('the guest was stopped', complaint('umount', self.mount.point, status=32))
        self.assertFalse(scratch.exists())
        self.vm.start_paused()

    def test_readers_at_once(self):
        """Many readers of the same ranges, some of which are in scratch: right bytes, or EIO, and nothing else."""
        expected = self.truth['vda'].read_bytes()
        wrong = []
        for _ in range(3):
            self.vm.qemu_io('vda', *(f'write -P 0xa5 {at}M 512k' for at in range(0, SIZE // MIB)))

            def read_through():
                with open(self.disk(), 'rb', buffering=0) as file:
                    for at in range(0, SIZE, 256 * 1024):
                        try:
                            data = os.pread(file.fileno(), 256 * 1024, at)
                        except OSError as error:
                            wrong.extend([] if error.errno == errno.EIO else [error])
                            continue
                        if data != expected[at:at + len(data)]:
                            wrong.append(f'at {at}')

            readers = [threading.Thread(target=read_through) for _ in range(6)]
            for reader in readers:
                reader.start()
            for reader in readers:
                reader.join()
            self.assertEqual(wrong, [])
            self.mount.umount()
            self.truth = {name: self.vm.disk_raw(name, path) for name, path in self.truth.items()}
            expected = self.truth['vda'].read_bytes()
            self.mount.mount()

    def test_killed_reader(self):
        """What was on its way to a reader that is killed is not lost."""
        for _ in range(20):
            reader = subprocess.Popen(['dd', f'if={self.disk()}', 'of=/dev/null', 'bs=1M', 'status=none'])
            time.sleep(0.01)
            reader.kill()
            reader.wait()
            if self.mount.disk_status('vda')['released']:
                break
        expected = self.truth['vda'].read_bytes()
        got = {}
        for unit in range(0, SIZE, UNIT):
            try:
                got[unit] = read(self.disk(), unit, UNIT)
            except OSError as error:
                self.assertEqual(error.errno, errno.EIO)
        # All that is gone is at the beginning: what the reader had got before it was killed.
        self.assertEqual(sorted(got), list(range(SIZE - len(got) * UNIT, SIZE, UNIT)))
        for unit, data in got.items():
            self.assertEqual(data, expected[unit:unit + UNIT])

    def test_refused(self):
        """Only a QEMU without libvirt takes anything back."""
        said = complaint('mount.vmsnap', 'vm1', self.mount.point, '-o', 'release', status=1)
        self.assertIn("failed to use option 'release' with 'vm1'", said)
