# SPDX-License-Identifier: LGPL-2.1-or-later

"""
The fault matrix of test_faults_scratch.py, of a QEMU without libvirt; and what happens when scratch does not fill up but
stops to answer.
"""

import contextlib
import itertools
import time

import faults
import lib
import test_faults_scratch
from bare import Bare
from lib import MIB, complaint, run

tearDownModule = faults.report_matrix

# QEMU waits so long for scratch before it gives the snapshot up.
CBW_TIMEOUT = 4


class Scratch(Bare, test_faults_scratch.Scratch):
    """The daemon may not connect to the monitor any more when it has mounted: its guardian may."""


class RootScratch(Scratch):
    owner = 'root'


class Hang(Bare, faults.TestCase):
    """Scratch on a filesystem of its own, which can be made to stop all writes, as one on a network does."""

    @classmethod
    def setUpClass(cls):
        image = lib.SANDBOX / 'scratch.img'
        cls.scratch = lib.make_directory('frozen')
        with open(image, 'wb') as file:
            file.truncate(256 * MIB)
        run('mkfs.ext4', '-q', image)
        run('mount', '-o', 'loop', image, cls.scratch)
        cls.addClassCleanup(run, 'umount', '--lazy', cls.scratch)
        super().setUpClass()

    def setUp(self):
        self.blocks = itertools.count(faults.START // 65536)

    @contextlib.contextmanager
    def hanging(self):
        run('fsfreeze', '--freeze', self.scratch)
        try:
            yield
        finally:
            run('fsfreeze', '--unfreeze', self.scratch, status=None)

    def start_writing(self):
        """A write of the guest's over data, which has to be copied to scratch; when it is done, there is /tmp/written."""
        self.vm.run(f'rm -f /tmp/written; (dd if=/tmp/noise of=/dev/vdb bs=64k count=1 seek={next(self.blocks)} oflag=direct && '
                    'touch /tmp/written) >/dev/null 2>&1 &')

    def wait_written(self, timeout):
        lib.wait_until(lambda: self.vm.run('ls /tmp/written', status=None).strip() == '/tmp/written',
                       "the guest's write is done", timeout=timeout)

    def mount_here(self):
        mount = lib.Mount(self.vm, f'scratch={self.scratch},scratch_reserve=1M,timeout=2')
        mount.mount()
        return mount

    def test_hang_while_mounted(self):
        """It is the snapshot that goes, and the guest only waits for a moment, once a disk."""
        with self.row('scratch hangs', 'while mounted') as row:
            mount = self.mount_here()
            with self.hanging():
                begin = time.monotonic()
                self.start_writing()
                self.wait_written(CBW_TIMEOUT + 2)
                waited = time.monotonic() - begin
                self.assertGreater(waited, CBW_TIMEOUT - 1)
                lib.wait_until(lambda: mount.status()['status'] == 'error', 'the loss is noticed', timeout=4)
                self.assertIn('longer than 4 s', mount.status()['errmsg'])
                # Each disk has such a moment of its own, and the other one may not have had it yet.
                self.vm.touch()
                # Nothing is taken out of QEMU as long as it would wait for scratch, and the guest for it.
                for _ in range(3):
                    begin = time.monotonic()
                    self.vm.touch()
                    self.start_writing()
                    self.wait_written(2)
                    self.assertLess(time.monotonic() - begin, 2)
                self.assertTrue(self.vm.has_snapshot())
            row.readers = 'EIO'
            since = time.monotonic()
            said = complaint('umount', mount.point, status=32)
            self.assertIn('QEMU gave the snapshot up', said)
            self.check_after(row, mount, 'umount', since)
            row.guest += f'; one write took {waited:.1f} s'

    def test_hang_of_many(self):
        """However many writes wait for scratch: other disks, and these, go on."""
        with self.row('scratch hangs', 'beside 100 writes at a time') as row:
            mount = self.mount_here()
            # Scratch has its tables in memory after the first.
            self.vm.qemu_io('vdb', f'write -P 1 {faults.START + faults.SIZE - 65536} 64k')
            with self.hanging():
                device = '/machine/peripheral/vdb/virtio-backend'
                for number in range(100):
                    self.vm.call('human-monitor-command', command_line=f'qemu-io -d {device} '
                                 f'"aio_write -P 2 {faults.START + number * 65536} 64k"')
                time.sleep(CBW_TIMEOUT + 1)
                begin = time.monotonic()
                self.vm.touch()
                self.start_writing()
                self.wait_written(2)
                self.assertLess(time.monotonic() - begin, 2)
            said = complaint('umount', mount.point, status=32)
            self.assertIn('QEMU gave the snapshot up', said)
            self.check_after(row, mount, 'umount')

    def test_hang_at_end(self):
        """umount does not wait for ever, and the guest not at all: what is left is cleared when scratch answers again."""
        with self.row('scratch hangs', 'at the end') as row:
            mount = self.mount_here()
            with self.hanging():
                begin = time.monotonic()
                said = complaint('umount', mount.point, status=32)
                self.assertIn('does not answer', said)
                self.assertLess(time.monotonic() - begin, faults.SOON)
                self.vm.touch()
            self.check_after(row, mount, 'guardian, after scratch', time.monotonic(), within=15)
