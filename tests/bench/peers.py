# SPDX-License-Identifier: LGPL-2.1-or-later

"""
What is compared, and how a command is measured: a mount of vmsnap, and the others that read the export of the same job.

A Session is one backup job: that of a vmsnap mount. An Arena has at most one at a time, as a machine can. In the place of
a machine there may be an NBD server (servers.py), which begins nothing.
"""

import contextlib
import json
import os
import re
import signal
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path

import lib
from lib import Mount, run, wait_until
from servers import Server

# Their names in the report.
VMSNAP, NBDCOPY, NBDFUSE, QEMU_FUSE = 'vmsnap', 'nbdcopy', 'nbdfuse', 'QEMU FUSE'
BRIDGES = (NBDFUSE, QEMU_FUSE)


@dataclass
class Timing:
    """What it cost to run commands."""
    seconds: float
    cpu: float  # seconds of the commands and of the process that serves them the file
    qemu: float  # seconds of QEMU meanwhile, in which there is also what the guest does


def cpu_seconds(pid):
    """The processor time that a process has used so far, of all its threads, to the nanosecond."""
    # CPUCLOCK_SCHED of another process, which is how clock_getcpuclockid(3) makes it.
    return time.clock_gettime((~pid << 3) | 2)


def time_commands(vm, commands, servers=()):
    """Runs COMMANDS, all at once, and waits for them. SERVERS are the processes whose work for them counts, too."""
    complaints = lib.SANDBOX / 'complaints'
    qemu = vm.pid()
    running = []
    try:
        with open(complaints, 'w') as stderr:
            before, qemu_before = sum(map(cpu_seconds, servers)), cpu_seconds(qemu)
            begin = time.monotonic()
            for command in commands:
                running.append(subprocess.Popen([str(word) for word in command], stdin=subprocess.DEVNULL,
                                                stdout=subprocess.DEVNULL, stderr=stderr))
            cpu = 0
            for process in running:
                # Not Popen.wait(): the processor time comes with this call only.
                _, status, usage = os.wait4(process.pid, 0)
                process.returncode = os.waitstatus_to_exitcode(status)
                cpu += usage.ru_utime + usage.ru_stime
            seconds = time.monotonic() - begin
        cpu += sum(map(cpu_seconds, servers)) - before
        qemu_cpu = cpu_seconds(qemu) - qemu_before
    finally:
        for process in running:
            if process.returncode is None:
                process.kill()
                process.wait()
    failed = [process for process in running if process.returncode]
    if failed:
        raise lib.CommandFailed(f'{" ".join(failed[0].args)}: exit status {failed[0].returncode}\n'
                                f'{complaints.read_text()}')
    return Timing(seconds, cpu, qemu_cpu)


@dataclass
class Files:
    """Where a contestant shows disks as files, {disk: path}, and the processes that serve them."""
    paths: dict
    servers: list


@contextlib.contextmanager
def bridge(kind, socket, disk):
    """Shows an NBD export as a file; gives its path and the process that serves it."""
    def command(point, pid_file):
        if kind == NBDFUSE:
            return ['nbdfuse', '-r', '-P', pid_file, point, nbd_uri(socket, disk)]
        return ['qemu-storage-daemon', '--pidfile', pid_file, '--blockdev',
                f'driver=nbd,node-name=disk,read-only=on,server.type=unix,server.path={socket},export={disk}',
                '--export', f'type=fuse,id=file,node-name=disk,mountpoint={point},writable=off,growable=off']

    with fuse_file(kind, disk, command) as served:
        yield served


@contextlib.contextmanager
def fuse_file(kind, name, command):
    """
    Lets a process show a file with this NAME, and gives its path and the process. COMMAND(path, file) starts it: it
    writes its process id to that second file when the first is there.
    """
    directory = lib.make_directory(f'{kind.replace(" ", "-")}-{time.monotonic_ns()}')
    point, pid_file = directory / name, directory / 'pid'
    point.touch()
    with open(directory / 'log', 'w') as log:
        process = subprocess.Popen(command(point, pid_file), stdin=subprocess.DEVNULL, stdout=log, stderr=log)
    try:
        wait_until(lambda: pid_file.exists() or process.poll() is not None, f'{kind} serves {name}')
        if process.poll() is not None:
            raise lib.CommandFailed(f'{kind} ended: {(directory / "log").read_text()}')
        yield point, process.pid
    finally:
        process.terminate()
        try:
            process.wait(lib.PATIENCE)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        run('umount', '--lazy', '--internal-only', point, status=None)


def nbd_uri(socket, disk):
    return f'nbd+unix:///{disk}?socket={socket}'


class Session:
    """A mount of some of a machine's disks; the other ways to read the same export begin when they are asked for."""

    def __init__(self, vm, disks, options):
        self.vm, self.disks, self.options = vm, disks, options
        self._stack = contextlib.ExitStack()
        self._files = {}

    def __enter__(self):
        # The images are to come from memory, whatever was read since they were made.
        for disk in self.disks:
            lib.read_all(self.vm.images[disk])
        self.mount = make_mount(self.vm, self.disks, self.options)
        self._stack.enter_context(self.mount)
        self.socket = self._find_socket()
        manifest = json.loads((self.mount / 'manifest.json').read_text())
        self._files[VMSNAP] = Files({disk['name']: self.mount / disk['file'] for disk in manifest['disks']},
                                    [self.mount.daemon()])
        return self

    def __exit__(self, *failure):
        return self._stack.__exit__(*failure)

    def _find_socket(self):
        if isinstance(self.vm, Server):
            return self.vm.socket
        record = Path('/run/vmsnap') / f'{self.mount.status()["uuid"]}.json'
        return json.loads(record.read_text())['socket']

    def files(self, name):
        """The disks as files, by vmsnap or a bridge, with nothing of them in the kernel's memory."""
        if name not in self._files:
            bridges = {disk: self._stack.enter_context(bridge(name, self.socket, disk)) for disk in self.disks}
            self._files[name] = Files({disk: path for disk, (path, _) in bridges.items()},
                                      [pid for _, pid in bridges.values()])
        for path in self._files[name].paths.values():
            lib.drop_cache(path)
        return self._files[name]

    def uri(self, disk):
        return nbd_uri(self.socket, disk)


def make_mount(vm, disks, options):
    return Mount(vm, ','.join(filter(None, (options, f'disks={":".join(disks)}'))))


class Arena:
    """The machine, and the one session that it may have."""

    def __init__(self, vm, disks):
        self.vm = vm
        self._disks = disks  # what they are: what the machine calls them
        self._session = None

    def names(self, what):
        """What the machine calls these disks."""
        return [self._disks[each] for each in what]

    def session(self, disks, options):
        """The session with these disks and options; another one is ended first."""
        now = self._session
        if not now or (now.disks, now.options) != (disks, options):
            self.close()
            session = Session(self.vm, disks, options)
            self._session = session.__enter__()
        return self._session

    def __enter__(self):
        return self

    def __exit__(self, *failure):
        session, self._session = self._session, None
        if session:
            session.__exit__(*failure)

    def close(self):
        """Ends the session if there is one: for those who begin a job of their own."""
        self.__exit__(None, None, None)

    @contextlib.contextmanager
    def writing(self, what, size):
        """The guest overwrites a disk meanwhile, from its beginning to its end and again, as fast as it can."""
        [disk] = self.names([what])
        step = 8
        self.vm.run(f'[ -e /tmp/noise ] || dd if=/dev/urandom of=/tmp/noise bs=1M count={step} status=none')
        self.vm.run(f'(while :; do for i in $(seq 0 {step} {size // lib.MIB - step}); do '
                    f'dd if=/tmp/noise of=/dev/{disk} bs=1M seek=$i oflag=direct conv=notrunc; done; done) '
                    '>/tmp/log 2>&1 & echo $! >/tmp/pid')
        try:
            yield
        finally:
            # Only the loop: its last dd ends by itself.
            self.vm.run('kill $(cat /tmp/pid); while killall -0 dd 2>/dev/null; do usleep 10000; done')


class Job:
    """A backup job of one disk in pull mode, begun and ended by virsh: what one does without vmsnap."""
    flags = ()

    def __init__(self, vm, disk):
        self._vm = vm
        self._directory = lib.make_directory(f'job-{time.monotonic_ns()}')
        # QEMU makes the socket here, and runs as another user. No one else gets into the sandbox.
        self._directory.chmod(0o777)
        self.socket = self._directory / 'socket'
        self._xml = self._directory / 'job.xml'
        others = ''.join(f'<disk name="{name}" backup="no"/>' for name in vm.images if name != disk)
        self._xml.write_text(self._definition(disk, others))

    def _definition(self, disk, others):
        return (f'<domainbackup mode="pull"><server transport="unix" socket="{self.socket}"/><disks>{others}'
                f'<disk name="{disk}" backup="yes" type="file"><scratch file="{self._directory}/scratch"/></disk>'
                '</disks></domainbackup>')

    def begin(self):
        self._vm.virsh('backup-begin', self._vm.name, self._xml, *self.flags)

    def end(self):
        self._vm.virsh('domjobabort', self._vm.name)

    def wait_ended(self):
        """The command that ends a job returns before it has ended."""
        wait_until(lambda: not self._vm.virsh('backup-dumpxml', self._vm.name, status=None), 'the job has ended')


class PushJob(Job):
    """A backup job in push mode: QEMU itself copies the disk, to the file TARGET, which is there already."""
    flags = ('--reuse-external',)

    def __init__(self, vm, disk, target):
        self._target = target
        super().__init__(vm, disk)

    def _definition(self, disk, others):
        # The owner stays: libvirt fails where it cannot be changed, as in a file of nbdfuse's.
        return (f'<domainbackup mode="push"><disks>{others}<disk name="{disk}" backup="yes" type="file">'
                f'<driver type="raw"/><target file="{self._target}"><seclabel model="dac" relabel="no"/></target>'
                '</disk></disks></domainbackup>')


def job_stats(vm):
    """What libvirt says of the machine's job now: {name: value}."""
    return dict(re.findall(r'^(.+?): +(.+?) *$', vm.virsh('domjobinfo', vm.name, '--rawstats'), re.MULTILINE))


def signal_to_exit():
    """Makes an end from outside one that leaves through every finally."""
    def leave(number, _):
        raise SystemExit(128 + number)

    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, leave)
