# SPDX-License-Identifier: LGPL-2.1-or-later

"""Which ends of a mount are good enough for others to count from: what umount says, and what the next backup begins with."""

import json
import os
import signal
import subprocess
from pathlib import Path

import chains
import lib
from lib import Mount, complaint, run


class Commit(chains.TestCase):
    """Each test has a backup behind it, and ends with one that shows what it counts from."""

    def setUp(self):
        super().setUp()
        self.base = self.chain.backup()['checkpoint']
        self.vm.qemu_io('vda', 'write -P 7 2M 64k')

    def begin(self, options='incremental'):
        mount = Mount(self.vm, options)
        mount.mount()
        return mount, chains.manifest(mount)['checkpoint']

    def assert_base(self, name):
        """The next backup counts from the checkpoint NAME, and no other is left but those before it."""
        self.assertEqual(self.vm.checkpoints(), {self.base, name})
        self.assertEqual(self.chain.backup()['since'], name)
        self.chain.check_all()

    def stop(self, mount):
        os.kill(mount.daemon(), signal.SIGTERM)

    def test_umount(self):
        mount, name = self.begin('incremental,format=qcow2')
        self.chain.copy(mount, chains.truth(self.vm))
        mount.umount()
        mount.assert_nothing_left()
        self.assert_base(name)

    def test_lazily_with_a_reader_that_is_done(self):
        """The end comes when the last file is closed."""
        mount, name = self.begin('incremental,format=qcow2')
        instant = chains.truth(self.vm)
        with open(mount / 'manifest.json', 'rb'):
            self.chain.copy(mount, instant)
            run('umount', '--lazy', mount.point)
            self.assertFalse(chains.committed(self.vm, name))
        mount.wait_ended()
        self.assert_base(name)

    def test_lazily_and_stopped(self):
        """Whoever still has a file open has not read it all."""
        mount, _ = self.begin()
        daemon = mount.daemon()
        with open(mount / 'vda.raw', 'rb'):
            run('umount', '--lazy', mount.point)
            os.kill(daemon, signal.SIGTERM)
            mount.wait_ended()
        self.assert_base(self.base)

    def test_forced_beside_a_reader(self):
        mount, _ = self.begin('incremental,speed=1M')
        with subprocess.Popen(['dd', f'if={mount / "vda.raw"}', 'of=/dev/null', 'bs=64k'],
                              stderr=subprocess.DEVNULL) as reader:
            lib.wait_until(lambda: mount.status()['transferred'] > 0, 'it reads')
            run('umount', '--force', mount.point)
            self.assertNotEqual(reader.wait(), 0)
        mount.assert_nothing_left()
        self.assert_base(self.base)

    def test_forced_without_a_reader(self):
        for _ in range(3):
            mount, _ = self.begin()
            run('umount', '--force', mount.point)
            mount.assert_nothing_left()
            self.assertEqual(self.vm.checkpoints(), {self.base})
        self.assert_base(self.base)

    def test_stopped_under_another_mount(self):
        mount, _ = self.begin()
        daemon = mount.daemon()
        run('mount', '-t', 'tmpfs', 'cover', mount.point)
        os.kill(daemon, signal.SIGTERM)
        lib.wait_until(lambda: not lib.lives(daemon), 'the daemon has ended')
        run('umount', mount.point)
        run('umount', '--lazy', mount.point, status=None)
        mount.wait_ended()
        self.assert_base(self.base)

    def test_unmounted_with_a_copy_left(self):
        """Whoever has it in a container may not have read it all: umount says so."""
        mount, name = self.begin()
        with subprocess.Popen(['unshare', '--mount', '--propagation', 'private', 'sleep', '60']) as container:
            lib.wait_until(lambda: Path(f'/proc/{container.pid}/comm').read_text() == 'sleep\n', 'it has its own mounts')
            self.assertIn(str(mount.point), Path(f'/proc/{container.pid}/mountinfo').read_text())
            self.assertRegex(complaint('umount', mount.point, status=32),
                             f"somebody could still read .*, so that checkpoint '{name}' was rolled back")
            container.kill()
        mount.assert_nothing_left()
        self.assert_base(self.base)

    def test_explicit_and_stopped(self):
        """That the copy is safe is not enough: it must be unmounted, too."""
        mount, _ = self.begin('incremental,commit=explicit')
        run('sh', '-c', 'echo yes >"$0"', mount / '.vmsnap/commit')
        self.stop(mount)
        mount.wait_ended()
        self.assert_base(self.base)

    def test_decided(self):
        """From when the record says that it is to be committed, that is what whoever clears up does."""
        mount, name = self.begin('incremental,format=qcow2')
        self.chain.copy(mount, chains.truth(self.vm))
        self.decide(mount)
        run('mount.vmsnap', '--cleanup')
        mount.assert_nothing_left()
        self.assert_base(name)

    def decide(self, mount):
        """Leaves what is left if daemon and guardian are killed right after they have noted that all is well."""
        record = Path('/run/vmsnap', f'{mount.status()["uuid"]}.json')
        mount.kill(guardian=True)
        content = json.loads(record.read_text())
        note = json.dumps({'snapshot': content['uuid'], 'committed': True, 'disks': []})
        record.write_text(json.dumps(content | {'outcome': 'complete', 'commit': f'made by vmsnap: {note}'}))

    def test_decided_but_deleted(self):
        """What cannot be any more is given up, and said."""
        mount, name = self.begin()
        self.decide(mount)
        self.vm.virsh('checkpoint-delete', self.vm.name, name)
        self.assertRegex(complaint('umount', mount.point, status=32), f"checkpoint '{name}': somebody has deleted it")
        mount.assert_nothing_left()
        self.assert_base(self.base)

    def test_deleted_by_others(self):
        """What somebody has deleted meanwhile is no base: umount says so, and nobody waits for it."""
        mount, name = self.begin()
        self.vm.virsh('checkpoint-delete', self.vm.name, name)
        self.assertRegex(complaint('umount', mount.point, status=32), f"checkpoint '{name}': somebody has deleted it")
        mount.assert_nothing_left()
        self.assert_base(self.base)

    def bitmaps(self, disk):
        """The names of the bitmaps in an image; the machine must be off."""
        info = json.loads(run('qemu-img', 'info', '--output=json', self.vm.images[disk]).stdout)
        return {bitmap['name'] for bitmap in info['format-specific']['data'].get('bitmaps', [])}

    def test_no_bitmap_is_left(self):
        """A checkpoint that one disk has lost is deleted from the other one, too."""
        self.vm.destroy()
        self.assertEqual(self.bitmaps('vdb'), {self.base})
        run('qemu-img', 'bitmap', '--remove', self.vm.images['vda'], self.base)
        self.restart()
        found = self.chain.backup('incremental,keep_checkpoints=1')
        self.assert_full(found, vda='missing or broken')
        self.assertEqual(self.vm.checkpoints(), {found['checkpoint']})
        self.vm.destroy()
        for disk in self.vm.images:
            self.assertEqual(self.bitmaps(disk), {found['checkpoint']})
        self.restart()
        self.chain.check_all()
