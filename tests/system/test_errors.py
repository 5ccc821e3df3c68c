# SPDX-License-Identifier: LGPL-2.1-or-later

"""
What cannot be mounted is refused in one line that names it, says why and what to do; nothing is begun or left behind,
the guest goes on, and the next mount works.
"""

import contextlib
import os
import signal
import subprocess
import time
from pathlib import Path

import lib
from lib import MIB, Disk, Mount, Vm, bind_mount, complaint, run

QEMU_UID = 64055  # libvirt-qemu


class Errors(lib.TestCase):
    ELSEWHERE = 'name another directory with -o scratch=DIR'

    def tearDown(self):
        self.unmount_all()

    # Domains that cannot be mounted, or not now.

    def test_domain_missing(self):
        """The name of no domain. The error is one line, whatever has been typed."""
        for source in ('no such vm', 'no such\nvm', '99999', '00000000-0000-0000-0000-000000000000'):
            with self.subTest(source):
                shown = source.replace('\n', ' ')
                self.assert_refused(f"failed to find domain '{shown}': libvirt knows no such name, UUID or id; "
                                    "see 'virsh list'", source=source)

    def test_domain_shut_off(self):
        """A domain that does not run has no instant; its disks can be copied as they are."""
        with Vm([Disk(size=MIB)]).define() as vm:
            self.assert_refused(f"failed to mount domain '{vm.name}': it is shut off; start it, or copy its disks as "
                                'they are', source=vm.name)

    def test_read_only_connection(self):
        """A connection that may only look on: libvirt refuses late, but the remedy is named all the same."""
        socket = '/run/libvirt/libvirt-sock-ro'
        self.assertTrue(Path(socket).is_socket())
        self.assert_refused(f"failed to .+ of domain '{self.vm.name}': operation forbidden: .+; the libvirt connection "
                            'is read-only or lacks the right: check -o connect=, or run as root',
                            f'connect=qemu:///system?socket={socket}')

    def test_another_backup(self):
        """A backup that somebody else has begun is left alone, and can be read and ended as if nothing had been."""
        mount = Mount(self.vm)
        directory = lib.make_directory('other-backup')
        os.chown(directory, QEMU_UID, -1)
        xml = directory / 'backup.xml'
        xml.write_text(f'''<domainbackup mode="pull"><server transport="unix" socket="{directory}/nbd.sock"/>
                             <disks><disk name="vda"><scratch file="{directory}/vda.scratch"/></disk></disks>
                           </domainbackup>''')
        self.vm.virsh('backup-begin', self.vm.name, xml)
        before = self.vm.virsh('backup-dumpxml', self.vm.name)
        self.assert_other_job(mount)
        self.assertEqual(self.vm.virsh('backup-dumpxml', self.vm.name), before)
        run('nbdinfo', '--size', f'nbd+unix:///vda?socket={directory}/nbd.sock')
        self.vm.virsh('domjobabort', self.vm.name)
        mount.assert_nothing_left()
        self.assert_mountable()

    def test_dump(self):
        """So is a job of another kind."""
        mount = Mount(self.vm)
        dump = subprocess.Popen(['virsh', 'dump', '--live', self.vm.name, lib.SANDBOX / 'dump'],
                                stdout=subprocess.DEVNULL)
        # The job cannot end while the process that writes for libvirt is stopped.
        writer = lib.wait_until(lambda: run('pgrep', 'libvirt_iohelpe', status=None).stdout.split(), 'a dump begins')
        os.kill(int(writer[0]), signal.SIGSTOP)
        try:
            lib.wait_until(lambda: 'Dump' in self.vm.virsh('domjobinfo', self.vm.name), 'the job runs')
            self.assert_other_job(mount)
            self.assertIsNone(dump.poll())
        finally:
            os.kill(int(writer[0]), signal.SIGCONT)
        self.assertEqual(dump.wait(lib.PATIENCE), 0)
        mount.assert_nothing_left()
        self.assert_mountable()

    def assert_other_job(self, mount):
        name = self.vm.name
        self.assertEqual(complaint('mount.vmsnap', name, mount.point, status=32),
                         f"mount.vmsnap: failed to mount domain '{name}': another job runs on it; wait until it ends "
                         f'(virsh domjobinfo {name}) or end it (virsh domjobabort {name})')

    def test_block_job(self):
        """A job on one disk stands in the way of that disk, and of no other."""
        copy = self.vm.directory / 'copy.qcow2'
        run('qemu-img', 'create', '-q', '-f', 'qcow2', copy, 256 * MIB)
        os.chown(copy, QEMU_UID, -1)
        self.vm.virsh('blockcopy', self.vm.name, 'vda', '--dest', copy, '--reuse-external', '--transient-job')
        try:
            mount = Mount(self.vm)
            self.assertRegex(complaint('mount.vmsnap', self.vm.name, mount.point, status=32),
                             f"^mount.vmsnap: failed to begin the backup job of domain '{self.vm.name}': .*"
                             "disk 'vda' has .*job.*; leave it out with -o exclude=vda$")
            mount.assert_nothing_left()
            with Mount(self.vm, 'exclude=vda') as mount:
                self.assertTrue((mount / 'vdb.raw').exists())
        finally:
            self.vm.virsh('blockjob', self.vm.name, 'vda', '--abort')
        self.assert_mountable()

    def test_mounted_elsewhere(self):
        """A second mount is refused with the place of the first, which it does not disturb."""
        with Mount(self.vm) as first:
            second = Mount(self.vm)
            self.assertEqual(complaint('mount.vmsnap', self.vm.uuid, second.point, status=32),
                             f"mount.vmsnap: failed to mount domain '{self.vm.name}': it is mounted on '{first.point}' "
                             'already; unmount that first')
            run('head', '-c1', first / 'vda.raw')
            second.point.rmdir()
        self.assert_mountable()

    def test_two_at_once(self):
        """Of commands that are given at the same time, exactly one mounts, and the others do not wait for it."""
        for _ in range(3):
            mounts = [Mount(self.vm) for _ in range(3)]
            commands = [subprocess.Popen(['mount.vmsnap', self.vm.name, mount.point], stderr=subprocess.PIPE, text=True)
                        for mount in mounts]
            messages = [command.communicate(timeout=lib.PATIENCE)[1] for command in commands]
            self.assertEqual(sorted(command.returncode for command in commands), [0, 32, 32], messages)
            winner, = (mount for mount, command in zip(mounts, commands) if command.returncode == 0)
            self.assertEqual(lib.mounts(), [str(winner.point)])
            for message in filter(None, messages):
                self.assertRegex(message, f"^mount.vmsnap: failed to mount domain '{self.vm.name}': it is mounted on "
                                          f"'{winner.point}' already.*; unmount that first.*\n$")
            run('head', '-c1', winner / 'vda.raw')
            winner.umount()
            for mount in mounts:
                mount.assert_nothing_left()

    def test_libvirtd_does_not_answer(self):
        """timeout= bounds the wait. What libvirt does of it later is undone."""
        mount = Mount(self.vm)
        daemon = int(Path('/run/libvirtd.pid').read_text())
        os.kill(daemon, signal.SIGSTOP)
        try:
            begin = time.monotonic()
            line = complaint('mount.vmsnap', self.vm.name, mount.point, '-o', 'timeout=2', status=32)
            self.assertRegex(line, f"^mount.vmsnap: failed to mount '{self.vm.name}': no answer within 2 s; see .+")
            self.assertTrue(2 <= time.monotonic() - begin < 4)
            self.assertEqual(lib.mounts(), [])
        finally:
            os.kill(daemon, signal.SIGCONT)
        mount.wait_ended()
        mount.assert_nothing_left()
        self.assert_mountable()

    def test_qemu_does_not_answer(self):
        """Likewise while QEMU hangs, where libvirt has begun to work on it: a job that begins after all is ended."""
        mount = Mount(self.vm)
        qemu = int(Path(f'/run/libvirt/qemu/{self.vm.name}.pid').read_text())
        os.kill(qemu, signal.SIGSTOP)
        try:
            line = complaint('mount.vmsnap', self.vm.name, mount.point, '-o', 'timeout=1', status=32)
            self.assertRegex(line, f"^mount.vmsnap: failed to mount '{self.vm.name}': no answer within 1 s; see .+")
        finally:
            os.kill(qemu, signal.SIGCONT)
        mount.wait_ended()
        mount.assert_nothing_left()
        self.assert_mountable()

    # Places where nothing can be mounted. They are looked at before anything is begun.

    def test_mount_point_is_no_directory(self):
        """A mount point is a directory that is there."""
        file = self.vm.directory / 'file'
        file.write_text('')
        for path, says in ((self.vm.directory / 'missing', 'No such file or directory; make the directory first'),
                           ('', 'No such file or directory; make the directory first'),
                           (file, 'Not a directory; name a directory'),
                           (file / 'below', 'Not a directory; name a directory that can be reached')):
            with self.subTest(path):
                self.assert_refused(f"failed to mount on '{path}': {says}", point=path)

    def test_mounted_already(self):
        """Nothing is mounted over a snapshot, however its mount point is called."""
        link = self.vm.directory / 'link'
        with Mount(self.vm) as mount:
            link.symlink_to(mount.point)
            for path in (mount.point, link, f'{mount.point}/', f'{mount.point}/../{mount.point.name}'):
                self.assertEqual(complaint('mount.vmsnap', self.vm.name, path, status=32),
                                 f"mount.vmsnap: failed to mount on '{path}': a vmsnap is mounted there already; "
                                 'unmount it first')
            self.assertEqual(lib.mounts(), [str(mount.point)])
            self.assertEqual(complaint('mount.vmsnap', self.vm.name, mount / 'vda.raw', status=32),
                             f"mount.vmsnap: failed to mount on '{mount / 'vda.raw'}': Not a directory; "
                             'name a directory')
        link.unlink()

    def test_dead_mount(self):
        """A mount whose processes were killed is in the way of what lies below it, but not of the next mount."""
        mount = Mount(self.vm)
        mount.mount()
        mount.kill(guardian=True)
        self.assertEqual(complaint('mount.vmsnap', self.vm.name, mount / 'below', status=32),
                         f"mount.vmsnap: failed to mount on '{mount / 'below'}': Transport endpoint is not connected; "
                         'name a directory that can be reached')
        mount.mount()
        mount.umount()
        mount.assert_nothing_left()

    # Scratch directories that cannot be used.

    def test_scratch_is_no_directory(self):
        """What scratch= names must be there, and is not made."""
        file = self.vm.directory / 'file'
        file.write_text('')
        for path, reason in (('/nowhere', 'No such file or directory'), (file, 'Not a directory'),
                             (self.vm.directory / 'missing', 'No such file or directory')):
            with self.subTest(path):
                self.assert_refused(f"failed to use scratch directory '{path}': {reason}; {self.ELSEWHERE}",
                                    f'scratch={path}')

    def assert_out_of_reach(self, scratch, reason):
        self.assert_refused(f"failed to begin the backup job of domain '{self.vm.name}': .*'{scratch}/vmsnap-[^']+': "
                            f'{reason}; QEMU must be able to use the scratch directory, .*: {self.ELSEWHERE}',
                            f'scratch={scratch}')
        self.assertEqual(list(scratch.iterdir()), [])

    def test_scratch_below_a_private_directory(self):
        """Root can reach it, but QEMU is another user."""
        parent = lib.make_directory('private')
        (parent / 'scratch').mkdir()
        parent.chmod(0o700)
        self.assert_out_of_reach(parent / 'scratch', 'Permission denied')

    @contextlib.contextmanager
    def tmpfs(self, size):
        directory = lib.make_directory(f'tmpfs-{time.monotonic_ns()}')
        run('mount', '-t', 'tmpfs', '-o', f'size={size},mode=755', 'tmpfs', directory)
        try:
            yield directory
        finally:
            run('umount', '--lazy', directory)

    def test_scratch_mounted_after_the_start(self):
        """QEMU sees the filesystems that were there when it was started."""
        with self.tmpfs('600m') as scratch:
            self.assert_out_of_reach(scratch, 'No such file or directory')

    def test_scratch_full(self):
        """On a filesystem with no room to speak of, the guest would soon be stopped: so there is no begin."""
        with self.tmpfs('64m') as full, self.tmpfs('12m') as small, self.tmpfs('527m') as reserved:
            run('fallocate', '--length', 62 * MIB, full / 'file')
            for scratch, left, reserve in ((full, 2, 0), (small, 12, 0), (full, 2, 1), (reserved, 527, 512)):
                options = f'scratch={scratch}' + ('' if reserve == 512 else f',scratch_reserve={reserve}M')
                self.assert_refused(f"failed to use scratch directory '{scratch}': its filesystem is full, with {left} "
                                    f'MiB left, of which {reserve} MiB are to stay free; free some space, lower '
                                    f'-o scratch_reserve=SIZE, or {self.ELSEWHERE}', options)
                self.assertEqual(list(scratch.glob('vmsnap-*')), [])

    def test_scratch_read_only(self):
        """A filesystem that can only be read."""
        scratch = lib.make_directory('read-only')
        with bind_mount(scratch, scratch, 'ro'):
            self.assert_refused(f"failed to make the directory '{scratch}/vmsnap-[^']+': Read-only file system",
                                f'scratch={scratch}')

    # Things that a system may lack.

    def test_no_fuse(self):
        """A kernel without FUSE: its device is there, but nothing behind it, or is not there at all."""
        device = Path('/run/no-such-device')
        os.mknod(device, 0o600 | 0o020000, os.makedev(10, 230))
        with bind_mount(device, '/dev/fuse'):
            self.assert_not_begun(r"failed to open '/dev/fuse': No such device.*; load the kernel module with "
                                  "'modprobe fuse', and see that you may use it")
        missing = 'mount -t tmpfs none /dev && mknod /dev/null c 1 3 && exec mount.vmsnap "$@"'
        self.assert_not_begun("failed to open '/dev/fuse': No such file or directory; load the kernel module with "
                              "'modprobe fuse', and see that you may use it",
                              'unshare', '--mount', 'sh', '-c', missing, 'sh')
        self.assert_mountable()

    def assert_not_begun(self, says, *command):
        mount = Mount(self.vm)
        line = complaint(*(command or ['mount.vmsnap']), self.vm.name, mount.point, status=2)
        self.assertRegex(line, f'^mount.vmsnap: {says}$')
        mount.assert_nothing_left()

    def test_no_room_for_records(self):
        """Where no record can be made nothing is begun, since nobody could tell whose it is."""
        run_vmsnap = Path('/run/vmsnap')
        run_vmsnap.mkdir(exist_ok=True)
        with bind_mount(run_vmsnap, run_vmsnap, 'ro'):
            self.refuse_record("failed to write the snapshot record '/run/vmsnap/[^']+.json': Read-only file system")
        run_vmsnap.rmdir()
        run_vmsnap.write_text('')
        try:
            self.refuse_record("failed to use the directory '/run/vmsnap': it is no directory, or belongs to another "
                               'user; remove it')
        finally:
            run_vmsnap.unlink()
        self.assert_mountable()

    def refuse_record(self, says):
        mount = Mount(self.vm)
        self.assertRegex(complaint('mount.vmsnap', self.vm.name, mount.point, status=32), f'^mount.vmsnap: {says}.*$')
        mount.assert_nothing_left()


class Disks(lib.TestCase):
    """Drives of every kind: what is backed up, what is left out, and what is refused with the way to leave it out."""

    @classmethod
    def make_vm(cls):
        directory = lib.make_directory('drives')
        cls.nbd = directory / 'nbd.sock'
        cls.nbd_image = directory / 'nbd.raw'
        cls.nbd_image.write_bytes(os.urandom(MIB))
        cls.server = subprocess.Popen(['qemu-nbd', '--persistent', '--shared=0', '--format=raw', f'--socket={cls.nbd}',
                                       '--export-name=disk', cls.nbd_image])
        cls.addClassCleanup(cls.server.wait)
        cls.addClassCleanup(cls.server.terminate)
        lib.wait_until(cls.nbd.exists, 'qemu-nbd serves')
        cls.nbd.chmod(0o777)
        for name in ('medium.iso', 'readonly.raw', 'shared.raw'):
            (directory / name).write_bytes(os.urandom(MIB))
            (directory / name).chmod(0o666)
        return Vm([Disk()], devices=f'''
            <disk type="file" device="disk">
              <driver name="qemu" type="raw" cache="none"/><source file="{directory}/shared.raw"/>
              <target dev="vdb" bus="virtio"/><shareable/>
            </disk>
            <disk type="network" device="disk">
              <driver name="qemu" type="raw"/>
              <source protocol="nbd" name="disk"><host transport="unix" socket="{cls.nbd}"/></source>
              <target dev="vdc" bus="virtio"/>
            </disk>
            <disk type="file" device="disk">
              <driver name="qemu" type="raw"/><source file="{directory}/readonly.raw"/>
              <target dev="vdd" bus="virtio"/><readonly/>
            </disk>
            <disk type="file" device="cdrom">
              <driver name="qemu" type="raw"/><source file="{directory}/medium.iso"/>
              <target dev="hda" bus="ide"/><readonly/>
            </disk>
            <disk type="file" device="cdrom"><target dev="hdb" bus="ide"/><readonly/></disk>
            <disk type="file" device="floppy"><target dev="fda" bus="fdc"/></disk>''')

    usable_options = 'exclude=vdb'

    def test_shareable(self):
        """Others may write to it behind QEMU's back; so it is not backed up wrongly, nor left out by accident."""
        for options in ('', 'disks=vda:vdb'):
            self.assert_refused(f"failed to back up disk 'vdb' of domain '{self.vm.name}': it is shareable, so that "
                                'other machines may write to it; leave it out with -o exclude=vdb', options)

    def test_left_out(self):
        """What has no content that changes is left out, and named; network disks are backed up."""
        with Mount(self.vm, 'exclude=vdb') as mount:
            self.assertEqual({path.name for path in mount.point.glob('*.raw')}, {'vda.raw', 'vdc.raw'})
            manifest = lib.json.loads((mount / 'manifest.json').read_text())
            self.assertEqual({each['name']: each['reason'] for each in manifest['left-out']},
                             {'vdb': 'was excluded', 'vdd': 'is read-only', 'hda': 'is a CD-ROM', 'hdb': 'is a CD-ROM',
                              'fda': 'is a floppy'})

    def test_asked_for(self):
        """A drive that cannot be backed up is refused where it is asked for by name."""
        for name, reason in (('hda', 'is a CD-ROM'), ('fda', 'is a floppy'), ('vdd', 'is read-only')):
            with self.subTest(name):
                self.assert_refused(f"failed to back up disk '{name}' of domain '{self.vm.name}': it {reason}; "
                                    f'leave it out with -o exclude={name}', f'disks=vda:{name}')

    def test_nothing_but_left_out(self):
        """The reasons are given where nothing is left."""
        self.assert_refused(rf"failed to back up domain '{self.vm.name}': no disk is left to back up "
                            r'\(vda was excluded, .*vdd is read-only.*\); change -o disks= or exclude=',
                            'exclude=vda:vdb:vdc')

    def test_network_disk(self):
        """The content of a disk that QEMU reaches over the network is of the instant, too."""
        before = self.nbd_image.read_bytes()
        with Mount(self.vm, 'disks=vdc') as mount:
            self.vm.run('dd if=/dev/urandom of=/dev/vdc bs=64k count=16 oflag=direct status=none')
            self.assertEqual((mount / 'vdc.raw').read_bytes(), before)
        self.assertNotEqual(self.nbd_image.read_bytes(), before)


class IoThread(lib.TestCase):
    """A disk whose export would end this QEMU as soon as a connection to it is closed."""

    usable_options = 'exclude=vdb'

    @classmethod
    def make_vm(cls):
        vm = Vm([Disk(), Disk(driver='iothread="1"')])
        vm.xml = vm.xml.replace('<vcpu>1</vcpu>', '<vcpu>1</vcpu><iothreads>1</iothreads>')
        return vm

    def test_iothread(self):
        """It is refused, so that the guest lives; without it, the machine is mounted and unmounted as others are."""
        self.assert_refused(f"failed to back up disk 'vdb' of domain '{self.vm.name}': it has an iothread, so that QEMU "
                            'before 9.0 may end, .+; leave it out with -o exclude=vdb')
        self.assertEqual(self.vm.state(), 'running')
