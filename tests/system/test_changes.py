# SPDX-License-Identifier: LGPL-2.1-or-later

"""
How what changed is shown: in overlays of any cluster size, in maps, in dates that let every tool skip what did not change,
and in files that hold nothing else.
"""

import json
import os
import re
import shutil
import tempfile
import time
from pathlib import Path

import chains
import faults
import lib
from lib import MIB, Disk, Mount, Vm, run

KIB = 1024


def merged(ranges):
    """Ranges of (start, end), in order and with those as one that touch each other."""
    found = []
    for start, end in sorted(ranges):
        if found and found[-1][1] >= start:
            start, end = found[-1][0], max(end, found.pop()[1])
        found.append((start, end))
    return found


def rounded(ranges, granularity, size):
    """What a bitmap of that granularity says of changes in these ranges."""
    return merged((start // granularity * granularity, min(-(-end // granularity) * granularity, size))
                  for start, end in ranges)


class Changes(chains.TestCase):
    """Changes in known places, with bitmaps of 64 KiB and 4 KiB."""

    GRANULARITY = {'vda': 64 * KIB, 'vdb': 4 * KIB}
    # At the end of a disk, across the edges of clusters, and of several kinds beside each other.
    CHANGES = {'vda': {'write -P 21 0 4k': (0, 4 * KIB),
                       'write -P 22 1020k 8k': (1020 * KIB, 1028 * KIB),
                       'write -z 5M 192k': (5 * MIB, 5 * MIB + 192 * KIB),
                       'discard 5312k 64k': (5312 * KIB, 5376 * KIB),
                       'write -P 0 11M 64k': (11 * MIB, 11 * MIB + 64 * KIB),
                       'write -P 23 16M 1536': (16 * MIB, 16 * MIB + 1536)},
               'vdb': {'write -P 21 4k 4k': (4 * KIB, 8 * KIB),
                       'write -P 22 12k 4k': (12 * KIB, 16 * KIB),
                       'discard 5M 8k': (5 * MIB, 5 * MIB + 8 * KIB),
                       'write -z 5132k 4k': (5132 * KIB, 5136 * KIB),
                       'write -P 23 12284k 4k': (12284 * KIB, 12288 * KIB)}}
    ZEROED = {'vda': [(5 * MIB, 5 * MIB + 256 * KIB), (11 * MIB, 11 * MIB + 64 * KIB)],
              'vdb': [(5 * MIB, 5 * MIB + 8 * KIB), (5132 * KIB, 5136 * KIB)]}

    def setUp(self):
        super().setUp()
        self.directory = Path(tempfile.mkdtemp(prefix='changes-', dir=lib.SANDBOX))
        self.addCleanup(shutil.rmtree, self.directory)
        self.fill()

    def fill(self):
        """Puts data where changes will be, whatever became of it."""
        for disk in self.vm.images:
            self.vm.qemu_io(disk, 'write -P 1 0 2M', 'write -P 2 5M 1M', 'write -P 3 11M 1M')

    def change(self, disks=('vda', 'vdb')):
        for disk in disks:
            self.vm.qemu_io(disk, *self.CHANGES[disk])

    def expected(self, disk):
        """Where the bitmap of a disk is dirty after change()."""
        size = 16 * MIB + 3 * chains.SECTOR if disk == 'vda' else 12 * MIB
        return rounded(self.CHANGES[disk].values(), self.GRANULARITY[disk], size)

    def truth(self, name):
        """The truth as raw files."""
        directory = self.directory / name
        directory.mkdir()
        for disk in self.vm.images:
            self.vm.disk_raw(disk, directory / f'{disk}.raw')
        return directory

    def test_overlays(self):
        """With any size of clusters, an overlay has the clusters with changes and no others; cleared ones take no data."""
        for size in (4 * KIB, 64 * KIB, 2 * MIB):
            with self.subTest(cluster_size=size):
                self.forget()
                self.fill()
                self.chain.backup(f'incremental,cluster_size={size}')
                self.change()
                found = self.chain.backup(f'incremental,cluster_size={size}')
                for disk in self.vm.images:
                    dirty = self.expected(disk)
                    told = found['disks'][disk]
                    self.assertEqual(told['dirty'], sum(end - start for start, end in dirty))
                    image = self.chain.image(disk, found['checkpoint'])
                    own = [each for each in json.loads(run('qemu-img', 'map', '--output=json', image).stdout)
                           if each['depth'] == 0]
                    self.assertEqual(merged((each['start'], each['start'] + each['length']) for each in own),
                                     rounded(dirty, size, told['size']))
                    data = sum(each['length'] for each in own if not each['zero'])
                    # Besides, the last cluster is whole, and header, tables and counts take a cluster at least.
                    self.assertLess(image.stat().st_size, data + 6 * size + 64 * KIB)
                    if size <= self.GRANULARITY[disk]:
                        zeroes = merged((each['start'], each['start'] + each['length']) for each in own if each['zero'])
                        self.assertEqual(zeroes, self.ZEROED[disk])

    def test_backing(self):
        """backing= says where the base is, and what it says is taken as it is."""
        base = self.chain.backup()['checkpoint']
        self.change()
        for pattern, name in (('%d.qcow2', '{disk}.qcow2'), ('/backup/%s/%d', f'/backup/{base}/{{disk}}'),
                              ('../100%%/%d-%s.qcow2', f'../100%/{{disk}}-{base}.qcow2'), ('base', 'base')):
            with self.subTest(pattern=pattern), Mount(self.vm, f'since={base},format=qcow2,backing={pattern}') as mount:
                for disk in self.vm.images:
                    info = json.loads(run('qemu-img', 'info', '--output=json', mount / f'{disk}.qcow2').stdout)
                    self.assertEqual(info['backing-filename'], name.format(disk=disk))
                    self.assertEqual(info['backing-filename-format'], 'qcow2')

    def test_since_without_checkpoint(self):
        """A differential: it counts from a checkpoint, and leaves none."""
        base = self.chain.backup()['checkpoint']
        self.change()
        truth = self.truth('truth')
        for _ in range(2):
            with Mount(self.vm, f'since={base},format=qcow2') as mount:
                run('cp', *(mount / f'{disk}.qcow2' for disk in self.vm.images), self.chain.directory)
        for disk in self.vm.images:
            run('qemu-img', 'compare', '-F', 'raw', self.chain.directory / f'{disk}.qcow2', truth / f'{disk}.raw')
        self.assertEqual(self.vm.checkpoints(), {base})

    def test_maps(self):
        """They say what changed, neither more nor less than QEMU knows; and with them an old copy becomes a new one."""
        with Mount(self.vm, 'incremental') as mount:
            for disk in self.vm.images:
                self.assertNotIn('same', {kind for _, _, kind in chains.read_map(mount, disk)})
                run('cp', '--sparse=always', mount / f'{disk}.raw', self.directory)
        self.change()
        truth = self.truth('truth')
        with Mount(self.vm, 'incremental') as mount:
            for disk in self.vm.images:
                lines = chains.read_map(mount, disk)
                changed = merged((start, start + length) for start, length, kind in lines if kind != 'same')
                self.assertEqual(changed, self.expected(disk))
                self.assertEqual(mount.disk_status(disk)['dirty'], sum(end - start for start, end in changed))
                self.assertIn('zero', {kind for _, _, kind in lines})
                run('cmp', mount / f'{disk}.raw', truth / f'{disk}.raw')
                old = self.directory / f'{disk}.raw'
                self.assertNotEqual(lib.sha256(old), lib.sha256(truth / old.name))
                chains.apply_map(lines, mount / old.name, old)
                run('cmp', old, truth / old.name)
            self.assertEqual(mount.status()['dirty'], sum(mount.disk_status(disk)['dirty'] for disk in self.vm.images))

    def apply_changes(self, disk, copy, target):
        """Does with a copy of a mount what mount.vmsnap(8) says, in a directory that has TARGET."""
        page = Path('/usr/share/man/man8/mount.vmsnap.8').read_text().replace('\\-', '-').replace('\\e', '\\')
        command, = re.findall(r'^while read .*?^done <vda\.changed\.map$', page, re.DOTALL | re.MULTILINE)
        for what in ('raw', 'map'):
            shutil.copy(copy / f'{disk}.changed.{what}', target)
        run('sh', '-c', f'set -e\n{command.replace("vda", disk)}', cwd=target)

    def test_only_changed(self):
        """Files that hold the changes and nothing else, and a command that brings them to a copy of the base."""
        base = self.truth('base')
        with Mount(self.vm, 'incremental,only_changed') as mount:
            # Full ones are what they are.
            self.assertLessEqual({'vda.raw', 'vdb.raw'}, set(os.listdir(mount.point)))
            self.assertFalse([name for name in os.listdir(mount.point) if 'changed' in name])
        self.change(['vda'])
        truth = self.truth('truth')
        copy = self.directory / 'copy'
        with Mount(self.vm, 'incremental,only_changed') as mount:
            names = {f'{disk}.changed.{what}' for disk in self.vm.images for what in ('raw', 'map')}
            self.assertLessEqual(names, set(os.listdir(mount.point)))
            self.assertFalse({'vda.raw', 'vdb.raw'} & set(os.listdir(mount.point)))
            self.assertEqual((mount / 'vda.changed.raw').stat().st_size, (truth / 'vda.raw').stat().st_size)
            for start, end in lib.data_extents(mount / 'vda.changed.raw'):
                self.assertTrue(any(first <= start and end <= last for first, last in self.expected('vda')), (start, end))
            self.assertEqual(lib.data_extents(mount / 'vdb.changed.raw'), [])
            run('cp', '-a', '--sparse=always', mount.point, copy)
        for disk in self.vm.images:
            self.apply_changes(disk, copy, base)
            run('cmp', base / f'{disk}.raw', truth / f'{disk}.raw')


class Large(chains.TestCase):
    """What an incremental costs is what has changed, however large the disk is."""

    SIZE = 16 * 1024 * 1024 * MIB
    PLACES = range(0, SIZE, SIZE // 16)

    @classmethod
    def make_vm(cls):
        return Vm([Disk(size=cls.SIZE)])

    @classmethod
    def setUpClass(cls):
        cls.vm = cls.enterClassContext(cls.make_vm()).start_paused()
        cls.vm.qemu_io('vda', *(f'write -P 1 {place} 2M' for place in cls.PLACES))

    def bytes_read_by_qemu(self):
        return int(Path(f'/proc/{self.vm.pid()}/io').read_text().split()[1])

    def copy_changes(self, since):
        """Returns how long it takes, until the copy is there, and how much QEMU reads for it."""
        read_before = self.bytes_read_by_qemu()
        begin = time.monotonic()
        with Mount(self.vm, f'since={since},format=qcow2') as mount:
            run('cp', mount / 'vda.qcow2', self.chain.directory)
            seconds = time.monotonic() - begin
            self.assertEqual(mount.status()['dirty'], MIB)
        return seconds, self.bytes_read_by_qemu() - read_before

    def test_cost(self):
        """1 MiB of 16 TiB: a copy takes a second more than any mount, at most, and no more is read."""
        with Mount(self.vm, 'checkpoint=base'):
            pass
        self.vm.qemu_io('vda', *(f'write -P 2 {place} 64k' for place in self.PLACES))
        begin = time.monotonic()
        with Mount(self.vm):
            mounted = time.monotonic() - begin
        for _ in range(3):
            seconds, read = self.copy_changes('base')
            # What the tables of the images take comes on top.
            self.assertLess(read, 3 * MIB)
            # On a busy machine anything may take a second now and then, but not each time.
            if seconds < mounted + 1:
                break
        else:
            self.fail(f'a copy takes {seconds:.1f} s, and a mount {mounted:.1f} s')
        copy = self.chain.directory / 'vda.qcow2'
        self.assertLess(copy.stat().st_blocks * 512, 4 * MIB)
        for place in self.PLACES:
            run('qemu-io', '-r', '-c', f'read -P 2 {place} 64k', f'json:{{"driver":"qcow2","file":{{"driver":"file",'
                f'"filename":"{copy}"}},"backing":null}}')


class Skipped(chains.TestCase):
    """A disk that did not change has the dates of its last change, so that nobody reads it; one that did, the instant's."""

    def dates(self, mount):
        found = {}
        for disk in self.vm.images:
            status = (mount / f'{disk}.raw').stat()
            self.assertEqual(status.st_mtime_ns, status.st_ctime_ns)
            found[disk] = status.st_mtime_ns
        return found, (mount / 'domain.xml').stat().st_mtime_ns

    def rounds(self, disks, use, options='incremental'):
        """Mounts on one directory, between which DISKS change by turns. USEs each; then checks the dates."""
        mount = Mount(self.vm, options)
        dates = []
        for number, disk in enumerate([None, *disks]):
            if disk:
                self.vm.qemu_io(disk, f'write -P {number + 30} {number}M 4k')
            mount.mount()
            use(mount, number)
            found, instant = self.dates(mount)
            dates.append(found)
            for name in self.vm.images:
                self.assertEqual(found[name], instant if disk in (None, name) else dates[-2][name], (number, name))
            mount.umount()
            mount.assert_no_trace()
        mount.point.rmdir()

    def test_dates(self):
        """Over any number of rounds, and where one disk waits longer than the other."""
        self.rounds(['vdb', 'vdb', 'vda', 'vdb'], lambda mount, number: None)

    def test_zeroed(self):
        """To discard is to change."""
        with Mount(self.vm, 'incremental') as mount:
            first, _ = self.dates(mount)
        self.vm.qemu_io('vdb', 'discard 5M 4k')
        with Mount(self.vm, 'incremental') as mount:
            second, instant = self.dates(mount)
        self.assertEqual(second, {'vda': first['vda'], 'vdb': instant})

    def test_not_committed(self):
        """A round that was not committed leaves no date behind: none that counts from it, and none that it had."""
        with Mount(self.vm, 'incremental') as mount:
            first, _ = self.dates(mount)
        self.vm.qemu_io('vda', 'write -P 40 1M 4k')
        with Mount(self.vm, 'incremental,commit=explicit') as mount:
            self.assertEqual(self.dates(mount)[0]['vdb'], first['vdb'])
        with Mount(self.vm, 'incremental') as mount:
            third, instant = self.dates(mount)
        self.assertEqual(third, {'vda': instant, 'vdb': first['vdb']})

    def test_full_again(self):
        """Where nobody knows what changed, the date is the instant's."""
        with Mount(self.vm, 'incremental') as mount:
            pass
        self.forget()
        with Mount(self.vm, 'incremental') as mount:
            dates, instant = self.dates(mount)
            self.assertEqual(set(dates.values()), {instant})

    def unread(self, mount, disk='vda'):
        self.assertEqual(mount.disk_status(disk)['read'], 0)

    def test_rsync(self):
        """rsync transfers what changed and nothing else."""
        copy = self.chain.directory / 'copy'

        def use(mount, number):
            # Dates that are less than a second apart are the same for rsync otherwise.
            lines = run('rsync', '-aS', '--modify-window=-1', '--itemize-changes', f'{mount.point}/', copy).stdout
            if number:
                self.assertNotIn('vda.raw', lines)
                self.assertIn('vdb.raw', lines)
                self.unread(mount)
            for disk in self.vm.images:
                self.assertEqual(lib.sha256(copy / f'{disk}.raw'), self.vm.disk_hash(disk))

        self.rounds(['vdb', 'vdb'], use)

    def test_borg(self):
        """
        borg's files cache knows it again, at once: it keeps no file whose date is the newest of a backup, but that is the
        manifest's.
        """
        repository = self.chain.directory / 'repository'
        environment = {'PATH': os.environ['PATH'], 'BORG_BASE_DIR': str(self.chain.directory / 'borg')}
        run('borg', 'init', '--encryption=none', repository, env=environment)
        mounted = ('vda.raw', 'vdb.raw')

        def use(mount, number):
            said = run('borg', 'create', '--list', '--files-cache=ctime,size,inode', f'{repository}::{number}', '.',
                       cwd=mount.point, env=environment).stderr.splitlines()
            if number >= 1:
                self.assertIn('U vda.raw', said)
                self.assertNotIn('U vdb.raw', said)
                self.unread(mount)
                run('borg', 'extract', f'{repository}::{number}', *mounted, cwd=self.chain.directory, env=environment)
                for name in mounted:
                    run('cmp', self.chain.directory / name, mount / name)

        self.rounds(['vdb', 'vdb'], use)

    def test_restic(self):
        """restic finds it unmodified."""
        repository = self.chain.directory / 'repository'
        environment = {'PATH': os.environ['PATH'], 'RESTIC_PASSWORD': 'secret', 'RESTIC_REPOSITORY': str(repository)}
        run('restic', '--no-cache', '--quiet', 'init', env=environment)

        def use(mount, number):
            said = run('restic', '--no-cache', '--verbose=2', 'backup', mount.point, env=environment).stdout
            if number:
                self.assertRegex(said, r'(?m)^unchanged +/.*/vda\.raw')
                self.assertRegex(said, r'(?m)^modified +/.*/vdb\.raw')
                self.unread(mount)

        self.rounds(['vdb'], use)
