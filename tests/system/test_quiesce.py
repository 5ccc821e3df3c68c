# SPDX-License-Identifier: LGPL-2.1-or-later

"""
Filesystems that are frozen for the instant: what that is worth, how short it is, and that a guest is never left frozen,
whoever dies or hangs meanwhile. The agent is QEMU's own, and the filesystem an ext4 that the guest writes to.
"""

import contextlib
import json
import os
import signal
import subprocess
import time
from pathlib import Path

import lib
from lib import MIB, Disk, Mount, Vm, complaint, run

FILESYSTEM = 64 * MIB

# How long it may take until the guest is thawed, once that is possible. Far more than it needs, since machines are
# busy, and libvirt waits up to five seconds for an agent's sign of life.
SOON = 15

# An agent that comes or goes while a backup job runs keeps libvirt (9.0) for 30 s from seeing how the job ends.
LIBVIRT_SOON = 60

# How long the rest of a mount may take, besides the time for which it waits for the agent.
REST = 8

# What a freeze may cost the guest; the best of some tries has to do with less.
LONGEST_PAUSE = 2

POWER_FAILURE = 'the snapshot is only as consistent as after a power failure'

# Busy waits in the guest, which are quick enough to come between a freeze and its thaw. The agent makes the file before
# it freezes. When it polls its port (system call 7), it has answered.
FREEZING = '[ -e /run/qga.state.isfrozen ]'
WAIT_FREEZING = f'until {FREEZING}; do :; done'
WAIT_ANSWERED = f'{WAIT_FREEZING}; until [ "$number" = 7 ]; do read number rest </proc/$pid/syscall; done'

# Writes to the filesystem, and keeps the longest time between two writes, in hundredths of a second.
TICK = ('echo >/mnt/tick; read up rest </proc/uptime; now=${up%.*}${up#*.}; pause=$((now - ${last:-$now})); last=$now; '
        '[ $pause -le ${longest:-0} ] || { longest=$pause; echo $longest >/tmp/longest; }')

# Writes files that somebody relies on, often enough to have one under way in any freeze.
WRITE = 'i=$(((i + 1) % 16)); date >/mnt/file$i; sync /mnt/file$i; usleep 10000'


def record():
    """What the owner record says, if there is one."""
    for path in Path('/run/vmsnap').glob('*.json'):
        with contextlib.suppress(FileNotFoundError, ValueError):
            return json.loads(path.read_text())
    return {}


def needs_recovery(filesystem):
    """Whether an ext4 looks like after a power failure."""
    return 'needs_recovery' in run('dumpe2fs', '-h', filesystem).stdout


class Freezable(lib.TestCase):
    """One guest with the agent and a filesystem. What nobody syncs stays in its memory."""

    @classmethod
    def make_vm(cls):
        return Vm([Disk(filesystem=FILESYSTEM), Disk()], agent=True)

    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        cls.mount_filesystem()

    @classmethod
    def mount_filesystem(cls):
        cls.vm.run('mount -o commit=600 /dev/vda /mnt')

    def setUp(self):
        # On a busy machine it may take a while to come to itself after what the test before has done to it.
        if self.vm.agent:
            self.vm.wait_agent()

    def tearDown(self):
        self.unmount_all()
        if self.vm.frozen() is not False:
            self.boot_again()

    def boot_again(self):
        self.vm.destroy()
        self.vm.start()
        self.mount_filesystem()

    @contextlib.contextmanager
    def case(self, *what, **more):
        """A subtest. After one that fails the guest may hang, and boots again, so that the next ones are tests."""
        with self.subTest(*what, **more):
            try:
                yield
            except BaseException:
                self.unmount_all()
                self.boot_again()
                raise

    @contextlib.contextmanager
    def repeated(self, command):
        """Lets the guest run a line of shell over and over meanwhile."""
        self.vm.run(f'(while :; do {command}; done) >/dev/null 2>&1 & echo $! >/tmp/repeated')
        try:
            yield
        finally:
            self.vm.run('kill $(cat /tmp/repeated)')

    def manifest(self, mount):
        return json.loads((mount / 'manifest.json').read_text())

    def copy_filesystem(self, mount):
        copy = lib.SANDBOX / 'copy.ext4'
        run('dd', f'if={mount / "vda.raw"}', f'of={copy}', 'bs=1M', f'count={FILESYSTEM // MIB}', 'status=none')
        return copy

    def assert_frozen_instant(self, mount):
        """The snapshot is one of a frozen filesystem, and says so."""
        self.assertEqual(self.manifest(mount)['consistency'], 'filesystem')
        self.assertNotIn('quiesce-error', self.manifest(mount))
        copy = self.copy_filesystem(mount)
        self.assertFalse(needs_recovery(copy))
        run('e2fsck', '-f', '-n', copy)

    def assert_tried(self, mount, said, reason):
        """Freezing was tried in vain, and this has been said: by SAID, which is stderr, and in the snapshot."""
        self.assertRegex(said, f"^mount.vmsnap: failed to freeze the filesystems of domain '{self.vm.name}': "
                               f'({reason}); {POWER_FAILURE}\n$')
        manifest = self.manifest(mount)
        self.assertEqual(manifest['consistency'], 'crash')
        self.assertRegex(manifest['quiesce-error'], reason)
        self.assertIn(manifest['quiesce-error'], said)

    def refusal(self, reason):
        return f"failed to freeze the filesystems of domain '{self.vm.name}': ({reason})(; .+)?"

    def assert_neither(self, reason):
        """There is no agent to ask: try= mounts nevertheless, and require does not."""
        mount = Mount(self.vm, 'quiesce=try')
        begin = time.monotonic()
        said = mount.mount().stderr
        self.assertLess(time.monotonic() - begin, REST)
        self.assert_tried(mount, said, reason)
        mount.umount()
        mount.assert_nothing_left()
        self.assert_refused(self.refusal(reason), 'quiesce=require')

    # Mounts that run while the test interferes.

    def begin(self, options):
        """A mount that begins, and its process. Neither outlives the test."""
        mount = Mount(self.vm, options)
        process = subprocess.Popen(['mount.vmsnap', self.vm.name, mount.point, '-o', mount.options],
                                   stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
                                   text=True, start_new_session=True)
        self.addCleanup(process.stderr.close)
        self.addCleanup(process.kill)
        return mount, process

    def finish(self, process, *expected):
        """Waits until the command returns with one of these. Returns what it said, which is at most one line."""
        said = process.communicate(timeout=SOON)[1]
        self.assertIn(process.returncode, expected, said)
        self.assertLessEqual(said.count('\n'), 1, said)
        return said

    def backup_job(self):
        return self.vm.virsh('backup-dumpxml', self.vm.name, status=None)

    def signal_agent(self, name):
        self.vm.run(f'kill -{name} $(cat /run/qemu-ga.pid)')

    def stop_agent_when_frozen(self):
        """Lets the guest do this as soon as the agent has frozen and said so. It cannot be told to thaw then."""
        self.vm.run(f'rm -f /tmp/stopped; pid=$(cat /run/qemu-ga.pid); '
                    f'({WAIT_ANSWERED}; kill -STOP $pid; {FREEZING} && echo >/tmp/stopped) >/dev/null 2>&1 & '
                    'echo $! >/tmp/stopper')

    def is_stopped(self):
        return 'stopped' in self.vm.run('ls /tmp').split()

    def begin_and_stop_agent(self, options):
        """
        A mount that begins, and its process; the agent was stopped when the guest was frozen. That is so for some 20 ms,
        which a guest may miss that gets no processor: then once more.
        """
        for _ in range(10):
            self.stop_agent_when_frozen()
            mount, process = self.begin(options)
            lib.wait_until(lambda: self.is_stopped() or process.poll() is not None, 'the guest is or was frozen',
                           timeout=SOON)
            if self.is_stopped():
                return mount, process
            self.vm.run('kill $(cat /tmp/stopper); kill -CONT $(cat /run/qemu-ga.pid)', status=None)
            self.finish(process, 0)
            mount.umount()
            self.wait_nothing_left(mount)
        self.fail('the guest never notices that it is frozen')

    @contextlib.contextmanager
    def slow_freeze(self):
        """What the guest has not synced takes the disk so long that a freeze needs some four seconds."""
        self.vm.virsh('blkdeviotune', self.vm.name, 'vda', '--total-bytes-sec', 512 * 1024)
        try:
            self.vm.run('dd if=/dev/urandom of=/mnt/large bs=1M count=2 status=none')
            yield
        finally:
            self.vm.virsh('blkdeviotune', self.vm.name, 'vda', '--total-bytes-sec', 0)

    def wait_freezing(self):
        self.vm.run(WAIT_FREEZING, timeout=SOON)

    def wait_thawed(self, within=SOON):
        lib.wait_until(lambda: self.vm.frozen() is False, 'the guest is thawed', timeout=within)
        self.vm.touch()

    def wait_nothing_left(self, mount, within=SOON):
        begin = time.monotonic()
        mount.wait_ended()
        self.assertLess(time.monotonic() - begin, within)
        self.wait_thawed()
        mount.assert_nothing_left()


class Quiesce(Freezable):
    def test_clean(self):
        """A frozen filesystem needs no recovery, and has what nobody synced. Without the option it is as it was."""
        for options, frozen in (('quiesce=require', True), ('quiesce=try', True), ('quiesce=no', False), ('', False)):
            with self.case(options), self.repeated(WRITE):
                self.vm.run(f'rm -f /mnt/unsynced; sync; echo "{options}" >/mnt/unsynced')
                mount = Mount(self.vm, options)
                self.assertEqual(mount.mount().stderr, '')
                self.assertFalse(record()['frozen'])
                self.assertFalse(self.vm.frozen())
                if frozen:
                    self.assert_frozen_instant(mount)
                else:
                    self.assertEqual(self.manifest(mount)['consistency'], 'crash')
                    self.assertNotIn('quiesce-error', self.manifest(mount))
                    self.assertTrue(needs_recovery(self.copy_filesystem(mount)))
                unsynced = run('debugfs', '-R', 'cat unsynced', self.copy_filesystem(mount)).stdout
                self.assertEqual(unsynced, f'{options}\n' if frozen else '')
                mount.umount()
                mount.assert_nothing_left()

    def test_pause(self):
        """The guest's writers stand still for a moment only."""
        pauses = []
        for _ in range(3):
            self.vm.run('echo 0 >/tmp/longest')
            with self.repeated(TICK), Mount(self.vm, 'quiesce=require'):
                time.sleep(0.1)
                pauses.append(int(self.vm.run('cat /tmp/longest')) / 100)
        print('# the guest could not write for', *pauses, 's')
        self.assertLess(min(pauses), LONGEST_PAUSE)
        self.assertGreater(max(pauses), 0)

    def test_mount8(self):
        """mount(8) knows the options, too."""
        mount = Mount(self.vm)
        run('mount', '-t', 'vmsnap', '-o', 'quiesce=require,freeze_timeout=10', self.vm.name, mount.point)
        self.assertEqual(self.manifest(mount)['consistency'], 'filesystem')
        mount.umount()
        mount.assert_nothing_left()

    def test_bad_values(self):
        """What is none of the values is refused before anything is begun."""
        mount = Mount(self.vm)
        for option in ('quiesce', 'quiesce=', 'quiesce=yes', 'quiesce=Require', 'freeze_timeout', 'freeze_timeout=',
                       'freeze_timeout=0', 'freeze_timeout=301', 'freeze_timeout=-1', 'freeze_timeout=1.5',
                       'freeze_timeout=5s', 'freeze_timeout=99999999999999999999'):
            with self.subTest(option):
                said = complaint('mount.vmsnap', self.vm.name, mount.point, '-o', f'quiesce=try,{option}', status=1)
                self.assertRegex(said, f"^mount.vmsnap: .*{option.partition('=')[0]}")
        mount.assert_nothing_left()
        for option in ('freeze_timeout=1', 'freeze_timeout=300'):
            with self.subTest(option), Mount(self.vm, f'quiesce=require,{option}'):
                pass

    # Guests that cannot be frozen.

    def test_agent_not_running(self):
        """The channel is there, and nobody at its other end."""
        self.signal_agent('KILL')
        try:
            self.assert_neither('.*[Aa]gent.*')
        finally:
            self.vm.run('agent')
        self.vm.wait_agent()

    def test_paused(self):
        """The agent of a guest that is paused cannot answer; nobody waits for it."""
        self.vm.pause()
        try:
            with Mount(self.vm, 'quiesce=try,freeze_timeout=300') as mount:
                self.assertEqual(self.manifest(mount)['consistency'], 'crash')
            mount = Mount(self.vm)
            said = complaint('mount.vmsnap', self.vm.name, mount.point, '-o', 'quiesce=require', status=32)
            self.assertRegex(said, f"^mount.vmsnap: {self.refusal('.+')}$")
        finally:
            self.vm.resume()
        self.wait_nothing_left(mount)

    def test_frozen_by_another(self):
        """What somebody else has frozen for his own ends stays frozen until he thaws it."""
        mount = Mount(self.vm, 'quiesce=try')
        self.vm.virsh('domfsfreeze', self.vm.name)
        try:
            said = mount.mount().stderr
            self.assert_tried(mount, said, '.+')
            mount.umount()
            self.assertTrue(self.vm.frozen())
            said = complaint('mount.vmsnap', self.vm.name, mount.point, '-o', 'quiesce=require', status=32)
            self.assertRegex(said, f"^mount.vmsnap: {self.refusal('.+')}$")
            time.sleep(1)
            self.assertTrue(self.vm.frozen())
        finally:
            self.vm.virsh('domfsthaw', self.vm.name)
        self.wait_nothing_left(mount)

    # Agents that are too slow. Where one has answered the last time, libvirt waits for its answer without end. Others it
    # asks for a sign of life first, and gives up on that after five seconds.

    def assert_late(self, mode, hang, go_on):
        """
        HANG() keeps the agent from answering in time. The mount goes on or is refused when time is up, and when GO_ON()
        has made the agent answer after all, the guest is thawed.
        """
        freeze_timeout = 1
        mount = Mount(self.vm, f'quiesce={mode},freeze_timeout={freeze_timeout}')
        hang()
        begin = time.monotonic()
        if mode == 'try':
            said = mount.mount().stderr
        else:
            said = mount.mount(status=32).stderr
        duration = time.monotonic() - begin
        self.assertGreaterEqual(duration, freeze_timeout)
        self.assertLess(duration, freeze_timeout + REST)
        if mode == 'try':
            self.assert_tried(mount, said, '.+')
        else:
            self.assertRegex(said, f"^mount.vmsnap: {self.refusal('.+')}\n$")
            self.assertNotIn(str(mount.point), lib.mounts())
            self.assertEqual(self.backup_job(), '')
        go_on()
        self.wait_thawed()
        if mode == 'try':
            lib.read_all(mount / 'vda.raw')
            mount.umount()
        self.wait_nothing_left(mount)

    def test_agent_stopped(self):
        """The agent hangs since just now, or since libvirt has noticed, and goes on soon or after a while."""
        for mode in ('try', 'require'):
            for noticed, silence in ((False, 0), (False, 6), (True, 0)):
                def hang():
                    self.signal_agent('STOP')
                    if noticed:
                        self.assertIsNone(self.vm.frozen())

                def go_on():
                    time.sleep(silence)
                    self.signal_agent('CONT')

                with self.case(mode, noticed=noticed, silence=silence):
                    self.assert_late(mode, hang, go_on)

    def test_freeze_slow(self):
        """The agent is busy with the freeze, which succeeds when nobody waits for it any more."""
        for mode in ('try', 'require'):
            with self.case(mode), self.slow_freeze():
                self.assert_late(mode, lambda: None, lambda: None)

    def test_umount_while_agent_hangs(self):
        """An agent that still owes an answer keeps umount no longer than timeout=, and then all is cleared."""
        mount = Mount(self.vm, 'quiesce=try,freeze_timeout=1,timeout=3')
        self.signal_agent('STOP')
        mount.mount()
        begin = time.monotonic()
        mount.umount(status=None)
        self.assertLess(time.monotonic() - begin, SOON)
        self.signal_agent('CONT')
        self.wait_nothing_left(mount, LIBVIRT_SOON)

    def test_freeze_as_long_as_allowed(self):
        """With time enough, the same freeze is none too late."""
        with self.slow_freeze(), Mount(self.vm, 'quiesce=require,freeze_timeout=30') as mount:
            self.assert_frozen_instant(mount)

    def test_libvirtd_hangs(self):
        """
        What a snapshot says of itself is true, also when libvirt took too long to begin it: then the guest was thawed
        because its time was up, and nobody knows what was first.
        """
        mount, process = self.begin('quiesce=try,freeze_timeout=1')
        self.wait_freezing()
        libvirtd = int(Path('/run/libvirtd.pid').read_text())
        os.kill(libvirtd, signal.SIGSTOP)
        time.sleep(3)
        os.kill(libvirtd, signal.SIGCONT)
        self.finish(process, 0)
        self.wait_thawed()
        if self.manifest(mount)['consistency'] == 'filesystem':
            self.assert_frozen_instant(mount)
        else:
            self.assertIn('quiesce-error', self.manifest(mount))
        mount.umount()
        self.wait_nothing_left(mount)

    # Somebody dies.

    def test_agent_dies_while_freezing(self):
        """libvirt says only that the agent is gone, and the guest is frozen. The next agent is told to thaw."""
        with self.slow_freeze():
            mount, process = self.begin('quiesce=require,freeze_timeout=20')
            # Within the guest, or a freeze may be done before. It dies when the kernel has frozen.
            self.vm.run(f'{WAIT_FREEZING}; kill -KILL $(cat /run/qemu-ga.pid)', timeout=SOON)
            said = self.finish(process, 32)
            self.assertIn(f"failed to freeze the filesystems of domain '{self.vm.name}'", said)
            self.vm.run('agent')
            self.wait_thawed()
            self.wait_nothing_left(mount, LIBVIRT_SOON)

    def test_agent_stops_while_frozen(self):
        """
        The agent freezes, and hangs before it can thaw. The command returns with or without a mount, and when the agent
        goes on the guest is thawed. (One that dies then is not seen by libvirt 9.0 when it comes back during the job.)
        """
        mount, process = self.begin_and_stop_agent('quiesce=require,freeze_timeout=1,timeout=3')
        self.finish(process, 0, 32)
        time.sleep(2)
        self.assertTrue(record()['frozen'])
        self.signal_agent('CONT')
        self.wait_thawed(LIBVIRT_SOON)
        if process.returncode == 0:
            mount.umount()
        self.wait_nothing_left(mount, LIBVIRT_SOON)

    def test_daemon_ends_while_freezing(self):
        """The daemon dies, or is ended, while the agent freezes."""
        for number in (signal.SIGKILL, signal.SIGTERM):
            with self.case(signal=number), self.slow_freeze():
                mount, process = self.begin('quiesce=require,freeze_timeout=20')
                self.wait_freezing()
                os.kill(record()['pid'], number)
                self.finish(process, 2, 32)
                self.wait_nothing_left(mount)

    def test_daemon_ends_while_frozen(self):
        """Likewise when the guest is frozen, and the thaw could not be done yet."""
        for number in (signal.SIGKILL, signal.SIGTERM):
            with self.case(signal=number):
                mount, process = self.begin_and_stop_agent('quiesce=require')
                os.kill(record()['pid'], number)
                time.sleep(0.5)
                self.signal_agent('CONT')
                self.finish(process, 2, 32)
                self.wait_nothing_left(mount)

    def test_daemon_ends_while_agent_hangs(self):
        """The command does not wait for the agent, and when that goes on all is cleared."""
        mount, process = self.begin_and_stop_agent('quiesce=require,freeze_timeout=1,timeout=3')
        os.kill(record()['pid'], signal.SIGKILL)
        self.finish(process, 2, 32)
        self.signal_agent('CONT')
        self.wait_nothing_left(mount, LIBVIRT_SOON)

    def test_daemon_ends_at_any_moment(self):
        """Likewise at moments that nothing marks, from the first in which the guest may be frozen."""
        for number in (signal.SIGKILL, signal.SIGTERM):
            for delay_ms in (0, 10, 40, 160):
                with self.case(signal=number, delay_ms=delay_ms), self.repeated(WRITE):
                    mount, process = self.begin('quiesce=require')
                    lib.wait_until(lambda: record().get('frozen') or process.poll() is not None, 'it freezes')
                    pid = record()['pid']
                    time.sleep(delay_ms / 1000)
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(pid, number)
                    self.finish(process, 0, 2, 32)
                    if str(mount.point) in lib.mounts():
                        mount.umount(status=None)
                    self.wait_nothing_left(mount)

    def test_command_interrupted(self):
        """Ctrl-C, to all of the terminal."""
        mount, process = self.begin_and_stop_agent('quiesce=require')
        os.killpg(process.pid, signal.SIGINT)
        time.sleep(0.5)
        self.signal_agent('CONT')
        self.finish(process, 32, -signal.SIGINT)
        self.wait_nothing_left(mount)

    def test_libvirtd_restarts_while_frozen(self):
        """The thaw is tried again until there is a libvirt that does it."""
        mount, process = self.begin_and_stop_agent('quiesce=require')
        with lib.libvirtd_away():
            pass
        self.signal_agent('CONT')
        self.finish(process, 0, 32)
        self.wait_thawed()
        if process.returncode == 0:
            mount.umount()
        self.wait_nothing_left(mount)

    def test_guest_destroyed_while_frozen(self):
        """The plug is pulled: then there is nothing to thaw, and nobody waits to do so."""
        mount, process = self.begin_and_stop_agent('quiesce=require')
        self.vm.destroy()
        try:
            self.finish(process, 32)
            mount.wait_ended()
        finally:
            self.vm.start()
            self.mount_filesystem()
        mount.assert_nothing_left()
        self.assert_mountable()


class NoChannel(Freezable):
    """A machine that was not made for the guest agent."""

    @classmethod
    def make_vm(cls):
        return Vm([Disk(filesystem=FILESYSTEM), Disk()])

    def tearDown(self):
        self.unmount_all()

    def test_no_channel(self):
        """libvirt knows that there is no agent."""
        self.assert_neither('.*agent.*')


class Session(Freezable):
    """A machine of an ordinary user."""

    @classmethod
    def make_vm(cls):
        return Vm([Disk(filesystem=FILESYSTEM), Disk()], user='backupuser', agent=True)

    def test_session(self):
        """It is frozen like others."""
        mount = Mount(self.vm, 'quiesce=require')
        mount.mount()
        manifest = json.loads(run('cat', mount / 'manifest.json', user='backupuser').stdout)
        self.assertEqual(manifest['consistency'], 'filesystem')
        self.assertFalse(self.vm.frozen())
        mount.umount()
        mount.assert_nothing_left()
