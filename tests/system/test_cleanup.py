# SPDX-License-Identifier: LGPL-2.1-or-later

"""
mount.vmsnap --cleanup clears what was left where daemon and guardian were both killed, and touches nothing else. Where
only one of them is gone, the other or umount does the same.
"""

import json
import os
import shutil
import signal
import subprocess
import time
import uuid
from pathlib import Path

import lib
from lib import MIB, Disk, Mount, Vm, complaint, run

QEMU_UID = 64055  # libvirt-qemu
USER = 'backupuser'
RECORDS = Path('/run/vmsnap')
SCRATCH = Path('/var/lib/vmsnap')


def cleanup(*arguments, user=None):
    """Runs mount.vmsnap --cleanup, which must succeed, and returns the lines that it says."""
    result = run('mount.vmsnap', '--cleanup', *arguments, user=user)
    assert result.stdout == '', result.stdout
    return result.stderr.splitlines()


def cleared(mount):
    return f"mount.vmsnap: cleared what a dead mount of '{mount.vm.name}' on '{mount.point}' had left"


def dead_mount(vm, options=''):
    """A mount that nobody serves or watches over any more."""
    mount = Mount(vm, options)
    mount.mount()
    mount.kill(guardian=True)
    return mount


def has_job(vm):
    return 'nbd.sock' in vm.virsh('backup-dumpxml', vm.name, status=None)


class Cleanup(lib.TestCase):
    @classmethod
    def make_vm(cls):
        return Vm([Disk()])

    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        cls.other = cls.enterClassContext(Vm([Disk(size=MIB)])).start_paused()

    def tearDown(self):
        """A test that failed half-way must not make the next ones fail."""
        self.unmount_all()
        run('mount.vmsnap', '--cleanup', status=None)
        lib.wait_until(lambda: not lib.processes(), 'all have ended')
        for vm in (self.vm, self.other):
            if vm.virsh('backup-dumpxml', vm.name, status=None):
                vm.virsh('domjobabort', vm.name, status=None)

    def test_nothing_to_do(self):
        """Then nothing is said, and nothing is made."""
        run('rm', '-rf', RECORDS)
        for arguments in ([], [self.vm.name], [self.vm.uuid], ['no such vm']):
            self.assertEqual(cleanup(*arguments), [])
        self.assertFalse(RECORDS.exists())

    def test_after_a_crash(self):
        """When the host has crashed there are no records: scratch that is older and belongs to none is removed."""
        mount = Mount(self.vm)
        others = [SCRATCH / name for name in ('vmsnap-', 'vmsnap-mine', uuid.uuid4().hex, f'vmsnap-{uuid.uuid4()}x')]
        orphans = [SCRATCH / f'vmsnap-{uuid.uuid4()}' for _ in range(2)]
        def leave(directory, before_boot=True):
            directory.mkdir()
            (directory / 'vda.qcow2').write_text('')
            if before_boot:
                os.utime(directory, (0, 0))

        for directory in others + orphans:
            leave(directory)
        young = SCRATCH / f'vmsnap-{uuid.uuid4()}'
        others.append(young)
        leave(young, before_boot=False)
        with Mount(self.other) as living:
            # It looks for what takes up space itself.
            self.assertEqual([each for each in orphans if each.exists()], [])
            leave(orphans[0])
            self.assertEqual(cleanup(self.vm.name), [])
            self.assertTrue(orphans[0].exists())
            said, = cleanup()
            self.assertIn(f"'{orphans[0]}'", said)
            self.assertEqual(living.status()['status'], 'active')
            self.assertTrue(has_job(self.other))
            self.assertTrue((SCRATCH / f'vmsnap-{living.status()["uuid"]}/vda.qcow2').exists())
        for directory in others:
            self.assertTrue((directory / 'vda.qcow2').exists())
            shutil.rmtree(directory)
        mount.assert_nothing_left()

    def test_usage(self):
        """It takes a domain and no mount point."""
        said = complaint('mount.vmsnap', '--cleanup', self.vm.name, '/mnt', status=1)
        self.assertRegex(said, r'^mount\.vmsnap: usage: mount\.vmsnap --cleanup \[DOMAIN\]; .+')

    def test_both_killed(self):
        """All is cleared, of all machines or of one by its name or UUID, and that is told once."""
        for arguments in ([], [self.vm.name], [self.vm.uuid]):
            with self.subTest(arguments):
                mount = dead_mount(self.vm)
                self.assertTrue(has_job(self.vm))
                self.assertIn(str(mount.point), lib.mounts())
                self.assertEqual(cleanup(*arguments), [cleared(mount)])
                self.assertEqual(os.listdir(mount.point), [])
                self.assertEqual(cleanup(*arguments), [])
                mount.assert_nothing_left()
        self.assert_mountable()

    def test_several(self):
        """Each is told in a line of its own; that of another domain stays until it is asked for, or all are."""
        mounts = [Mount(self.vm), Mount(self.other)]
        for mount in mounts:
            mount.mount()
        for mount in mounts:
            mount.kill(guardian=True)
        self.assertEqual(cleanup('no such vm'), [])
        self.assertEqual(cleanup(self.other.name), [cleared(mounts[1])])
        self.assertFalse(has_job(self.other))
        self.assertTrue(has_job(self.vm))
        self.assertEqual(lib.mounts(), [str(mounts[0].point)])
        mounts[1].mount()
        mounts[1].kill(guardian=True)
        self.assertEqual(sorted(cleanup()), sorted(map(cleared, mounts)))
        for mount in mounts:
            mount.assert_nothing_left()

    def check_untouched(self, mount):
        self.assertEqual(mount.status()['status'], 'active')
        lib.read_all(mount / 'vda.raw')
        self.assertTrue(has_job(self.vm))

    def assert_refused_for(self, domain, mount):
        said = complaint('mount.vmsnap', '--cleanup', domain, status=32)
        self.assertRegex(said, rf"^mount\.vmsnap: failed to .+ mounted on '{mount.point}' .+ unmount that first.*$")
        self.check_untouched(mount)

    def test_living_mount(self):
        """What lives is left alone. Who names its domain learns that it is in use; who does not, nothing."""
        with Mount(self.vm) as mount:
            self.assertEqual(cleanup(), [])
            self.check_untouched(mount)
            self.assertEqual(cleanup(self.other.name), [])
            self.assert_refused_for(self.vm.uuid, mount)
            self.assert_refused_for(self.vm.name, mount)

    def test_living_beside_dead(self):
        """A dead mount is cleared while another lives, of the same machine even, and on the same directory."""
        mount = dead_mount(self.vm, 'timeout=1')
        # As a snapshot that was lost, but for its record.
        record, = RECORDS.glob('*.json')
        text = record.read_text()
        self.assertEqual(cleanup(), [cleared(mount)])
        with Mount(self.other) as living:
            before = lib.left_behind(self.vm)
            record.write_text(text)
            self.assertEqual(cleanup(), [cleared(mount)])
            self.assertEqual(living.status()['status'], 'active')
            self.assertEqual(lib.left_behind(self.vm), before)
        with mount:
            record.write_text(text)
            self.assertEqual(cleanup(), [cleared(mount)])
            self.assertFalse(record.exists())
            self.check_untouched(mount)

    def begin_foreign_job(self):
        """A backup that somebody else has begun. Returns its XML."""
        directory = lib.make_directory(f'foreign-{time.monotonic_ns()}')
        os.chown(directory, QEMU_UID, -1)
        xml = directory / 'backup.xml'
        xml.write_text(f'''<domainbackup mode="pull"><server transport="unix" socket="{directory}/nbd.sock"/>
                             <disks><disk name="vda"><scratch file="{directory}/vda.scratch"/></disk></disks>
                           </domainbackup>''')
        self.vm.virsh('backup-begin', self.vm.name, xml)
        return self.vm.virsh('backup-dumpxml', self.vm.name)

    def check_foreign_job(self, before):
        self.assertEqual(self.vm.virsh('backup-dumpxml', self.vm.name), before)
        self.vm.virsh('domjobabort', self.vm.name)
        lib.wait_until(lambda: not has_job(self.vm), 'the job has ended')

    def test_foreign_job(self):
        """Somebody else's backup is none of our business, also where a dead mount of its machine is cleared."""
        mount = Mount(self.vm)
        before = self.begin_foreign_job()
        for arguments in ([], [self.vm.name], [self.vm.uuid]):
            self.assertEqual(cleanup(*arguments), [])
        self.check_foreign_job(before)

        mount = dead_mount(self.vm, 'timeout=1')
        self.vm.virsh('domjobabort', self.vm.name)
        lib.wait_until(lambda: not has_job(self.vm), 'our job has ended')
        before = self.begin_foreign_job()
        self.assertEqual(cleanup(self.vm.name), [cleared(mount)])
        self.check_foreign_job(before)
        mount.assert_nothing_left()

    def test_mount_beside_foreign_job(self):
        """A dead mount of the machine does not keep a new one from seeing, at once, that another job is in the way."""
        mount = dead_mount(self.vm)
        self.vm.virsh('domjobabort', self.vm.name)
        lib.wait_until(lambda: not has_job(self.vm), 'our job has ended')
        before = self.begin_foreign_job()
        begin = time.monotonic()
        said = complaint('mount.vmsnap', self.vm.name, mount.point, '-o', 'timeout=5', status=32)
        self.assertIn('another job runs on it', said)
        self.assertLess(time.monotonic() - begin, 5)
        self.check_foreign_job(before)
        mount.assert_nothing_left()

    def test_machine_gone(self):
        """Where the machine was destroyed, or is not even defined any more, there is no job to end."""
        for steps in (['destroy'], ['destroy', 'undefine']):
            with self.subTest(steps):
                mount = dead_mount(self.other)
                for step in steps:
                    self.other.virsh(step, self.other.name)
                self.assertEqual(cleanup(), [cleared(mount)])
                self.other.start_paused()
                mount.assert_nothing_left()

    def test_garbage(self):
        """What is no record is passed over, and stays for whoever made it."""
        RECORDS.mkdir(mode=0o711, exist_ok=True)
        files = {'a.json': '', 'b.json': 'garbage', 'c.json': '[]', 'd.json': '{}', 'e.json': '{"job": true}',
                 'f.json': json.dumps({'machine': self.vm.name, 'mount-point': '/', 'scratch-dir': '/var/lib'}),
                 'g.json': '{"uuid": 42}', 'h.txt': '', 'i.json': '{"uuid": "x", ' + '"a": [' * 10000}
        for name, text in files.items():
            (RECORDS / name).write_text(text)
        (RECORDS / 'j.json').mkdir()
        (RECORDS / 'k.json').symlink_to('/etc/passwd')
        mount = dead_mount(self.vm)
        self.assertEqual(cleanup(), [cleared(mount)])
        self.assertEqual(sorted(os.listdir(RECORDS)), sorted([*files, 'j.json', 'k.json']))
        run('rm', '-rf', RECORDS)
        self.assertTrue(Path('/etc/passwd').exists())
        mount.point.rmdir()

    def test_libvirtd_away(self):
        """Without libvirt the job cannot be ended, which is told in the time of timeout=, and can be done later."""
        mount = dead_mount(self.vm, 'timeout=2')
        record, = RECORDS.glob('*.json')
        with lib.libvirtd_away():
            begin = time.monotonic()
            self.assertRegex(complaint('mount.vmsnap', '--cleanup', status=32),
                             r"^mount\.vmsnap: failed to connect to libvirt at '.+': .+$")
            self.assertLess(time.monotonic() - begin, 6)
            # What it may need is kept.
            self.assertTrue(json.loads(record.read_text())['job'])
            self.assertTrue(record.with_suffix('').exists())
        self.assertEqual(cleanup(), [cleared(mount)])
        mount.assert_nothing_left()

    def test_libvirtd_does_not_answer(self):
        """A libvirtd that hangs is bounded by timeout= as well."""
        mount = dead_mount(self.vm, 'timeout=1')
        daemon = int(Path('/run/libvirtd.pid').read_text())
        os.kill(daemon, signal.SIGSTOP)
        try:
            complaint('mount.vmsnap', '--cleanup', status=32, timeout=10)
        finally:
            os.kill(daemon, signal.SIGCONT)
        lib.wait_until(cleanup, 'it is cleared')
        mount.assert_nothing_left()

    def test_umount(self):
        """Who unmounts it clears it by that, and is told not to trust what was copied."""
        mount = dead_mount(self.vm)
        self.assertEqual(complaint('umount', mount.point, status=32),
                         f"umount.fuse.vmsnap: failed to keep the snapshot of '{self.vm.name}': its daemon died; do "
                         f"not trust what was copied from '{mount.point}'")
        self.assertEqual(cleanup(), [])
        mount.assert_nothing_left()

    def test_umount_while_libvirtd_is_away(self):
        """Also who cannot clear all by that is told in one line; what is left is cleared later."""
        mount = dead_mount(self.vm, 'timeout=1')
        with lib.libvirtd_away():
            said = complaint('umount', mount.point, status=32)
            self.assertIn('do not trust what was copied', said)
        self.assertEqual(cleanup(), [cleared(mount)])
        mount.assert_nothing_left()

    def mount_without_guardian(self):
        mount = Mount(self.vm)
        mount.mount()
        guardian, daemon = mount.guardian(), mount.daemon()
        os.kill(guardian, signal.SIGKILL)
        lib.wait_until(lambda: not lib.lives(guardian), 'the guardian is dead')
        lib.read_all(mount / 'vda.raw')
        return mount, daemon

    def test_guardian_killed(self):
        """The daemon serves on without its guardian, and umount does what neither can do any more."""
        mount, daemon = self.mount_without_guardian()
        result = mount.umount()
        self.assertEqual(result.stdout + result.stderr, '')
        self.assertFalse(lib.lives(daemon))
        self.assertEqual(cleanup(), [])
        mount.assert_nothing_left()

    def test_guardian_killed_and_daemon_ended(self):
        """Without a guardian a signal may leave a mount point that is dead, and files, but no job."""
        mount, daemon = self.mount_without_guardian()
        os.kill(daemon, signal.SIGTERM)
        lib.wait_until(lambda: not lib.lives(daemon), 'the daemon has ended')
        self.assertFalse(has_job(self.vm))
        self.vm.touch()
        cleanup()
        mount.assert_nothing_left()

    def test_daemon_killed(self):
        """The guardian clears up alone. Who comes meanwhile does not disturb it."""
        mount = Mount(self.vm)
        mount.mount()
        mount.kill()
        run('mount.vmsnap', '--cleanup')
        lib.wait_until(lambda: not lib.processes(), 'the guardian is done')
        mount.assert_nothing_left()
        self.assertEqual(cleanup(), [])

    @staticmethod
    def wait_begun():
        """Returns the daemon of the only mount, as soon as it begins its job."""
        def begun():
            for path in RECORDS.glob('*.json'):
                record = json.loads(path.read_text())
                return record['pid'] if record['job'] else None

        return lib.wait_until(begun, 'the job is begun', pause=0.001)

    def test_daemon_killed_in_begin(self):
        """Who waits for a mount learns at once that the daemon died, and not when the guardian could clear up."""
        mount = Mount(self.other)
        qemu = int(Path(f'/run/libvirt/qemu/{self.other.name}.pid').read_text())
        command = subprocess.Popen(['mount.vmsnap', self.other.name, mount.point], stdin=subprocess.DEVNULL,
                                   stderr=subprocess.PIPE, text=True, start_new_session=True)
        try:
            daemon = self.wait_begun()
            # Now libvirt waits for QEMU, and who wants to end the job for libvirt.
            os.kill(qemu, signal.SIGSTOP)
            os.kill(daemon, signal.SIGKILL)
            err = command.communicate(timeout=5)[1]
        finally:
            os.kill(qemu, signal.SIGCONT)
            command.kill()
        self.assertEqual(command.returncode, 2)
        self.assertRegex(err, r'^mount\.vmsnap: failed to mount: the daemon \(process \d+\) died\n$')
        lib.wait_until(lambda: not lib.processes(), 'the guardian is done')
        mount.wait_ended()
        mount.assert_nothing_left()


class CleanupByUser(lib.TestCase):
    """An ordinary user clears what is his, and has no part in what is not."""

    @classmethod
    def setUpClass(cls):
        cls.vm = cls.enterClassContext(Vm([Disk(size=MIB)], user=USER)).start_paused()

    def tearDown(self):
        self.unmount_all()
        run('mount.vmsnap', '--cleanup', user=USER, status=None)

    def test_both_killed(self):
        """As root's, by --cleanup or by umount. Root's --cleanup is for root's mounts."""
        mount = dead_mount(self.vm)
        self.assertEqual(cleanup(), [])
        self.assertEqual(cleanup(user='nobody'), [])
        self.assertEqual(cleanup('no such vm', user=USER), [])
        self.assertTrue(has_job(self.vm))
        self.assertEqual(cleanup(self.vm.name, user=USER), [cleared(mount)])
        self.assertEqual(cleanup(user=USER), [])
        mount.assert_nothing_left()

    def test_umount(self):
        """As root's."""
        mount = dead_mount(self.vm)
        said = complaint('umount', mount.point, user=USER, status=32)
        self.assertIn('its daemon died; do not trust', said)
        mount.assert_nothing_left()

    def test_living_mount(self):
        """What lives is left alone."""
        with Mount(self.vm) as mount:
            self.assertEqual(cleanup(user=USER), [])
            complaint('mount.vmsnap', '--cleanup', self.vm.uuid, user=USER, status=32)
            run('cat', mount / 'manifest.json', user=USER)
