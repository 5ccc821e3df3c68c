# SPDX-License-Identifier: LGPL-2.1-or-later

"""
Whatever program reads the mount, what it brings back is the instant, and as sparse as the disks were; the guest's
files are in it, and it boots.
"""

import contextlib
import os
import shutil
import tempfile
from pathlib import Path

import lib
from lib import MIB, Disk, Mount, Vm, run

# What a repository may have beyond the data: chunks, indexes, logs.
SLACK = 3 * MIB


class Tools(lib.TestCase):
    """
    One snapshot, on which many tools work while the guest writes. Begun while the guest's filesystem was frozen, and
    the guest's processor stopped, so that the truth could be taken.
    """

    @classmethod
    def make_vm(cls):
        return Vm([Disk(filesystem=64 * MIB), Disk(format='raw', size=256 * MIB + 512)])

    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        vm = cls.vm
        vm.run('mount -t ext4 /dev/vda /mnt && dd if=/dev/urandom of=/mnt/photos bs=1M count=20 status=none && '
               'mkdir /mnt/etc && echo hello >/mnt/etc/greeting && sync; '
               'dd if=/dev/urandom of=/dev/vdb bs=1M seek=100 count=10 oflag=direct status=none')
        cls.photos = vm.run('sha256sum </mnt/photos')
        vm.start_writer()
        vm.run('fsfreeze --freeze /mnt')
        vm.pause()
        cls.truth = {f'{disk}.raw': vm.disk_raw(disk, vm.directory / f'{disk}.truth') for disk in vm.images}
        cls.sha256 = {name: lib.sha256(path) for name, path in cls.truth.items()}
        cls.mount = cls.enterClassContext(Mount(vm))
        vm.resume()
        vm.run('fsfreeze --unfreeze /mnt && rm /mnt/photos && dd if=/dev/urandom of=/mnt/other bs=1M count=30 '
               'status=none && sync')
        vm.wait_written()
        cls.extents = {name: lib.data_extents(cls.mount / name) for name in cls.truth}
        cls.data = {name: sum(end - start for start, end in extents) for name, extents in cls.extents.items()}
        # There is something to save, and there is something not to.
        assert all(10 * MIB <= data < 60 * MIB for data in cls.data.values()), cls.data

    def setUp(self):
        self.directory = Path(tempfile.mkdtemp(prefix='tool-', dir=lib.SANDBOX))
        self.addCleanup(shutil.rmtree, self.directory)

    def allocated(self, directory):
        return sum(path.lstat().st_blocks * 512 for path in [directory, *directory.rglob('*')])

    def check_copy(self, directory, sparse=True):
        """All files are there; the disks are the instant, and have no more blocks than they have data."""
        self.assertEqual(sorted(os.listdir(directory)), sorted(os.listdir(self.mount.point)))
        for path in directory.iterdir():
            if path.name not in self.truth:
                run('cmp', path, self.mount / path.name)
                continue
            self.assertEqual(path.stat().st_size, self.truth[path.name].stat().st_size)
            self.assertEqual(lib.sha256(path), self.sha256[path.name], path.name)
            if sparse:
                self.check_sparse(path, path.name)

    def check_sparse(self, path, name, block=4096):
        """The holes are still there, but for what lies in one block of the tool's with data."""
        allocated = path.stat().st_blocks * 512
        self.assertLess(allocated, self.data[name] + 2 * block * len(self.extents[name]) + MIB)

    def test_tar(self):
        """tar -S: the archive holds only the data, and gives back files with holes and with the instant's date."""
        archive = self.directory / 'vm.tar'
        run('tar', '--format=posix', '-cSf', archive, '-C', self.mount.point, '.')
        files = sum(path.stat().st_size for path in self.mount.point.iterdir() if path.name not in self.truth)
        self.assertLess(archive.stat().st_size, sum(self.data.values()) + files + MIB)
        copy = self.directory / 'copy'
        copy.mkdir()
        run('tar', '-xf', archive, '-C', copy)
        self.check_copy(copy)
        self.assertEqual((copy / 'vda.raw').stat().st_mtime_ns, (self.mount / 'vda.raw').stat().st_mtime_ns)

    def test_cp(self):
        """
        cp --sparse=auto (its default) makes the holes of the mount, and more where it finds zeroes in the data; -a
        brings dates and attributes along.
        """
        copy = self.directory / 'copy'
        run('cp', '-a', '--sparse=auto', self.mount.point, copy)
        self.check_copy(copy)
        for name in self.truth:
            for copied_start, copied_end in lib.data_extents(copy / name):
                self.assertTrue(any(start <= copied_start and copied_end <= (end + 4095) // 4096 * 4096
                                    for start, end in self.extents[name]), (name, copied_start, copied_end))
            self.assertEqual((copy / name).stat().st_mtime_ns, (self.mount / name).stat().st_mtime_ns)
            self.assertEqual(os.getxattr(copy / name, 'user.vmsnap.disk'), name.removesuffix('.raw').encode())

    def test_rsync(self):
        """rsync -S; what it has copied once it finds unchanged as long as the snapshot lasts."""
        copy = self.directory / 'copy'
        run('rsync', '-aS', f'{self.mount.point}/', copy)
        self.check_copy(copy)
        for how in ('--times', '--checksum'):
            changes = run('rsync', '-aS', how, '--itemize-changes', f'{self.mount.point}/', copy).stdout
            self.assertEqual(changes, '', how)

    def test_borg(self):
        """borg create --sparse, in chunks of one size, for which alone borg looks for holes."""
        repository, copy = self.directory / 'repository', self.directory / 'copy'
        copy.mkdir()
        environment = {'PATH': os.environ['PATH'], 'BORG_BASE_DIR': str(self.directory / 'borg')}
        run('borg', 'init', '--encryption=none', repository, env=environment)
        run('borg', 'create', '--sparse', '--chunker-params=fixed,65536', '--compression=none', f'{repository}::vm',
            '.', cwd=self.mount.point, env=environment)
        self.check_repository(repository)
        run('borg', 'extract', '--sparse', f'{repository}::vm', cwd=copy, env=environment)
        self.check_copy(copy)

    def test_restic(self):
        """restic backup and restore; it asks for no holes, and only newer ones can make them."""
        repository, copy = self.directory / 'repository', self.directory / 'copy'
        environment = {'PATH': os.environ['PATH'], 'RESTIC_PASSWORD': 'secret', 'RESTIC_REPOSITORY': str(repository)}
        restic = ('restic', '--no-cache', '--quiet')
        makes_holes = '--sparse' in run('restic', 'restore', '--help').stdout
        run(*restic, 'init', env=environment)
        run(*restic, 'backup', '.', cwd=self.mount.point, env=environment)
        self.check_repository(repository)
        run(*restic, 'restore', 'latest', '--target', copy, *(['--sparse'] if makes_holes else []), env=environment)
        self.check_copy(copy, sparse=makes_holes)

    def check_repository(self, repository):
        """It holds the data and the files, once, and none of the holes."""
        files = sum(path.stat().st_size for path in self.mount.point.iterdir() if path.name not in self.truth)
        self.assertLess(self.allocated(repository), sum(self.data.values()) + files + SLACK)

    def test_qemu_img(self):
        """qemu-img convert, to an image with the same content and no more than the data."""
        for name, truth in self.truth.items():
            qcow2, raw = self.directory / f'{name}.qcow2', self.directory / name
            run('qemu-img', 'convert', '-f', 'raw', '-O', 'qcow2', self.mount / name, qcow2)
            run('qemu-img', 'compare', '-f', 'qcow2', '-F', 'raw', qcow2, truth)
            self.check_sparse(qcow2, name, block=64 * 1024)
            run('qemu-img', 'convert', '-f', 'raw', '-O', 'raw', self.mount / name, raw)
            self.assertEqual(lib.sha256(raw), self.sha256[name])
            self.check_sparse(raw, name)

    def test_dd(self):
        """dd conv=sparse, with blocks that fit nothing, and past the page cache."""
        for name in self.truth:
            for block, options in ((100_001, []), (MIB, ['iflag=direct'])):
                raw = self.directory / name
                run('dd', f'if={self.mount / name}', f'of={raw}', f'bs={block}', 'conv=sparse', 'status=none', *options)
                # Where the disk ends in zeroes, dd leaves the file short, as its manual says.
                os.truncate(raw, self.truth[name].stat().st_size)
                self.assertEqual(lib.sha256(raw), self.sha256[name])
                self.check_sparse(raw, name, block)
                raw.unlink()

    def test_filesystem(self):
        """The guest's filesystem, frozen for the instant, is clean, and its files can be had from a loop mount."""
        self.assertRegex(run('fsck.ext4', '-f', '-n', self.mount / 'vda.raw').stdout, r'\d+/\d+ files .*blocks\n$')
        root = self.directory / 'root'
        root.mkdir()
        with contextlib.ExitStack() as stack:
            run('mount', '-o', 'ro,loop,noload', self.mount / 'vda.raw', root)
            stack.callback(run, 'umount', root)
            self.assertEqual((root / 'etc/greeting').read_text(), 'hello\n')
            self.assertEqual(lib.sha256(root / 'photos'), self.photos.split()[0])
            self.assertFalse((root / 'other').exists())

    def test_restore(self):
        """A tar of the mount, extracted: its machine boots, and finds its files and records to be one instant."""
        copy = self.directory / 'copy'
        copy.mkdir()
        self.directory.chmod(0o711)
        run('sh', '-c', 'tar -cSf - -C "$0" . | tar -xSf - -C "$1"', self.mount.point, copy)
        newest = lib.check_instant(self.mount / 'vda.raw', self.mount / 'vdb.raw')
        self.assertLess(newest, self.vm.alive())
        with Vm.restore(copy) as restored:
            restored.start()
            self.assertEqual(restored.check(), newest)
            restored.run('mount -t ext4 /dev/vda /mnt')
            self.assertEqual(restored.run('sha256sum </mnt/photos'), self.photos)
            restored.run('umount /mnt')
            restored.start_writer()
            self.assertGreater(restored.alive(), newest)
