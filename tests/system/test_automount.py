# SPDX-License-Identifier: LGPL-2.1-or-later

"""A domain is mounted when somebody enters a directory, and its job ends when nobody uses it any more."""

import configparser
import os
import subprocess
import time
from pathlib import Path

import lib
from lib import Mount, run

TIMEOUT = 2  # s, after which automount thinks that a mount is not used
OPTIONS = 'x-systemd.automount,x-systemd.idle-timeout=60,x-systemd.requires=libvirtd.service,noauto,nofail,_netdev,' \
          'mode=0440,exclude=vdb'
GENERATOR = '/lib/systemd/system-generators/systemd-fstab-generator'


class Autofs(lib.TestCase):
    """automount(8), with the map of the manual page."""

    def setUp(self):
        self.mount = Mount(self.vm)
        self.top = lib.make_directory(f'auto-{os.urandom(4).hex()}')
        self.mounted = self.top / self.vm.name
        self.log = self.top.with_suffix('.log')
        Path('/etc/auto.master.d/vmsnap.autofs').write_text(f'{self.top} /etc/auto.vmsnap --timeout={TIMEOUT}\n')
        Path('/etc/auto.vmsnap').write_text('* -fstype=vmsnap,mode=0400 :&\n')
        with open(self.log, 'wb') as log:
            # A session of its own: processes of its group see the directories as they are, and mount nothing.
            self.automount = subprocess.Popen(['automount', '--foreground', '--verbose'], start_new_session=True,
                                              stdout=log, stderr=log)
        self.addCleanup(self.stop)
        lib.wait_until(lambda: f' {self.top} ' in Path('/proc/self/mountinfo').read_text(), 'automount is ready')

    def stop(self):
        self.automount.terminate()
        self.assertEqual(self.automount.wait(lib.PATIENCE), 0)

    def wait_expired(self):
        # Not by a look at the directory, which would be a use of it.
        lib.wait_until(lambda: not lib.mounts(), 'the mount has expired')
        # automount calls umount, which waits for the end; but it is seen only from outside.
        self.mount.wait_ended()

    def test_enter_and_expire(self):
        """Entering NAME mounts the domain NAME, any file can be read, and it expires with the job and all else."""
        self.assertEqual(os.listdir(self.top), [])
        self.assertIn('vda.raw', run('ls', self.mounted).stdout.split())
        self.assertEqual(lib.mounts(), [str(self.mounted)])
        run('qemu-img', 'compare', '-f', 'raw', '-F', 'raw', self.mounted / 'vda.raw', self.mounted / 'vda.raw')
        self.wait_expired()
        # A daemon that looked at its mount point in the end would have it mounted again.
        self.assert_entered(1)
        # The next use is another snapshot.
        first = self.manifest()
        self.wait_expired()
        self.assertNotEqual(self.manifest(), first)
        self.wait_expired()
        self.assert_entered(3)
        self.mount.assert_nothing_left()

    def assert_entered(self, times):
        self.assertEqual(self.log.read_text().count('attempting to mount entry'), times)

    def test_umount(self):
        """Unmounted by hand it is over, too, and is not mounted again for that."""
        run('ls', self.mounted)
        run('umount', self.mounted)
        self.mount.assert_nothing_left()
        self.assert_entered(1)

    def manifest(self):
        return run('cat', self.mounted / 'manifest.json').stdout

    def test_use_keeps_it(self):
        """As long as a file is open, nothing expires."""
        with open(self.mounted / 'vda.raw', 'rb') as reader:
            uuid = self.manifest()
            os.posix_fadvise(reader.fileno(), 0, 0, os.POSIX_FADV_RANDOM)
            for _ in range(2 * TIMEOUT * 2):
                time.sleep(0.5)
                self.assertEqual(len(reader.read(4096)), 4096)
            self.assertEqual(self.manifest(), uuid)
        self.wait_expired()
        self.mount.assert_nothing_left()

    def test_no_such_domain(self):
        """A name that no domain has is a name that is not there, also where / has a file of this name."""
        for name in ('no-such-domain', 'usr'):
            with self.assertRaises(FileNotFoundError):
                os.listdir(self.top / name)
            self.assertIn(f"mount.vmsnap: failed to find domain '{name}': ", self.log.read_text())
        self.assertEqual(lib.mounts(), [])
        self.mount.assert_nothing_left()

    def test_automount_ends(self):
        """When automount is stopped, it unmounts, and the job has ended when it is gone."""
        run('ls', self.mounted)
        self.assertEqual(lib.mounts(), [str(self.mounted)])
        self.stop()
        self.mount.assert_nothing_left()


class Systemd(lib.TestCase):
    """systemd, as far as it goes without being the first process: its units, and the command that they stand for."""

    def generate(self, line):
        """The directory with the units that the generator makes of a line of fstab."""
        directory = lib.make_directory(f'units-{os.urandom(4).hex()}')
        for name in ('normal', 'early', 'late'):
            (directory / name).mkdir()
        (directory / 'fstab').write_text(f'{line}\n')
        run(GENERATOR, *(directory / name for name in ('normal', 'early', 'late')),
            env=os.environ | {'SYSTEMD_FSTAB': str(directory / 'fstab')})
        return directory / 'normal'

    def unit(self, path):
        parser = configparser.ConfigParser(interpolation=None, strict=False)
        parser.optionxform = str
        parser.read_string(path.read_text())
        return parser

    def verify(self, *units):
        result = run('systemd-analyze', 'verify', *units, status=None)
        return result.returncode, result.stdout + result.stderr

    def test_units(self):
        """The units of an automount line are what the line says, and systemd has nothing to say against them."""
        units = self.generate(f'vm1 /mnt/snap vmsnap {OPTIONS} 0 0')
        mount, automount = units / 'mnt-snap.mount', units / 'mnt-snap.automount'
        self.assertEqual(self.verify(mount, automount), (0, ''))
        self.assertEqual(dict(self.unit(mount)['Mount']),
                         {'What': 'vm1', 'Where': '/mnt/snap', 'Type': 'vmsnap', 'Options': OPTIONS})
        self.assertEqual(self.unit(mount)['Unit']['After'], 'libvirtd.service')
        self.assertEqual(dict(self.unit(automount)['Automount']), {'Where': '/mnt/snap', 'TimeoutIdleSec': '1min'})
        # It would complain.
        automount.write_text(automount.read_text().replace('/mnt/snap', '/mnt/other'))
        self.assertNotEqual(self.verify(mount, automount), (0, ''))

    def test_command(self):
        """The command that systemd makes of the unit, with all the options of systemd's own, mounts."""
        mount = Mount(self.vm)
        name = run('systemd-escape', '--path', '--suffix=mount', mount.point).stdout.strip()
        unit = self.unit(self.generate(f'{self.vm.name} {mount.point} vmsnap {OPTIONS} 0 0') / name)['Mount']
        run('mount', unit['What'], unit['Where'], '-t', unit['Type'], '-o', unit['Options'], cwd='/')
        self.assertEqual((mount / 'vda.raw').stat().st_mode & 0o777, 0o440)
        self.assertFalse((mount / 'vdb.raw').exists())
        run('umount', unit['Where'], '-c', cwd='/')
        mount.assert_nothing_left()
