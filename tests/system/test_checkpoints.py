# SPDX-License-Identifier: LGPL-2.1-or-later

"""
The life of a checkpoint: it is a base for later ones only after a clean end, it is deleted in all other cases by whoever
comes first, and those of others are left alone. And what may become of a bitmap: whatever it is, it is seen, said, and
turned into a full of that disk.
"""

import os
import signal
import subprocess

import chains
import faults
import lib
from lib import MIB, Disk, Mount, Vm, complaint, run


class Life(chains.TestCase):
    """Who commits a checkpoint, and who deletes it."""

    def begin(self, options='incremental,format=qcow2'):
        """A mount, and the name of its checkpoint, which is there and no base yet."""
        mount = Mount(self.vm, options)
        mount.mount()
        name = chains.manifest(mount)['checkpoint']
        self.assertIn(name, self.vm.checkpoints())
        self.assertFalse(chains.committed(self.vm, name))
        return mount, name

    def assert_base(self, *names):
        """
        These checkpoints are there and no others, all committed, and the last one is what the next backup counts from,
        whose checkpoint is returned.
        """
        self.assertEqual(self.vm.checkpoints(), set(names))
        for name in names:
            self.assertTrue(chains.committed(self.vm, name))
        self.vm.qemu_io('vda', 'write -P 5 3M 100k')
        found = self.chain.backup()
        self.assertEqual(found['since'], names[-1] if names else None)
        return found['checkpoint']

    def test_names(self):
        """An own name, and a base by name, of any distance; both are in the manifest and in the status."""
        first = self.chain.backup('checkpoint=one')
        self.assertEqual((first['checkpoint'], first['since'], first['said']), ('one', None, ''))
        self.vm.qemu_io('vda', 'write -P 6 1M 64k')
        second = self.chain.backup('checkpoint=two,since=one')
        self.assertEqual((second['checkpoint'], second['since'], second['said']), ('two', 'one', ''))
        self.vm.qemu_io('vda', 'discard 1M 64k', 'write -P 9 5M 4k')
        third = self.chain.backup('checkpoint=three,since=one')
        self.assertEqual([third['disks'][disk]['dirty'] for disk in ('vda', 'vdb')], [128 * 1024, 0])
        with Mount(self.vm, 'since=two') as mount:
            status = mount.status()
            self.assertEqual((status['since'], status.get('checkpoint')), ('two', None))
            self.assertEqual(status['dirty'], 128 * 1024)
            self.assertEqual(mount.disk_status('vda')['dirty'], 128 * 1024)
            self.assertEqual(mount.disk_status('vda')['since'], 'two')
            self.assertEqual(chains.manifest(mount)['checkpoint'], None)
        with Mount(self.vm) as mount:
            told = chains.manifest(mount)
            self.assertEqual((told['checkpoint'], told['since']), (None, None))
            self.assertEqual([disk.get('full-reason') for disk in told['disks'].values()], [None, None])
        self.assertEqual(self.vm.checkpoints(), {'one', 'two', 'three'})
        self.chain.check_all()
        # Those are vmsnap's own, too.
        self.assertEqual(self.chain.backup()['since'], 'three')

    def test_explicit(self):
        """With commit=explicit, umount alone is not enough, and what is not committed never was."""
        mount, name = self.begin('incremental,commit=explicit')
        self.assertEqual((mount / '.vmsnap/commit').read_text(), 'no\n')
        mount.umount()
        mount.assert_no_trace()
        self.assertEqual(self.vm.checkpoints(), set())
        mount, name = self.begin('incremental,commit=explicit,format=qcow2')
        self.chain.copy(mount, chains.truth(self.vm))
        run('sh', '-c', 'echo yes >"$0"', mount / '.vmsnap/commit')
        self.assertEqual((mount / '.vmsnap/commit').read_text(), 'yes\n')
        # Not before the end, even so: what breaks may break until then.
        self.assertFalse(chains.committed(self.vm, name))
        mount.umount()
        mount.assert_nothing_left()
        self.assert_base(name)
        self.chain.check_all()

    def test_explicit_and_killed(self):
        """What was said to be safe is not, if the end does not come."""
        mount, _ = self.begin('incremental,commit=explicit')
        run('sh', '-c', 'echo yes >"$0"', mount / '.vmsnap/commit')
        mount.kill()
        mount.wait_ended()
        self.assertEqual(self.vm.checkpoints(), set())

    def test_both_killed(self):
        """--cleanup, the next mount, or umount delete it, and the next backup counts from the one before."""
        def cleanup(mount):
            run('mount.vmsnap', '--cleanup')

        def next_mount(mount):
            with Mount(self.vm):
                pass

        def umount(mount):
            self.assertIn('its daemon died', complaint('umount', mount.point, status=32))

        bases = [self.chain.backup()['checkpoint']]
        for clear in (cleanup, next_mount, umount):
            with self.subTest(clear=clear.__name__):
                self.vm.qemu_io('vda', 'write -P 1 1M 1M', 'discard 5M 64k')
                mount, name = self.begin()
                self.vm.qemu_io('vda', 'write -P 2 2M 1M')
                mount.kill(guardian=True)
                self.assertIn(name, self.vm.checkpoints())
                clear(mount)
                mount.assert_nothing_left()
                bases.append(self.assert_base(*bases))

    def test_guardian_killed(self):
        """umount commits without it, or does not; but it says which."""
        mount, name = self.begin('incremental,format=qcow2')
        self.chain.copy(mount, chains.truth(self.vm))
        os.kill(mount.guardian(), signal.SIGKILL)
        result = mount.umount(status=None)
        lib.wait_until(lambda: not lib.processes(), 'all have ended')
        if result.returncode:
            self.assertEqual(result.stderr.count('\n'), 1)
            self.chain.drop(name)
            run('mount.vmsnap', '--cleanup')
        mount.assert_nothing_left()
        self.assert_base(*([] if result.returncode else [name]))

    def test_libvirtd_away(self):
        """Nobody can commit: umount fails, and the checkpoint goes when libvirtd is back."""
        base = self.chain.backup()['checkpoint']
        mount, name = self.begin('incremental,format=qcow2,timeout=2')
        faults.Libvirtd.end(signal.SIGTERM)
        try:
            self.assertIn(self.vm.name, complaint('umount', mount.point, status=32))
        finally:
            faults.Libvirtd.start()
        mount.wait_ended()
        self.assert_base(base)

    def test_libvirtd_back(self):
        """If it comes back in time, all is as if it had not been away."""
        mount, name = self.begin('incremental,format=qcow2')
        self.chain.copy(mount, chains.truth(self.vm))
        faults.Libvirtd.end(signal.SIGKILL)
        umount = subprocess.Popen(['umount', mount.point], stdin=subprocess.DEVNULL)
        faults.Libvirtd.start()
        self.assertEqual(umount.wait(lib.PATIENCE), 0)
        mount.assert_nothing_left()
        self.assert_base(name)

    def test_guest_ends(self):
        """libvirt cannot delete one of a machine that is off: it is no base, and goes with the next mount."""
        base = self.chain.backup()['checkpoint']
        self.vm.qemu_io('vda', 'write -P 3 1M 1M')
        mount, name = self.begin()
        self.vm.destroy()
        complaint('umount', mount.point, status=32)
        mount.wait_ended()
        self.assertEqual(self.vm.checkpoints(), {base, name})
        self.assertFalse(chains.committed(self.vm, name))
        self.restart()
        found = self.chain.backup()
        self.assertEqual(found['since'], base)
        self.assertEqual(self.vm.checkpoints(), {base, found['checkpoint']})
        self.chain.check_all()

    def test_keep(self):
        """keep_checkpoints= counts and deletes vmsnap's only, and a foreign one misses nothing when its child goes."""
        first = self.chain.backup('incremental,keep_checkpoints=2')['checkpoint']
        self.vm.virsh('checkpoint-create-as', self.vm.name, 'foreign')
        self.chain.truths['foreign'] = chains.truth(self.vm)
        for disk in self.vm.images:
            run('qemu-img', 'convert', '-U', '-O', 'qcow2', self.vm.images[disk], self.chain.image(disk, 'foreign'))
        names = [first]
        for step in range(3):
            self.vm.qemu_io('vda', f'write -P 1{step} {step}M 128k', 'discard 5M 64k')
            self.vm.qemu_io('vdb', f'write -P 1{step} {step + 5}M 4k')
            found = self.chain.backup('incremental,keep_checkpoints=2')
            self.assertEqual(found['since'], names[-1])
            names.append(found['checkpoint'])
            self.assertEqual(self.vm.checkpoints(), {'foreign', *names[-2:]})
        found = self.chain.backup('since=foreign,checkpoint=last')
        self.assertEqual(found['since'], 'foreign')
        self.chain.check_all()

    def test_keep_uncommitted(self):
        """Nothing is pruned for one that is not committed."""
        names = {self.chain.backup()['checkpoint'] for _ in range(2)}
        mount, name = self.begin('incremental,keep_checkpoints=1,commit=explicit')
        self.assertEqual(self.vm.checkpoints(), names | {name})
        mount.umount()
        mount.assert_nothing_left()
        self.assertEqual(self.vm.checkpoints(), names)

    def test_foreign(self):
        """The checkpoint of somebody else is no base for one who did not name it."""
        self.vm.virsh('checkpoint-create-as', self.vm.name, 'foreign')
        found = self.chain.backup()
        self.assertIsNone(found['since'])
        self.assert_full(found, vda='checkpoint', vdb='checkpoint')
        self.assertIn('foreign', self.vm.checkpoints())


class Bitmaps(chains.TestCase):
    """What may become of bitmaps."""

    def assert_chain_restarts(self, since, **reasons):
        """The next backup is full of those disks, and says so; then the chain goes on."""
        restarted = self.chain.backup()
        self.assertEqual(restarted['since'], since)
        self.assert_full(restarted, **reasons)
        self.vm.qemu_io('vda', 'write -P 4 3M 100k', 'discard 11M 64k')
        self.vm.qemu_io('vdb', 'write -P 4 3M 100k', 'discard 11M 64k')
        following = self.chain.backup()
        self.assertEqual((following['since'], following['said']), (restarted['checkpoint'], ''))
        self.assert_full(following)
        self.chain.check_all()

    def assert_strict(self, disk, since, says):
        """since= refuses instead, leaves nothing, and names the disk."""
        before = self.vm.checkpoints()
        self.assert_refused(f"(?=.*'{disk}')(?=.*{says}).*; .+", f'since={since},checkpoint=new')
        self.assertEqual(self.vm.checkpoints(), before)

    def test_first(self):
        """There is none: full, and that is said."""
        found = self.chain.backup()
        self.assertIsNone(found['since'])
        self.assert_full(found, vda='checkpoint', vdb='checkpoint')

    def test_restart(self):
        """They survive the end of QEMU, if that was in order."""
        base = self.chain.backup()['checkpoint']
        self.vm.qemu_io('vda', 'write -P 3 1M 1M')
        self.vm.destroy()
        self.restart()
        self.vm.qemu_io('vda', 'write -P 3 6M 1M')
        found = self.chain.backup()
        self.assertEqual((found['since'], found['said']), (base, ''))
        self.assertEqual(found['disks']['vda']['dirty'], 2 * MIB)
        self.chain.check_all()

    def test_crash(self):
        """QEMU was killed: what is in the images is not whole, and nobody knows what changed."""
        base = self.chain.backup()['checkpoint']
        self.vm.qemu_io('vda', 'write -P 3 1M 1M')
        os.kill(self.vm.pid(), signal.SIGKILL)
        lib.wait_until(lambda: self.vm.state() == 'shut off', 'the machine is off')
        self.restart()
        self.assert_strict('vda', base, 'inconsistent')
        self.assert_chain_restarts(None, vda='inconsistent', vdb='inconsistent')

    def test_crash_while_mounted(self):
        """The new checkpoint was never written to the images, so that libvirt would not delete it: it goes all the same."""
        self.chain.backup()
        mount = Mount(self.vm, 'incremental,format=qcow2')
        mount.mount()
        self.vm.qemu_io('vda', 'write -P 3 1M 1M')
        os.kill(self.vm.pid(), signal.SIGKILL)
        lib.wait_until(lambda: self.vm.state() == 'shut off', 'the machine is off')
        complaint('umount', mount.point, status=32)
        mount.wait_ended()
        self.restart()
        self.assert_chain_restarts(None, vda='inconsistent', vdb='inconsistent')
        self.chain.backup('incremental,keep_checkpoints=1')
        self.assertEqual(len(self.vm.checkpoints()), 1)

    def replace(self, disk, change):
        """Changes an image while the machine is off."""
        self.vm.destroy()
        change(self.vm.images[disk])
        self.restart()

    def test_image_replaced(self):
        """An image that was restored, from anything but a copy of the image itself, has no bitmap. The other disk has."""
        def restore(image):
            run('qemu-img', 'convert', '-O', 'qcow2', image, image.with_suffix('.new'))
            image.with_suffix('.new').replace(image)

        base = self.chain.backup()['checkpoint']
        self.replace('vdb', restore)
        self.assert_strict('vdb', base, 'bitmap')
        self.assert_chain_restarts(base, vdb='bitmap')

    def test_image_changed(self):
        """A program that knows no bitmaps changed it, as qcow2's autoclear bit tells."""
        def change(image):
            run('qemu-io', '-f', 'qcow2', '-c', 'write -P 8 7M 64k', image)
            with open(image, 'r+b') as file:
                file.seek(88)
                file.write(bytes(8))

        base = self.chain.backup()['checkpoint']
        self.replace('vda', change)
        self.assert_chain_restarts(base, vda='bitmap')

    def test_bitmap_removed(self):
        """Somebody has removed one."""
        base = self.chain.backup()['checkpoint']
        self.replace('vda', lambda image: run('qemu-img', 'bitmap', '--remove', image, base))
        self.assert_strict('vda', base, 'bitmap')
        self.assert_chain_restarts(base, vda='bitmap')

    def test_metadata_lost(self):
        """libvirt knows of no checkpoint any more, as on another host, though the bitmaps are there."""
        base = self.chain.backup()['checkpoint']
        self.vm.virsh('checkpoint-delete', self.vm.name, base, '--metadata')
        self.assert_refused(f".*'{base}'.*; .+", f'since={base}')
        self.assert_chain_restarts(None, vda='checkpoint', vdb='checkpoint')

    def test_resized(self):
        """A disk that has grown is full, and the other is not."""
        base = self.chain.backup()['checkpoint']
        self.vm.virsh('blockresize', self.vm.name, 'vdb', '13M')
        self.assert_strict('vdb', base, 'size')
        self.assert_chain_restarts(base, vdb='size')

    def test_disk_left_out(self):
        """Of a disk that was left out, the base is the last one that has it."""
        first = self.chain.backup()['checkpoint']
        images = dict(self.vm.images)
        del self.vm.images['vdb']
        second = self.chain.backup('incremental,exclude=vdb')
        self.vm.images = images
        self.assertEqual(set(second['disks']), {'vda'})
        for disk in images:
            self.vm.qemu_io(disk, 'write -P 9 1M 64k')
        third = self.chain.backup()
        self.assertEqual((third['since'], third['said']), (second['checkpoint'], ''))
        self.assertEqual([disk['since'] for disk in third['disks'].values()], [second['checkpoint'], first])
        self.chain.check_all()


class Moved(chains.TestCase):
    """Disks that are other images than they were, each with bitmaps that are in order."""

    @classmethod
    def make_vm(cls):
        return Vm([Disk(size=4 * MIB), Disk(size=4 * MIB)])

    @classmethod
    def setUpClass(cls):
        cls.vm = cls.enterClassContext(cls.make_vm()).start_paused()
        cls.vm.qemu_io('vda', 'write -P 1 0 2M')
        cls.vm.qemu_io('vdb', 'write -P 2 0 2M')

    def test_swapped(self):
        """What was vda is vdb now: nothing is said of what makes the one out of the other."""
        self.chain.backup()
        self.vm.qemu_io('vda', 'write -P 3 1M 64k')
        self.vm.destroy()
        a, b = self.vm.images.values()
        self.vm.xml = self.vm.xml.replace(str(a), 'A').replace(str(b), str(a)).replace('A', str(b))
        self.vm.images = {'vda': b, 'vdb': a}
        self.vm.define()
        self.restart()
        found = self.chain.backup()
        self.assert_full(found, vda='image', vdb='image')
        self.vm.qemu_io('vda', 'write -P 4 1M 64k')
        self.assert_full(self.chain.backup())
        self.chain.check_all()

    def test_external_snapshot(self):
        """
        libvirt carries bitmaps over when it puts an image on top of another, and when it merges them. Whether a disk is
        full then or not, it restores.
        """
        image = self.vm.images['vda']
        self.addCleanup(self.vm.images.__setitem__, 'vda', image)
        self.chain.backup()
        self.vm.qemu_io('vda', 'write -P 5 1M 64k')
        self.vm.images['vda'] = self.vm.directory / 'top.qcow2'
        self.vm.virsh('snapshot-create-as', self.vm.name, '--disk-only', '--no-metadata', '--diskspec',
                      f'vda,file={self.vm.images["vda"]}', '--diskspec', 'vdb,snapshot=no')
        self.vm.qemu_io('vda', 'write -P 6 2M 64k')
        self.chain.backup()
        self.vm.qemu_io('vda', 'write -P 7 3M 64k')
        self.vm.virsh('blockcommit', self.vm.name, 'vda', '--active', '--pivot', '--wait')
        self.vm.images['vda'] = image
        self.vm.qemu_io('vda', 'discard 1M 64k')
        self.chain.backup()
        self.chain.check_all()


class Others(chains.TestCase):
    """Disks that have no bitmaps, and disks that fail."""

    @classmethod
    def make_vm(cls):
        return Vm([Disk(size=8 * MIB), Disk(size=4 * MIB, format='raw')])

    @classmethod
    def setUpClass(cls):
        cls.vm = cls.enterClassContext(cls.make_vm()).start_paused()
        cls.vm.qemu_io('vda', 'write -P 1 0 2M')
        cls.vm.qemu_io('vdb', 'write -P 1 0 2M')

    def test_raw(self):
        """A raw image holds no bitmap: full each time, with the reason; the other disk is not."""
        first = self.chain.backup()
        self.assert_full(first, vda='checkpoint', vdb='raw')
        self.vm.qemu_io('vda', 'write -P 2 1M 100k')
        self.vm.qemu_io('vdb', 'write -P 2 1M 100k')
        second = self.chain.backup()
        self.assertEqual(second['since'], first['checkpoint'])
        self.assert_full(second, vdb='raw')
        self.chain.check_all()
        for options in ('checkpoint=new', f'since={first["checkpoint"]}'):
            self.assert_refused(".*'vdb'.*raw.*; .*exclude=vdb.*", options)
        self.assertEqual(self.vm.checkpoints(), {first['checkpoint'], second['checkpoint']})
        with Mount(self.vm, f'since={first["checkpoint"]},exclude=vdb') as mount:
            self.assertEqual(chains.manifest(mount)['since'], first['checkpoint'])

    def test_none_at_all(self):
        """Where no disk can have one, each backup is full, and there is no checkpoint."""
        del self.vm.images['vda']
        self.addCleanup(self.vm.images.__setitem__, 'vda', self.vm.directory / 'vda.qcow2')
        with Mount(self.vm, 'incremental,disks=vdb') as mount:
            told = chains.manifest(mount)
            self.assertEqual((told['checkpoint'], told['since']), (None, None))
            self.assertRegex(told['disks']['vdb']['full-reason'], 'raw')
            self.assertIn('full', mount.said)
        self.assertEqual(self.vm.checkpoints(), set())


class Old(chains.TestCase):
    """An image of qcow2's second version, which has no bitmaps, though nothing of libvirt's tells so."""

    @classmethod
    def make_vm(cls):
        return Vm([Disk(size=4 * MIB), Disk(size=4 * MIB, options='compat=0.10')])

    @classmethod
    def setUpClass(cls):
        cls.vm = cls.enterClassContext(cls.make_vm()).start_paused()

    def test_old(self):
        """Full each time, which is said; the other disk is not."""
        first = self.chain.backup()
        self.assert_full(first, vda='checkpoint', vdb='v2')
        self.vm.qemu_io('vda', 'write -P 1 1M 64k')
        self.vm.qemu_io('vdb', 'write -P 1 1M 64k')
        second = self.chain.backup()
        self.assertEqual(second['since'], first['checkpoint'])
        self.assert_full(second, vdb='v2')
        self.chain.check_all()
        self.assert_refused('.*qcow2 v2.*-o exclude=.*', 'checkpoint=new')
        self.assertEqual(self.vm.checkpoints(), {first['checkpoint'], second['checkpoint']})


class ReadErrors(chains.TestCase):
    """A disk whose sectors cannot be read."""

    @classmethod
    def setUpClass(cls):
        directory = lib.make_directory('bad')
        directory.chmod(0o777)
        image, cls.bad, socket = directory / 'vda.qcow2', directory / 'bad', directory / 'nbd.sock'
        run('qemu-img', 'create', '-q', '-f', 'qcow2', image, 8 * MIB)
        # Over NBD, no file grows.
        os.truncate(image, 12 * MIB)
        server = subprocess.Popen(['nbdkit', '--foreground', '--unix', socket, '--filter=error', 'file', image,
                                   'error-pread-rate=100%', f'error-file={cls.bad}'],
                                  stdin=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        cls.addClassCleanup(lambda: (server.terminate(), server.wait()))
        lib.wait_until(socket.is_socket, 'nbdkit listens')
        socket.chmod(0o777)
        disk = f'''<disk type="network" device="disk">
                     <driver name="qemu" type="qcow2"/>
                     <source protocol="nbd"><host transport="unix" socket="{socket}"/></source>
                     <target dev="vda" bus="virtio"/>
                   </disk>'''
        cls.vm = cls.enterClassContext(Vm([], devices=disk)).start_paused()
        cls.vm.images['vda'] = image
        cls.vm.qemu_io('vda', 'write -P 1 0 2M')

    def test_read_error(self):
        """Who was handed an error has no backup, even if the rest could be read: umount fails, and what it began goes."""
        base = self.chain.backup()['checkpoint']
        self.vm.qemu_io('vda', 'write -P 2 1M 512k')
        mount = Mount(self.vm, 'incremental,timeout=2')
        mount.mount()
        self.bad.write_text('')
        try:
            self.assertIn('Input/output error', run('dd', f'if={mount / "vda.raw"}', 'of=/dev/null', status=1).stderr)
        finally:
            self.bad.unlink()
        complaint('umount', mount.point, status=32)
        mount.assert_nothing_left()
        self.assertEqual(self.vm.checkpoints(), {base})
        self.assertEqual(self.chain.backup()['since'], base)
        self.chain.check_all()


class Usage(chains.TestCase):
    """What makes no sense is refused before anything is begun."""

    def test_options(self):
        mount = Mount(self.vm)
        for options in ('incremental,since=a', 'incremental,checkpoint=a', 'keep_checkpoints=2', 'since=a,keep_checkpoints=2',
                        'incremental,keep_checkpoints=0', 'incremental,keep_checkpoints=many', 'incremental,commit=later',
                        'since=a,format=vma', 'incremental,format=vma', 'backing=%d.qcow2', 'format=qcow2,backing=%d.qcow2',
                        'incremental,backing=%d.qcow2', 'incremental,format=qcow2,backing=%x', 'only_changed',
                        'checkpoint=a,only_changed', 'incremental,only_changed,format=qcow2', 'checkpoint=', 'since='):
            with self.subTest(options=options):
                self.assertRegex(complaint('mount.vmsnap', self.vm.name, mount.point, '-o', options, status=1),
                                 "^mount.vmsnap: failed to use option '.+'.*: .+")
        mount.assert_nothing_left()
        self.assertEqual(self.vm.checkpoints(), set())
        self.assert_mountable()

    def test_missing(self):
        """A base that is not there is named, with where to look; a name that is taken, too."""
        self.assert_refused(f".*'nothing'.*checkpoint-list {self.vm.name}.*", 'since=nothing')
        self.chain.backup('checkpoint=one')
        self.assert_refused(".*'one'.*; .+", 'checkpoint=one')
        self.assertEqual(self.vm.checkpoints(), {'one'})
