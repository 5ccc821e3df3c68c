# SPDX-License-Identifier: LGPL-2.1-or-later

"""Every way in which a snapshot can end: who learns of it, how soon, and that nothing is left behind."""

import contextlib
import errno
import fcntl
import os
import signal
import subprocess
import sys
import time
import unittest
from pathlib import Path

import lib
from lib import MIB, Disk, Mount, Vm, complaint, lives, run

# How long an end may take before a test calls it a hang. Far more than it needs, since machines are busy.
SOON = 15

# At how many moments of its beginning a mount is interrupted.
STEPS = 20

# Reads a file past the page cache, over and over, until that fails: then prints the name of the error.
READER = '''
import errno, mmap, os, sys
fd = os.open(sys.argv[1], os.O_RDONLY | os.O_DIRECT)
buffer = mmap.mmap(-1, 1 << 20)
print("reading", flush=True)
try:
    while True:
        for offset in range(8 << 20, 24 << 20, len(buffer)):
            os.preadv(fd, [buffer], offset)
except OSError as error:
    print(errno.errorcode[error.errno])
'''


@contextlib.contextmanager
def reader_of(path):
    """A process that reads a file; gives a function that returns the error with which the reads end."""
    process = subprocess.Popen([sys.executable, '-c', READER, path], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                               text=True)
    try:
        assert process.stdout.readline() == 'reading\n'
        yield lambda: process.communicate(timeout=SOON)[0].strip()
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


class Ends(lib.TestCase):
    """One guest that boots again where a test stops it. Its first disk has data where the readers read."""

    @classmethod
    def make_vm(cls):
        return Vm([Disk(driver='discard="unmap"'), Disk(format='raw')])

    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        cls.vm.run('dd if=/dev/urandom of=/dev/vda bs=1M seek=8 count=16 oflag=direct status=none; '
                   'dd if=/dev/urandom of=/dev/vdb bs=1M seek=8 count=16 oflag=direct status=none')

    def mounted(self):
        """A mount that the test itself ends, and its daemon. If it fails to, other tests do not suffer."""
        mount = Mount(self.vm)
        self.addCleanup(self.clear_away, mount)
        mount.mount()
        return mount, mount.daemon()

    def clear_away(self, mount):
        if str(mount.point) in lib.mounts():
            run('umount', '-l', mount.point, status=None)
            lib.wait_until(lambda: not lib.processes(), 'all daemons have ended', timeout=SOON)
        if self.vm.virsh('backup-dumpxml', self.vm.name, status=None):
            self.vm.virsh('domjobabort', self.vm.name)

    def wait_ended(self, mount, pid):
        """Waits until the daemon is gone and then, at once, nothing may be left."""
        lib.wait_until(lambda: not lives(pid), 'the daemon has ended', timeout=SOON)
        self.assertNotIn(str(mount.point), lib.mounts())
        mount.assert_nothing_left()

    def check_unread_fails(self, path, offset):
        begin = time.monotonic()
        with open(path, 'rb', buffering=0) as file, self.assertRaises(OSError) as caught:
            os.pread(file.fileno(), 4096, offset)
        self.assertEqual(errno.errorcode[caught.exception.errno], 'EIO')
        self.assertLess(time.monotonic() - begin, 5)

    def check_umount_says_broken(self, mount, reason):
        said = complaint('umount', mount.point, status=32)
        self.assertRegex(said, rf"^umount\.fuse\.vmsnap: failed to keep the snapshot of '{self.vm.name}': .*{reason}"
                               rf".* what was copied from '{mount.point}'")

    def test_umount_waits(self):
        """The moment umount returns, the process is gone, the job, the scratch, the socket: however busy all were."""
        self.vm.start_writer(pause_us=0)
        for _ in range(3):
            mount, pid = self.mounted()
            lib.read_all(mount / 'vda.raw')
            mount.umount()
            self.assertFalse(lives(pid))
            self.assertEqual(os.listdir('/run/vmsnap') + os.listdir('/var/lib/vmsnap'), [])
            mount.assert_nothing_left()
        self.vm.stop_writer()

    def test_umount_without_helper(self):
        """Who unmounts past our helper does not wait, but all ends just the same."""
        for command in (['umount', '-i'], ['fusermount3', '-u']):
            mount, pid = self.mounted()
            run(*command, mount.point)
            self.wait_ended(mount, pid)

    def test_umount_while_busy(self):
        """umount refuses while somebody uses the mount, and nothing has happened then."""
        with Mount(self.vm) as mount:
            before = mount.status()
            with open(mount / 'vda.raw', 'rb', buffering=0) as file:
                said = complaint('umount', mount.point, status=32)
                self.assertRegex(said, r"^umount\.fuse\.vmsnap: failed to unmount '.*': Device or resource busy; .+")
                self.assertEqual(len(os.pread(file.fileno(), MIB, 8 * MIB)), MIB)
            with contextlib.chdir(mount.point):
                mount.umount(status=32)
            self.assertEqual(mount.status()['uuid'], before['uuid'])
            self.assertEqual(mount.status()['status'], 'active')
            lib.read_all(mount / 'vdb.raw')

    def test_lazy_umount(self):
        """umount -l returns at once, who reads goes on to his end, and then all ends."""
        mount, pid = self.mounted()
        with open(mount / 'vda.raw', 'rb', buffering=0) as file:
            run('umount', '-l', mount.point)
            self.assertNotIn(str(mount.point), lib.mounts())
            self.assertEqual(len(os.pread(file.fileno(), MIB, 8 * MIB)), MIB)
            self.assertTrue(lives(pid))
        self.wait_ended(mount, pid)

    def test_signals(self):
        """SIGTERM, SIGINT and SIGHUP end all, while a reader reads and another has a file open: both get an error."""
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            with self.subTest(signal=number):
                mount, pid = self.mounted()
                with open(mount / 'vdb.raw', 'rb', buffering=0) as file, reader_of(mount / 'vda.raw') as error:
                    os.kill(pid, number)
                    self.assertIn(error(), ('ENOTCONN', 'ECONNABORTED', 'EIO'))
                    lib.wait_until(lambda: not lives(pid), 'the daemon has ended', timeout=SOON)
                    with self.assertRaises(OSError):
                        os.pread(file.fileno(), 4096, 8 * MIB)
                self.wait_ended(mount, pid)

    def foreground(self):
        mount = Mount(self.vm)
        self.addCleanup(self.clear_away, mount)
        command = ['mount.vmsnap', '--foreground', '-v', self.vm.name, mount.point]
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                                   text=True, start_new_session=True)
        lib.wait_until(lambda: str(mount.point) in lib.mounts() or process.poll() is not None, 'it is mounted')
        self.assertEqual(mount.daemon(), process.pid)
        return mount, process

    def test_foreground(self):
        """--foreground stays, and ends well with Ctrl-C, SIGTERM and umount; what it has to say it says on stderr."""
        for end, how in ((lambda process: process.send_signal(signal.SIGINT), 'stopped by a signal'),
                         (lambda process: process.terminate(), 'stopped by a signal'),
                         (lambda process: mount.umount(), 'complete')):
            mount, process = self.foreground()
            lib.read_all(mount / 'vdb.raw')
            self.assertIsNone(process.poll())
            end(process)
            out, err = process.communicate(timeout=SOON)
            self.assertEqual((process.returncode, out), (0, ''), err)
            self.assertRegex(err, rf"^mount\.vmsnap: domain '{self.vm.name}' is mounted on '{mount.point}'[^\n]*\n"
                                  rf"mount\.vmsnap: the snapshot of domain '{self.vm.name}' has ended: {how}\n$")
            self.wait_ended(mount, process.pid)

    def test_foreground_breaks(self):
        """In the foreground a lost snapshot is told by stderr and exit code, too."""
        mount, process = self.foreground()
        self.vm.virsh('domjobabort', self.vm.name)
        lib.wait_until(lambda: mount.status()['status'] == 'error', 'the loss is noticed', timeout=SOON)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=SOON)
        self.assertEqual((process.returncode, out), (32, ''), err)
        self.assertIn(f"mount.vmsnap: the snapshot of domain '{self.vm.name}' broke while it was mounted: ", err)
        self.wait_ended(mount, process.pid)

    def check_lost(self, lose, reason):
        """Loses a snapshot that is being read. Readers learn of it soon, status and umount say why."""
        mount, pid = self.mounted()
        with open(mount / 'vda.raw', 'rb', buffering=0) as file:
            read_before = os.pread(file.fileno(), 4096, 200 * MIB)
        with reader_of(mount / 'vda.raw') as error:
            lose()
            self.assertEqual(error(), 'EIO')
        for disk in ('vda.raw', 'vdb.raw'):
            self.check_unread_fails(mount / disk, 16 * MIB)
        # What is known to be zero still is.
        with open(mount / 'vda.raw', 'rb', buffering=0) as file:
            self.assertEqual(os.pread(file.fileno(), 4096, 200 * MIB), read_before)
        status = mount.status()
        self.assertEqual(status['status'], 'error')
        self.assertIn('QEMU closed the NBD connection', status['errmsg'])
        self.assertIn('\nstatus   error: QEMU closed', (mount / '.vmsnap/status').read_text())
        self.assertIn('manifest.json', os.listdir(mount.point))
        run('cmp', mount / 'kernel', self.vm.directory / 'vmlinuz')
        self.check_umount_says_broken(mount, reason)
        self.wait_ended(mount, pid)

    def test_job_aborted(self):
        """Somebody ends the job: the mount is lost, and the guest goes on."""
        self.check_lost(lambda: self.vm.virsh('domjobabort', self.vm.name), 'somebody else ended the backup job')

    def test_lost_with_many_readers(self):
        """Each of several readers gets EIO, time after time, and the daemon lives to tell umount why."""
        for _ in range(5):
            mount = Mount(self.vm)
            self.addCleanup(self.clear_away, mount)
            # With this glibc fills what is freed, so that the daemon must not look at it again.
            mount.mount(env={**os.environ, 'MALLOC_PERTURB_': '215'})
            pid = mount.daemon()
            with contextlib.ExitStack() as stack:
                errors = [stack.enter_context(reader_of(mount / disk)) for disk in ('vda.raw', 'vda.raw', 'vdb.raw')]
                self.vm.virsh('domjobabort', self.vm.name)
                self.assertEqual([error() for error in errors], ['EIO'] * 3)
            self.assertTrue(lives(pid))
            self.check_umount_says_broken(mount, 'somebody else ended the backup job')
            self.wait_ended(mount, pid)

    def test_guest_destroyed(self):
        """The plug is pulled: the mount is lost. The next boot can be mounted as ever."""
        self.check_lost(self.vm.destroy, 'the guest was stopped')
        self.vm.start()
        with Mount(self.vm) as mount:
            lib.read_all(mount / 'vda.raw')

    def test_guest_powers_off(self):
        """The guest shuts itself down: likewise."""
        def power_off():
            self.vm.run('(sleep 0.2; poweroff -f) >/dev/null 2>&1 &')
            lib.wait_until(lambda: self.vm.state() == 'shut off', 'the guest is off')

        self.check_lost(power_off, 'the guest was stopped')
        self.vm.start()

    def test_lost_unnoticed(self):
        """A loss that no reader met, after all was read, is still told by umount."""
        with Mount(self.vm) as mount:
            for disk in ('vda.raw', 'vdb.raw'):
                lib.read_all(mount / disk)
            self.vm.virsh('domjobabort', self.vm.name)
            self.check_umount_says_broken(mount, 'somebody else ended the backup job')

    def test_libvirtd_restarts(self):
        """libvirtd may go away and come back: reads go on meanwhile, and umount ends the job."""
        with Mount(self.vm) as mount:
            with lib.libvirtd_away():
                lib.read_all(mount / 'vda.raw')
                self.assertEqual(mount.status()['status'], 'active')
            lib.read_all(mount / 'vdb.raw')

    def test_interrupted_begin(self):
        """
        Ctrl-C at any time of the mount command: to the process alone, as kill does it, or to all of the terminal, as a
        shell does it. Either it is mounted and stays, and the exit status says so, or nothing is left.
        """
        begin = time.monotonic()
        with Mount(self.vm):
            duration = time.monotonic() - begin
        outcomes = set()
        for step in range(STEPS):
            mount = Mount(self.vm)
            self.addCleanup(self.clear_away, mount)
            process = subprocess.Popen(['mount.vmsnap', self.vm.name, mount.point], stdin=subprocess.DEVNULL,
                                       stderr=subprocess.PIPE, text=True, start_new_session=True)
            if step == STEPS - 1:
                process.wait(timeout=SOON)
            time.sleep(duration * 1.2 * step / STEPS)
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGINT) if step % 2 else process.send_signal(signal.SIGINT)
            err = process.communicate(timeout=SOON)[1]
            outcomes.add(process.returncode)
            if process.returncode == 0:
                time.sleep(0.1)
                self.assertIn(str(mount.point), lib.mounts(), f'step {step}: succeeded, but nothing is mounted: {err}')
                self.assertEqual(mount.status()['status'], 'active')
                mount.umount()
            else:
                self.assertIn(process.returncode, (32, -signal.SIGINT), err)
                self.assertLessEqual(err.count('\n'), 1, err)
                lib.wait_until(lambda: not lib.processes(), 'the daemon has ended', timeout=SOON)
            mount.assert_nothing_left()
        # The tries reach from the first moment to after the end.
        self.assertIn(0, outcomes)
        self.assertIn(32, outcomes)

    def test_closed_streams(self):
        """A caller without standard streams gets a mount as well, and no message for people goes astray."""
        mount = Mount(self.vm)
        self.addCleanup(self.clear_away, mount)
        run('sh', '-c', 'mount.vmsnap -v "$0" "$1" <&- >&- 2>&-', self.vm.name, mount.point)
        pid = mount.daemon()
        lib.read_all(mount / 'vda.raw')
        mount.umount()
        self.wait_ended(mount, pid)

    def test_daemon_keeps_nothing_of_its_caller(self):
        """It has / as its directory, /dev/null as its standard streams, a session of its own, and nobody's files."""
        lock, mount = lib.SANDBOX / 'lock', Mount(self.vm)
        self.addCleanup(self.clear_away, mount)
        with open(lock, 'w') as inherited:
            fcntl.flock(inherited, fcntl.LOCK_EX)
            with contextlib.chdir(lib.SANDBOX):
                # As in a script that says: exec 9>lock; flock 9
                run('mount.vmsnap', '-v', self.vm.name, mount.point, pass_fds=[inherited.fileno()])
        pid = mount.daemon()
        process = Path(f'/proc/{pid}')
        self.assertEqual(os.readlink(process / 'cwd'), '/')
        for fd in range(3):
            self.assertEqual(os.readlink(process / f'fd/{fd}'), '/dev/null')
        self.assertEqual(os.getsid(pid), pid)
        open_files = [os.readlink(fd) for fd in (process / 'fd').iterdir()]
        self.assertNotIn(str(lock), open_files)
        self.assertFalse([name for name in open_files if name.startswith('pipe:')])
        with open(lock) as again:
            fcntl.flock(again, fcntl.LOCK_EX | fcntl.LOCK_NB)
        mount.umount()
        self.wait_ended(mount, pid)


class Transient(unittest.TestCase):
    """A machine that libvirt knows only while it runs. Its processor never does, which saves the time of a boot."""

    def test_destroyed(self):
        """It can be mounted like others, and where it went to is no riddle to umount."""
        with Vm([Disk(size=MIB)]) as vm:
            xml = vm.directory / 'transient.xml'
            xml.write_text(vm.xml)
            vm.virsh('create', '--paused', xml)
            mount = Mount(vm)
            mount.mount()
            self.assertIn(f'<name>{vm.name}</name>', (mount / 'domain.xml').read_text())
            vm.virsh('destroy', vm.name)
            self.assertIn('the guest was stopped', complaint('umount', mount.point, status=32))
            vm.virsh('create', '--paused', xml)
            mount.assert_nothing_left()
