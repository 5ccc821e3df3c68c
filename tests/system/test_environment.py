# SPDX-License-Identifier: LGPL-2.1-or-later

"""The test environment itself: what the other tests stand on must hold, or they prove nothing."""

import contextlib
import os
import shutil
import stat
import time
import unittest
from pathlib import Path

import lib
from lib import MIB, Disk, Vm, run


@contextlib.contextmanager
def backup(vm):
    """A pull backup begun by hand. Gives copies of the first two disks, read while the guest runs on."""
    directory = lib.make_directory(f'backup-{time.monotonic_ns()}', vm.user)
    directory.chmod(0o700)
    if not vm.user:
        os.chown(directory, 64055, -1)
    disks = ''.join(f'<disk name="{disk}" type="file"><scratch file="{directory}/{disk}.scratch"/></disk>'
                    for disk in vm.images)
    xml = vm.directory / 'backup.xml'
    xml.write_text(f'''
      <domainbackup mode="pull">
        <server transport="unix" socket="{directory}/nbd.sock"/><disks>{disks}</disks>
      </domainbackup>''')
    vm.virsh('backup-begin', vm.name, xml)
    copies = [vm.directory / f'{disk}.copy' for disk in ('vda', 'vdb')]
    for disk, copy in zip(('vda', 'vdb'), copies):
        run('nbdcopy', f'nbd+unix:///{disk}?socket={directory}/nbd.sock', copy)
    yield copies
    vm.virsh('domjobabort', vm.name)


class Sandbox(unittest.TestCase):
    def test_processes_are_its_own(self):
        self.assertIn('sandbox', Path('/proc/1/cmdline').read_text())

    def test_everybody_may_use_fuse(self):
        self.assertEqual(stat.S_IMODE(os.stat('/dev/fuse').st_mode), 0o666)

    def test_scratch_is_on_a_disk(self):
        device = os.stat('/var/lib/vmsnap').st_dev
        self.assertEqual(device, os.stat(lib.SANDBOX).st_dev)
        self.assertNotEqual(device, os.stat('/var/lib').st_dev)

    def test_ordinary_user(self):
        self.assertEqual(run('id', '--name', '--user', user='backupuser').stdout, 'backupuser\n')
        run('touch', 'file', user='backupuser')
        run('ls', '/root', user='backupuser', status=2)
        self.assertIn('qemu:///session', run('virsh', '--connect', 'qemu:///session', 'uri', user='backupuser').stdout)


class Guest(lib.TestCase):
    @classmethod
    def make_vm(cls):
        return Vm([Disk(filesystem=64 * MIB), Disk(format='raw', size=300 * MIB)])

    def test_qemu_is_not_root(self):
        pid = Path(f'/run/libvirt/qemu/{self.vm.name}.pid').read_text()
        self.assertEqual(os.stat(f'/proc/{pid}').st_uid, 64055)
        self.assertEqual(self.vm.images['vda'].stat().st_uid, 64055)

    def test_commands(self):
        self.assertEqual(self.vm.run('echo one; echo two >&2'), 'one\ntwo\n')
        self.assertEqual(self.vm.run('printf "%s" "no end of line"'), 'no end of line')
        self.assertEqual(len(self.vm.run('seq 2000').splitlines()), 2000)
        self.vm.run('exit 3', status=3)
        with self.assertRaisesRegex(lib.CommandFailed, 'No such file'):
            self.vm.run('cat /nowhere')

    def test_late_answer_is_not_mistaken(self):
        with self.assertRaises(AssertionError):
            self.vm.run('sleep 1; echo late', timeout=0.2)
        self.assertEqual(self.vm.run('echo in time'), 'in time\n')

    def test_disks(self):
        self.assertEqual(self.vm.run('blockdev --getsize64 /dev/vda'), f'{256 * MIB}\n')
        self.assertEqual(self.vm.run('blockdev --getsize64 /dev/vdb'), f'{300 * MIB}\n')

    def test_filesystem(self):
        self.vm.run('mount -t ext4 /dev/vda /mnt && echo hello >/mnt/file && sync && fsfreeze --freeze /mnt')
        self.vm.run('fsfreeze --unfreeze /mnt && cat /mnt/file && umount /mnt')

    def test_truth(self):
        self.vm.pause()
        before = self.vm.disk_hash('vda')
        self.assertEqual(self.vm.disk_hash('vda'), before)
        self.vm.resume()
        self.vm.touch()
        self.vm.pause()
        self.assertNotEqual(self.vm.disk_hash('vda'), before)
        self.vm.resume()

    def test_backups(self):
        """Each backup is an instant, a later one is a later one, and two of different ones together are none."""
        self.vm.start_writer()
        instants = []
        for _ in range(2):
            with backup(self.vm) as copies:
                newest = lib.check_instant(*copies)
                self.vm.wait_written()
                self.assertGreater(self.vm.alive(), newest)
                self.assertNotEqual(lib.left_behind(self.vm), set())
            instants.append((newest, [copy.rename(copy.with_suffix(f'.{newest}')) for copy in copies]))
        self.assertEqual(lib.left_behind(self.vm), set())
        self.vm.stop_writer()

        (first, [first_a, _]), (second, [_, second_b]) = instants
        self.assertGreater(second, first)
        with self.assertRaisesRegex(lib.CommandFailed, 'not one instant'):
            lib.check_instant(first_a, second_b)

    def test_restored_copy_boots(self):
        self.vm.start_writer()
        with backup(self.vm) as copies:
            newest = lib.check_instant(*copies)
        self.vm.stop_writer()
        directory = lib.make_directory('restored')
        for disk, copy in zip(('vda', 'vdb'), copies):
            copy.rename(directory / f'{disk}.raw')
        (directory / 'domain.xml').write_text(self.vm.virsh('dumpxml', '--inactive', self.vm.name))
        shutil.copy(lib.GUEST / 'vmlinuz', directory / 'kernel')
        shutil.copy(lib.GUEST / 'initrd', directory)
        with Vm.restore(directory) as restored:
            restored.start()
            self.assertEqual(restored.check(), newest)
            restored.start_writer()
            self.assertGreater(restored.alive(), newest)


class Session(lib.TestCase):
    """The same for an ordinary user, whose libvirtd and QEMU are his own."""

    @classmethod
    def make_vm(cls):
        return Vm(user='backupuser')

    def test_backup(self):
        self.vm.start_writer()
        with backup(self.vm) as copies:
            lib.check_instant(*copies)
        self.vm.stop_writer()
        self.vm.touch()
