# SPDX-License-Identifier: LGPL-2.1-or-later

"""
The same instant as qcow2 and as vma: whatever the format, what comes out of it is the truth, it is no longer than its
data, any offset can be read in any order, and the machine boots from it.
"""

import json
import os
import random
import shutil
import subprocess
import tempfile
from pathlib import Path

import lib
import vma
from lib import MIB, Disk, Mount, Vm, run

KIB = 1024
# What tables, headers and the configuration may take, beside the data.
OVERHEAD = 2 * MIB
# No whole clusters, nor blocks.
ODD_SIZE = 512 * MIB + 512


def data_bytes(path):
    return sum(end - start for start, end in lib.data_extents(path))


class Formats(lib.TestCase):
    """
    Two disks with a filesystem, data and large holes, on images of both kinds. Each mount begins while the guest's
    processor is stopped, so that the truth can be taken; then the guest overwrites what is read.
    """

    options = None  # of the mount; a class of tests has one

    @classmethod
    def make_vm(cls):
        return Vm([Disk(filesystem=64 * MIB), Disk(format='raw', size=ODD_SIZE)])

    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        vm = cls.vm
        vm.run('mount -t ext4 /dev/vda /mnt && dd if=/dev/urandom of=/mnt/photos bs=1M count=12 status=none && sync; '
               'for i in $(seq 0 40); do dd if=/dev/urandom of=/dev/vdb bs=4096 seek=$((i * 3011)) count=$((i * 3 + 1)) '
               'oflag=direct status=none; done')
        cls.photos = vm.run('sha256sum </mnt/photos')
        vm.start_writer()
        vm.run('fsfreeze --freeze /mnt')
        vm.pause()
        cls.truth = {disk: vm.disk_raw(disk, vm.directory / f'{disk}.truth') for disk in vm.images}
        cls.mount = cls.enterClassContext(Mount(vm, cls.options))
        vm.resume()
        vm.run('fsfreeze --unfreeze /mnt && rm /mnt/photos && dd if=/dev/urandom of=/mnt/other bs=1M count=20 '
               'status=none && sync; dd if=/dev/urandom of=/dev/vdb bs=1M count=30 oflag=direct status=none')
        vm.wait_written()

    def setUp(self):
        self.directory = Path(tempfile.mkdtemp(prefix='format-', dir=lib.SANDBOX))
        self.addCleanup(shutil.rmtree, self.directory)

    def data(self):
        return sum(data_bytes(path) for path in self.truth.values())

    def check_file(self, name):
        """Its size is exact; any offset reads the same in any order and twice; what is said to be a hole is zeroes."""
        path = self.mount / name
        whole = path.read_bytes()
        self.assertEqual(len(whole), path.stat().st_size)
        self.assertLess(path.stat().st_blocks * 512, len(whole) + 512)
        self.assertEqual(path.stat().st_blocks * 512 // 4096, data_bytes(path) // 4096)
        choice = random.Random(name)
        with open(path, 'rb', buffering=0) as file:
            for _ in range(400):
                offset = choice.randrange(len(whole))
                length = choice.choice((1, 512, 4096, 10_000, 100_000, MIB))
                self.assertEqual(os.pread(file.fileno(), length, offset), whole[offset:offset + length], (offset, length))
        position = 0
        for start, end in lib.data_extents(path):
            self.assertFalse(any(whole[position:start]), (position, start))
            position = end
        self.assertFalse(any(whole[position:]))

    def check_boots(self, copy, disk_format):
        """The machine that COPY describes finds its files and records to be one instant."""
        self.directory.chmod(0o711)
        with Vm.restore(copy, disk_format=disk_format) as restored:
            restored.start()
            restored.check()
            restored.run('mount -t ext4 /dev/vda /mnt')
            self.assertEqual(restored.run('sha256sum </mnt/photos'), self.photos)
            restored.run('umount /mnt')
            restored.start_writer()
            restored.wait_written()

    def check_disk(self, disk):
        """The status says that all of it was read, though only what is stored was."""
        status = self.mount.disk_status(disk)
        self.assertEqual(status['read'], status['data'])


class Tools:
    """For a class of tests with a mount and a directory."""

    def test_tools(self):
        """Tools that know no holes store what a file has, and no more; what they give back is the file."""
        stored = sum((self.mount / name).stat().st_size for name in os.listdir(self.mount.point))
        for name, tool in (('restic', self.restic), ('borg', self.borg), ('rsync', self.rsync), ('tar', self.tar)):
            with self.subTest(tool=name):
                self.assertLess(tool(), stored + 3 * MIB)
                copy = self.directory / f'{name}-copy'
                self.assertEqual(sorted(os.listdir(copy)), sorted(os.listdir(self.mount.point)))
                for file in copy.iterdir():
                    run('cmp', file, self.mount / file.name)

    def allocated(self, directory):
        return sum(path.lstat().st_blocks * 512 for path in [directory, *directory.rglob('*')])

    def restic(self):
        repository, copy = self.directory / 'restic', self.directory / 'restic-copy'
        environment = {'PATH': os.environ['PATH'], 'RESTIC_PASSWORD': 'secret', 'RESTIC_REPOSITORY': str(repository)}
        run('restic', '--no-cache', '--quiet', 'init', env=environment)
        run('restic', '--no-cache', '--quiet', 'backup', '.', cwd=self.mount.point, env=environment)
        run('restic', '--no-cache', '--quiet', 'restore', 'latest', '--target', copy, env=environment)
        return self.allocated(repository)

    def borg(self):
        repository, copy = self.directory / 'borg', self.directory / 'borg-copy'
        copy.mkdir()
        environment = {'PATH': os.environ['PATH'], 'BORG_BASE_DIR': str(self.directory / 'borg-home')}
        run('borg', 'init', '--encryption=none', repository, env=environment)
        run('borg', 'create', '--compression=none', f'{repository}::vm', '.', cwd=self.mount.point, env=environment)
        run('borg', 'extract', f'{repository}::vm', cwd=copy, env=environment)
        return self.allocated(repository)

    def rsync(self):
        copy = self.directory / 'rsync-copy'
        run('rsync', '-a', f'{self.mount.point}/', copy)
        return self.allocated(copy)

    def tar(self):
        archive, copy = self.directory / 'vm.tar', self.directory / 'tar-copy'
        copy.mkdir()
        run('tar', '-cf', archive, '-C', self.mount.point, '.')
        run('tar', '-xf', archive, '-C', copy)
        return archive.stat().st_size


class Qcow2(Formats, Tools):
    options = 'format=qcow2'

    def compare(self, image, disk):
        run('qemu-img', 'compare', '-f', 'qcow2', '-F', 'raw', image, self.truth[disk])

    def test_names(self):
        self.assertLessEqual({'vda.qcow2', 'vdb.qcow2', 'domain.xml', 'manifest.json'}, set(os.listdir(self.mount.point)))
        self.assertFalse({'vda.raw', 'vdb.raw'} & set(os.listdir(self.mount.point)))
        disks = json.loads((self.mount / 'manifest.json').read_text())['disks']
        self.assertEqual([(disk['file'], disk['format']) for disk in disks],
                         [('vda.qcow2', 'qcow2'), ('vdb.qcow2', 'qcow2')])
        self.assertEqual(os.getxattr(self.mount / 'vdb.qcow2', 'user.vmsnap.disk'), b'vdb')

    def test_reading(self):
        for disk in self.truth:
            self.check_file(f'{disk}.qcow2')
            self.check_disk(disk)

    def test_qemu_img(self):
        """No errors and no leaks; the content is the truth; and as long as the data."""
        for disk, truth in self.truth.items():
            image = self.mount / f'{disk}.qcow2'
            report = json.loads(run('qemu-img', 'check', '-f', 'qcow2', '--output=json', image).stdout)
            self.assertEqual(report['check-errors'], 0)
            self.assertNotIn('leaks', report)
            self.assertNotIn('corruptions', report)
            self.assertEqual(report['image-end-offset'], image.stat().st_size)
            self.compare(image, disk)
            info = json.loads(run('qemu-img', 'info', '-f', 'qcow2', '--output=json', image).stdout)
            self.assertEqual(info['virtual-size'], truth.stat().st_size)
            self.assertEqual(info['cluster-size'], 64 * KIB)
            self.assertEqual(info['format-specific']['data']['compat'], '1.1')
            self.assertLess(image.stat().st_size, 64 * KIB * len(lib.data_extents(truth)) * 2 + data_bytes(truth) + OVERHEAD)
            run('qemu-img', 'convert', '-f', 'qcow2', '-O', 'raw', image, self.directory / disk)
            run('cmp', self.directory / disk, truth)

    def test_servers(self):
        """What serves images to others takes it, and gives the truth."""
        for server in (['qemu-nbd', '--read-only', '--format=qcow2', '--shared=4'],
                       ['nbdkit', '--foreground', '--readonly', 'file']):
            image = self.mount / 'vda.qcow2'
            socket = self.directory / 'nbd.sock'
            command = server + ([f'--socket={socket}', image] if server[0] == 'qemu-nbd' else [f'file={image}'])
            if server[0] == 'nbdkit':
                command[1:1] = ['--unix', socket]
            process = subprocess.Popen(command, stdin=subprocess.DEVNULL)
            try:
                lib.wait_until(socket.is_socket, f'{server[0]} listens')
                # nbdkit gives the file, and qemu-img understands it; qemu-nbd has done so already.
                kind = 'raw' if server[0] == 'qemu-nbd' else 'qcow2'
                run('qemu-img', 'compare', '-f', kind, '-F', 'raw', f'nbd+unix:///?socket={socket}', self.truth['vda'])
            finally:
                process.terminate()
                process.wait()
                socket.unlink(missing_ok=True)

    def test_libguestfs(self):
        """guestfish finds the guest's file in it."""
        said = run('guestfish', '--ro', '--format=qcow2', '-a', self.mount / 'vda.qcow2', 'run', ':',
                   'mount-ro', '/dev/sda', '/', ':', 'checksum', 'sha256', '/photos',
                   env=lib.appliance_environment(self.directory), timeout=300).stdout
        self.assertEqual(said.split(), self.photos.split()[:1])

    def test_boot(self):
        copy = self.directory / 'copy'
        run('cp', '-a', self.mount.point, copy)
        self.check_boots(copy, 'qcow2')


class Vma(Formats, Tools):
    options = None

    @classmethod
    def make_vm(cls):
        vm = super().make_vm()
        cls.config = vm.directory / 'qemu-server.conf'
        cls.config.write_text('name: test\n#qmdump#map:virtio0:vda:local::\n')
        cls.options = f'format=vma,config={cls.config}'
        return vm

    def archive(self):
        return self.mount / f'{self.vm.name}.vma'

    def test_names(self):
        names = os.listdir(self.mount.point)
        self.assertLessEqual({f'{self.vm.name}.vma', 'domain.xml', 'manifest.json', 'qemu-server.conf'}, set(names))
        self.assertEqual([name for name in names if name.endswith('.raw')], [])
        disks = json.loads((self.mount / 'manifest.json').read_text())['disks']
        self.assertEqual([(disk['name'], disk['file'], disk['format']) for disk in disks],
                         [(disk, f'{self.vm.name}.vma', 'vma') for disk in ('vda', 'vdb')])

    def test_reading(self):
        self.check_file(self.archive().name)
        for disk in self.truth:
            self.check_disk(disk)

    def test_restore(self):
        """Through a pipe and a compressor, as to Proxmox; then into a machine of libvirt's again."""
        packed, copy = self.directory / 'vzdump.vma.zst', self.directory / 'copy'
        copy.mkdir()
        run('sh', '-c', 'cat "$0" | zstd -q -1 -o "$1"', self.archive(), packed)
        with subprocess.Popen(['zstd', '-dcq', packed], stdout=subprocess.PIPE) as zstd:
            archive = vma.Archive(zstd.stdout)
            stored = archive.extract(copy)
        self.assertEqual(zstd.returncode, 0)
        manifest = json.loads((self.mount / 'manifest.json').read_text())
        self.assertEqual(str(archive.uuid), manifest['uuid'])
        self.assertEqual(archive.ctime, int(self.mount.status()['start-time']))
        self.assertEqual(archive.devices, {number: (disk, self.truth[disk].stat().st_size)
                                           for number, disk in enumerate(self.truth, 1)})
        self.assertEqual(archive.configs, {name: (self.mount / name).read_bytes()
                                           for name in ('domain.xml', 'live.xml', 'qemu-server.conf')})
        self.assertEqual(archive.configs['qemu-server.conf'], self.config.read_bytes())
        for disk, truth in self.truth.items():
            run('cmp', copy / f'{disk}.raw', truth)
        self.assertLess(stored * 4096, self.data() + OVERHEAD)
        self.assertLess(self.archive().stat().st_size, stored * 4096 + OVERHEAD)
        for name in ('domain.xml', 'kernel', 'initrd'):
            shutil.copy(self.mount / name, copy)
        self.check_boots(copy, 'raw')


class Refused(lib.TestCase):
    """What cannot be: nothing is begun, and nothing is left."""

    def test_options(self):
        for options, says in (('format=qcow', 'none of raw, qcow2 and vma'),
                              ('cluster_size=64K', 'use format=qcow2'),
                              ('format=vma,cluster_size=64K', 'use format=qcow2'),
                              ('format=qcow2,cluster_size=3K', 'no power of two from 512 to 2M'),
                              ('format=qcow2,cluster_size=4M', 'no power of two from 512 to 2M')):
            with self.subTest(options=options):
                self.assert_refused(f'.*{says}.*', options, status=1)

    def test_config(self):
        directory = self.vm.directory
        large, huge, same = directory / 'large.conf', directory / 'huge.conf', directory / 'domain.xml'
        large.write_bytes(b'#' * 65536)
        huge.write_bytes(bytes(2 * MIB))
        same.write_text('mine')
        os.mkfifo(directory / 'fifo')
        for options, says in ((f'format=vma,config={large}', 'at most 65535'),
                              (f'config={huge}', 'more than 1 MiB'),
                              (f'config={directory}/nothing', 'No such file'),
                              (f'config={directory}', 'it is no file'),
                              (f'config={directory}/fifo', 'it is no file'),
                              (f'config={same}', 'for two files'),
                              (f'config={large}:{large}', 'for two files')):
            with self.subTest(options=options):
                self.assert_refused(f'.*{says}.*', options)
        with Mount(self.vm, f'config={large}') as mount:
            self.assertEqual((mount / 'large.conf').read_bytes(), large.read_bytes())

    def test_cluster_sizes(self):
        self.vm.run('dd if=/dev/urandom of=/dev/vda bs=4096 seek=100 count=5 oflag=direct status=none; '
                    'dd if=/dev/urandom of=/dev/vda bs=1M seek=60 count=3 oflag=direct status=none')
        sizes = {}
        for size in ('512', '4k', '2M'):
            self.vm.pause()
            truth = self.vm.disk_raw('vda', self.vm.directory / 'vda.truth')
            with Mount(self.vm, f'format=qcow2,cluster_size={size}') as mount:
                self.vm.resume()
                run('qemu-img', 'check', '-q', '-f', 'qcow2', mount / 'vda.qcow2')
                run('qemu-img', 'compare', '-f', 'qcow2', '-F', 'raw', mount / 'vda.qcow2', truth)
                sizes[size] = (mount / 'vda.qcow2').stat().st_size
        self.assertLess(sizes['4k'], sizes['2M'])
