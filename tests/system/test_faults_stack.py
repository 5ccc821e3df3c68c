# SPDX-License-Identifier: LGPL-2.1-or-later

"""
The fault matrix, of what can happen around vmsnap: to libvirtd, to QEMU, to the guest and its disks, to the backup job,
and to the NBD connections.
"""

import functools
import signal
import subprocess
import time
from pathlib import Path

import faults
import lib
from faults import CLEARED_WITHIN, DEAD, LOST_WITHIN, SOON, Libvirtd, kill
from lib import Mount, complaint, run

tearDownModule = faults.report_matrix

# In how many ways libvirtd ends.
STOPS = {'SIGTERM': signal.SIGTERM, 'kill -9': signal.SIGKILL}

# At how many moments of a beginning libvirtd ends.
BEGIN_STEPS = 4


def for_each_stop(when):
    """A test of one row for each way in which libvirtd ends: gets the row, and the signal."""
    def decorate(test):
        @functools.wraps(test)
        def run_all(self):
            for name, number in STOPS.items():
                with self.subTest(stop=name), self.row(f'{name} of libvirtd', when) as row:
                    test(self, row, number)
        return run_all
    return decorate


class LibvirtdEnds(faults.TestCase):
    def begin_umount(self, mount):
        return subprocess.Popen(['umount', mount.point], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                                stderr=subprocess.PIPE, text=True)

    @for_each_stop('before begin')
    def test_before_begin(self, row, number):
        """mount fails in one line, or lets libvirt be started where it can be."""
        mount = Mount(self.vm)
        Libvirtd.end(number)
        begin = time.monotonic()
        said = complaint('mount.vmsnap', self.vm.name, mount.point, status=32)
        self.assertRegex(said, '^mount.vmsnap: failed to connect')
        self.assertLess(time.monotonic() - begin, SOON)
        Libvirtd.start()
        self.check_after(row, mount, 'mount.vmsnap', within=0)

    def test_restart_before_begin(self):
        """A mount while libvirtd is starting again works or fails; there is no third."""
        with self.row('restart of libvirtd', 'before begin') as row:
            mount = Mount(self.vm)
            Libvirtd.end(signal.SIGTERM)
            Libvirtd.launch()
            result = run('mount.vmsnap', self.vm.name, mount.point, status=None)
            self.assertIn(result.returncode, (0, 32))
            self.assertEqual(result.stderr.count('\n'), result.returncode // 32, result.stderr)
            if result.returncode == 0:
                mount.umount()
            self.check_after(row, mount, 'mount.vmsnap', within=2)

    def check_at_begin(self, row, end, pause):
        """END()s libvirtd at stepped moments of mount.vmsnap, and starts it again after a PAUSE."""
        mount = Mount(self.vm)
        begin = time.monotonic()
        mount.mount()
        duration = time.monotonic() - begin
        mount.umount()
        times = []

        def step(moment):
            process = subprocess.Popen(['mount.vmsnap', self.vm.name, mount.point], stdin=subprocess.DEVNULL,
                                       stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
            time.sleep(duration * (0.1 + 0.8 * moment))
            end()
            time.sleep(pause)
            Libvirtd.start()
            since = time.monotonic()
            err = process.communicate(timeout=SOON)[1]
            self.assertIn(process.returncode, (0, 32))
            # A mount that has succeeded may say that libvirt is away.
            self.assertLessEqual(err.count('\n'), 1, err)
            if process.returncode == 0:
                lib.read_all(mount / 'vdb.raw')
                mount.umount()
            if faults.has_lost_job(self.vm):
                return self.check_lost_job(row, mount)
            times.append(self.wait_cleared(mount, since))
            self.check_mountable_again(mount)

        self.step_through(BEGIN_STEPS, step)
        row.left = 'nothing'
        row.guest = self.check_guest() + row.guest.removeprefix('?')
        row.cleared = f'mount.vmsnap or its guardian, {max(times):.1f} s after libvirtd'
        mount.point.rmdir()

    def check_lost_job(self, row, mount):
        """libvirt itself has lost the job. The guest runs on, and when that is over, nothing may be left, either."""
        row.guest = '?; libvirt may lose the job until it and the guest are started anew'
        self.vm.touch()
        self.assertEqual(self.vm.state(), 'running')
        self.end_lost_job()
        self.wait_cleared(mount)
        self.reboot()
        self.check_mountable_again(mount)

    @for_each_stop('at begin')
    def test_at_begin(self, row, number):
        self.check_at_begin(row, lambda: Libvirtd.end(number), pause=0.3)

    def test_restart_at_begin(self):
        with self.row('restart of libvirtd', 'at begin') as row:
            self.check_at_begin(row, lambda: Libvirtd.end(signal.SIGTERM), pause=0)

    @for_each_stop('while 8 readers read')
    def test_while_read(self, row, number):
        """Reads go on, and umount finds libvirtd as it was."""
        with self.mounted() as (mount, readers):
            Libvirtd.end(number)
            readers.get_on()
            self.wait_overwritten()
            readers.get_on()
            self.assertEqual(mount.status()['status'], 'active')
            Libvirtd.start()
            readers.get_on()
            row.readers = readers.stop()
        since = time.monotonic()
        mount.umount()
        self.check_after(row, mount, 'umount', since, within=0)

    def test_restart_while_read(self):
        with self.row('restart of libvirtd, three times', 'while 8 readers read') as row:
            with self.mounted() as (mount, readers):
                for number in (signal.SIGTERM, signal.SIGKILL, signal.SIGTERM):
                    Libvirtd.end(number)
                    Libvirtd.start()
                    readers.get_on()
                row.readers = readers.stop()
            since = time.monotonic()
            mount.umount()
            self.check_after(row, mount, 'umount', since, within=0)

    @for_each_stop('at the end, and back after 1 s')
    def test_at_end(self, row, number):
        """umount waits for libvirtd to come back."""
        with self.mounted() as (mount, readers):
            row.readers = readers.stop()
        Libvirtd.end(number)
        process = self.begin_umount(mount)
        time.sleep(1)
        self.assertIsNone(process.poll())
        Libvirtd.start()
        since = time.monotonic()
        out, err = process.communicate(timeout=SOON)
        self.assertEqual((process.returncode, out, err), (0, '', ''))
        self.check_after(row, mount, 'umount', since)

    def test_restart_at_end(self):
        """libvirtd ends at stepped moments while umount runs, and comes back."""
        with self.row('restart of libvirtd', 'while umount runs') as row:
            times = []

            def step(moment):
                mount = Mount(self.vm)
                mount.mount()
                process = self.begin_umount(mount)
                time.sleep(0.08 * moment)
                Libvirtd.end(signal.SIGTERM if moment in (0, 1) else signal.SIGKILL)
                Libvirtd.start()
                since = time.monotonic()
                out, err = process.communicate(timeout=SOON)
                self.assertEqual((process.returncode, out, err), (0, '', ''))
                times.append(self.wait_cleared(mount, since))
                mount.point.rmdir()

            self.step_through(BEGIN_STEPS, step)
            row.left = 'nothing'
            row.cleared = f'umount, {max(times):.1f} s after libvirtd'
            row.guest = self.check_guest()

    @for_each_stop('at the end, and back too late')
    def test_gone_at_end(self, row, number):
        """umount does not wait for ever; what it leaves is cleared when libvirtd is back, without anybody's doing."""
        with self.mounted('timeout=4') as (mount, readers):
            row.readers = readers.stop()
        Libvirtd.end(number)
        begin = time.monotonic()
        said = complaint('umount', mount.point, status=32)
        self.assertLess(time.monotonic() - begin, 4 + SOON)
        self.assertIn(self.vm.name, said)
        self.assertIn('guardian goes on trying', said)
        self.assertNotIn(str(mount.point), lib.mounts())
        Libvirtd.start()
        self.check_after(row, mount, 'guardian, after libvirtd', time.monotonic())

    def test_daemon_killed_while_libvirtd_is_down(self):
        """The guardian goes on trying until libvirtd is back."""
        with self.row('kill -9 of libvirtd, then of the daemon', 'while 8 readers read') as row:
            with self.mounted() as (mount, readers):
                Libvirtd.end(signal.SIGKILL)
                since = time.monotonic()
                kill(mount.daemon())
                row.readers = readers.wait_errors(since, DEAD, within=CLEARED_WITHIN)
            lib.wait_until(lambda: str(mount.point) not in lib.mounts(), 'the mount is gone', timeout=CLEARED_WITHIN)
            time.sleep(1)
            Libvirtd.start()
            self.check_after(row, mount, 'guardian, after libvirtd', time.monotonic())


class Stack(faults.TestCase):
    def check_lost(self, row, mount, since, reason):
        """What is told of a snapshot that is lost, and that nothing is left of it."""
        status = mount.status()
        self.assertEqual(status['status'], 'error')
        self.assertTrue(status['errmsg'])
        said = complaint('umount', mount.point, status=32)
        self.assertRegex(said, reason)
        seconds = self.wait_cleared(mount, within=0) + time.monotonic() - since
        row.left = 'nothing'
        row.cleared = f'umount, {seconds:.1f} s'

    def check_guest_lost(self, fault, end):
        """END()s the guest while it is being read."""
        with self.row(fault, 'while 8 readers read') as row:
            self.wait_gone_round()  # now, when nobody reads: that would make it long
            with self.mounted() as (mount, readers):
                self.flush()
                qemu = self.vm.pid()
                end()
                lib.wait_until(lambda: not lib.lives(qemu), 'QEMU is gone', timeout=SOON)
                since = time.monotonic()
                row.readers = readers.wait_errors(since, within=LOST_WITHIN)
            since = time.monotonic()
            self.check_lost(row, mount, since, 'the guest was stopped')
            lib.wait_until(lambda: self.vm.state() == 'shut off', 'the guest is off', timeout=SOON)
            self.reboot()
            self.check_guest()
            self.check_records()
            row.guest = 'ends; all written is there'
            self.check_mountable_again(mount)

    def test_qemu_killed(self):
        self.check_guest_lost('kill -9 of QEMU', lambda: kill(self.vm.pid()))

    def test_destroy(self):
        self.check_guest_lost('virsh destroy', self.vm.destroy)

    def test_shutdown(self):
        """The guest ends by itself."""
        def power_off():
            self.vm.run('(sleep 0.1; poweroff -f) >/dev/null 2>&1 &')

        self.check_guest_lost('shutdown by the guest', power_off)

    def test_job_aborted(self):
        """Somebody else ends the job."""
        with self.row('virsh domjobabort', 'while 8 readers read') as row:
            with self.mounted() as (mount, readers):
                since = time.monotonic()
                self.vm.virsh('domjobabort', self.vm.name)
                row.readers = readers.wait_errors(since)
            self.check_lost(row, mount, time.monotonic(), 'somebody else ended the backup job')
            row.guest = self.check_guest()
            self.check_mountable_again(mount)

    def test_guest_paused(self):
        """A guest that does not run can be read as well as another."""
        with self.row('virsh suspend', 'while 8 readers read') as row:
            with self.mounted() as (mount, readers):
                self.vm.pause()
                readers.get_on()
                row.readers = readers.stop()
                self.vm.resume()
            since = time.monotonic()
            mount.umount()
            self.check_after(row, mount, 'umount', since, within=0)

    def test_unplug(self):
        """libvirt refuses to take a disk from a machine whose backup job has it."""
        with self.row('virsh detach-disk', 'while 8 readers read') as row:
            with self.mounted() as (mount, readers):
                for disk in self.vm.images:
                    self.assertIn('active block job', run('virsh', 'detach-disk', self.vm.name, disk, '--live',
                                                          status=1).stderr)
                readers.get_on()
                row.readers = readers.stop()
            since = time.monotonic()
            mount.umount()
            self.check_after(row, mount, 'umount', since, within=0)

    def test_migration(self):
        """
        A migration waits for the end of the job, and gives up after 30 s. This one has nowhere to go: what is of
        interest is that umount gets past it.
        """
        with self.row('virsh migrate', 'while 8 readers read') as row:
            with self.mounted() as (mount, readers):
                migration = subprocess.Popen(
                    ['virsh', 'migrate', '--live', '--unsafe', self.vm.name, 'qemu:///session'], stdin=subprocess.DEVNULL,
                    stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
                self.addCleanup(migration.kill)
                time.sleep(1)
                readers.get_on()
                self.assertIsNone(migration.poll())
                row.readers = readers.stop()
            since = time.monotonic()
            mount.umount()
            seconds = time.monotonic() - since
            _, err = migration.communicate(timeout=SOON)
            self.assertNotEqual(migration.returncode, 0)
            self.assertIn('same host', err)
            self.check_after(row, mount, '')
            row.cleared = f'umount, {seconds:.1f} s'

    def socket_of(self, mount):
        return Path('/run/vmsnap') / mount.status()['uuid'] / 'nbd.sock'

    def test_nbd_cut(self):
        """The connections break, and QEMU lives: new ones are made, and no reader sees a thing."""
        with self.row('NBD connections cut', 'while 8 readers read') as row:
            with self.mounted() as (mount, readers):
                self.assertGreater(faults.cut_connections(mount.daemon(), self.socket_of(mount)), 0)
                readers.get_on()
                time.sleep(0.5)
                readers.get_on()
                self.assertEqual(mount.status()['status'], 'active')
                row.readers = readers.stop()
            since = time.monotonic()
            mount.umount()
            self.check_after(row, mount, 'umount', since, within=0)

    def test_nbd_cut_repeatedly(self):
        with self.row('NBD connections cut, 20 times', 'while 8 readers read') as row:
            with self.mounted() as (mount, readers):
                daemon, path = mount.daemon(), self.socket_of(mount)
                cuts = 0
                for _ in range(20):
                    cuts += faults.cut_connections(daemon, path)
                    time.sleep(0.1)
                self.assertGreaterEqual(cuts, 20)
                readers.get_on()
                self.assertEqual(mount.status()['status'], 'active')
                row.readers = readers.stop()
            since = time.monotonic()
            mount.umount()
            self.check_after(row, mount, 'umount', since, within=0)

    def test_nbd_cut_before_umount(self):
        """Nobody reads any more when the connections break: that is no loss."""
        with self.row('NBD connections cut', 'before umount') as row:
            with self.mounted() as (mount, readers):
                row.readers = readers.stop()
            faults.cut_connections(mount.daemon(), self.socket_of(mount))
            since = time.monotonic()
            mount.umount()
            self.check_after(row, mount, 'umount', since, within=0)
