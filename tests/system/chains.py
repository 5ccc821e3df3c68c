# SPDX-License-Identifier: LGPL-2.1-or-later

"""
What tests of incremental backups are made of: a directory into which one mount after the other is copied, and the truth
of each instant, to which what comes out of it must be equal.
"""

import json
import shutil
import tempfile
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import lib
from lib import MIB, Disk, Mount, Vm, run

SECTOR = 512


def truth(vm):
    """What is on the disks of a machine that is paused, as SHA-256 of each."""
    return {disk: vm.disk_hash(disk) for disk in vm.images}


def manifest(mount):
    """manifest.json, with its disks by name."""
    content = json.loads((mount / 'manifest.json').read_text())
    content['disks'] = {disk['name']: disk for disk in content['disks']}
    return content


def committed(vm, name):
    """Whether a checkpoint of vmsnap's is a base for others, by what libvirt has in its description."""
    xml = ElementTree.fromstring(vm.virsh('checkpoint-dumpxml', vm.name, '--no-domain', name))
    owner, _, state = xml.findtext('description').partition(': ')
    assert owner == 'made by vmsnap', owner
    return json.loads(state)['committed']


def read_map(mount, disk):
    """The map of a disk as a list of (start, length, kind), which covers the disk, and is the same in both formats."""
    lines = [line.split(' ') for line in (mount / f'.vmsnap/map/{disk}.borg').read_text().splitlines()]
    found = [(int(start), int(length), kind) for start, length, kind in lines]
    objects = json.loads((mount / f'.vmsnap/map/{disk}.json').read_text())
    assert found == [(each['start'], each['length'], each['type']) for each in objects], (found, objects)
    end = 0
    for start, length, kind in found:
        assert start == end and length > 0 and kind in ('data', 'zero', 'same'), (end, start, length, kind)
        end += length
    assert end == manifest(mount)['disks'][disk]['size'], end
    return found


def apply_map(lines, source, target):
    """Brings TARGET, a raw file of the instant before, to that of SOURCE, of which no more is read than what changed."""
    with open(source, 'rb') as new, open(target, 'r+b') as old:
        for start, length, kind in lines:
            if kind == 'same':
                continue
            old.seek(start)
            new.seek(start)
            old.write(new.read(length) if kind == 'data' else bytes(length))


class Chain:
    """
    The backups of one machine. Each restores at any time to the truth of its instant, whatever came after it:

        chain = Chain(vm)
        first = chain.backup()       # a mount, a copy, an umount; what was said, and manifest.json
        second = chain.backup()
        chain.check_all()

    Full disks have no backing file, and all others the one of the backup before.
    """

    def __init__(self, vm):
        self.vm = vm
        self.directory = Path(tempfile.mkdtemp(prefix='chain-', dir=lib.SANDBOX))
        self.truths = {}  # by checkpoint

    def backup(self, options='incremental', **how):
        """One backup of a machine that is paused; see copy()."""
        instant = truth(self.vm)
        with Mount(self.vm, f'format=qcow2,{options}') as mount:
            found = self.copy(mount, instant, **how)
        self.check(found['checkpoint'])
        return found

    def copy(self, mount, instant, tool=('rsync', '-a')):
        """Copies a mount whose truth is INSTANT. Returns its manifest, and what was said, of which 'said' is the text."""
        found = manifest(mount)
        checkpoint = found['checkpoint']
        run(*tool, f'{mount.point}/.', self.directory)
        self.truths[checkpoint] = instant
        for disk, told in found['disks'].items():
            info = json.loads(run('qemu-img', 'info', '--output=json', self.image(disk, checkpoint)).stdout)
            backing = f'{disk}.{told["since"]}.qcow2' if told['since'] else None
            assert info.get('backing-filename') == backing, (info, told)
            assert info.get('backing-filename-format') == (backing and 'qcow2'), info
            assert told['file'] == f'{disk}.{checkpoint}.qcow2', told
        return found | {'said': mount.said}

    def image(self, disk, checkpoint):
        return self.directory / f'{disk}.{checkpoint}.qcow2'

    def drop(self, checkpoint):
        """Throws away what was copied from a mount that did not end well."""
        self.truths.pop(checkpoint, None)
        for path in self.directory.glob(f'*.{checkpoint}.qcow2'):
            path.unlink()

    def check(self, checkpoint):
        """The images of a backup are sound, and restore to its truth."""
        for disk, expected in self.truths[checkpoint].items():
            image, raw = self.image(disk, checkpoint), self.directory / 'restored.raw'
            run('qemu-img', 'check', '-q', image)
            run('qemu-img', 'convert', '-O', 'raw', image, raw)
            found = lib.sha256(raw)
            raw.unlink()
            if found != expected:
                raise AssertionError(f'{image.name} restores to something else than its instant')

    def check_all(self):
        for checkpoint in self.truths:
            self.check(checkpoint)

    def remove(self):
        shutil.rmtree(self.directory)


class TestCase(lib.TestCase):
    """
    A machine whose processor never runs, which saves a boot and most of the processor's time: Vm.qemu_io() does what a
    guest would do. Each test begins without a checkpoint.
    """

    @classmethod
    def make_vm(cls):
        # No whole clusters, and with bitmaps of another granularity.
        return Vm([Disk(size=16 * MIB + 3 * SECTOR, driver='discard="unmap" detect_zeroes="unmap"'),
                   Disk(size=12 * MIB, options='cluster_size=4k', driver='discard="unmap"')])

    @classmethod
    def setUpClass(cls):
        cls.vm = cls.enterClassContext(cls.make_vm()).start_paused()
        for disk in cls.vm.images:
            cls.vm.qemu_io(disk, 'write -P 1 0 2M', 'write -P 2 5M 1M', 'write -P 3 11M 1M')

    def setUp(self):
        self.chain = Chain(self.vm)
        self.addCleanup(self.chain.remove)

    def tearDown(self):
        self.unmount_all()
        lib.wait_until(lambda: not lib.processes(), 'all have ended')
        run('mount.vmsnap', '--cleanup', status=None)
        if self.vm.state() == 'shut off':
            self.restart()
        self.forget()

    def forget(self):
        """Deletes all checkpoints; of those without bitmaps, which libvirt does not delete, what libvirt knows of them."""
        for name in self.vm.checkpoints():
            delete = ('checkpoint-delete', self.vm.name, name)
            if not self.vm.virsh(*delete, status=None):
                self.vm.virsh(*delete, '--metadata', status=None)
        self.assertEqual(self.vm.checkpoints(), set())

    def restart(self):
        """Starts the machine again after its end."""
        self.vm.virsh('start', '--paused', self.vm.name)

    def assert_full(self, found, **reasons):
        """
        Those disks of a backup that REASONS names are full, for what these regular expressions say, and a line has been
        said for each; all others count from the checkpoint before.
        """
        lines = found['said'].splitlines()
        self.assertEqual(len(lines), len(reasons), lines)
        for line, (disk, reason) in zip(lines, reasons.items()):
            self.assertRegex(line, f"^mount.vmsnap: disk '{disk}' is taken in full: .*{reason}")
        for disk, told in found['disks'].items():
            if disk in reasons:
                self.assertIsNone(told['since'], told)
                self.assertRegex(told['full-reason'], reasons[disk])
            else:
                self.assertEqual(told['since'], found['since'], told)
                self.assertIsNone(told.get('full-reason'), told)
