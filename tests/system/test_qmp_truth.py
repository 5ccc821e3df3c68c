# SPDX-License-Identifier: LGPL-2.1-or-later

"""What test_truth.py proves, of a QEMU without libvirt."""

import contextlib
import random
import subprocess

import lib
import test_truth
from bare import BareVm, Proxy
from lib import MIB, Disk, Mount, run


class Zoo(test_truth.Zoo):
    @classmethod
    def make_vm(cls):
        return BareVm(test_truth.make_zoo())


class Kept(lib.TestCase):
    """
    Ranges that are kept in scratch in part. QEMU (7.2) takes a range that begins with kept clusters and goes on with
    others for one that is not kept, and tells and gives the present for it. The machine's processor never runs.
    """

    SIZE = 32 * MIB
    CLUSTER = 65536

    @classmethod
    def setUpClass(cls):
        noise = test_truth.make_noise('kept', 4 * MIB)
        some = tuple(f'write -s {noise} {at}M 3M' for at in range(0, 32, 4))
        cls.vm = cls.enterClassContext(BareVm([Disk(size=cls.SIZE, io=some, driver='discard="unmap"'),
                                               Disk(size=cls.SIZE, format='raw', io=some, driver='discard="unmap"')]))
        cls.vm.start_paused()

    def change(self, chance):
        """Writes to, clears and discards about a half of the clusters, and parts of them."""
        for disk in self.vm.images:
            commands = []
            for at in range(0, self.SIZE, self.CLUSTER):
                how = chance.choice(('write -P 0xa5', 'write -z', 'write -z -u', 'discard', None, None, None, None))
                if how:
                    start = chance.choice((0, 4096, 61440))
                    commands.append(f'{how} {at + start} {chance.choice((4096, self.CLUSTER - start))}')
            self.vm.qemu_io(disk, *commands)

    def read_all_ways(self, mount, truth, chance):
        for name in truth.files:
            test_truth.read_forward(mount, truth, name)
            test_truth.read_backward(mount, truth, name)
        for _ in range(4):
            test_truth.read_at_random(mount, truth, chance.randrange(1000000))

    def test_reads(self):
        """Whatever is read, in pieces of any size, is of the instant."""
        chance = random.Random('reads')
        for _ in range(3):
            truth = test_truth.Truth(self.vm)
            with Mount(self.vm) as mount:
                self.change(chance)
                self.read_all_ways(mount, truth, chance)

    def test_holes(self):
        """What is written after the instant and before holes are looked for makes no holes of data."""
        for number, options in enumerate(('', 'format=qcow2')):
            chance = random.Random(number)
            truth = test_truth.Truth(self.vm)
            mount = Mount(self.vm, options)
            with contextlib.closing(Proxy(self.vm)) as proxy:
                proxy.hold('block-export-add')
                words = ['mount.vmsnap', proxy.source, mount.point, *(['-o', options] if options else [])]
                process = subprocess.Popen(words, stderr=subprocess.PIPE, text=True)
                self.assertTrue(proxy.held.wait(20))
                self.change(chance)
                proxy.release()
                self.assertEqual((process.communicate(timeout=30)[1], process.returncode), ('', 0))
                if options:
                    for disk in self.vm.images:
                        run('qemu-img', 'compare', '-f', 'qcow2', '-F', 'raw', mount / f'{disk}.qcow2',
                            truth.files[f'{disk}.raw'])
                else:
                    for disk in self.vm.images:
                        copy = lib.SANDBOX / f'copy-{disk}'
                        run('cp', '--sparse=never', mount / f'{disk}.raw', copy)
                        run('cmp', copy, truth.files[f'{disk}.raw'])
                        # As tar and rsync do it: what is a hole is not read.
                        with open(truth.files[f'{disk}.raw'], 'rb') as file:
                            data = file.read()
                        at = 0
                        for start, end in [*lib.data_extents(mount / f'{disk}.raw'), (self.SIZE, self.SIZE)]:
                            self.assertEqual(data[at:start], bytes(start - at), f'{disk}: a hole at {at}')
                            at = end
                    self.read_all_ways(mount, truth, chance)
                run('umount', mount.point)
            mount.assert_nothing_left()
