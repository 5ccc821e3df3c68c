# SPDX-License-Identifier: LGPL-2.1-or-later

"""What a mount says when nobody looks on: to syslog, with the snapshot that it is about; and to people, a line each."""

import contextlib
import os
import re
import shutil
import signal
import socket
import subprocess
import threading
from dataclasses import dataclass

import lib
from lib import MIB, Disk, Mount, Vm, bind_mount, complaint, run

# Of syslog(3): the daemon's facility, and the severities.
FACILITY = 3
WARNING, NOTICE = 4, 5


@contextlib.contextmanager
def private_dev():
    """A /dev with what is needed of it, and room for more: the sandbox has the machine's, which others use as well."""
    directory = lib.SANDBOX / 'dev'
    directory.mkdir()
    run('mount', '-t', 'tmpfs', '-o', 'mode=755', 'tmpfs', directory)
    try:
        for name in ('null', 'zero', 'full', 'random', 'urandom', 'tty', 'fuse'):
            status = os.stat(f'/dev/{name}')
            os.mknod(directory / name, status.st_mode, status.st_rdev)
            os.chmod(directory / name, 0o666)
        with bind_mount(directory, '/dev'):
            yield
    finally:
        run('umount', '--lazy', directory)
        directory.rmdir()


@dataclass
class Entry:
    severity: int
    pid: int
    text: str


class Syslog:
    """Stands in for syslogd: takes what comes to /dev/log."""

    def __init__(self):
        self._lock = threading.Lock()
        self._entries = []
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind('/dev/log')
        os.chmod('/dev/log', 0o666)
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def close(self):
        if not self._thread.is_alive():
            return
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as end:
            end.sendto(b'', '/dev/log')
        self._thread.join()
        self._socket.close()
        os.unlink('/dev/log')

    def _run(self):
        while datagram := self._socket.recv(65536):
            text = datagram.decode(errors='replace')
            found = re.fullmatch(r'<(\d+)>\w{3} [ \d]\d \d\d:\d\d:\d\d vmsnap\[(\d+)\]: (.*)', text, re.DOTALL)
            # Other programs log, too.
            if found and int(found[1]) // 8 == FACILITY:
                with self._lock:
                    self._entries.append(Entry(int(found[1]) % 8, int(found[2]), found[3]))

    def entries(self, pid=None):
        with self._lock:
            return [entry for entry in self._entries if pid in (None, entry.pid)]

    def wait_for(self, pattern, pid=None):
        """Waits for an entry whose text has the regular expression PATTERN in it, and returns it."""
        def find():
            return next((entry for entry in self.entries(pid) if re.search(pattern, entry.text)), None)

        try:
            return lib.wait_until(find, f'the log says {pattern}', timeout=20)
        except AssertionError as error:
            raise AssertionError(f'{error}; it says {self.entries()}') from None


class Log(lib.TestCase):
    @classmethod
    def make_vm(cls):
        return Vm([Disk(), Disk(size=MIB)])

    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        cls.enterClassContext(private_dev())

    def setUp(self):
        self.log = Syslog()
        self.addCleanup(self.log.close)

    def tearDown(self):
        self.unmount_all()
        lib.wait_until(lambda: not lib.processes(), 'all have ended')

    def mounted(self, *arguments, options=''):
        """A mount, what it is called in the log, and its daemon."""
        mount = Mount(self.vm, options)
        result = run('mount.vmsnap', self.vm.name, mount.point, *arguments,
                     *(['-o', mount.options] if mount.options else []))
        self.said = result.stderr
        self.assertEqual(result.stdout, '')
        subject = f"snapshot {mount.status()['uuid']} of '{self.vm.name}' on '{mount.point}': "
        return mount, subject, mount.daemon()

    def check(self, entry, severity, subject, text):
        self.assertEqual((entry.severity, entry.text), (severity, subject + text))

    def test_end(self):
        """The end of a mount is noted, and how: each line has the snapshot's UUID, domain and mount point."""
        mount, subject, daemon = self.mounted()
        self.assertEqual(self.said, '')
        mount.umount()
        self.check(self.log.wait_for('has ended', daemon), NOTICE, subject,
                   f"the snapshot of domain '{self.vm.name}' has ended: complete")
        for entry in self.log.entries():
            self.assertTrue(entry.text.startswith(subject), entry)
            self.assertEqual(entry.severity, NOTICE)
        mount.assert_nothing_left()

        mount, subject, daemon = self.mounted()
        os.kill(daemon, signal.SIGTERM)
        self.check(self.log.wait_for('has ended', daemon), NOTICE, subject,
                   f"the snapshot of domain '{self.vm.name}' has ended: stopped by a signal")
        mount.wait_ended()
        mount.assert_nothing_left()

    def test_begin(self):
        """So is its begin, with what the snapshot is worth."""
        mount, subject, daemon = self.mounted()
        entry = self.log.wait_for('is mounted on', daemon)
        self.assertEqual(entry.severity, NOTICE)
        self.assertTrue(entry.text.startswith(f"{subject}domain '{self.vm.name}' is mounted on '{mount.point}'"), entry)
        mount.umount()
        mount.assert_nothing_left()

    def test_nobody_listens(self):
        """Without syslogd all goes its way."""
        self.log.close()
        mount, _, _ = self.mounted()
        mount.umount()
        mount.assert_nothing_left()

    def test_verbose(self):
        """-v tells people more, a line each: what is mounted, and what was left out."""
        mount, _, _ = self.mounted('-v', options='exclude=vdb')
        self.assertEqual(sorted(re.sub(r' as snapshot .*', '', line) for line in self.said.splitlines()),
                         [f"mount.vmsnap: domain '{self.vm.name}' is mounted on '{mount.point}'",
                          "mount.vmsnap: left out 'vdb': was excluded"])
        mount.umount()
        mount.assert_nothing_left()
        mount, _, _ = self.mounted(options='exclude=vdb')
        self.assertEqual(self.said, '')
        mount.umount()
        mount.assert_nothing_left()

    def test_lost(self):
        """A snapshot that was lost is a warning, with the reason."""
        mount, subject, daemon = self.mounted()
        self.vm.virsh('domjobabort', self.vm.name)
        lib.wait_until(lambda: mount.status()['status'] == 'error', 'the loss is noticed')
        complaint('umount', mount.point, status=32)
        entry = self.log.wait_for('broke while it was mounted', daemon)
        self.assertEqual(entry.severity, WARNING)
        self.assertRegex(entry.text, f'^{re.escape(subject)}the snapshot of domain .* broke while it was mounted: .+')
        mount.assert_nothing_left()

    def kill_daemon(self):
        mount, subject, daemon = self.mounted()
        guardian = mount.guardian()
        os.kill(daemon, signal.SIGKILL)
        entry = self.log.wait_for('died', guardian)
        mount.wait_ended()
        mount.assert_nothing_left()
        return entry, subject, daemon

    def test_daemon_killed(self):
        """The guardian tells that the daemon died, and that it clears up."""
        entry, _, daemon = self.kill_daemon()
        self.assertEqual(entry.severity, WARNING)
        self.assertIn(f'the daemon (process {daemon}) died; clearing up after it', entry.text)

    def test_guardian_names_the_snapshot(self):
        """Also what the guardian says tells which snapshot it is about."""
        entry, subject, _ = self.kill_daemon()
        self.assertTrue(entry.text.startswith(subject), entry)

    def test_guardian_tries_on(self):
        """As long as the guest may suffer, the guardian tells why it cannot help, and then it can."""
        mount, _, daemon = self.mounted(options='timeout=1')
        guardian = mount.guardian()
        with lib.libvirtd_away():
            os.kill(daemon, signal.SIGKILL)
            entry = self.log.wait_for('failed to connect to libvirt', guardian)
            self.assertEqual(entry.severity, WARNING)
            self.assertTrue(lib.lives(guardian))
        lib.wait_until(lambda: not lib.lives(guardian), 'the guardian is done')
        mount.assert_nothing_left()

    def test_guardian_killed(self):
        """Without the guardian, the daemon tells what it could not do, and who can."""
        mount, subject, daemon = self.mounted()
        os.kill(mount.guardian(), signal.SIGKILL)
        os.kill(daemon, signal.SIGTERM)
        entry = self.log.wait_for('the guardian was killed', daemon)
        self.assertEqual(entry.severity, WARNING)
        self.assertRegex(entry.text, f"^{re.escape(subject)}the guardian was killed; .+; clear it with "
                                     "'mount.vmsnap --cleanup'$")
        lib.wait_until(lambda: not lib.lives(daemon), 'the daemon has ended')
        run('mount.vmsnap', '--cleanup')
        mount.assert_nothing_left()

    def test_libvirtd_away(self):
        """That nobody watches over the guest is a warning, and told once; and so is it when somebody does again."""
        mount, subject, daemon = self.mounted()
        with lib.libvirtd_away():
            entry = self.log.wait_for('connection to libvirt is lost', daemon)
            self.assertEqual(entry.severity, WARNING)
            self.assertTrue(entry.text.startswith(f'{subject}the connection to libvirt is lost: '), entry)
        self.check(self.log.wait_for('is back', daemon), NOTICE, subject, 'the connection to libvirt is back')
        about = [entry for entry in self.log.entries(daemon) if 'connection to libvirt' in entry.text]
        self.assertEqual(len(about), 2, about)
        mount.umount()
        mount.assert_nothing_left()

    def test_foreground(self):
        """In the foreground all goes to stderr, the guardian's words too, and nothing to the log."""
        mount = Mount(self.vm)
        process = subprocess.Popen(['mount.vmsnap', '--foreground', self.vm.name, mount.point],
                                   stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
                                   text=True, start_new_session=True)
        lib.wait_until(lambda: str(mount.point) in lib.mounts(), 'it is mounted')
        self.assertEqual(mount.daemon(), process.pid)
        process.kill()
        # The guardian has stderr as well, so this waits for its end.
        err = process.communicate(timeout=20)[1]
        self.assertRegex(err, rf"^mount\.vmsnap: domain '{self.vm.name}' is mounted on [^\n]*\n"
                              rf'mount\.vmsnap: the daemon \(process {process.pid}\) died; clearing up after it\n'
                              r'mount\.vmsnap: all that it had left is cleared\n$')
        self.assertEqual(self.log.entries(), [])
        mount.wait_ended()
        mount.assert_nothing_left()

    def test_lines(self):
        """A name with a line break in it makes no second line, for people or in the log."""
        directory = lib.make_directory('lines')
        mount, _, daemon = self.mounted()
        mount.umount()
        point = directory / 'two\nlines'
        point.mkdir()
        try:
            result = run('mount.vmsnap', '-v', self.vm.name, point)
            self.assertEqual(len(result.stderr.splitlines()), 1, result.stderr)
            line = complaint('mount.vmsnap', self.vm.name, point, status=32)
            self.assertIn(f"'{directory}/two lines'", line)
            self.assertIn('is mounted there already', line)
            line = complaint('mount.vmsnap', '--cleanup', self.vm.uuid, status=32)
            self.assertIn(f"'{directory}/two lines'", line)
        finally:
            run('umount', point)
        self.assertNotIn('process', ' '.join(lib.left_behind(self.vm)))
        shutil.rmtree(directory)
        mount.assert_nothing_left()
