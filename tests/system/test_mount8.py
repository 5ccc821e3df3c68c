# SPDX-License-Identifier: LGPL-2.1-or-later

"""mount(8) and umount(8) work with vmsnap as with any filesystem: on the command line, and by lines of fstab."""

import contextlib
import os
import signal
from pathlib import Path

import lib
from lib import Mount, complaint, run

FSTAB = Path('/etc/fstab')
UTAB = Path('/run/mount/utab')

# A source that is also a file in the current directory is another case, which has a test of its own.
ELSEWHERE = '/usr'


def findmnt(point, column):
    """What findmnt says of a mount point, '' if nothing is mounted there."""
    return run('findmnt', '--noheadings', '--output', column, '--mountpoint', point, status=None).stdout.strip()


@contextlib.contextmanager
def fstab(*lines):
    FSTAB.write_text(''.join(f'{line}\n' for line in lines))
    try:
        yield
    finally:
        FSTAB.write_text('')


class Mount8(lib.TestCase):
    def setUp(self):
        self.mount = Mount(self.vm)
        self.point = self.mount.point

    def tearDown(self):
        self.unmount_all()

    def mount8(self, *options, source=None, point=None, **how):
        return run('mount', '-t', 'vmsnap', *options, source or self.vm.name, point or self.point, cwd=ELSEWHERE, **how)

    def assert_ended(self, mount=None):
        """All is gone at this moment, since umount has waited for it; with what mount(8) notes for itself."""
        (mount or self.mount).assert_nothing_left()
        self.assert_utab_empty()

    def assert_utab_empty(self):
        self.assertEqual(UTAB.read_text() if UTAB.exists() else '', '')

    def test_mount_and_umount(self):
        """`mount -t vmsnap` makes a mount that shows its source and type; umount returns when all is over."""
        self.mount8()
        self.assertEqual(findmnt(self.point, 'SOURCE,FSTYPE').split(), [self.vm.name, 'fuse.vmsnap'])
        self.assertLessEqual({'nosuid', 'nodev'}, set(findmnt(self.point, 'VFS-OPTIONS').split(',')))
        self.assertEqual({each.name for each in self.point.iterdir()},
                         {'vda.raw', 'vdb.raw', 'domain.xml', 'live.xml', 'kernel', 'initrd', 'manifest.json'})
        self.assertNotEqual(lib.left_behind(self.vm), set())
        run('umount', self.point)
        self.assert_ended()

    def test_flags(self):
        """All that mount(8) passes to a helper is taken: -r, -w, -n, -v, -s. Only for -r is the kernel's mount read-only."""
        for flag in ('-r', '-w', '-n', '-v', '-oro', '-orw'):
            with self.subTest(flag):
                self.mount8(flag)
                expected = 'ro' if flag in ('-r', '-oro') else 'rw'
                self.assertIn(expected, findmnt(self.point, 'VFS-OPTIONS').split(','))
                self.assertIn(expected, findmnt(self.point, 'FS-OPTIONS').split(','))
                run('umount', self.point)
        complaint('mount', '-t', 'vmsnap', '-o', 'nosuch', self.vm.name, self.point, cwd=ELSEWHERE, status=1)
        self.mount8('-s', '-o', 'nosuch')
        run('umount', self.point)
        self.assert_ended()

    def test_fake(self):
        """-f looks at the mount point and the options; it mounts nothing, and begins nothing."""
        self.assert_mountable()
        records = Path('/run/vmsnap')  # whoever begins something makes and removes a record there
        before = records.stat().st_mtime_ns
        self.mount8('-f')
        self.assertEqual(findmnt(self.point, 'SOURCE'), '')
        run('mount.vmsnap', '-f', self.vm.name, self.point)
        complaint('mount', '-f', '-t', 'vmsnap', '-o', 'uid=nosuch', self.vm.name, self.point, status=1)
        complaint('mount.vmsnap', '-f', self.vm.name, self.point / 'nowhere', status=32)
        self.assertEqual(records.stat().st_mtime_ns, before)
        self.assert_ended()
        self.assert_mountable()
        self.assertNotEqual(records.stat().st_mtime_ns, before)

    def test_options(self):
        """Options of vmsnap, of all filesystems, and of others' tools stand beside each other; quotes keep a comma."""
        scratch = lib.make_directory('scratch, and more')
        self.mount8('-o', f'exclude=vdb,scratch="{scratch}",noatime,noexec,_netdev,nofail,noauto,comment="a,b",'
                          'x-systemd.automount,X-foo=bar')
        self.assertFalse((self.mount / 'vdb.raw').exists())
        self.assertEqual(len(list(scratch.iterdir())), 1)
        self.assertLessEqual({'noatime', 'noexec'}, set(findmnt(self.point, 'VFS-OPTIONS').split(',')))
        run('umount', self.point)
        self.assertEqual(list(scratch.iterdir()), [])
        scratch.rmdir()
        self.assert_ended()

    def test_options_that_are_not_ours(self):
        """Several -o add up, and -s lets only unknown names pass, not wrong values."""
        self.mount8('-s', '-o', 'nosuch,mode=0440', '-o', 'exclude=vda')
        self.assertEqual((self.mount / 'vdb.raw').stat().st_mode & 0o777, 0o440)
        self.assertFalse((self.mount / 'vda.raw').exists())
        run('umount', self.point)
        complaint('mount', '-s', '-t', 'vmsnap', '-o', 'mode=rw', self.vm.name, self.point, cwd=ELSEWHERE, status=1)
        self.assert_ended()

    def test_remount(self):
        """A snapshot cannot be remounted; the attempt leaves it as it is."""
        with fstab(f'{self.vm.name} {self.point} vmsnap noauto 0 0'):
            run('mount', self.point, cwd=ELSEWHERE)
            line = complaint('mount', '-o', 'remount,ro', self.point, status=1)
            self.assertRegex(line, "'remount': a snapshot cannot change; unmount it and mount it anew$")
            run('cat', self.mount / 'manifest.json')
            run('umount', self.point)
        self.assert_ended()

    def test_type_that_findmnt_shows(self):
        """The type that the mount has can be given too, and a remount without an fstab line finds the same helper."""
        run('mount', '-t', 'fuse.vmsnap', self.vm.name, self.point, cwd=ELSEWHERE)
        line = complaint('mount', '-o', 'remount', self.point, status=1)
        self.assertRegex(line, "'remount': a snapshot cannot change; unmount it and mount it anew$")
        run('umount', self.point)
        self.assert_ended()

    def test_source_that_is_a_file_too(self):
        """mount(8) makes a path of a source that is a file in the current directory; a domain is meant nevertheless."""
        self.assertTrue((lib.SANDBOX / self.vm.name).is_dir())
        run('mount', '-t', 'vmsnap', self.vm.name, self.point, cwd=lib.SANDBOX)
        self.assertEqual(findmnt(self.point, 'SOURCE'), self.vm.name)
        run('umount', self.point)
        self.assert_ended()

    def test_ways_to_umount(self):
        """umount finds the mount by a relative path, a symbolic link, its source or its type, and waits each time."""
        link = lib.SANDBOX / 'link'
        link.symlink_to(self.point)
        for command in (['umount', self.point.name], ['umount', f'./{self.point.name}/../{self.point.name}/'],
                        ['umount', link], ['umount', self.vm.name], ['umount', '-a', '-t', 'fuse.vmsnap'],
                        ['umount', '-R', self.point], ['umount', '-f', self.point], ['umount', '-v', self.point],
                        ['umount', '-n', self.point]):
            with self.subTest(command):
                self.mount8()
                run(*command, cwd=lib.SANDBOX)
                self.assertEqual(lib.left_behind(self.vm), set())
        link.unlink()
        self.assert_ended()

    def test_notes_of_mount8(self):
        """What tells umount(8) of its helper goes with the mount, also where umount had no part in its end."""
        for end in (lambda: run('umount', '--lazy', self.point),
                    lambda: run('umount', '--internal-only', self.point),
                    lambda: run('fusermount3', '-u', self.point),
                    lambda: os.kill(self.mount.daemon(), signal.SIGTERM)):
            self.mount8()
            self.assertIn(str(self.point), UTAB.read_text())
            end()
            self.mount.wait_ended()
            self.assert_utab_empty()
        self.assert_ended()

    def test_failed_mount(self):
        """mount(8) passes on what the helper says, and its status; nothing is noted of a mount that failed."""
        line = complaint('mount', '-t', 'vmsnap', 'no such domain', self.point, status=32)
        self.assertRegex(line, "^mount.vmsnap: failed to find domain 'no such domain': .+")
        complaint('mount', '-t', 'vmsnap', '-o', 'nosuch', self.vm.name, self.point, status=1)
        self.assert_ended()

    def test_names_of_mount_points(self):
        """Mount points with blanks, commas, quotes, backslashes and other scripts' letters."""
        for name in ('a b', 'a,b', 'a\\b', 'a"b\'c', 'fährt', '-v', '#'):
            with self.subTest(name):
                point = lib.make_directory(name)
                self.mount8(point=point)
                self.assertTrue((point / 'vda.raw').exists())
                run('umount', point)
                self.assertEqual(lib.left_behind(self.vm), set())
                point.rmdir()
        self.assert_ended()

    def test_fstab(self):
        """With a line in fstab, root mounts by mount point or by source, and `mount -a` leaves noauto alone."""
        with fstab(f'{self.vm.name} {self.point} vmsnap noauto,exclude=vdb,comment="a,b" 0 0'):
            for name in (self.point, self.vm.name):
                run('mount', name, cwd=ELSEWHERE)
                self.assertFalse((self.mount / 'vdb.raw').exists())
                run('umount', name, cwd=ELSEWHERE)
                self.assertEqual(lib.left_behind(self.vm), set())
            run('mount', '-a')
            self.assertEqual(lib.mounts(), [])
        self.assert_ended()

    def test_fstab_mount_all(self):
        """`mount -a` mounts a line without noauto once, whatever becomes of the others."""
        missing = Mount(self.vm)
        with fstab(f'no-such-domain {missing.point} vmsnap nofail 0 0',
                   f'{self.vm.name} {self.point} vmsnap nofail,_netdev 0 0'):
            result = run('mount', '-a', status=None, cwd=ELSEWHERE)
            self.assertEqual(result.returncode, 64, 'some mounts succeeded')
            self.assertRegex(result.stderr, "^mount.vmsnap: failed to find domain 'no-such-domain': .+\n$")
            self.assertEqual(lib.mounts(), [str(self.point)])
            run('mount', '-a', status=None, cwd=ELSEWHERE)
            self.assertEqual(lib.mounts(), [str(self.point)])
            run('umount', '-a', '-t', 'fuse.vmsnap')
        self.assert_ended(missing)
        self.assert_ended()

    def test_fstab_is_not_for_everybody(self):
        """Without `user` in its line, an ordinary user can neither mount nor unmount what it names."""
        with fstab(f'{self.vm.name} {self.point} vmsnap noauto,connect=qemu:///system 0 0'):
            # mount(8) leaves it to the helper, which runs with no more rights than the user has.
            complaint('mount', self.point, user='backupuser', status=32)
            self.assertEqual(lib.mounts(), [])
            run('mount', self.point, cwd=ELSEWHERE)
            run('umount', self.point, user='backupuser', status=32)
            self.assertEqual(lib.mounts(), [str(self.point)])
            run('umount', self.point)
        self.assert_ended()
