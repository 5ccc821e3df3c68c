# SPDX-License-Identifier: LGPL-2.1-or-later

"""A snapshot is the whole disk of a machine: nobody gets at it but root, the machine's QEMU, and whom root lets in."""

import os
import pwd
import re
import stat
import unittest
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import lib
from lib import Mount, run

# Run as another user: prints which of the arguments it can get at. What it tries must work for those who may, so that
# it proves something for those who may not.
PROBE = '''
import ctypes, os, socket, sys

def reads(path):
    try:
        with open(path, 'rb') as file:
            file.read(1)
    except IsADirectoryError:
        os.listdir(path)

def connects(path):
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(10)
        client.connect(path)
        if client.recv(8) != b'NBDMAGIC':
            raise OSError('no NBD server')

def steals(pid):
    libc = ctypes.CDLL(None, use_errno=True)
    process = os.pidfd_open(int(pid))
    got = [libc.syscall(438, process, fd, 0) for fd in range(64)]
    if max(got) < 0:
        raise OSError(ctypes.get_errno(), 'pidfd_getfd')

for action in sys.argv[1:]:
    verb, _, object = action.partition(' ')
    try:
        {'read': reads, 'connect': connects, 'steal': steals}[verb](object)
        print(action)
    except OSError:
        pass
'''


def probe(user, actions):
    """Which ACTIONS, 'read PATH', 'connect PATH', 'steal PID', work for a user, or for root if USER is None."""
    return set(run('/usr/bin/python3', '-I', '-c', PROBE, *actions, user=user).stdout.splitlines())


class Secrets(lib.TestCase):
    QEMU = 'libvirt-qemu'
    OTHERS = ('backupuser', 'nobody')

    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        cls.qemu = int(Path(f'/run/libvirt/qemu/{cls.vm.name}.pid').read_text())

    def setUp(self):
        self.mount = Mount(self.vm)

    def tearDown(self):
        self.unmount_all()

    def mounted(self, options=''):
        """Mounts, and finds what there is to protect."""
        self.mount.options = options
        self.mount.mount()
        uuid = self.mount.status()['uuid']
        self.runtime = Path('/run/vmsnap') / uuid
        self.record = self.runtime.with_suffix('.json')
        self.scratch = Path('/var/lib/vmsnap') / f'vmsnap-{uuid}'
        self.socket = self.runtime / 'nbd.sock'

    def unmounted(self):
        self.mount.umount()
        self.mount.assert_nothing_left()

    def everything(self):
        """All ways to the content of the disks."""
        daemon = self.mount.daemon()
        found = [f'connect {self.socket}', f'steal {self.qemu}', f'steal {daemon}', f'read {self.record}']
        for pid in (self.qemu, daemon):
            found.append(f'connect /proc/{pid}/root{self.socket}')
            found += [f'read /proc/{pid}/fd/{fd}' for fd in os.listdir(f'/proc/{pid}/fd')
                      if os.path.isfile(f'/proc/{pid}/fd/{fd}')]
            found += [f'read /proc/{pid}/{name}' for name in ('fd', 'mem', 'map_files')]
        for directory in (self.runtime, self.scratch, *self.scratch.iterdir(), self.mount.point,
                          *self.mount.point.iterdir(), self.mount / '.vmsnap/backup.xml'):
            found.append(f'read {directory}')
        return found

    def test_others_get_at_nothing(self):
        """No other user can connect to the NBD server, read scratch files or records, take descriptors, or look in."""
        self.mounted()
        actions = self.everything()
        able = probe(None, actions)
        # For root nearly all of it works, which is why it is worth trying; QEMU's user has its socket.
        self.assertLessEqual({f'connect {self.socket}', f'connect /proc/{self.qemu}/root{self.socket}',
                              f'steal {self.qemu}', f'read {self.record}', f'read {self.scratch}/vda.qcow2',
                              f'read {self.runtime}', f'read {self.mount.point}/vda.raw'}, able)
        self.assertGreaterEqual(len(able), len(actions) - 5, set(actions) - able)
        self.assertIn(f'connect {self.socket}', probe(self.QEMU, actions))
        for user in self.OTHERS:
            self.assertEqual(probe(user, actions), set(), user)
        self.unmounted()

    def test_modes(self):
        """The socket's directory is for the user of QEMU alone, whom the DAC label names; records are for root."""
        self.mounted()
        label = ElementTree.fromstring(self.vm.virsh('dumpxml', self.vm.name)).find("seclabel[@model='dac']/label").text
        uid, gid = map(int, re.fullmatch(r'\+(\d+):\+(\d+)', label).groups())
        for path, mode, owner in ((self.runtime, 'drwx------', (uid, gid)), (self.record, '-rw-------', (0, 0)),
                                  (self.scratch / 'vda.qcow2', '-rw-------', (uid, gid)),
                                  (self.runtime.parent, 'drwx--x--x', (0, 0)),
                                  (self.scratch.parent, 'drwx--x--x', (0, 0))):
            status = path.lstat()
            self.assertEqual((path, stat.filemode(status.st_mode), (status.st_uid, status.st_gid)), (path, mode, owner))
        self.assertEqual(self.scratch.stat().st_mode & 0o027, 0)
        self.unmounted()

    def test_scratch_is_on_a_disk(self):
        """What the guest overwrites does not go to memory, unless somebody says so with scratch=."""
        self.mounted()
        types = {path: run('findmnt', '-n', '-o', 'FSTYPE', '-T', path).stdout.strip()
                 for path in (self.scratch, self.runtime)}
        self.assertEqual(types[self.runtime], 'tmpfs')
        self.assertNotIn(types[self.scratch], ('tmpfs', 'ramfs', 'devtmpfs'))
        self.unmounted()

    def test_not_on_the_network(self):
        """Nobody listens on a port because of a snapshot."""
        before = run('ss', '--no-header', '--listening', '--numeric', '--tcp', '--udp').stdout
        self.mounted()
        self.assertEqual(run('ss', '--no-header', '--listening', '--numeric', '--tcp', '--udp').stdout, before)
        self.unmounted()

    def test_umask(self):
        """However loose or strict the caller's umask is, it is all the same."""
        for mask in (0o000, 0o077):
            with self.subTest(oct(mask)):
                run('rm', '-rf', '/run/vmsnap')
                old = os.umask(mask)
                try:
                    self.mounted()
                finally:
                    os.umask(old)
                self.assertEqual(stat.filemode(self.runtime.stat().st_mode), 'drwx------')
                self.assertEqual(stat.filemode(self.record.stat().st_mode), '-rw-------')
                self.assertEqual(stat.filemode(self.runtime.parent.stat().st_mode), 'drwx--x--x')
                self.assertEqual(stat.filemode((self.mount / 'vda.raw').stat().st_mode), '-r--------')
                actions = self.everything()
                for user in self.OTHERS:
                    self.assertEqual(probe(user, actions), set(), user)
                self.mount.umount()
        self.mount.assert_nothing_left()

    def test_let_in(self):
        """With allow_other and a mode, others read the files and nothing else."""
        self.mounted('allow_other,mode=0440,gid=backupuser')
        files = {f'read {path}' for path in (self.mount.point, *self.mount.point.iterdir(),
                                             self.mount / '.vmsnap/backup.xml')}
        self.assertEqual(probe('backupuser', self.everything()), files)
        self.assertEqual(probe('nobody', self.everything()), set())
        self.unmounted()

    def test_scratch_in_a_public_directory(self):
        """Where everybody may make files, as in /tmp, others cannot look into, replace or remove the scratch files."""
        public = lib.make_directory('public')
        public.chmod(0o1777)
        self.mounted(f'scratch={public}')
        self.scratch, = public.iterdir()
        actions = [f'read {path}' for path in (self.scratch, *self.scratch.iterdir())]
        self.assertEqual(len(probe(None, actions)), 3)
        for user in self.OTHERS:
            self.assertEqual(probe(user, actions), set(), user)
        run('rm', '-rf', self.scratch, user='backupuser', status=1)
        run('mv', self.scratch, public / 'elsewhere', user='backupuser', status=1)
        self.assertEqual(len(list(self.scratch.iterdir())), 2)
        self.unmounted()
        self.assertEqual(list(public.iterdir()), [])

    def test_foreign_files_in_the_way(self):
        """What is already at /run/vmsnap and is not a directory of root's is not used, nor followed or opened up."""
        lure = lib.make_directory('lure')
        place = Path('/run/vmsnap')
        run('rm', '-rf', place)
        place.symlink_to(lure)
        line = lib.complaint('mount.vmsnap', self.vm.name, self.mount.point, status=32)
        self.assertRegex(line, r"^mount.vmsnap: failed to .* '/run/vmsnap.*': .+")
        self.assertEqual(list(lure.iterdir()), [])
        place.unlink()
        self.mount.assert_nothing_left()


class OwnersLeftAlone(unittest.TestCase):
    """A machine whose files libvirt does not give to QEMU's user: what vmsnap makes must be that user's by itself."""

    def test_mount(self):
        user = pwd.getpwnam('libvirt-qemu')
        with lib.Vm([lib.Disk(size=16 * lib.MIB)]) as vm:
            label = f'<seclabel type="static" model="dac" relabel="no"><label>+{user.pw_uid}:+{user.pw_gid}</label></seclabel>'
            vm.xml = vm.xml.replace('</devices>', f'</devices>{label}')
            for path in (vm.directory, *vm.directory.iterdir()):
                os.chown(path, user.pw_uid, user.pw_gid)
            vm.start_paused()
            with lib.Mount(vm) as mount:
                vm.qemu_io('vda', 'write -P 1 0 1M')
                self.assertEqual((mount / 'vda.raw').read_bytes(), bytes(16 * lib.MIB))
