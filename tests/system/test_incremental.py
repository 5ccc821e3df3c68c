# SPDX-License-Identifier: LGPL-2.1-or-later

"""
A guest that writes, discards and zeroes all the time, and one incremental mount after the other, some of which end badly:
what was copied from each restores to its instant, byte by byte, and boots.

The rounds are other ones each time. VMSNAP_SEED repeats those of a seed that a failure names.
"""

import os
import random
import shutil
import signal
import subprocess
import time
from pathlib import Path

import chains
import lib
from lib import MIB, Disk, Mount, Vm, complaint, run

# The last one is no multiple of any cluster.
SIZES = {'vda': 64 * MIB + 3 * chains.SECTOR, 'vdb': 48 * MIB}

GOOD_ROUNDS = 7


class Incremental(lib.TestCase):
    @classmethod
    def make_vm(cls):
        return Vm([Disk(size=SIZES['vda'], driver='discard="unmap" detect_zeroes="unmap"'),
                   Disk(size=SIZES['vdb'], options='cluster_size=4k', driver='discard="unmap"')])

    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        # Something to overwrite, without which scratch would not fill.
        for disk, size in SIZES.items():
            cls.vm.run(f'churn 0 250 0 0 {size} /dev/{disk}')

    def setUp(self):
        self.chain = chains.Chain(self.vm)
        self.addCleanup(self.chain.remove)

    def tearDown(self):
        self.unmount_all()
        lib.wait_until(lambda: not lib.processes(), 'all have ended')
        if self.vm.state() == 'paused':
            self.vm.resume()
        self.stop_churn()
        for name in self.vm.checkpoints():
            self.vm.virsh('checkpoint-delete', self.vm.name, name)

    def start_churn(self, chance):
        """From now on the guest changes some part of each disk, or of one, quickly or slowly. Returns of which."""
        self.stop_churn()
        disks = chance.choice(({'vda'}, {'vdb'}, set(SIZES), set(SIZES)))
        for disk in sorted(disks):
            blocks = (SIZES[disk] + 4095) // 4096
            start = chance.choice((0, chance.randrange(blocks - 1))) * 4096
            length = chance.choice((SIZES[disk], 4 * MIB, 512 * 1024))
            self.vm.run(f'churn {chance.randrange(1 << 32)} 0 {chance.choice((3000, 10000, 30000))} {start} '
                        f'{min(length, SIZES[disk] - start)} /dev/{disk} >/dev/console 2>&1 &')
        return disks

    def stop_churn(self):
        self.vm.run('killall churn 2>/dev/null; while killall -0 churn 2>/dev/null; do usleep 10000; done')
        assert 'churn: failed' not in self.vm.console.read_text(errors='replace')

    # The ways in which a round ends. Each has a mount that was copied; the bad ones return when nothing is left of it.

    def end_good(self, mount, _):
        mount.umount()

    def end_committed(self, mount, _):
        (mount / '.vmsnap/commit').write_text('yes\n')
        mount.umount()

    def end_uncommitted(self, mount, _):
        self.assertEqual((mount / '.vmsnap/commit').read_text(), 'no\n')
        mount.umount()

    def end_killed(self, mount, _):
        mount.kill()
        mount.wait_ended()

    def end_terminated(self, mount, _):
        os.kill(mount.daemon(), signal.SIGTERM)
        mount.wait_ended()

    def end_full(self, mount, _):
        """The guest overwrites more than scratch may hold."""
        def broken():
            self.vm.run(f'churn {time.monotonic_ns()} 20 0 0 {SIZES["vda"]} /dev/vda')
            return mount.status()['status'] == 'error'

        lib.wait_until(broken, 'scratch is full')
        self.assertIn('scratch', complaint('umount', mount.point, status=32))

    def end_aborted(self, mount, name):
        """Somebody else ends the job while it is read."""
        reader = subprocess.Popen(['sh', '-c', 'while cat "$0" >/dev/null; do :; done', mount / f'vda.{name}.qcow2'],
                                  stdin=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
        self.vm.virsh('domjobabort', self.vm.name)
        lib.wait_until(lambda: mount.status()['status'] == 'error', 'that is noticed')
        try:
            self.assertIn('Input/output error', reader.communicate(timeout=lib.PATIENCE)[1])
        finally:
            reader.kill()
        complaint('umount', mount.point, status=32)

    BAD = {'killed': '', 'terminated': '', 'uncommitted': 'commit=explicit', 'full': 'scratch_max=2M,scratch_reserve=1M',
           'aborted': ''}
    GOOD = {'good': ('', 'keep_checkpoints=3'), 'committed': ('commit=explicit',)}

    def test_rounds(self):
        """Whatever became of the rounds before, each good one restores to its instant, and nothing else is ever a base."""
        seed = int(os.environ.get('VMSNAP_SEED', random.randrange(1 << 32)))
        chance = random.Random(seed)
        ends = [*self.BAD, *('good' if number % 3 else 'committed' for number in range(GOOD_ROUNDS))]
        chance.shuffle(ends)
        self.committed, self.changed = [], set()
        for number, end in enumerate(ends):
            begin = time.monotonic()
            try:
                said = self.play(end, chance)
            except BaseException as error:
                error.add_note(f'in round {number}, which was to be {end}, of VMSNAP_SEED={seed}: {ends}')
                raise
            print(f'# round {number}, {end}: {said}; {time.monotonic() - begin:.1f} s')
        self.stop_churn()
        self.chain.check_all()
        self.check_boots(self.committed[-1])

    def test_disks_come_and_go(self):
        """A new disk is full, and says so; one that is gone takes nothing with it."""
        self.vm.pause()
        first = self.chain.backup()['checkpoint']
        image = self.vm.directory / 'vdc.qcow2'
        run('qemu-img', 'create', '-q', '-f', 'qcow2', image, 4 * MIB)
        self.vm.virsh('attach-disk', self.vm.name, image, 'vdc', '--driver', 'qemu', '--subdriver', 'qcow2', '--live')
        self.vm.images['vdc'] = image
        self.addCleanup(self.vm.images.pop, 'vdc', None)
        self.vm.qemu_io('vdc', 'write -P 1 1M 1M')
        second = self.chain.backup()
        self.assertEqual([disk['since'] for disk in second['disks'].values()], [first, first, None])
        self.assertRegex(second['disks']['vdc']['full-reason'], 'track')
        self.assertRegex(second['said'], "^mount.vmsnap: disk 'vdc' is taken in full: [^\n]+\n$")
        self.vm.qemu_io('vdc', 'write -P 2 1M 64k')
        third = self.chain.backup()
        self.assertEqual((third['disks']['vdc']['since'], third['disks']['vdc']['dirty']),
                         (second['checkpoint'], 64 * 1024))
        self.vm.resume()
        # Only a guest that runs lets go of a disk.
        self.vm.virsh('detach-disk', self.vm.name, 'vdc', '--live')
        lib.wait_until(lambda: 'vdc' not in self.vm.virsh('domblklist', self.vm.name), 'the guest lets the disk go')
        del self.vm.images['vdc']
        self.vm.run(f'churn 1 20 0 0 {SIZES["vda"]} /dev/vda')
        self.vm.pause()
        fourth = self.chain.backup()
        self.assertEqual((fourth['since'], fourth['said']), (third['checkpoint'], ''))
        self.assertEqual(set(fourth['disks']), set(SIZES))
        self.chain.check_all()

    def play(self, end, chance):
        """A round. Returns a word on it."""
        options = ['incremental', 'format=qcow2', f'cluster_size={chance.choice(("4K", "64K", "64K", "2M"))}']
        options.append(self.BAD[end] if end in self.BAD else chance.choice(self.GOOD[end]))
        changed = self.start_churn(chance)
        self.changed |= changed
        time.sleep(chance.uniform(0, 0.6))
        self.vm.pause()
        instant = chains.truth(self.vm)
        mount = Mount(self.vm, ','.join(filter(None, options)))
        mount.mount()
        self.vm.resume()
        time.sleep(chance.uniform(0, 0.3))
        told = self.check_mounted(mount)
        name = told['checkpoint']
        # Scratch may be full before a copy is done.
        if end in self.GOOD or (end != 'full' and chance.random() < 0.5):
            self.chain.copy(mount, instant, chance.choice((('rsync', '-a'), ('cp', '-a'))))
        getattr(self, f'end_{end}')(mount, name)
        mount.assert_nothing_left()
        if end in self.BAD:
            self.chain.drop(name)
        else:
            self.committed.append(name)
            if 'keep_checkpoints=3' in options:
                del self.committed[:-3]
            # The guest has gone on with these since; and touch() writes to the first.
            self.changed = changed | {'vda'}
            self.chain.check(name)
        self.assertEqual(self.vm.checkpoints(), set(self.committed))
        return f'{name} since {told["since"]}, {sum(disk["dirty"] for disk in told["disks"].values()) / MIB:.1f} MiB dirty'

    def check_mounted(self, mount):
        """What is told of a round. Returns its manifest."""
        told = chains.manifest(mount)
        since = self.committed[-1] if self.committed else None
        self.assertEqual(told['since'], since)
        self.assertRegex(told['checkpoint'], r'^vmsnap-\d{8}T\d{6}\.\d{3}Z$')
        self.assertFalse(chains.committed(self.vm, told['checkpoint']))
        self.assertTrue(all(chains.committed(self.vm, name) for name in self.committed))
        self.assertEqual(mount.said.count('is taken in full'), 0 if since else len(SIZES), mount.said)
        for name, disk in told['disks'].items():
            self.assertEqual(disk['since'], since)
            self.assertEqual('full-reason' in disk, since is None)
            if since and name not in self.changed:
                self.assertEqual(disk['dirty'], 0)
        return told

    def check_boots(self, checkpoint):
        """The newest images are the disks of a machine as they are, each on a chain of others."""
        copy = Path(shutil.copytree(self.chain.directory, lib.SANDBOX / 'boot'))
        with Vm.restore(copy, disk_format='qcow2', checkpoint=checkpoint) as restored:
            self.assertEqual(set(restored.images), set(SIZES))
            restored.start()
            raw = self.chain.directory / 'raw'
            for disk in SIZES:
                run('qemu-img', 'convert', '-O', 'raw', self.chain.image(disk, checkpoint), raw)
                # Some megabytes, since an emulated processor takes long for a checksum.
                expected = run('sh', '-c', f'head -c {4 * MIB} "$0" | md5sum', raw).stdout
                self.assertEqual(restored.run(f'head -c {4 * MIB} /dev/{disk} | md5sum'), expected)
                restored.run(f'churn 1 20 0 0 {SIZES[disk]} /dev/{disk}')
        shutil.rmtree(copy)
