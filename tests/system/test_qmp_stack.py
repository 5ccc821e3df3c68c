# SPDX-License-Identifier: LGPL-2.1-or-later

"""The fault matrix of test_faults_stack.py, of a QEMU without libvirt: what can happen to QEMU, its guest and its disks."""

import time

import faults
import lib
import test_faults_stack
from bare import Bare
from lib import Mount, run

tearDownModule = faults.report_matrix


class Stack(Bare, test_faults_stack.Stack):
    owner = 'root'

    def test_job_aborted(self):
        """Somebody else takes an export away."""
        with self.row('block-export-del by somebody else', 'while 8 readers read') as row:
            with self.mounted() as (mount, readers):
                since = time.monotonic()
                for export in self.vm.call('query-block-exports'):
                    self.vm.call('block-export-del', id=export['id'], mode='hard')
                row.readers = readers.wait_errors(since)
            self.check_lost(row, mount, time.monotonic(), 'somebody else ended')
            row.guest = self.check_guest()
            self.check_mountable_again(mount)

    def test_unplug(self):
        """A disk that is unplugged stays as it was at the instant, until the end; then it is gone."""
        with self.row('device_del of a disk', 'while 8 readers read') as row:
            self.vm.stop_writer()
            with self.mounted(overwrite=False) as (mount, readers):
                self.vm.call('device_del', id='vdb')
                lib.wait_until(lambda: all(block.get('qdev', '').find('/vdb/') < 0 for block in self.vm.call('query-block')),
                               'the disk is unplugged')
                readers.get_on()
                row.readers = readers.stop()
            since = time.monotonic()
            mount.umount()
            row.cleared = f'umount, {max(time.monotonic() - since, 0.05):.1f} s'
            self.assertFalse(self.vm.has_snapshot())
            self.assertEqual(self.vm.call('query-block-exports'), [])
            self.vm.touch()
            row.guest, row.left = 'runs and writes', 'nothing'
            self.vm.destroy()
            self.reboot()

    def test_migration(self):
        """A migration that somebody begins in spite of it."""
        with self.row('migrate', 'while 8 readers read') as row:
            with self.mounted() as (mount, readers):
                self.vm.call('migrate', uri='exec:cat >/dev/null')
                status = lib.wait_until(lambda: self.migration_end(), 'the migration ends', timeout=60)
                print('#', status, self.vm.state())
                if self.vm.state() == 'paused':
                    self.vm.resume()
                readers.get_on()
                row.readers = readers.stop()
            since = time.monotonic()
            mount.umount()
            self.check_after(row, mount, 'umount', since, within=0)

    def migration_end(self):
        status = self.vm.call('query-migrate').get('status')
        return status if status in ('completed', 'failed', 'cancelled') else None
