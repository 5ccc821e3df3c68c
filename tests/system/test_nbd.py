# SPDX-License-Identifier: LGPL-2.1-or-later

"""
Exports of NBD servers that somebody else has begun: real qemu-nbd, nbdkit, and a backup job of libvirt's. What is read
is what they serve, whatever happens to them is an error in time, and they are left as they were.
"""

import contextlib
import json
import os
import random
import re
import shutil
import signal
import tempfile
import time
from pathlib import Path

import faults
import lib
import test_truth
import vma
from lib import MIB, Mount, complaint, run
from servers import Exports, Nbdkit, QemuNbd

# In the region that faults.Readers read, and with holes between.
IO = (*(f'write -P {1 + at} {at}M {64 + at}k' for at in range(24)), 'write -z 30M 1M', 'write -P 7 47M 1M')
SIZE = 48 * MIB

LOST = 'the server closed the NBD connection'
ELSEWHERE = '/usr'


def noise(name, size):
    return random.Random(name).randbytes(size)


FILES = {
    'vda': noise('vda', 3 * MIB + 512) + bytes(MIB),
    'vdb': bytes(2 * MIB) + noise('vdb', MIB),
    'b c,d:%"': noise('b', 65536),
    '.hidden': noise('hidden', 4096),
    'größe': noise('u', 513),
    'empty': b'',
}
# What each is called in the mount.
NAMES = {'vda': 'vda', 'vdb': 'vdb', 'b c,d:%"': 'b c%2Cd%3A%25%22', '.hidden': '%2Ehidden', 'größe': 'größe',
         'empty': 'empty'}


class TestCase(lib.TestCase):
    def tearDown(self):
        self.unmount_all()

    def truth(self):
        directory = Path(tempfile.mkdtemp(prefix='truth-', dir=lib.SANDBOX))
        self.addCleanup(shutil.rmtree, directory)
        return directory

    def check_umount_says(self, mount, says):
        """umount tells in one line that the server has failed, and nothing of libvirt."""
        line = complaint('umount', mount.point, status=32, user=self.vm.user)
        self.assertRegex(line, f"^umount.fuse.vmsnap: failed to keep the snapshot of '.*': .*{says}.*; do not trust "
                               f"what was copied from '{mount.point}'$")
        self.assertNotRegex(line, 'libvirt|domain|virsh|guest|QEMU')
        mount.wait_ended()
        mount.point.rmdir()


class Qemu(TestCase):
    """One image with holes, served by qemu-nbd over a unix socket."""

    @classmethod
    def make_vm(cls):
        return QemuNbd(SIZE, IO)

    def test_every_byte_in_every_way(self):
        truth = test_truth.Truth(self.vm)
        with Mount(self.vm) as mount:
            test_truth.read_in_every_way(mount, truth, seed=1000)

    def test_holes(self):
        """SEEK_DATA and SEEK_HOLE find what QEMU says of the image; du, ls and progress say the same."""
        expected = test_truth.image_extents(self.vm, 'disk')
        data = sum(end - start for start, end in expected)
        self.assertGreater(len(expected), 10)
        with Mount(self.vm) as mount:
            path = mount / 'disk.raw'
            self.assertEqual(lib.data_extents(path), expected)
            self.assertEqual(path.stat().st_blocks, data // 512)
            self.assertEqual(int(run('du', '--block-size=1', path).stdout.split()[0]), data)
            self.assertEqual(mount.disk_status('disk')['data'], data)

    def test_tools(self):
        """tar, rsync and cp make the same of it as of any file."""
        truth = self.vm.disk_raw('disk', self.truth() / 'disk.raw')
        with Mount(self.vm) as mount:
            run('cmp', mount / 'disk.raw', truth)
            copy = self.truth()
            run('cp', '--sparse=auto', mount / 'disk.raw', copy / 'cp')
            run('rsync', '--sparse', mount / 'disk.raw', copy / 'rsync')
            run('sh', '-c', 'tar -cSf - -C "$0" . | tar -xSf - -C "$1"', mount.point, copy)
            for name in ('cp', 'rsync', 'disk.raw'):
                run('cmp', copy / name, truth)
                self.assertLess((copy / name).stat().st_blocks * 512, SIZE // 2)

    def test_formats(self):
        truth = self.vm.disk_raw('disk', self.truth() / 'disk.raw')
        with Mount(self.vm, 'format=qcow2') as mount:
            run('qemu-img', 'check', '-q', mount / 'disk.qcow2')
            run('qemu-img', 'compare', '-q', mount / 'disk.qcow2', truth)
        with Mount(self.vm, 'format=vma') as mount:
            archive, = mount.point.glob('*.vma')
            self.assertRegex(archive.name, r'^nbd_unix_socket_[\w.-]+_nbd\.sock\.vma$')
            copy = self.truth()
            with open(archive, 'rb') as file:
                vma.Archive(file).extract(copy)
            run('cmp', copy / 'disk.raw', truth)

    def test_what_is_told_of_it(self):
        with Mount(self.vm, 'disks=disk') as mount:
            manifest = json.loads((mount / 'manifest.json').read_text())
            uuid, version = manifest['source'].pop('uuid'), manifest['versions'].pop('libnbd')
            self.assertEqual(manifest['source'], {'backend': 'nbd', 'name': self.vm.name})
            self.assertEqual(manifest['consistency'], 'unknown')
            self.assertRegex(version, r'^1\.\d+')
            self.assertEqual([each['source'] for each in manifest['disks']], [self.vm.name])
            self.assertEqual({each.name for each in mount.point.iterdir()}, {'disk.raw', 'manifest.json'})
            self.assertEqual(os.listdir('/var/lib/vmsnap'), [])
            self.assertEqual(len(os.listdir('/run/vmsnap')), 1)
            inode = (mount / 'disk.raw').stat().st_ino
        with Mount(self.vm) as mount:
            self.assertEqual(json.loads((mount / 'manifest.json').read_text())['source']['uuid'], uuid)
            self.assertEqual((mount / 'disk.raw').stat().st_ino, inode)
            said = run('mount.vmsnap', self.vm.name, point := lib.make_directory('verbose'), '-v').stderr
            run('umount', point)
            self.assertEqual(said.count('\n'), 1)
            self.assertIn(f"server '{self.vm.name}' is mounted on '{point}'", said)
            self.assertIn('as consistent as what it exports', said)
            point.rmdir()

    def test_two_mounts_at_once(self):
        with Mount(self.vm) as first, Mount(self.vm, 'format=qcow2') as second:
            run('qemu-img', 'compare', '-q', '-f', 'raw', '-F', 'qcow2', first / 'disk.raw', second / 'disk.qcow2')
            second.umount()
            lib.drop_cache(first / 'disk.raw')
            lib.read_all(first / 'disk.raw')
            self.assertIn(f"server '{self.vm.name}': it is mounted",
                          complaint('mount.vmsnap', '--cleanup', self.vm.name, status=32))
            first.umount()
            second._before = first._before

    def test_mount8(self):
        """mount(8) and fstab take such a source, and umount(8) calls the helper that waits."""
        mount = Mount(self.vm)
        run('mount', '-t', 'vmsnap', self.vm.name, mount.point, cwd=ELSEWHERE)
        self.assertEqual(run('findmnt', '-no', 'SOURCE,FSTYPE', '--mountpoint', mount.point).stdout.split(),
                         [self.vm.name, 'fuse.vmsnap'])
        lib.read_all(mount / 'disk.raw')
        mount.umount()
        mount.assert_no_trace()
        Path('/etc/fstab').write_text(f'{self.vm.name} {mount.point} vmsnap noauto,format=qcow2,_netdev 0 0\n')
        try:
            for operand in (mount.point, self.vm.name):
                run('mount', operand, cwd=ELSEWHERE)
                run('qemu-img', 'info', mount / 'disk.qcow2')
                run('umount', operand)
                mount.assert_no_trace()
        finally:
            Path('/etc/fstab').write_text('')
        mount.assert_nothing_left()

    def test_a_path_may_be_relative(self):
        """Though the daemon leaves the directory, and has to find the socket again when it is cut off."""
        mount = Mount(self.vm)
        run('mount.vmsnap', self.vm.uri(socket_path='nbd.sock'), mount.point, cwd=self.vm.directory)
        self.assertGreater(faults.cut_connections(mount.daemon(), self.vm.socket), 0)
        lib.read_all(mount / 'disk.raw')
        mount.umount()
        mount.assert_nothing_left()

    def test_a_socket_may_be_on_the_way_only_at_the_mount(self):
        """What is above the socket may be moved away; and its mode is never changed."""
        mode = self.vm.socket.stat().st_mode
        away = self.vm.directory.with_name(f'{self.vm.directory.name}-away')
        with Mount(self.vm) as mount:
            self.vm.directory.rename(away)
            try:
                self.assertGreater(faults.cut_connections(mount.daemon(), self.vm.socket), 0)
                lib.read_all(mount / 'disk.raw')
            finally:
                away.rename(self.vm.directory)
        self.assertEqual(self.vm.socket.stat().st_mode, mode)

    def test_cut_connections(self):
        """Readers do not notice."""
        truth = self.truth()
        self.vm.disk_raw('disk', truth / 'disk.raw')
        with Mount(self.vm) as mount, faults.Readers(mount, truth) as readers:
            for _ in range(5):
                self.assertGreater(faults.cut_connections(mount.daemon(), self.vm.socket), 0)
                readers.get_on()
            readers.stop()

    def test_refused_options(self):
        for options, name in (('connect=qemu:///system', 'connect'), ('quiesce=try', 'quiesce'),
                              ('freeze_timeout=5', 'freeze_timeout'), ('scratch=/var/tmp', 'scratch'),
                              ('scratch_max=1G', 'scratch_max'), ('scratch_reserve=1G', 'scratch_reserve'),
                              ('checkpoint=c', 'checkpoint'), ('since=c', 'since'), ('incremental', 'incremental'),
                              ('keep_checkpoints=3', 'keep_checkpoints'), ('commit=explicit', 'commit')):
            with self.subTest(options=options):
                self.assert_refused(f"failed to use option '{name}' with '{re.escape(self.vm.name)}': .*; leave it out",
                                    options, status=1)

    def test_wrong_sources(self):
        nowhere, file = self.vm.directory / 'nowhere', self.vm.keys
        for source, says in (
                (self.vm.uri('nope'), "NBD export 'nope' on '.*nope.*': .*No such file.*; see whether the server"),
                (self.vm.uri(socket_path=nowhere), f"socket '{nowhere}' of .*: No such file.*; see whether"),
                (self.vm.uri(socket_path=file), f"socket '{file}' of .*: Socket operation on non-socket"),
                ('nbd+unix:///', "'nbd\\+unix:///': .*socket="),
                ('nbd://127.0.0.1:1', "'nbd://127.0.0.1:1': .*Connection refused; see whether the server runs"),
                ('nbd://no-such-host.invalid/x', "'x' on 'nbd://no-such-host.invalid/x': .*no-such-host.invalid"),
                (f'nbds+unix:///?socket={self.vm.socket}', 'TLS.*; see whether the server .* speaks TLS'),
                ('http://127.0.0.1/', 'built without support for that kind of source')):
            with self.subTest(source=source):
                status = 1 if source.startswith('http') else 32
                self.assert_refused(f'failed to .*{says}.*', source=source, status=status)
        self.assert_refused("failed to find disk 'vdx' of disks= in server '.*': its disks are disk", 'disks=vdx')
        self.assert_refused("failed to back up server '.*': no disk is left .*", 'exclude=disk')

    def test_kill_both(self):
        """Nothing of the server needs to be cleared up, and all else is."""
        mount = Mount(self.vm)
        mount.mount()
        mount.kill(guardian=True)
        self.assertNotEqual(lib.left_behind(self.vm), set())
        run('mount.vmsnap', '--cleanup', self.vm.name)
        mount.assert_no_trace()
        mount.mount()
        mount.kill(guardian=True)
        mount.mount()
        lib.read_all(mount / 'disk.raw')
        mount.umount()
        mount.assert_nothing_left()

    def test_kill_daemon(self):
        mount = Mount(self.vm)
        mount.mount()
        mount.kill()
        mount.wait_ended()
        mount.assert_nothing_left()


class User(TestCase):
    """An ordinary user mounts what he may connect to."""

    @classmethod
    def make_vm(cls):
        return QemuNbd(SIZE, IO, user='backupuser')

    def test_user(self):
        self.assert_refused_by_mode()
        self.vm.socket.chmod(0o666)
        truth = self.vm.disk_raw('disk', self.truth() / 'disk.raw')
        truth.parent.chmod(0o755)
        truth.chmod(0o644)
        with Mount(self.vm) as mount:
            run('cmp', mount / 'disk.raw', truth, user='backupuser')
            self.assertGreater(faults.cut_connections(mount.daemon(), self.vm.socket), 0)
            run('cmp', mount / 'disk.raw', truth, user='backupuser')

    def assert_refused_by_mode(self):
        mount = Mount(self.vm)
        line = complaint('mount.vmsnap', self.vm.name, mount.point, user='backupuser', status=32)
        self.assertIn('Permission denied', line)
        mount.point.rmdir()


class Several(TestCase):
    """Each export is a file, whatever its name is."""

    @classmethod
    def make_vm(cls):
        return Exports(FILES)

    def check_files(self, mount, names):
        self.assertEqual({each.name for each in mount.point.iterdir()},
                         {f'{NAMES[name]}.raw' for name in names} | {'manifest.json'})
        for name in names:
            self.assertEqual((mount / f'{NAMES[name]}.raw').read_bytes(), FILES[name], name)

    def test_all(self):
        with Mount(self.vm) as mount:
            self.check_files(mount, FILES)
            manifest = json.loads((mount / 'manifest.json').read_text())
            self.assertEqual([each['name'] for each in manifest['disks']], [NAMES[name] for name in sorted(
                FILES, key=lambda name: name.encode())])
            self.assertEqual(run('tar', '-cSf', '/dev/null', '-C', mount.point, '.').stderr, '')

    def test_choice(self):
        with Mount(self.vm, 'disks=vda:größe') as mount:
            self.check_files(mount, ('vda', 'größe'))
        with Mount(self.vm, 'exclude=b c%2Cd%3A%25%22:empty:%2Ehidden') as mount:
            self.check_files(mount, ('vda', 'vdb', 'größe'))
            manifest = json.loads((mount / 'manifest.json').read_text())
            self.assertIn({'name': 'empty', 'reason': 'was excluded'}, manifest['left-out'])

    def test_the_one_that_the_uri_names(self):
        for name in FILES:
            with self.subTest(name=name):
                mount = Mount(self.vm)
                run('mount.vmsnap', self.vm.uri(name), mount.point)
                self.check_files(mount, (name,))
                mount.umount()
                mount.assert_nothing_left()

    def test_formats(self):
        directory = self.truth()
        for name, content in FILES.items():
            (directory / f'{NAMES[name]}.raw').write_bytes(content)
        # A disk of a machine is made of sectors, and an export need not be.
        self.assert_refused("failed to show disk 'größe' as qcow2: .*", 'format=qcow2')
        with Mount(self.vm, 'format=qcow2,exclude=größe') as mount:
            for path in sorted(path for path in directory.iterdir() if path.stem != 'größe'):
                run('qemu-img', 'convert', '-O', 'raw', mount / f'{path.stem}.qcow2', out := lib.SANDBOX / 'out.raw')
                run('truncate', '-s', path.stat().st_size, out)
                run('cmp', out, path)
        with Mount(self.vm, 'format=vma') as mount, open(next(mount.point.glob('*.vma')), 'rb') as file:
            copy = self.truth()
            vma.Archive(file).extract(copy)
            for path in directory.iterdir():
                run('cmp', copy / path.name, path)


class Ways(TestCase):
    """Over TCP, and with TLS over both."""

    @classmethod
    def make_vm(cls):
        return Exports(FILES, port=10809, tls=True)

    def check_read(self, server):
        with Mount(server) as mount:
            for name, content in FILES.items():
                self.assertEqual((mount / f'{NAMES[name]}.raw').read_bytes(), content, name)

    def test_tls_over_tcp(self):
        self.check_read(self.vm)

    def test_others(self):
        for how in ({'tls': True}, {'port': 20809}):
            with self.subTest(**how), Exports(FILES, **how) as server:
                self.check_read(server.start())

    def test_without_a_key(self):
        self.assert_refused(".*'nbds://127.0.0.1:10809': .*; see whether .*", source='nbds://127.0.0.1:10809')

    def test_without_tls(self):
        self.assert_refused(".*'nbd://127.0.0.1:10809': .*it lists no export; .*; see whether .* speaks TLS .*",
                            source='nbd://127.0.0.1:10809')

    def test_keys_of_others(self):
        """The daemon reads them with root's rights, and without capabilities when it is cut off."""
        with Mount(self.vm) as mount:
            self.assertGreater(run('ss', '--kill', '--tcp', 'dport', '=', ':10809').stdout.count('\n'), 1)
            self.assertEqual((mount / 'vda.raw').read_bytes(), FILES['vda'])


class Faults(TestCase):
    """Servers that fail. Each test has one of its own."""

    @classmethod
    def setUpClass(cls):
        pass

    def serve(self, server):
        self.vm = self.enterContext(server)
        return self.vm.start()

    def kill_while_read(self, server):
        truth = self.truth()
        server.disk_raw('disk', truth / 'disk.raw')
        mount = Mount(server)
        mount.mount()
        with faults.Readers(mount, truth) as readers:
            readers.get_on()
            since = time.monotonic()
            server.kill()
            readers.wait_errors(since, within=faults.LOST_WITHIN)
        self.assertEqual(mount.status()['status'], 'error')
        self.assertIn(LOST, mount.status()['errmsg'])
        self.check_umount_says(mount, LOST)

    def test_killed_while_read(self):
        self.kill_while_read(self.serve(QemuNbd(SIZE, IO)))

    def test_killed_while_read_over_tcp(self):
        self.kill_while_read(self.serve(QemuNbd(SIZE, IO, port=10809)))

    def test_killed_while_idle(self):
        server = self.serve(Nbdkit('memory', '1M'))
        mount = Mount(server)
        mount.mount()
        server.kill()
        lib.wait_until(lambda: mount.status()['status'] == 'error', 'it is noticed', timeout=faults.SOON)
        self.check_umount_says(mount, LOST)

    def test_another_server_in_its_place(self):
        """It may serve another instant, and nobody could tell."""
        server = self.serve(QemuNbd(SIZE, IO))
        mount = Mount(server)
        mount.mount()
        server.kill()
        server.socket.unlink()
        server.start()
        self.assertIn('Input/output error', run('dd', f'if={mount.point}/disk.raw',
                                                'of=/dev/null', 'iflag=direct', 'bs=4k', status=1).stderr)
        self.check_umount_says(mount, LOST)

    def test_stopped_before_the_mount(self):
        for server in (QemuNbd(SIZE, IO), Nbdkit('memory', '1M', port=10809)):
            with self.subTest(server=server), server:
                server.start()
                server.signal(signal.SIGSTOP)
                mount = Mount(server, 'timeout=2')
                since = time.monotonic()
                line = complaint('mount.vmsnap', server.name, mount.point, '-o', 'timeout=2', status=32)
                self.assertLess(time.monotonic() - since, 2 + faults.SOON)
                self.assertRegex(line, f"^mount.vmsnap: failed to .*'{re.escape(server.name)}': no answer")
                self.assertNotIn('libvirt', line)
                server.signal(signal.SIGCONT)
                mount.wait_ended()
                mount.mount()
                mount.umount()
                mount.assert_nothing_left()

    def test_stopped_while_read(self):
        server = self.serve(QemuNbd(SIZE, IO))
        mount = Mount(server, 'timeout=2')
        mount.mount()
        server.signal(signal.SIGSTOP)
        since = time.monotonic()
        run('dd', f'if={mount.point}/disk.raw', 'of=/dev/null', 'iflag=direct', 'bs=4k', status=1)
        self.assertLess(time.monotonic() - since, 2 + faults.SOON)
        server.signal(signal.SIGCONT)
        self.check_umount_says(mount, 'the server has not answered for 2 s')

    def test_stopped_while_unmounted(self):
        """There is nothing to ask it for."""
        server = self.serve(QemuNbd(SIZE, IO))
        mount = Mount(server)
        mount.mount()
        lib.read_all(mount / 'disk.raw')
        server.signal(signal.SIGSTOP)
        since = time.monotonic()
        mount.umount()
        self.assertLess(time.monotonic() - since, faults.SOON)
        server.signal(signal.SIGCONT)
        mount.assert_nothing_left()

    def test_errors_of_the_server(self):
        """A read that the server fails is an error of that read; what it can read is right."""
        switch = lib.SANDBOX / 'fail'
        switch.write_text('')
        self.addCleanup(switch.unlink, missing_ok=True)
        server = self.serve(Nbdkit('--filter=error', 'pattern', '8M', 'error-pread-rate=100%', f'error-file={switch}'))
        with Mount(server, 'readahead=0') as mount:
            read = ('dd', f'if={mount.point}/disk.raw', 'iflag=direct', 'bs=64k', 'count=1', 'status=none')
            self.assertIn('Input/output error', run(*read, status=1).stderr)
            switch.unlink()
            self.assertEqual(run(*read, text=False).stdout,
                             b''.join(at.to_bytes(8, 'big') for at in range(0, 65536, 8)))

    def test_delays(self):
        server = self.serve(Nbdkit('--filter=delay', 'pattern', '2M', 'rdelay=300ms', 'delay-open=300ms'))
        with Mount(server) as mount:
            self.assertEqual((mount / 'disk.raw').read_bytes(),
                             b''.join(at.to_bytes(8, 'big') for at in range(0, 2 * MIB, 8)))

    def test_no_exports(self):
        server = self.serve(Exports({}))
        mount = Mount(server)
        line = complaint('mount.vmsnap', server.name, mount.point, status=32)
        self.assertRegex(line, f"^mount.vmsnap: failed to mount '{re.escape(server.name)}': it lists no export; ")
        mount.assert_nothing_left()

    def test_too_many_exports(self):
        server = self.serve(Exports({f'disk{number}': b'x' for number in range(300)}))
        mount = Mount(server)
        line = complaint('mount.vmsnap', server.name, mount.point, status=32)
        self.assertRegex(line, ': it has 300 exports, and more than 256 are too many; choose some with -o disks=$')
        mount.assert_nothing_left()
        with Mount(server, 'disks=disk7:disk299') as some:
            self.assertEqual((some / 'disk299.raw').read_bytes(), b'x')

    def test_an_old_server(self):
        server = self.serve(Nbdkit('--oldstyle', 'pattern', '1M'))
        mount = Mount(server)
        mount.mount()
        self.assertEqual((mount / 'disk.raw').stat().st_size, MIB)
        mount.umount()
        mount.assert_no_trace()


class Job(lib.TestCase):
    """A backup job that somebody has begun with virsh."""

    def test_a_job_begun_by_hand(self):
        directory = lib.make_directory('by-hand')
        directory.chmod(0o777)
        xml = directory / 'backup.xml'
        disks = ''.join(f'<disk name="{disk}" backup="yes" type="file"><scratch file="{directory}/{disk}"/></disk>'
                        for disk in self.vm.images)
        xml.write_text(f'<domainbackup mode="pull"><server transport="unix" socket="{directory}/socket"/>'
                       f'<disks>{disks}</disks></domainbackup>')
        self.vm.run('dd if=/dev/urandom of=/dev/vda bs=1M count=4 seek=8 oflag=direct 2>/dev/null')
        self.vm.pause()
        truth = {disk: self.vm.disk_raw(disk, directory / f'{disk}.truth') for disk in self.vm.images}
        self.vm.virsh('backup-begin', self.vm.name, xml)
        self.addCleanup(lambda: self.vm.virsh('domjobabort', self.vm.name, status=None))
        self.vm.resume()
        self.vm.run('dd if=/dev/urandom of=/dev/vda bs=1M count=4 seek=8 oflag=direct 2>/dev/null')
        point = lib.make_directory('by-hand-mount')
        run('mount.vmsnap', f'nbd+unix:///?socket={directory}/socket', point)
        for disk, path in truth.items():
            run('cmp', point / f'{disk}.raw', path)
        run('umount', point)
        self.assertEqual(lib.processes(), [])
        self.assertIn('<domainbackup', self.vm.virsh('backup-dumpxml', self.vm.name))
        run('nbdinfo', f'nbd+unix:///vda?socket={directory}/socket')
        self.check_end_of_job(directory, point)

    def check_end_of_job(self, directory, point):
        run('mount.vmsnap', f'nbd+unix:///?socket={directory}/socket', point)
        self.vm.virsh('domjobabort', self.vm.name)
        with contextlib.suppress(lib.CommandFailed):
            lib.read_all(point / 'vda.raw')
        lib.wait_until(lambda: json.loads((point / '.vmsnap/status.json').read_text())['status'] == 'error',
                       'the end of the job is noticed')
        self.assertIn(LOST, complaint('umount', point, status=32))
        self.vm.touch()
