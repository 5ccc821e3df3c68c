# SPDX-License-Identifier: LGPL-2.1-or-later

"""
What is particular to a QEMU without libvirt: which drives become disks, what describes the machine, which other users of
the monitor there may be, and what cannot be mounted.
"""

import contextlib
import json
import os
import shutil
import socket
import subprocess
import threading
import time

import lib
from bare import Bare, BareVm, Monitor, Refused
from lib import MIB, Disk, Mount, complaint, run


def image(name, size=MIB, disk_format='raw'):
    path = lib.SANDBOX / name
    run('qemu-img', 'create', '-q', '-f', disk_format, path, size)
    if disk_format == 'raw':
        path.write_bytes(os.urandom(size))
    path.chmod(0o666)
    return path


class Drives(lib.TestCase):
    """A machine with drives of all kinds. Its processor never runs: nothing of this depends on the guest."""

    usable_options = 'exclude=shared:threaded:threadedscsi'

    @classmethod
    def setUpClass(cls):
        cls.images = {name: image(f'{name}.raw') for name in (
            'scsi', 'ide', 'nvme', 'anonymous', 'node', 'shared', 'threaded', 'threadedscsi', 'readonly', 'medium', 'unused',
            'usb', 'flash')}
        cls.vm = cls.enterClassContext(BareVm([Disk()], extra=cls.words()))
        cls.vm.start_paused()

    @classmethod
    def words(cls):
        def drive(name, more=''):
            return ['-drive', f'file={cls.images[name]},format=raw,if=none,id=drive-{name}{more}']

        return [
            '-object', 'iothread,id=io', '-device', 'virtio-scsi-pci,id=hba',
            '-device', 'virtio-scsi-pci,id=threadedhba,iothread=io', '-usb', '-device', 'usb-ehci,id=ehci',
            *drive('scsi'), '-device', 'scsi-hd,bus=hba.0,drive=drive-scsi,id=scsi0',
            *drive('ide'), '-device', 'ide-hd,bus=ide.0,drive=drive-ide,id=ide0',
            *drive('nvme'), '-device', 'nvme,drive=drive-nvme,id=nvme0,serial=1',
            *drive('usb'), '-device', 'usb-storage,bus=ehci.0,drive=drive-usb,id=stick,removable=on',
            '-drive', f'file={cls.images["anonymous"]},format=raw,if=virtio,id=anonymous',
            '-blockdev', f'driver=raw,node-name=chain,file.driver=file,file.filename={cls.images["node"]}',
            '-device', 'virtio-blk-pci,drive=chain,id=node0',
            *drive('shared'), '-device', 'virtio-blk-pci,drive=drive-shared,id=shared,share-rw=on',
            *drive('threaded'), '-device', 'virtio-blk-pci,drive=drive-threaded,id=threaded,iothread=io',
            *drive('threadedscsi'), '-device', 'scsi-hd,bus=threadedhba.0,drive=drive-threadedscsi,id=threadedscsi',
            *drive('readonly', ',readonly=on'), '-device', 'virtio-blk-pci,drive=drive-readonly,id=readonly',
            *drive('medium', ',readonly=on'), '-device', 'scsi-cd,bus=hba.0,drive=drive-medium,id=cd0',
            '-device', 'ide-cd,bus=ide.1,id=cd1', '-device', 'floppy,unit=0,id=fd0',
            *drive('unused'),
        ]

    def tearDown(self):
        self.unmount_all()

    def test_names_and_content(self):
        """Disks are called after their devices, or else after what -drive says; what has no content is left out."""
        with Mount(self.vm, self.usable_options) as mount:
            self.assertEqual({path.name for path in mount.point.glob('*.raw')},
                             {'vda.raw', 'scsi0.raw', 'ide0.raw', 'nvme0.raw', 'stick.raw', 'anonymous.raw', 'node0.raw'})
            manifest = json.loads((mount / 'manifest.json').read_text())
            self.assertEqual({each['name']: each['reason'] for each in manifest['left-out']}, {
                'shared': 'was excluded', 'threaded': 'was excluded', 'threadedscsi': 'was excluded',
                'readonly': 'is read-only', 'cd0': 'is a CD-ROM', 'cd1': 'is a CD-ROM', 'fd0': 'is a floppy',
                'drive-unused': 'belongs to no device'})
            for name, path in (('scsi0', 'scsi'), ('ide0', 'ide'), ('nvme0', 'nvme'), ('stick', 'usb'),
                               ('anonymous', 'anonymous'), ('node0', 'node')):
                run('cmp', mount / f'{name}.raw', self.images[path])
            self.assertEqual(manifest['source'], {'backend': 'qmp', 'name': self.vm.name, 'uuid': self.vm.uuid})

    def test_writes_to_each_kind_are_kept_out(self):
        """Whatever the device is: what is written through it after the instant is not in the file."""
        paths = {'vda': '/machine/peripheral/vda/virtio-backend', 'scsi0': 'scsi0', 'ide0': 'ide0', 'nvme0': 'nvme0',
                 'node0': '/machine/peripheral/node0/virtio-backend'}
        with Mount(self.vm, self.usable_options) as mount:
            for name, device in paths.items():
                with open(mount / f'{name}.raw', 'rb') as file:
                    file.seek(65536)
                    before = file.read(65536)
                said = self.vm.call('human-monitor-command',
                                    command_line=f'qemu-io -d {device} "write -P 0xa5 64k 64k"')
                self.assertEqual(said.strip(), '')
                lib.drop_cache(mount / f'{name}.raw')
                with open(mount / f'{name}.raw', 'rb') as file:
                    file.seek(65536)
                    self.assertEqual(file.read(65536), before, name)
                self.assertNotEqual(before, b'\xa5' * 65536)
        with Mount(self.vm, self.usable_options) as mount:
            for name in paths:
                with open(mount / f'{name}.raw', 'rb') as file:
                    file.seek(65536)
                    self.assertEqual(file.read(65536), b'\xa5' * 65536, name)
        for name in ('scsi', 'ide', 'nvme', 'node'):
            self.images[name].write_bytes(self.images[name].read_bytes())  # from what QEMU has written, for the others

    def test_refused(self):
        """What cannot be backed up safely is not, and not left out by accident."""
        for name, reason in (('shared', 'is shareable, so that other machines may write to it'),
                             ('threaded', 'has an iothread, so that QEMU before 9.0 may end, .+'),
                             ('threadedscsi', 'has an iothread, so that QEMU before 9.0 may end, .+')):
            with self.subTest(name):
                self.assert_refused(f"failed to back up disk '{name}' of machine '{self.vm.name}': it {reason}; "
                                    f'leave it out with -o exclude={name}', f'disks=vda:{name}')
        self.assert_refused(f"failed to find disk 'vdx' of disks= in machine '{self.vm.name}': its disks are .+",
                            'disks=vdx')

    def test_description(self):
        """qemu.json has what is needed to know the machine again, from before anything was put into it."""
        with Mount(self.vm, self.usable_options) as mount:
            described = json.loads((mount / 'qemu.json').read_text())
        self.assertEqual(described['name']['name'], self.vm.name)
        self.assertEqual(described['uuid']['UUID'], self.vm.uuid)
        self.assertEqual(described['version']['qemu']['major'], self.vm.call('query-version')['qemu']['major'])
        self.assertTrue(described['machine'].startswith('pc'), described['machine'])
        self.assertIn('scsi0', {each['name'] for each in described['devices']})
        self.assertEqual({each['qdev'] for each in described['block'] if 'qdev' in each},
                         {each['qdev'] for each in self.vm.call('query-block') if 'qdev' in each})
        self.assertNotRegex(json.dumps([described['block'], described['block-nodes'], described['block-graph']]),
                            r'vmsnap-[0-9a-f]{8}-\d')


class Sources(lib.TestCase):
    """How a machine is named, and what is no machine, or not a usable one."""

    @classmethod
    def make_vm(cls):
        return BareVm()

    def tearDown(self):
        self.unmount_all()

    def test_mount8(self):
        """By mount(8), with a relative path, through a link, and with files of its own; without a libvirtd."""
        config = lib.SANDBOX / 'qemu-server.conf'
        config.write_text('memory: 192\n')
        link = lib.SANDBOX / 'link.qmp'
        link.symlink_to(self.vm.qmp)
        with lib.libvirtd_away():
            mount = Mount(self.vm)
            for source in ('qmp:' + os.path.relpath(self.vm.qmp, lib.SANDBOX), 'qmp:link.qmp', self.vm.source):
                run('mount', '-t', 'vmsnap', source, mount.point, '-o', f'config={config}', cwd=lib.SANDBOX)
                self.assertEqual((mount / 'qemu-server.conf').read_text(), 'memory: 192\n')
                self.assertEqual({path.name for path in mount.point.iterdir()},
                                 {'vda.raw', 'vdb.raw', 'qemu.json', 'qemu-server.conf', 'manifest.json'})
                run('umount', mount.point)
                mount.assert_no_trace()
            mount.point.rmdir()

    def test_archive(self):
        """One archive of the machine, with what was given to be in it."""
        config = lib.SANDBOX / 'archive.conf'
        config.write_text('memory: 192\n')
        with Mount(self.vm, f'format=vma,config={config}') as mount:
            archive = (mount / f'{self.vm.name}.vma').read_bytes()[:65536]
            for name in (b'archive.conf\0', b'qemu.json\0', b'vda\0', b'vdb\0'):
                self.assertIn(name, archive)

    def test_scratch_that_qemu_cannot_reach(self):
        """QEMU is given descriptors: it needs neither a path to scratch nor rights to it."""
        closed = lib.make_directory('closed')
        closed.chmod(0o700)
        scratch = closed / 'scratch'
        scratch.mkdir()
        with Mount(self.vm, f'scratch={scratch}') as mount:
            self.vm.run('dd if=/dev/urandom of=/dev/vdb bs=1M count=4 oflag=direct status=none')
            path, = scratch.iterdir()
            self.assertEqual(path.stat().st_mode & 0o777, 0o700)
            self.assertEqual({file.stat().st_mode & 0o777 for file in path.iterdir()}, {0o600})
            self.assertEqual(mount.status()['status'], 'active')
        self.assertEqual(list(scratch.iterdir()), [])

    def test_no_machine(self):
        missing = lib.SANDBOX / 'missing.qmp'
        self.assert_refused(f"failed to connect to QMP socket '{missing}': No such file or directory; see that the "
                            'machine runs, .+', source=f'qmp:{missing}')
        with socket.socket(socket.AF_UNIX) as nobody:
            nobody.bind(str(missing))
        self.assert_refused(f"failed to connect to QMP socket '{missing}': Connection refused; .+",
                            source=f'qmp:{missing}')
        missing.unlink()

    def test_no_monitor(self):
        """The socket of something else: the guest's console, and QEMU's monitor for people."""
        console = self.vm.directory / 'other.sock'
        self.vm.call('chardev-add', id='other', backend={'type': 'socket', 'data': {
            'addr': {'type': 'unix', 'data': {'path': str(console)}}, 'server': True, 'wait': False}})
        self.assert_refused(f"failed to use QMP socket '{console}': it does not answer in time; it may be no QMP "
                            'monitor, .+', 'timeout=2', source=f'qmp:{console}')
        self.vm.call('chardev-remove', id='other')

    def test_old_qemu(self):
        """A mock, since no QEMU older than 7.1 is to be had here: only its greeting is of interest."""
        path = lib.SANDBOX / 'old.qmp'
        with socket.socket(socket.AF_UNIX) as server:
            server.bind(str(path))
            server.listen()

            def serve():
                while True:
                    with contextlib.suppress(OSError):
                        client, _ = server.accept()
                        with client, client.makefile('rwb', buffering=0) as lines:
                            lines.write(b'{"QMP": {"version": {"qemu": {"major": 6, "minor": 2, "micro": 0}}, '
                                        b'"capabilities": []}}\n')
                            for line in lines:
                                answer = {'id': json.loads(line)['id'], 'return': {}}
                                lines.write(json.dumps(answer).encode() + b'\n')

            threading.Thread(target=serve, daemon=True).start()
            self.assert_refused("failed to mount machine 'old': its QEMU is 6.2.0, and 7.1 is needed; start it with a "
                                'newer one', source=f'qmp:{path}')

    def test_options(self):
        for option, reason in (('connect=qemu:///system', "it is no domain of libvirt's"),
                               ('incremental', 'what has changed is only known of .+'),
                               ('checkpoint=a', 'what has changed is only known of .+')):
            name = option.partition('=')[0]
            self.assert_refused(f"failed to use option '{name}' with '{self.vm.source}': {reason}; leave it out", option,
                                status=1)
        self.assert_refused(f"failed to use option 'quiesce' with '{self.vm.source}': nobody tells where its guest agent "
                            'is; add agent=PATH, .+', 'quiesce=require', status=1)

    def test_two_sockets_of_one_machine(self):
        """It is the machine that is mounted once, by whatever socket."""
        with Mount(self.vm) as mount:
            other = lib.make_directory('other-mount')
            said = complaint('mount.vmsnap', f'qmp:{self.vm.qmp}', other, status=32)
            self.assertIn(f"machine '{self.vm.name}': it is mounted on '{mount.point}' already", said)
            other.rmdir()


class Others(Bare, lib.TestCase):
    """Other users of the monitor, and of what is in QEMU."""

    def tearDown(self):
        self.unmount_all()

    def test_busy_monitor_at_begin(self):
        """A monitor has one client: who waits for it is told why, in time; or comes in when it is free."""
        other = Monitor(self.vm.qmp)
        begin = time.monotonic()
        self.assertIn('it may be no QMP monitor, or serve another program',
                      complaint('mount.vmsnap', self.vm.source, Mount(self.vm).point, '-o', 'timeout=2', status=32))
        self.assertLess(time.monotonic() - begin, 10)
        mount = Mount(self.vm)
        process = subprocess.Popen(['mount.vmsnap', self.vm.source, mount.point], stderr=subprocess.PIPE, text=True)
        time.sleep(0.5)
        self.assertIsNone(process.poll())
        other.close()
        self.assertEqual((process.communicate(timeout=20)[1], process.returncode), ('', 0))
        mount.umount()
        mount.assert_nothing_left()

    def test_monitor_is_free_meanwhile(self):
        """While it is mounted and read, the monitor is for others."""
        with Mount(self.vm) as mount:
            for _ in range(3):
                monitor = Monitor(self.vm.qmp, timeout=2)
                monitor.call('query-status')
                lib.read_all(mount / 'vda.raw')
                monitor.close()

    def test_busy_monitor_at_end(self):
        """umount says what remains; the guardian clears it when the monitor is free."""
        mount = Mount(self.vm, 'timeout=2')
        mount.mount()
        other = Monitor(self.vm.qmp)
        self.assertIn('a monitor has one client at a time',
                      complaint('umount', mount.point, status=32))
        self.assertTrue(self.vm.has_snapshot())
        self.vm.touch()
        other.close()
        mount.wait_ended()
        mount.assert_nothing_left()

    def test_nbd_server_of_others(self):
        """QEMU has one NBD server. One that serves somebody else goes on to do so."""
        path = self.vm.directory / 'theirs.sock'
        self.vm.call('nbd-server-start', addr={'type': 'unix', 'data': {'path': str(path)}})
        node = next(block['inserted']['node-name'] for block in self.vm.call('query-block') if 'inserted' in block)
        self.vm.call('block-export-add', type='nbd', id='theirs', node_name=node, name='theirs')
        mount = Mount(self.vm)
        said = complaint('mount.vmsnap', self.vm.source, mount.point, status=32)
        self.assertEqual(said, f"mount.vmsnap: failed to start an NBD server in machine '{self.vm.name}': NBD server "
                               'already running; a QEMU has only one: end the export that it serves')
        self.assertFalse(self.vm.has_snapshot())
        run('nbdinfo', '--size', f'nbd+unix:///theirs?socket={path}')
        self.vm.call('nbd-server-stop')
        mount.assert_nothing_left()
        self.assert_mountable()

    def test_monitor_that_is_gone(self):
        """Only the name of its socket: QEMU lives, and so does what was put into it, until there is a way to it again."""
        mount = Mount(self.vm, 'timeout=2')
        mount.mount()
        elsewhere = self.vm.qmp.rename(self.vm.qmp.with_suffix('.old'))
        said = complaint('umount', mount.point, status=32)
        self.assertIn(f"QMP socket '{self.vm.qmp}': No such file or directory", said)
        self.assertTrue(self.vm.has_snapshot())
        self.vm.touch()
        elsewhere.rename(self.vm.qmp)
        mount.wait_ended()
        mount.assert_nothing_left()

    def test_export_of_others_that_is_not_nbd(self):
        """One that does not go through the NBD server does not keep it."""
        node = next(block['inserted']['node-name'] for block in self.vm.call('query-block') if 'inserted' in block)
        self.vm.call('block-export-add', type='vhost-user-blk', id='theirs', node_name=node,
                     addr={'type': 'unix', 'path': str(self.vm.directory / 'vhost.sock')})
        try:
            mount = Mount(self.vm)
            mount.mount()
            mount.umount()
            self.assertFalse(self.vm.has_snapshot())
            self.assertFalse(self.vm.has_nbd_server())
        finally:
            self.vm.call('block-export-del', id='theirs', mode='hard')
        lib.wait_until(lambda: not self.vm.call('query-block-exports'), 'their export goes')
        mount.assert_nothing_left()

    def test_overlay_above(self):
        """
        Somebody makes an external snapshot while the machine is mounted. What the guest writes from then on is in the
        overlay, and stays so: what cannot be taken out without losing that stays, and umount says so.
        """
        mount = Mount(self.vm, 'timeout=2')
        mount.mount()
        self.make_overlay('above')
        self.vm.call('blockdev-snapshot', node=self.node_of_vda(), overlay='above')
        check_kept = self.write_and_hash()
        said = complaint('umount', mount.point, status=32)
        self.assertIn('above', said)
        check_kept()
        self.vm.touch()
        self.assertEqual(self.vm.call('query-block-exports'), [])
        self.vm.destroy()
        mount.wait_ended()
        mount.point.rmdir()
        self.vm.start()

    def make_overlay(self, name):
        path = lib.SANDBOX / f'{name}.qcow2'
        run('qemu-img', 'create', '-q', '-f', 'qcow2', path, 256 * MIB)
        path.chmod(0o666)
        self.vm.call('blockdev-add', driver='qcow2', node_name=name, file={'driver': 'file', 'filename': str(path)},
                     backing=None)

    def node_of_vda(self):
        return next(block['inserted']['node-name'] for block in self.vm.call('query-block')
                    if block.get('qdev') == '/machine/peripheral/vda/virtio-backend')

    def write_and_hash(self):
        """Lets the guest write something new, and returns a function that proves that it is still there."""
        at = lib.RING_START // MIB - 8
        self.vm.run('dd if=/dev/urandom of=/tmp/kept bs=1M count=2 status=none; '
                    f'dd if=/tmp/kept of=/dev/vda bs=1M seek={at} oflag=direct status=none')
        kept = self.vm.run('sha256sum </tmp/kept')
        return lambda: self.assertEqual(
            self.vm.run(f'dd if=/dev/vda bs=1M skip={at} count=2 iflag=direct status=none | sha256sum'), kept)

    def test_overlay_below(self):
        """An external snapshot of the old node, below copy-before-write: the guest's way leads to the overlay then."""
        old = self.node_of_vda()
        mount = Mount(self.vm)
        mount.mount()
        before = lib.sha256(mount / 'vda.raw')
        self.make_overlay('below')
        self.vm.call('blockdev-snapshot', node=old, overlay='below')
        check_kept = self.write_and_hash()
        lib.drop_cache(mount / 'vda.raw')
        self.assertEqual(lib.sha256(mount / 'vda.raw'), before)
        mount.umount()
        check_kept()
        self.assertEqual(self.node_of_vda(), 'below')
        self.assertFalse(self.vm.has_snapshot())
        self.vm.note_graph()
        mount.assert_nothing_left()
        self.assert_mountable()
        self.vm.destroy()
        self.vm.start()

    def test_job_of_others_meanwhile(self):
        """
        A job that somebody begins while the machine is mounted has a filter of its own in the guest's way, which must
        not be taken out of it. What stands below that stays until the job ends.
        """
        mount = Mount(self.vm, 'timeout=2')
        mount.mount()
        self.vm.call('blockdev-add', driver='null-co', size=256 * MIB, node_name='target')
        self.vm.call('blockdev-mirror', job_id='theirs', device=self.node_of_vda(), target='target', sync='none')
        check_kept = self.write_and_hash()
        self.assertIn('-pass', complaint('umount', mount.point, status=32))
        check_kept()
        edges = [line for line in self.vm.graph() if 'for main' in line or 'for file' in line]
        self.assertTrue(any('block-job theirs' in line for line in edges), edges)
        self.assertEqual([(job['device'], job['status']) for job in self.vm.call('query-block-jobs')],
                         [('theirs', 'ready')])
        self.vm.call('block-job-cancel', device='theirs', force=True)
        lib.wait_until(lambda: not self.vm.call('query-block-jobs'), 'their job ends')
        self.vm.call('blockdev-del', node_name='target')
        mount.wait_ended()
        check_kept()
        mount.assert_nothing_left()

    def test_node_cannot_be_put_back_by_others(self):
        """QEMU itself keeps everybody from leading the guest's writes past copy-before-write."""
        old = self.node_of_vda()
        with Mount(self.vm):
            with self.assertRaises(Refused):
                self.vm.call('qom-set', path='/machine/peripheral/vda/virtio-backend', property='drive', value=old)
            with self.assertRaises(Refused):
                self.vm.call('blockdev-reopen', options=[{'driver': 'raw', 'file': old, 'discard': 'unmap',
                                                          'node-name': self.node_of_vda()}])


class OrdinaryUser(lib.TestCase):
    """A user who has started a QEMU mounts it as that user."""

    @classmethod
    def make_vm(cls):
        return BareVm(user='backupuser')

    def test_user(self):
        with Mount(self.vm) as mount:
            run('cmp', '--bytes=1M', mount / 'vda.raw', '/dev/zero', user='backupuser')
            self.vm.run('dd if=/dev/urandom of=/dev/vda bs=1M count=1 oflag=direct status=none')
            run('cmp', '--bytes=1M', mount / 'vda.raw', '/dev/zero', user='backupuser')

    def test_not_for_others(self):
        """Another user's machine: its socket says who may use it."""
        self.vm.qmp.chmod(0o700)
        point = lib.make_directory('nobody-mount')
        shutil.chown(point, 'nobody')
        said = complaint('mount.vmsnap', self.vm.source, point, user='nobody', status=32,
                         environment={'XDG_RUNTIME_DIR': str(point), 'XDG_STATE_HOME': str(point)})
        self.assertIn('Permission denied', said)


