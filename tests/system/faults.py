# SPDX-License-Identifier: LGPL-2.1-or-later

"""
What the rows of the fault matrix are made of. Each row is a real fault against the real stack, and three promises:

    guest       it runs, what it wrote is there, and it can write
    readers     got the right bytes or an error, soon, and never anything else
    nothing     is left behind, soon, and the machine can be mounted again, on the same directory

The guest has a region on each of its two disks that it overwrites without a pause while readers read it (see
readers.py), and beside it the writer, whose records prove what it wrote.
"""

import contextlib
import ctypes
import fcntl
import json
import os
import re
import select
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import lib
from lib import MIB, Disk, Mount, Vm, run

# How long anything may take before a test calls it a hang. Far more than it needs, since machines are busy.
SOON = 15

# Within this time after a fault, or after libvirtd is back, nothing is left.
CLEARED_WITHIN = 10

# Within this time after QEMU's end, readers have an error.
LOST_WITHIN = 2

READERS = 8

# The region, on both disks. Behind it are the writer's rings (lib.RING_START).
START, SIZE = 8 * MIB, 12 * MIB

# What a read of a mount ends with whose daemon was killed, or whose connection to the kernel was cut.
DEAD = frozenset(('EIO', 'ENOTCONN', 'ECONNABORTED', 'ENODEV'))


@dataclass
class Row:
    fault: str
    when: str
    guest: str = '?'
    readers: str = '–'
    left: str = '?'
    cleared: str = '–'
    held: bool = False

    TITLES = ('fault', 'when', 'guest', 'readers', 'left behind', 'cleared')

    def cells(self):
        return [self.fault, self.when, self.guest, self.readers, self.left, self.cleared if self.held else 'FAILED']


class Matrix:
    """All rows, in the order of the tests."""

    def __init__(self):
        self._rows = []

    def add(self, row):
        self._rows.append(row)

    def report(self):
        """Prints the table as TAP diagnostics, and appends it to the file that VMSNAP_MATRIX names, as Markdown."""
        table = [Row.TITLES, *(row.cells() for row in self._rows)]
        self._rows = []
        widths = [max(len(cells[column]) for cells in table) for column in range(len(Row.TITLES))]
        for cells in table:
            print('# ' + ' | '.join(cell.ljust(width) for cell, width in zip(cells, widths)).rstrip())
        if path := os.environ.get('VMSNAP_MATRIX'):
            with open(path, 'a') as file:
                fcntl.flock(file, fcntl.LOCK_EX)
                if file.tell() == 0:
                    table.insert(1, ['---'] * len(Row.TITLES))
                else:
                    table.pop(0)
                file.writelines('| ' + ' | '.join(cells) + ' |\n' for cells in table)


MATRIX = Matrix()


def report_matrix():
    """For tearDownModule."""
    MATRIX.report()


def kill(pid, number=signal.SIGKILL):
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)


def children(pid, name=None):
    """The living children of a process, or those of them that are called NAME."""
    found = []
    for directory in Path('/proc').glob('[0-9]*'):
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            stat = re.search(r'^(\d+) \((.*)\) (\w) (\d+)', (directory / 'stat').read_text())
            if int(stat[4]) == pid and stat[3] != 'Z' and name in (None, stat[2]):
                found.append(int(stat[1]))
    return found


def kill_guardian(daemon):
    for pid in children(daemon):
        kill(pid)


def kill_both(daemon):
    # Stopped, so that the one does not see the other's death.
    kill(daemon, signal.SIGSTOP)
    kill_guardian(daemon)
    kill(daemon)


def guardian(daemon):
    found = children(daemon, 'vmsnap-guardian')
    assert len(found) == 1, f'the daemon, process {daemon}, has the guardians {found}'
    return found[0]


class Libvirtd:
    """The sandbox's libvirtd, which a test may stop, kill and start."""

    LOG = '/var/log/libvirt/libvirtd.log'

    @staticmethod
    def pid():
        return int(Path('/run/libvirtd.pid').read_text())

    @classmethod
    def end(cls, number):
        """It may hang at its end (9.0 does, now and then): then it is killed, as systemd would do it."""
        pid = cls.pid()
        os.kill(pid, number)
        try:
            lib.wait_until(lambda: not lib.lives(pid), 'libvirtd has ended', timeout=SOON)
        except AssertionError:
            os.kill(pid, signal.SIGKILL)
            lib.wait_until(lambda: not lib.lives(pid), 'libvirtd is dead', timeout=SOON)

    @staticmethod
    def answers():
        return run('virsh', '--quiet', '--connect', 'qemu:///system', 'list', status=None).returncode == 0

    @classmethod
    def launch(cls):
        """The one before may be dead, and a child of it still hold the file with its process id."""
        environment = {**os.environ, 'LIBVIRT_LOG_OUTPUTS': f'3:file:{cls.LOG}'}
        lib.wait_until(lambda: run('libvirtd', '--daemon', env=environment, status=None).returncode == 0,
                       'libvirtd starts', timeout=SOON, pause=0.2)

    @classmethod
    def start(cls):
        """Returns when it answers."""
        cls.launch()
        lib.wait_until(cls.answers, 'libvirtd answers', timeout=SOON)

    @classmethod
    def ensure(cls):
        with contextlib.suppress(FileNotFoundError, ValueError):
            if lib.lives(cls.pid()):
                return
        cls.start()


def has_lost_job(vm):
    """
    Whether libvirt has a backup job of a machine and knows nothing of it. It comes to that if libvirtd is killed before
    it has noted a job that has just begun (libvirt 9.0), and is over when the guest has ended and libvirtd was started
    anew. It is also so for a moment of each begin.
    """
    end = time.monotonic() + 1
    while 'backup job data missing' in run('virsh', '--connect', vm.uri, 'domjobinfo', vm.name, status=None).stderr:
        if time.monotonic() > end:
            return True
    return False


def cut_connections(pid, path):
    """Ends all connections that a process has to the socket PATH, without its doing. Returns how many there were."""
    libc = ctypes.CDLL(None, use_errno=True)
    pid_fd = os.pidfd_open(pid)
    count = 0
    try:
        for name in os.listdir(f'/proc/{pid}/fd'):
            with contextlib.suppress(FileNotFoundError):
                if not os.readlink(f'/proc/{pid}/fd/{name}').startswith('socket:'):
                    continue
            fd = libc.syscall(438, pid_fd, int(name), 0)  # pidfd_getfd
            if fd < 0:
                continue
            with socket.socket(fileno=fd) as connection, contextlib.suppress(OSError):
                if connection.family == socket.AF_UNIX and connection.getpeername() == str(path):
                    connection.shutdown(socket.SHUT_RDWR)
                    count += 1
    finally:
        os.close(pid_fd)
    return count


class Readers:
    """Readers of a mount's disks, in a process of their own, since one that hangs cannot be ended otherwise."""

    def __init__(self, mount, truth, count=READERS, user=None):
        program = Path(__file__).with_name('readers.py')
        names = [path.name for path in sorted(truth.iterdir())]
        self._process = subprocess.Popen(
            [sys.executable, program, str(count), str(START), str(SIZE), truth, mount.point, *names],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1, user=user)

    def __enter__(self):
        lib.wait_until(lambda: min(self.progress()) > 0, 'all readers read', timeout=SOON)
        return self

    def __exit__(self, *_):
        self.close()

    def close(self):
        """Ends the process, with which the files are closed."""
        self._process.kill()
        self._process.stdin.close()
        self._process.stdout.close()
        with contextlib.suppress(subprocess.TimeoutExpired):  # one that hangs in the kernel cannot be killed, either
            self._process.wait(timeout=SOON)

    def _ask(self, words, timeout):
        self._process.stdin.write(f'{words}\n')
        self._process.stdin.flush()
        ready, _, _ = select.select([self._process.stdout], [], [], timeout)
        assert ready, f'the readers do not answer: {words}'
        return json.loads(self._process.stdout.readline())

    def progress(self):
        return self._ask('progress', SOON)

    def get_on(self, what='reads go on'):
        """Waits until each of them has read more than before."""
        before = self.progress()
        lib.wait_until(lambda: all(now > then for now, then in zip(self.progress(), before)), what, timeout=SOON)

    @staticmethod
    def _check(results):
        wrong = [result['wrong'] for result in results if result['wrong']]
        assert not wrong, f'readers got something else than the instant or an error: {wrong}'
        hang = sum(not result['ended'] for result in results)
        assert not hang, f'{hang} of {len(results)} readers hang: {results}'
        return results

    def stop(self):
        """Ends them, who must not have seen an error. Returns what the matrix says of them."""
        results = self._check(self._ask('stop', 2 * SOON))
        self.close()
        errors = [result['error'] for result in results if result['error']]
        assert not errors, f'reads failed that should not: {errors}'
        return 'right bytes, no error'

    def stop_in_any_way(self):
        """Ends them, whatever they saw but wrong bytes."""
        results = self._check(self._ask('stop', 2 * SOON))
        self.close()
        return 'right bytes or an error' if any(result['error'] for result in results) else 'right bytes, no error'

    def wait_errors(self, since, errors=('EIO',), within=SOON):
        """Each must have got one of ERRORS within some seconds after SINCE. Returns what the matrix says of them."""
        results = self._check(self._ask(f'wait {SOON}', 2 * SOON))
        self.close()
        odd = [result['error'] for result in results if result['error'] not in errors]
        assert not odd, f'readers ended with {odd}, not with one of {sorted(errors)}'
        last = max(result['error_at'] for result in results) - since
        assert last < within, f'a reader learned of the fault after {last:.1f} s'
        seen = '/'.join(sorted({result['error'] for result in results}))
        return f'right bytes, then {seen} within {max(last, 0.05):.1f} s'


class Rows:
    """What tests need to fill rows of the matrix. They have a machine, self.vm."""

    @contextlib.contextmanager
    def row(self, fault, when):
        """One row of the matrix."""
        row = Row(fault, when)
        MATRIX.add(row)
        try:
            yield row
        except BaseException:
            self.clear_away()  # for the next row of this test
            raise
        row.held = True

    def wait_cleared(self, mount, since=None, within=CLEARED_WITHIN):
        """The third promise. Returns the seconds since then, or since now."""
        since = since or time.monotonic()
        waits = lib.pauses()
        while True:
            at = time.monotonic()
            try:
                mount.assert_no_trace()
                return at - since
            except AssertionError as error:  # also of virsh, to which libvirt cannot tell what a job is just doing
                if at - since > within:
                    raise AssertionError(f'after {at - since:.1f} s: {error}') from None
            next(waits)

    def step_through(self, count, step):
        """Calls STEP with moments from 0 to 1. If it fails, the message tells at which."""
        for number in range(count):
            try:
                step(number / (count - 1))
            except BaseException as error:
                error.add_note(f'at step {number} of {count}')
                raise

    def tearDown(self):
        self.clear_away()

    def clear_away(self):
        """Makes all as it was before, so that a row that failed does not make the next ones fail."""
        for point in lib.mounts():
            run('umount', '--lazy', '--internal-only', point, status=None)
        with contextlib.suppress(AssertionError):
            lib.wait_until(lambda: not lib.processes(), 'all have ended', timeout=2)
        for line in lib.processes():
            kill(int(line.split()[1].rstrip(',')))
        Path('/run/mount/utab').unlink(missing_ok=True)
        if self.vm.has_snapshot():
            self.vm.end_snapshot()
        home = lib.SANDBOX / self.vm.user if self.vm.user else None
        for directory in (Path(lib.runtime_dir(self.vm.user)) / 'vmsnap',
                          home / '.local/state/vmsnap' if home else Path('/var/lib/vmsnap')):
            for path in directory.glob('*'):
                shutil.rmtree(path) if path.is_dir() else path.unlink()


class TestCase(Rows, lib.TestCase):
    """A guest with a region that it can overwrite. After each test all is as it was, whatever went wrong in it."""

    # What the guest does again and again: each time the region gets other bytes, of noise that begins a page later.
    # (Through a pipe that would take the emulated processor four times as long.)
    OVERWRITE = ('n=$(cat /tmp/pass); for d in vda vdb; do '
                 f'dd if=/tmp/noise of=/dev/$d bs=1M count={SIZE // MIB} seek={START // MIB} '
                 'iflag=skip_bytes,fullblock skip=$((n % 1024 * 4096)) oflag=direct '
                 '2>/tmp/log || { echo "writer: BAD overwrite"; cat /tmp/log; } >/dev/console; done; '
                 'echo $((n + 1)) >/tmp/pass.new; mv /tmp/pass.new /tmp/pass')

    @classmethod
    def make_vm(cls):
        return Vm([Disk(driver='discard="unmap"'), Disk(format='raw')])

    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        cls.prepare_guest()

    @classmethod
    def prepare_guest(cls):
        """What each boot needs: other noise than the last one's, which is on the disks."""
        cls.vm.run(f'dd if=/dev/urandom of=/tmp/noise bs=1M count={SIZE // MIB + 4} 2>/dev/null; echo 0 >/tmp/pass')
        cls.vm.run(cls.OVERWRITE)
        cls.vm.start_writer()

    @classmethod
    def reboot(cls):
        cls.vm.start()
        cls.prepare_guest()

    def start_overwriting(self):
        self.vm.run(f'touch /tmp/overwriting; (while [ -e /tmp/overwriting ]; do {self.OVERWRITE}; sleep 1; done; '
                    'touch /tmp/overwritten) >/dev/null 2>&1 &')

    def stop_overwriting(self):
        self.vm.run('if [ -e /tmp/overwriting ]; then rm /tmp/overwriting; '
                    'while [ ! -e /tmp/overwritten ]; do usleep 10000; done; rm /tmp/overwritten; fi')

    def wait_overwritten(self):
        """Waits until all of the region is other than it was."""
        before = int(self.vm.run('cat /tmp/pass'))
        lib.wait_until(lambda: int(self.vm.run('cat /tmp/pass')) > before, 'the guest overwrites the region')

    def take_truth(self):
        """What is in the region, and stays so until somebody overwrites it."""
        self.stop_overwriting()
        directory = Path(tempfile.mkdtemp(prefix='truth-', dir=lib.SANDBOX))
        self.addCleanup(shutil.rmtree, directory)
        self.vm.pause()
        try:
            for disk in self.vm.images:
                self.vm.disk_raw(disk, directory / f'{disk}.raw')
        finally:
            self.vm.resume()
        return directory

    @contextlib.contextmanager
    def mounted(self, options='', overwrite=True, **how):
        """A mount with READERS readers, all of whose data the guest has overwritten since it began."""
        truth = self.take_truth()
        mount = Mount(self.vm, options)
        mount.mount(**how)
        if overwrite:
            self.start_overwriting()
        with Readers(mount, truth) as readers:
            if overwrite:
                self.wait_overwritten()
            readers.get_on()
            yield mount, readers

    def check_guest(self):
        """The first promise. Returns what the matrix says of it."""
        self.assertEqual(self.vm.state(), 'running')
        self.vm.wait_written()
        self.vm.touch()
        return 'runs and writes'

    @classmethod
    def check_records(cls):
        """That all which the guest ever wrote is there. It takes its time, so this is not done in each row."""
        cls.vm.stop_writer()
        cls.vm.check()
        cls.vm.start_writer()

    @classmethod
    def tearDownClass(cls):
        cls.check_records()
        super().tearDownClass()

    def check_mountable_again(self, mount):
        """A mount of the same machine works at once, on the same directory."""
        mount.mount()
        run('cat', mount / 'manifest.json')
        lib.read_all(mount / 'vdb.raw')
        mount.umount()
        self.wait_cleared(mount, within=0)

    def check_after(self, row, mount, cleared_by, since=None, within=CLEARED_WITHIN):
        """All that must be so after a fault from which somebody had to clear up."""
        seconds = self.wait_cleared(mount, since, within)
        row.left = 'nothing'
        row.cleared = f'{cleared_by}, {max(seconds, 0.05):.1f} s'
        row.guest = self.check_guest()
        self.check_mountable_again(mount)
        mount.point.rmdir()

    def wait_gone_round(self):
        lib.wait_until(lambda: self.vm.alive() > lib.RING_SLOTS, 'the writer has gone round')

    def flush(self):
        """
        Before the plug is pulled: the writer does not flush what it writes, and QEMU keeps in memory where new clusters
        of a qcow2 are. From the second round on it needs no new ones.
        """
        self.wait_gone_round()
        self.vm.run('for d in vda vdb; do dd if=/dev/null of=/dev/$d conv=fsync,notrunc 2>/dev/null || exit 1; done')

    def end_lost_job(self):
        self.flush()
        self.vm.destroy()
        Libvirtd.end(signal.SIGTERM)
        Libvirtd.start()

    def mend_stack(self):
        """Whatever a test has done to libvirtd."""
        Libvirtd.ensure()

    def mend_machine(self):
        """Whatever libvirt has lost of the machine."""
        if has_lost_job(self.vm):
            self.end_lost_job()

    def clear_away(self):
        self.mend_stack()
        super().clear_away()
        self.mend_machine()
        state = self.vm.state()
        if state == 'shut off':
            return self.reboot()
        if state == 'paused':
            self.vm.resume()
        self.stop_overwriting()
        if not self.vm.run('pidof writer', status=None):
            self.vm.start_writer()
