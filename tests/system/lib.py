# SPDX-License-Identifier: LGPL-2.1-or-later

"""
What system tests are made of: virtual machines, mounts, and the proof that nothing is left behind.

Runs inside tests/system/sandbox, as root, where everything may be changed: VMSNAP_SANDBOX is a directory on a real
disk, VMSNAP_GUEST is where tests/guest was built.

A guest boots in about two seconds of a processor: give a class of tests one in setUpClass, not each test its own.
"""

import contextlib
import errno
import hashlib
import json
import os
import pwd
import re
import shlex
import shutil
import signal
import socket
import subprocess
import time
import unittest
import uuid
import xml.etree.ElementTree as ElementTree
from dataclasses import dataclass
from pathlib import Path

MIB = 1024 * 1024
SANDBOX = Path(os.environ['VMSNAP_SANDBOX'])
GUEST = Path(os.environ['VMSNAP_GUEST'])

# Where the writer's rings lie (tests/guest/records.h): behind a filesystem, and behind a block for Vm.touch().
RING_START = 192 * MIB
RING_SLOTS = 1024

# A guest under emulation on a busy machine is slow; a test that hangs must fail before meson gives up on all of them.
PATIENCE = 60


class CommandFailed(AssertionError):
    """A command ended with another status than expected. Its message carries all that the command said."""


def run(*command, user=None, status=0, timeout=PATIENCE, environment=(), **options):
    """
    Runs a command and returns what it printed. It must end with STATUS, or with any if STATUS is None.

    USER is 'backupuser' for the sandbox's ordinary user, or another account; ENVIRONMENT is a dict of variables to add
    to that user's. Returns the CompletedProcess, of text unless text=False.
    """
    command = [str(word) for word in command]
    if user:
        home = SANDBOX / user if user == 'backupuser' else Path('/nonexistent')
        options |= {'user': user, 'group': pwd.getpwnam(user).pw_gid, 'extra_groups': [],
                    'cwd': home if home.exists() else '/'}
        options['env'] = {'PATH': os.environ['PATH'], 'USER': user,
                          'HOME': str(home), 'XDG_RUNTIME_DIR': runtime_dir(user), **dict(environment)}
    options.setdefault('text', True)
    # A session of its own: the first one began outside of the sandbox, where automount cannot see its process group.
    result = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, timeout=timeout,
                            start_new_session=True, **options)
    if status is not None and result.returncode != status:
        raise CommandFailed(f'{" ".join(command)}: exit status {result.returncode}, not {status}\n'
                            f'{result.stdout}{result.stderr}')
    return result


def complaint(*command, status, **options):
    """Runs a command that must fail with STATUS and say why in one line on stderr, and no more. Returns that line."""
    result = run(*command, status=status, **options)
    lines = result.stderr.splitlines(keepends=True)
    if result.stdout or len(lines) != 1 or not lines[0].endswith('\n'):
        raise CommandFailed(f'{" ".join(map(str, command))} fails not with one line but with:\n'
                            f'{result.stdout}{result.stderr}')
    return lines[0].rstrip('\n')


@contextlib.contextmanager
def bind_mount(source, target, options=''):
    """Shows SOURCE at TARGET meanwhile, e.g. /dev/null in the place of a program."""
    run('mount', '--bind', source, target)
    try:
        if options:
            run('mount', '-o', f'remount,bind,{options}', target)
        yield
    finally:
        run('umount', '--lazy', '--internal-only', target)


def lives(pid):
    """Whether a process is there, and no dead one that nobody has waited for yet."""
    try:
        return Path(f'/proc/{pid}/stat').read_text().rpartition(')')[2].split()[0] != 'Z'
    except (FileNotFoundError, ProcessLookupError):
        return False


@contextlib.contextmanager
def libvirtd_away():
    """Ends libvirtd meanwhile, and starts it again until it answers."""
    pid = int(Path('/run/libvirtd.pid').read_text())
    os.kill(pid, signal.SIGTERM)
    wait_until(lambda: not lives(pid), 'libvirtd has ended')
    try:
        yield
    finally:
        run('libvirtd', '--daemon')
        wait_until(lambda: run('virsh', '-c', 'qemu:///system', 'list', status=None).returncode == 0,
                   'libvirtd answers')


def runtime_dir(user):
    """The directory of short-lived files: /run for root, XDG_RUNTIME_DIR for another."""
    return f'/run/user/{pwd.getpwnam(user).pw_uid}' if user else '/run'


def pauses(first=0.02, longest=0.25):
    """Ever longer pauses between looks: who waits for long must not take the processor from what it waits for."""
    pause = first
    while True:
        yield time.sleep(pause)
        pause = min(pause * 1.3, longest)


def wait_until(condition, what, timeout=PATIENCE, pause=0.02):
    """Waits until CONDITION() is true and returns its value."""
    end = time.monotonic() + timeout
    waits = pauses(pause)
    while not (value := condition()):
        if time.monotonic() > end:
            raise AssertionError(f'waited {timeout} s in vain until {what}')
        next(waits)
    return value


def sha256(path):
    with open(path, 'rb') as file:
        return hashlib.file_digest(file, 'sha256').hexdigest()


def drop_cache(path):
    """Makes the kernel forget what it has of a file, so that the next read is one of the file's filesystem."""
    with open(path, 'rb') as file:
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def read_all(path):
    """Reads a file to its end, for what that causes."""
    run('dd', f'if={path}', 'of=/dev/null', 'bs=1M', 'status=none')


def data_extents(path):
    """Where a file has data, and no holes: a list of (start, end), found as tar and cp do it."""
    found = []
    with open(path, 'rb', buffering=0) as file:
        end = 0
        while True:
            try:
                start = os.lseek(file.fileno(), end, os.SEEK_DATA)
            except OSError as error:
                if error.errno == errno.ENXIO:
                    return found
                raise
            end = os.lseek(file.fileno(), start, os.SEEK_HOLE)
            found.append((start, end))


def check_instant(disk_a, disk_b, user=None):
    """Proves that two files are one instant of a Vm's first two disks, and returns the newest record in it."""
    return int(run(GUEST / 'check', RING_START, RING_SLOTS, disk_a, disk_b, user=user).stdout)


@dataclass
class Disk:
    """A virtio disk to make."""
    size: int = 256 * MIB
    format: str = 'qcow2'
    options: str = ''  # qemu-img's, -o
    filesystem: int = 0  # the size of an ext4 at its beginning
    io: tuple = ()  # qemu-io's commands that put something on it
    driver: str = ''  # more attributes of the <driver>, e.g. 'discard="unmap"'
    xml: str = ''  # more elements for the <disk>, e.g. '<shareable/>'


class Vm:
    """
    A virtual machine that boots tests/guest, under emulation. Its disks are vda, vdb, ... in the order of DISKS.

    DEVICES and OS are more XML for <devices> and <os>. With USER, it belongs to that user's qemu:///session. With
    AGENT, the real QEMU guest agent runs in it.
    """

    def __init__(self, disks=(Disk(), Disk()), devices='', os_xml='', user=None, memory=192 * MIB, agent=False):
        self.uuid = str(uuid.uuid4())
        self.name = f'vm-{self.uuid[:8]}'
        self.user = user
        self.agent = agent
        self.uri = 'qemu:///session' if user else 'qemu:///system'
        self.mount_options = f'connect={self.uri}' if user else ''  # without which it is not found
        self.directory = make_directory(self.name, user)
        self.console = self.directory / 'console.log'
        self.images = {f'vd{chr(ord("a") + i)}': self.directory / f'vd{chr(ord("a") + i)}.{disk.format}'
                       for i, disk in enumerate(disks)}
        # Where touch() writes: a block before the rings, or the last one of a disk that has no room for them.
        self._touched_block = min(RING_START, disks[0].size if disks else RING_START) // 4096 - 1
        self._channel = None

        for file, source in (('vmlinuz', 'vmlinuz'), ('initrd', 'initrd-agent' if agent else 'initrd')):
            # Copies, since libvirt gives these files to QEMU's user while the machine runs.
            self._own(shutil.copy(GUEST / source, self.directory / file))
        for disk, image in zip(disks, self.images.values()):
            self._make_image(disk, image)
        if agent:
            # With a path, since libvirt's own is too long below the home of a sandbox's user.
            devices += f'''<channel type="unix">
                            <source mode="bind" path="{self.directory}/agent"/>
                            <target type="virtio" name="org.qemu.guest_agent.0"/>
                          </channel>'''
        self.xml = self._domain(disks, devices, os_xml, memory)

    @classmethod
    def restore(cls, copy, user=None, disk_format='raw', checkpoint=None):
        """
        A machine of its own, out of what was copied from a mount: COPY is a directory with domain.xml, an image for
        each disk, kernel and initrd. In the definition, only what must not be the same twice is changed: name, UUID and
        paths. The files come from a mount that is read-only and for its user alone, which a machine's disks cannot be.
        With CHECKPOINT, the images are those whose names have it.
        """
        vm = cls(disks=(), user=user)
        copy.chmod(0o711)
        text = (copy / 'domain.xml').read_text()
        original = Path(ElementTree.fromstring(text).find('os/kernel').text).parent
        domain = ElementTree.fromstring(text.replace(str(original), str(vm.directory)))
        domain.find('name').text = vm.name
        domain.find('uuid').text = vm.uuid
        for file in ('kernel', 'initrd'):
            domain.find(f'os/{file}').text = str(copy / file)
            vm._own(copy / file)
        for disk in domain.iterfind('devices/disk'):
            name = disk.find('target').get('dev')
            image = copy / '.'.join(filter(None, (name, checkpoint, disk_format)))
            if image.exists():
                image.chmod(0o600)
                vm.images[name] = image
                disk.find('driver').set('type', disk_format)
                disk.find('source').set('file', str(image))
                vm._own(image)
        vm.xml = ElementTree.tostring(domain, encoding='unicode')
        return vm

    def _own(self, path):
        if self.user:
            shutil.chown(path, self.user, self.user)

    def _make_image(self, disk, image):
        options = ['-o', disk.options] if disk.options else []
        run('qemu-img', 'create', '-q', '-f', disk.format, *options, image, disk.size)
        if disk.filesystem:
            assert disk.filesystem < RING_START
            raw = image.with_suffix('.mkfs')
            with open(raw, 'wb') as file:
                file.truncate(disk.size)
            run('mkfs.ext4', '-q', raw, f'{disk.filesystem // 1024}k')
            run('qemu-img', 'convert', '-n', '--target-is-zero', '-f', 'raw', '-O', disk.format, raw, image)
            raw.unlink()
        if disk.io:
            run('qemu-io', '-f', disk.format, *(word for command in disk.io for word in ('-c', command)), image)
        self._own(image)

    def _domain(self, disks, devices, os_xml, memory):
        disk_xml = ''.join(
            f'''<disk type="file" device="disk">
                  <driver name="qemu" type="{disk.format}" {disk.driver}/>
                  <source file="{image}"/>
                  <target dev="{name}" bus="virtio"/>
                  {disk.xml}
                </disk>'''
            for disk, (name, image) in zip(disks, self.images.items()))
        return f'''
          <domain type="qemu">
            <name>{self.name}</name>
            <uuid>{self.uuid}</uuid>
            <memory unit="b">{memory}</memory>
            <vcpu>1</vcpu>
            <os>
              <type arch="x86_64" machine="pc">hvm</type>
              <kernel>{self.directory}/vmlinuz</kernel>
              <initrd>{self.directory}/initrd</initrd>
              <cmdline>console=ttyS0 quiet panic=-1 mitigations=off nokaslr cryptomgr.notests</cmdline>
              {os_xml}
            </os>
            <features><acpi/></features>
            <!-- Without rdrand, the first look at /dev/urandom keeps the processor busy for most of a second. -->
            <cpu mode="custom" match="exact" check="none">
              <model fallback="forbid">qemu64</model>
              <feature policy="require" name="rdrand"/>
            </cpu>
            <on_reboot>destroy</on_reboot>
            <devices>
              <emulator>/usr/bin/qemu-system-x86_64</emulator>
              {disk_xml}
              <serial type="file"><source path="{self.console}"/><target port="0"/></serial>
              <serial type="unix"><source mode="bind" path="{self.directory}/commands"/><target port="1"/></serial>
              <controller type="usb" model="none"/>
              <video><model type="none"/></video>
              <memballoon model="none"/>
              {devices}
            </devices>
          </domain>'''

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    def virsh(self, *arguments, **options):
        """Runs virsh on this machine's libvirt, and returns what it printed."""
        return run('virsh', '--quiet', '--connect', self.uri, *arguments, user=self.user, **options).stdout

    def define(self):
        xml = self.directory / 'domain.xml'
        xml.write_text(self.xml)
        self._own(xml)
        self.virsh('define', xml)
        return self

    def start_paused(self):
        """Defines and starts the machine, but its processor never runs, which saves the time of a boot. Returns it."""
        self.define()
        self.virsh('start', '--paused', self.name)
        return self

    def start(self):
        """Defines and boots the machine, and returns it when the guest takes commands, and the agent its own."""
        self.define()
        self.virsh('start', self.name)
        self._wait_booted()
        return self

    def _wait_booted(self):
        wait_until(lambda: 'guest: ready' in self._console_text(), f'{self.name} has booted')
        self._channel = socket.socket(socket.AF_UNIX)
        self._channel.connect(str(self.directory / 'commands'))
        if self.agent:
            self.wait_agent()

    def state(self):
        return self.virsh('domstate', self.name).strip()

    def checkpoints(self):
        """The names of all that libvirt knows, as a set."""
        return set(self.virsh('checkpoint-list', self.name, '--name').split())

    def qemu_io(self, disk, *commands):
        """
        Lets QEMU do to a disk what a guest could do, and needs none: COMMANDS are those of qemu-io(1), for instance
        'write -P 7 1M 64k'. QEMU says on its own stdout, which is not ours, whether they have worked.
        """
        device = f'/machine/peripheral/virtio-disk{ord(disk[-1]) - ord("a")}/virtio-backend'
        said = self.virsh('; '.join(f"qemu-monitor-command {self.name} --hmp 'qemu-io -d {device} \"{command}\"'"
                                    for command in (*commands, 'flush'))).strip()
        assert not said, said

    def state_and_jobs(self):
        """The state, and what domjobinfo and backup-dumpxml say, '' if nothing. One virsh costs less than three."""
        name = shlex.quote(self.name)  # virsh understands that, too
        commands = f'domstate {name}; domjobinfo {name}; backup-dumpxml {name}'
        result = run('virsh', '--quiet', '--connect', self.uri, commands, user=self.user, status=None)
        state, _, rest = result.stdout.partition('\n')
        if state == 'shut off':
            return state, '', ''
        job, start, backup = rest.partition('<domainbackup')
        if not job.startswith('Job type:'):
            raise CommandFailed(f'virsh does not tell the jobs of {self.name}:\n{result.stdout}{result.stderr}')
        return state, job, start + backup

    def traces(self):
        """What a snapshot may leave in the machine, as a set of lines."""
        state, job, backup = self.state_and_jobs()
        found = set()
        if job and not re.fullmatch(r'Job type: +None\s*', job):
            found.add(f'job of {self.name}: {job}')
        if backup:
            found.add(f'backup job of {self.name}: {backup}')
        if self.agent and state != 'shut off' and self.frozen():
            found.add(f'frozen filesystem in {self.name}')
        return found

    def has_snapshot(self):
        """Whether the machine keeps an instant for somebody."""
        return bool(self.virsh('backup-dumpxml', self.name, status=None))

    def end_snapshot(self):
        """Ends it by force, whoever has begun it, and whatever is known of it."""
        self.virsh('domjobabort', self.name, status=None)

    def pid(self):
        """QEMU's process."""
        return int(Path(f'/run/libvirt/qemu/{self.name}.pid').read_text())

    def pause(self):
        """Stops the processor. QEMU writes its caches to the image files at this time."""
        self.virsh('suspend', self.name)

    def resume(self):
        self.virsh('resume', self.name)

    def _hang_up(self):
        if self._channel:
            self._channel.close()
            self._channel = None

    def destroy(self):
        """Pulls the plug."""
        self._hang_up()
        self.virsh('destroy', self.name)

    def close(self):
        """Removes the machine and its files."""
        self._hang_up()
        self.virsh('destroy', self.name, status=None)
        self.virsh('undefine', self.name, '--nvram', '--checkpoints-metadata', status=None)
        self._remove()

    def _remove(self):
        shutil.rmtree(self.directory)

    @property
    def source(self):
        """What is mounted."""
        return self.name

    def run(self, command, status=0, timeout=PATIENCE):
        """Runs a line of shell in the guest and returns what it printed (init says how)."""
        token = f'answer-{uuid.uuid4().hex}'
        whole = re.compile(rf'{token}\n(.*)\n{token} (\d+)\n'.encode(), re.DOTALL)
        answer = b''
        self._channel.sendall(f'{token} {command}\n'.encode())
        deadline = time.monotonic() + timeout
        while not (found := whole.search(answer)):
            self._channel.settimeout(max(deadline - time.monotonic(), 0.001))
            try:
                received = self._channel.recv(65536)
            except TimeoutError:
                received = b''
            if not received:
                raise AssertionError(f'{self.name} gave no answer to: {command}\n{answer.decode(errors="replace")}')
            answer += received
        output = found[1].decode(errors='replace')
        if status is not None and int(found[2]) != status:
            raise CommandFailed(f'in the guest: {command}: exit status {int(found[2])}, not {status}\n{output}')
        return output

    def start_writer(self, pause_us=4000):
        """Lets the guest write records to its first two disks, from where they end. Returns when the first is there."""
        self.run(f'writer {RING_START} {RING_SLOTS} {pause_us} /dev/vda /dev/vdb >/dev/console 2>&1 &')
        self.wait_written()

    def stop_writer(self):
        self.run('killall writer; while killall -0 writer 2>/dev/null; do usleep 10000; done')

    def alive(self):
        """The newest record that the writer has reported, -1 before the first. Never one that lies."""
        text = self._console_text()
        if 'writer: BAD' in text:
            raise AssertionError(f'{self.name} read something else than it wrote:\n{text[-400:]}')
        return max(map(int, re.findall(r'^alive (\d+)\s*$', text, re.MULTILINE)), default=-1)

    def wait_written(self):
        """Waits until the writer has got further than it was."""
        before = self.alive()
        wait_until(lambda: self.alive() > before, f'the writer in {self.name} gets on')

    def check(self):
        """The guest's own proof that its disks are one instant. Returns the newest record on them."""
        return int(self.run(f'check {RING_START} {RING_SLOTS} /dev/vda /dev/vdb'))

    def touch(self):
        """
        Proves that the guest can write: a block that nobody else uses, to its first disk and back; and to what is
        mounted on /mnt, which waits as long as it is frozen, whatever the guest agent says.
        """
        block = self._touched_block
        self.run('if grep -q " /mnt " /proc/mounts; then date >/mnt/touched; fi')
        self.run(f'dd if=/dev/urandom of=/tmp/block bs=4096 count=1 status=none && '
                 f'dd if=/tmp/block of=/dev/vda bs=4096 seek={block} oflag=direct status=none && '
                 f'dd if=/dev/vda bs=4096 skip={block} count=1 iflag=direct status=none | cmp - /tmp/block')

    def ask_agent(self, command):
        """
        What the guest agent returns for a command of its own, e.g. 'guest-info'. CommandFailed if it does not answer,
        which takes five seconds where it is there but stopped.
        """
        answer = self.virsh('qemu-agent-command', self.name, '--timeout', 5, json.dumps({'execute': command}))
        return json.loads(answer)['return']

    def wait_agent(self):
        """Waits until the guest agent answers."""
        def answers():
            with contextlib.suppress(CommandFailed):
                return self.ask_agent('guest-ping') == {}

        wait_until(answers, f'the guest agent of {self.name} answers')

    def frozen(self):
        """Whether the guest agent has frozen the guest's filesystems; None if it does not answer."""
        try:
            return self.ask_agent('guest-fsfreeze-status') == 'frozen'
        except CommandFailed:
            return None

    def disk_raw(self, disk, path):
        """The truth: writes what is on a disk, as the guest sees it, to a raw file. The machine must not be running."""
        assert self.state() in ('paused', 'shut off'), 'the disk of a running machine has no one content'
        run('qemu-img', 'convert', '-U', '-O', 'raw', self.images[disk], path)
        return path

    def disk_hash(self, disk):
        """SHA-256 of the truth."""
        raw = self.directory / 'truth.raw'
        try:
            return sha256(self.disk_raw(disk, raw))
        finally:
            raw.unlink()

    def _console_text(self):
        return self.console.read_text(errors='replace') if self.console.exists() else ''


def appliance_environment(directory):
    """What libguestfs needs to build its machine in DIRECTORY out of the kernel of tests/guest, and to run it here."""
    modules = Path((GUEST / 'modules.path').read_text().strip())
    return {**os.environ, 'SUPERMIN_KERNEL': str(GUEST / 'vmlinuz'), 'SUPERMIN_MODULES': str(modules),
            'SUPERMIN_KERNEL_VERSION': modules.name, 'LIBGUESTFS_CACHEDIR': str(directory),
            'LIBGUESTFS_BACKEND': 'direct', 'LIBGUESTFS_BACKEND_SETTINGS': 'force_tcg', 'LIBGUESTFS_MEMSIZE': '400'}


def make_directory(name, user=None):
    """A directory for a test's data, on a real disk, and open to all: libvirt's QEMU is not root."""
    directory = SANDBOX / user / name if user else SANDBOX / name
    directory.mkdir(mode=0o755)
    if user:
        shutil.chown(directory, user, user)
    return directory


def mounts():
    """The mount points of all vmsnap mounts."""
    lines = (line.split(' ') for line in Path('/proc/self/mountinfo').read_text().splitlines())
    return [fields[4] for fields in lines if fields[fields.index('-') + 1] == 'fuse.vmsnap']


def processes():
    """All vmsnap processes, but for dead ones that the first process has not yet waited for."""
    found = []
    for directory in Path('/proc').glob('[0-9]*'):
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            name, state = re.search(r'^\d+ \((.*)\) (\w)', (directory / 'stat').read_text()).groups()
            if 'vmsnap' in name and state != 'Z':
                found.append(f'process {directory.name}, {name}, in state {state}')
    return found


def left_behind(vm, known=None):
    """
    What a snapshot of VM may leave on this machine, as a set of lines. With KNOWN, libvirt, which takes a while to
    answer, is only asked if there is nothing else than that.
    """
    home = SANDBOX / vm.user if vm.user else None
    runtime = Path(runtime_dir(vm.user)) / 'vmsnap'
    scratch = home / '.local/state/vmsnap' if home else Path('/var/lib/vmsnap')
    left = {f'mount {point}' for point in mounts()} | set(processes())
    for directory in (runtime, scratch):
        # walk(), unlike rglob(), does not mind what vanishes meanwhile.
        for path, directories, files in os.walk(directory):
            left |= {f'file {path}/{name}' for name in directories + files}
    with contextlib.suppress(FileNotFoundError):
        left |= {f'entry of umount(8): {line}' for line in Path('/run/mount/utab').read_text().splitlines()
                 if 'vmsnap' in line}
    if known is None or left <= known:
        left |= vm.traces()
    return left


class Mount:
    """
    A machine's snapshot, mounted by the real mount.vmsnap on a new directory:

        with Mount(vm, 'allow_other') as mount:
            ... mount / 'vda.raw' ...

    At the end it is unmounted, nothing may be left of it, and the guest must be as it was. VM need not be a Vm: a server
    (servers.py) has the same methods as far as they are used here.
    """

    def __init__(self, vm, options=''):
        self.vm = vm
        self.point = make_directory(f'mount-{uuid.uuid4().hex[:8]}', vm.user)
        self.options = ','.join(filter(None, (vm.mount_options, options)))
        self.said = ''  # by the command that mounted it, on stderr
        self._before = left_behind(vm)

    def __truediv__(self, name):
        return self.point / name

    def __enter__(self):
        self.mount()
        return self

    def __exit__(self, *failure):
        if str(self.point) in mounts():
            self.umount(status=None if failure[0] else 0)
        if not failure[0]:
            self.assert_nothing_left()

    def mount(self, **expected):
        options = ['-o', self.options] if self.options else []
        result = run('mount.vmsnap', self.vm.source, self.point, *options, user=self.vm.user, **expected)
        self.said = result.stderr
        return result

    def status(self):
        """What .vmsnap/status.json says now."""
        path = self / '.vmsnap/status.json'
        # For root FUSE makes no exception: another user's mount is closed to it.
        return json.loads(run('cat', path, user=self.vm.user).stdout if self.vm.user else path.read_text())

    def disk_status(self, disk):
        return next(each for each in self.status()['disks'] if each['name'] == disk)

    def daemon(self):
        """The process that serves the mount."""
        record = Path(runtime_dir(self.vm.user)) / 'vmsnap' / f'{self.status()["uuid"]}.json'
        return json.loads(record.read_text())['pid']

    def guardian(self):
        """The process that clears up after the daemon."""
        return int(run('pgrep', '--parent', self.daemon()).stdout)

    def kill(self, guardian=False):
        """Kills the daemon, and before it its guardian if that shall not clear up."""
        pids = [self.guardian()] if guardian else []
        pids.append(self.daemon())
        for pid in pids:
            os.kill(pid, signal.SIGKILL)
        wait_until(lambda: not any(re.match(rf'process ({"|".join(map(str, pids))}),', each) for each in processes()),
                   'they are dead')

    def umount(self, **expected):
        return run('umount', self.point, user=self.vm.user, **expected)

    def wait_ended(self):
        """Waits until nothing is left, after an end that does not wait itself."""
        end = time.monotonic() + PATIENCE
        waits = pauses()
        while True:
            try:
                return self.assert_no_trace()
            except AssertionError:  # also of virsh, to which libvirt cannot always tell what a job is just doing
                if time.monotonic() > end:
                    raise
            next(waits)

    def assert_no_trace(self):
        """Whatever was not there before the mount is gone."""
        left = left_behind(self.vm, self._before) - self._before
        if left:
            raise AssertionError('left behind:\n' + '\n'.join(sorted(left)))

    def assert_nothing_left(self):
        """Whatever was not there before the mount is gone, and the guest lives and writes."""
        self.assert_no_trace()
        if self.vm.state() == 'running':
            self.vm.touch()
        self.point.rmdir()


class TestCase(unittest.TestCase):
    """A unittest.TestCase with one machine for the whole class: what make_vm() returns, booted, as self.vm."""

    maxDiff = 4000

    @classmethod
    def make_vm(cls):
        return Vm()

    @classmethod
    def setUpClass(cls):
        cls.vm = cls.enterClassContext(cls.make_vm())
        cls.vm.start()

    usable_options = ''  # with which this machine can be mounted

    def assert_refused(self, says, options='', source=None, point=None, status=32, **how):
        """
        mount.vmsnap refuses, in one line that is the regular expression SAYS. Nothing has been begun or is left, the
        guest writes, and the next mount works.
        """
        mount = Mount(self.vm, options)
        options = ['-o', mount.options] if mount.options else []
        line = complaint('mount.vmsnap', source or self.vm.source, mount.point if point is None else point, *options,
                         user=self.vm.user, status=status, **how)
        self.assertRegex(line, f'^mount.vmsnap: {says}$')
        mount.assert_nothing_left()
        self.assert_mountable()

    def unmount_all(self):
        """For tearDown: a test that failed half-way must not make the next ones fail."""
        for point in mounts():
            run('umount', '--lazy', point, status=None)

    def assert_mountable(self):
        with Mount(self.vm, self.usable_options) as mount:
            run('cat', mount / 'manifest.json', user=self.vm.user)
