# SPDX-License-Identifier: LGPL-2.1-or-later

"""
The fault matrix, of what can happen to vmsnap's own processes: they are killed and interrupted at any time, unmounted in
any way, have no room for their record, and meet others. What can happen to libvirtd, QEMU, the guest and NBD is in
test_faults_stack.py, to scratch in test_faults_scratch.py.
"""

import contextlib
import os
import resource
import signal
import subprocess
import time
from pathlib import Path

import faults
import lib
from faults import CLEARED_WITHIN, DEAD, SOON, children, guardian, kill, kill_both, kill_guardian
from lib import Mount, complaint, run

tearDownModule = faults.report_matrix

# At how many moments a beginning, and an end, is hit.
BEGIN_STEPS = 5
END_STEPS = 5


def no_core_files():
    # Of a daemon one would come to lie in the root directory.
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


class Processes(faults.TestCase):
    def one_line(self, text):
        """What a command says to people that fails: one line, or nothing if it was not asked to the end."""
        self.assertLessEqual(text.count('\n'), 1, text)

    def start_mount(self, mount):
        return subprocess.Popen(['mount.vmsnap', self.vm.source, mount.point], stdin=subprocess.DEVNULL,
                                stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, start_new_session=True)

    def duration(self):
        """How long a mount takes, and an unmount."""
        mount = Mount(self.vm)
        begin = time.monotonic()
        mount.mount()
        middle = time.monotonic()
        mount.umount()
        end = time.monotonic()
        mount.point.rmdir()
        return middle - begin, end - middle

    # While readers read

    def check_daemon_killed(self, number, name):
        with self.row(f'{name} of the daemon', 'while 8 readers read') as row:
            with self.mounted(preexec_fn=no_core_files) as (mount, readers):
                pid = mount.daemon()
                since = time.monotonic()
                kill(pid, number)
                row.readers = readers.wait_errors(since, DEAD, within=CLEARED_WITHIN)
            self.check_after(row, mount, 'guardian', since)

    def test_kill_daemon(self):
        self.check_daemon_killed(signal.SIGKILL, 'kill -9')

    def test_crash_of_daemon(self):
        self.check_daemon_killed(signal.SIGSEGV, 'crash (SIGSEGV)')

    def test_kill_guardian(self):
        """The mount goes on, and umount ends all as ever."""
        with self.row('kill -9 of the guardian', 'while 8 readers read') as row:
            with self.mounted() as (mount, readers):
                kill(guardian(mount.daemon()))
                readers.get_on()
                time.sleep(0.5)
                readers.get_on()
                self.assertEqual(mount.status()['status'], 'active')
                row.readers = readers.stop()
            since = time.monotonic()
            mount.umount()
            self.check_after(row, mount, 'umount', since, within=0)

    def kill_both_while_read(self, row):
        """Kills both, and proves that the readers learn of it, and that nobody else has cleared up meanwhile."""
        with self.mounted() as (mount, readers):
            since = time.monotonic()
            kill_both(mount.daemon())
            row.readers = readers.wait_errors(since, DEAD, within=CLEARED_WITHIN)
        self.assertIn(str(mount.point), lib.mounts())
        self.assertTrue(self.vm.has_snapshot())
        return mount

    def test_kill_both_then_mount(self):
        """The next mount clears what is left, and takes the place of the dead one on its directory."""
        with self.row('kill -9 of both', 'while 8 readers read; then a mount') as row:
            mount = self.kill_both_while_read(row)
            self.vm.touch()
            since = time.monotonic()
            mount.mount()
            seconds = time.monotonic() - since
            self.assertEqual(mount.status()['status'], 'active')
            self.assertEqual(len(os.listdir('/run/vmsnap')), 2)
            self.assertEqual(len(os.listdir('/var/lib/vmsnap')), 1)
            lib.read_all(mount / 'vda.raw')
            mount.umount()
            self.check_after(row, mount, '', within=0)
            row.cleared = f'next mount, {seconds:.1f} s'

    def test_kill_both_then_mount_elsewhere(self):
        """The next mount need not be on the same directory: the dead one is cleared all the same."""
        with self.row('kill -9 of both', 'while 8 readers read; then a mount elsewhere') as row:
            mount = self.kill_both_while_read(row)
            since = time.monotonic()
            other = Mount(self.vm)
            other.mount()
            seconds = time.monotonic() - since
            self.assertEqual(lib.mounts(), [str(other.point)])
            other.umount()
            other.point.rmdir()
            self.check_after(row, mount, '', within=0)
            row.cleared = f'next mount, {seconds:.1f} s'

    def test_kill_both_then_cleanup(self):
        """--cleanup clears what is left, of one domain or of all."""
        for domain in ([self.vm.source], []):
            with self.row('kill -9 of both', f'while 8 readers read; then --cleanup {" ".join(["DOMAIN"] * len(domain))}'
                          .rstrip()) as row:
                mount = self.kill_both_while_read(row)
                since = time.monotonic()
                run('mount.vmsnap', '--cleanup', *domain)
                self.check_after(row, mount, '--cleanup', since, within=3)

    def test_kill_both_then_umount(self):
        """Who unmounts the dead mount by hand learns that this was not the end, and the next mount clears the rest."""
        with self.row('kill -9 of both', 'while 8 readers read; then umount, mount') as row:
            mount = self.kill_both_while_read(row)
            result = run('umount', mount.point, status=None)
            self.one_line(result.stderr)
            self.assertIn(result.returncode, (0, 32))
            since = time.monotonic()
            mount.mount()
            seconds = time.monotonic() - since
            mount.umount()
            self.check_after(row, mount, '', within=0)
            row.cleared = f'next mount, {seconds:.1f} s'

    def test_kill_daemon_then_umount(self):
        """An umount that races with the guardian fails in one line, or has nothing to do."""
        with self.row('kill -9 of the daemon', 'while 8 readers read; umount at once') as row:
            with self.mounted() as (mount, readers):
                since = time.monotonic()
                kill(mount.daemon())
                result = run('umount', '--lazy', mount.point, status=None)
                self.assertIn(result.returncode, (0, 32))
                self.one_line(result.stderr)
                row.readers = readers.wait_errors(since, DEAD, within=CLEARED_WITHIN)
            self.check_after(row, mount, 'guardian', since)

    def test_signals_to_daemon(self):
        """The ending signals end all, others nothing."""
        with self.row('SIGTERM, SIGINT, SIGHUP of the daemon', 'while 8 readers read') as row:
            for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
                with self.subTest(signal=number), self.mounted() as (mount, readers):
                    for ignored in (signal.SIGPIPE, signal.SIGQUIT, signal.SIGALRM, signal.SIGUSR1, signal.SIGUSR2):
                        kill(mount.daemon(), ignored)
                    readers.get_on()
                    since = time.monotonic()
                    kill(mount.daemon(), number)
                    row.readers = readers.wait_errors(since, DEAD)
                self.check_after(row, mount, 'daemon', since)

    def test_signals_to_guardian(self):
        """No signal that it can catch makes the guardian end a mount that lives, or leave it alone for ever."""
        with self.row('SIGTERM, SIGINT, SIGHUP of the guardian', 'while 8 readers read') as row:
            with self.mounted() as (mount, readers):
                pid = guardian(mount.daemon())
                for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGPIPE, signal.SIGQUIT,
                               signal.SIGUSR1, signal.SIGUSR2):
                    kill(pid, number)
                time.sleep(0.3)
                readers.get_on()
                row.readers = readers.stop()
            since = time.monotonic()
            mount.umount()
            self.check_after(row, mount, 'umount', since, within=0)

    # At the beginning

    def hit_begin(self, hit):
        """
        Calls HIT with a mount, the process of mount.vmsnap and its child, the daemon, at one moment of each of several
        mounts: from when there is a daemon on until all is ready.
        """
        duration, _ = self.duration()

        def step(moment):
            mount = Mount(self.vm)
            process = self.start_mount(mount)
            daemon, = lib.wait_until(lambda: children(process.pid), 'there is a daemon', timeout=SOON)
            time.sleep(duration * moment)
            hit(mount, process, daemon)
            mount.point.rmdir()

        self.step_through(BEGIN_STEPS, step)

    def check_killed_at_begin(self, row, victims, clears=True):
        """
        Kills VICTIMS(daemon) at stepped moments of mount.vmsnap. Unless CLEARS, nobody is left who clears up but the
        next mount. Returns the longest time that it took.
        """
        times = []

        def hit(mount, process, daemon):
            since = time.monotonic()
            victims(daemon)
            err = process.communicate(timeout=SOON)[1]
            self.one_line(err)
            # 0 if it was ready just before.
            self.assertIn(process.returncode, (0, 2, 32), err)
            if clears:
                times.append(self.wait_cleared(mount, since))
                self.check_mountable_again(mount)
            else:
                since = time.monotonic()
                self.check_mountable_again(mount)
                times.append(time.monotonic() - since)

        self.hit_begin(hit)
        row.left = 'nothing'
        row.guest = self.check_guest()
        return max(times)

    def test_kill_daemon_at_begin(self):
        with self.row('kill -9 of the daemon', 'at begin') as row:
            seconds = self.check_killed_at_begin(row, kill)
            row.cleared = f'guardian, {seconds:.1f} s'

    def test_kill_both_at_begin(self):
        with self.row('kill -9 of both', 'at begin') as row:
            seconds = self.check_killed_at_begin(row, kill_both, clears=False)
            row.cleared = f'next mount, {seconds:.1f} s'

    def test_kill_guardian_at_begin(self):
        """Then there is a mount, or none and nothing of it."""
        def hit(mount, process, daemon):
            kill_guardian(daemon)
            err = process.communicate(timeout=SOON)[1]
            self.assertEqual(err.count('\n'), 1 if process.returncode else 0, err)
            self.assertIn(process.returncode, (0, 2, 32), err)
            if process.returncode == 0:
                lib.read_all(mount / 'vdb.raw')
                mount.umount()
            self.wait_cleared(mount, within=0 if process.returncode == 0 else CLEARED_WITHIN)

        with self.row('kill -9 of the guardian', 'at begin') as row:
            self.hit_begin(hit)
            row.left = 'nothing'
            row.guest = self.check_guest()
            row.cleared = 'umount'

    @staticmethod
    def ends(pid):
        try:
            lib.wait_until(lambda: not lib.lives(pid), 'it has ended', timeout=CLEARED_WITHIN)
            return True
        except AssertionError:
            return False

    def test_kill_command_at_begin(self):
        """
        The command that waits is killed, and nobody else: then nobody knows of a mount, and there is none. One that is
        killed when the daemon has just told it that all is ready is as good as one that had ended.
        """
        times = []
        ready = []

        def hit(mount, process, daemon):
            since = time.monotonic()
            process.kill()
            process.communicate(timeout=SOON)
            if process.returncode == 0:
                mount.umount()
            elif not self.ends(daemon):
                ready.append(mount)
                mount.umount()
            times.append(self.wait_cleared(mount, since))
            self.check_mountable_again(mount)

        with self.row('kill -9 of mount.vmsnap', 'at begin') as row:
            self.hit_begin(hit)
            self.assertLess(len(ready), 2, 'only the last moment is as short as that')
            row.left = 'nothing'
            row.guest = self.check_guest()
            row.cleared = f'daemon, {max(times):.1f} s'

    # At the end

    def check_killed_at_end(self, row, victims, clears=True):
        """Kills VICTIMS(daemon) at stepped moments of umount, which must say in one line if that was no good end."""
        _, duration = self.duration()
        times = []

        def step(moment):
            mount = Mount(self.vm)
            mount.mount()
            lib.read_all(mount / 'vdb.raw')
            daemon = mount.daemon()
            process = subprocess.Popen(['umount', mount.point], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                                       stderr=subprocess.PIPE, text=True)
            time.sleep(duration * moment)
            since = time.monotonic()
            victims(daemon)
            _, err = process.communicate(timeout=2 * SOON)
            self.assertIn(process.returncode, (0, 32), err)
            self.assertEqual(err.count('\n'), process.returncode // 32, err)
            if clears:
                times.append(self.wait_cleared(mount, since))
                self.check_mountable_again(mount)
            else:
                since = time.monotonic()
                self.check_mountable_again(mount)
                times.append(time.monotonic() - since)
            mount.point.rmdir()

        self.step_through(END_STEPS, step)
        row.left = 'nothing'
        row.guest = self.check_guest()
        return max(times)

    def test_kill_daemon_at_end(self):
        with self.row('kill -9 of the daemon', 'while umount runs') as row:
            seconds = self.check_killed_at_end(row, kill)
            row.cleared = f'guardian, {seconds:.1f} s'

    def test_kill_guardian_at_end(self):
        with self.row('kill -9 of the guardian', 'while umount runs') as row:
            seconds = self.check_killed_at_end(row, kill_guardian)
            row.cleared = f'umount, {seconds:.1f} s'

    def test_kill_both_at_end(self):
        with self.row('kill -9 of both', 'while umount runs') as row:
            seconds = self.check_killed_at_end(row, kill_both, clears=False)
            row.cleared = f'next mount, {seconds:.1f} s'

    # Others

    def test_umount_during_begin(self):
        """Whoever unmounts while it is being mounted gets a no, or ends it."""
        with self.row('umount', 'at begin') as row:
            for _ in range(5):
                mount = Mount(self.vm)
                process = self.start_mount(mount)
                while process.poll() is None and run('umount', mount.point, status=None).returncode != 0:
                    pass
                err = process.communicate(timeout=SOON)[1]
                self.one_line(err)
                self.assertIn(process.returncode, (0, 32))
                if str(mount.point) in lib.mounts():
                    mount.umount()
                self.wait_cleared(mount, within=3)
                mount.point.rmdir()
            row.left, row.cleared = 'nothing', 'umount'
            row.guest = self.check_guest()

    def test_lazy_umount(self):
        """Readers read on until they are done, and then all ends."""
        with self.row('umount -l', 'while 8 readers read') as row:
            with self.mounted() as (mount, readers):
                run('umount', '--lazy', mount.point)
                self.wait_overwritten()
                readers.get_on()
                row.readers = readers.stop()
            self.check_after(row, mount, 'daemon')

    def test_forced_umount(self):
        """Readers fail, and all ends."""
        with self.row('umount -f', 'while 8 readers read') as row:
            with self.mounted() as (mount, readers):
                since = time.monotonic()
                result = run('umount', '--force', mount.point, status=None)
                self.assertIn(result.returncode, (0, 32))
                self.one_line(result.stderr)
                row.readers = readers.wait_errors(since, DEAD)
            self.check_after(row, mount, 'daemon', since)

    def test_two_mounts_at_once(self):
        """One wins, and the others say so in one line, with nothing left of them."""
        with self.row('two mounts of one machine', 'at once') as row:
            for _ in range(5):
                mounts = [Mount(self.vm) for _ in range(2)]
                processes = [self.start_mount(mount) for mount in mounts]
                errs = [process.communicate(timeout=SOON)[1] for process in processes]
                self.assertEqual(sorted(process.returncode for process in processes), [0, 32], errs)
                self.assertEqual(sorted(err.count('\n') for err in errs), [0, 1], errs)
                winner, loser = mounts if processes[0].returncode == 0 else mounts[::-1]
                self.assertEqual(lib.mounts(), [str(winner.point)])
                self.assertEqual(len(os.listdir('/run/vmsnap')), 2)
                self.assertEqual(len(os.listdir('/var/lib/vmsnap')), 1)
                lib.read_all(winner / 'vdb.raw')
                winner.umount()
                self.wait_cleared(winner, within=0)
                winner.point.rmdir()
                loser.point.rmdir()
            row.left, row.cleared = 'nothing', 'umount'
            row.guest = self.check_guest()

    def test_mount_after_umount(self):
        """When umount returns, the next mount finds nothing in its way."""
        with self.row('mount', 'right after umount') as row:
            mount = Mount(self.vm)
            for _ in range(10):
                mount.mount()
                mount.umount()
            row.readers = '–'
            self.check_after(row, mount, 'umount', within=0)

    def test_run_full_at_begin(self):
        """The record cannot be written: then nothing is begun."""
        with self.row('/run is full', 'at begin') as row:
            mount = Mount(self.vm)
            with full('/run'):
                said = complaint('mount.vmsnap', self.vm.source, mount.point, status=32)
                self.assertRegex(said, r"^mount\.vmsnap: failed to .*'/run/vmsnap.*No space left on device")
                # Whatever the reason, the word is given before anything is begun.
                self.assertFalse(self.vm.has_snapshot())
            self.check_after(row, mount, 'mount.vmsnap', within=0)

    def test_run_full_at_end(self):
        with self.row('/run is full', 'while umount runs') as row:
            with self.mounted() as (mount, readers):
                with full('/run'):
                    readers.get_on()
                    row.readers = readers.stop()
                    since = time.monotonic()
                    mount.umount()
            self.check_after(row, mount, 'umount', since, within=0)

    # --cleanup

    def test_cleanup_of_nothing(self):
        """Where nothing is left to clear, that is well."""
        for domain in ([], [self.vm.source]):
            result = run('mount.vmsnap', '--cleanup', *domain)
            self.assertEqual(result.stderr, '')

    def test_cleanup_leaves_the_living_alone(self):
        """A mount that lives is not touched, and who names it is told."""
        with self.row('--cleanup', 'while 8 readers read') as row:
            with self.mounted() as (mount, readers):
                run('mount.vmsnap', '--cleanup')
                said = complaint('mount.vmsnap', '--cleanup', self.vm.source, status=32)
                self.assertIn(str(mount.point), said)
                readers.get_on()
                self.assertEqual(mount.status()['status'], 'active')
                row.readers = readers.stop()
            since = time.monotonic()
            mount.umount()
            self.check_after(row, mount, 'umount', since, within=0)

    def test_cleanup_leaves_a_foreign_job_alone(self):
        """A backup job that vmsnap has not begun is not its own to end; nor does a mount take its place."""
        scratch = lib.make_directory('foreign')
        scratch.chmod(0o777)
        xml = scratch / 'backup.xml'
        xml.write_text(f'''<domainbackup mode="pull">
                             <server transport="unix" socket="{scratch}/socket"/>
                             <disks><disk name="vdb" backup="yes" type="file"><scratch file="{scratch}/vdb"/></disk>
                               <disk name="vda" backup="no"/></disks>
                           </domainbackup>''')
        mount = Mount(self.vm)
        with self.row('--cleanup, mount', 'while a foreign job runs') as row:
            self.vm.virsh('backup-begin', self.vm.name, xml)
            try:
                before = self.vm.virsh('backup-dumpxml', self.vm.name)
                run('mount.vmsnap', '--cleanup')
                run('mount.vmsnap', '--cleanup', self.vm.name, status=None)
                complaint('mount.vmsnap', self.vm.name, mount.point, status=32)
                self.assertEqual(self.vm.virsh('backup-dumpxml', self.vm.name), before)
            finally:
                self.vm.virsh('domjobabort', self.vm.name)
            self.check_after(row, mount, 'its owner', within=3)


@contextlib.contextmanager
def full(directory):
    """Has a tmpfs without room for one more page, however much somebody frees of it."""
    filler = Path(directory) / 'filler'
    status = os.statvfs(directory)
    try:
        run('mount', '-o', f'remount,size={(status.f_blocks - status.f_bfree) * status.f_frsize}', directory)
        # What others have freed meanwhile.
        with open(filler, 'wb', buffering=0) as file, contextlib.suppress(OSError):
            while True:
                file.write(bytes(4096))
        yield
    finally:
        run('mount', '-o', f'remount,size={status.f_blocks * status.f_frsize}', directory)
        filler.unlink(missing_ok=True)
