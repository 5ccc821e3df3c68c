# SPDX-License-Identifier: LGPL-2.1-or-later

"""What files there are in a mount, what stat(2) and others say of them, and that nobody can change anything."""

import ctypes
import errno
import html
import json
import os
import stat
import time
import unittest
import uuid
import xml.etree.ElementTree as ElementTree
from datetime import datetime, timezone
from pathlib import Path

import lib
from lib import MIB, Disk, Mount, Vm, run

HIDDEN = ['backup.xml', 'speed', 'status', 'status.json']
FIRMWARE = Path('/usr/share/OVMF')


class DirectoryEntry(ctypes.Structure):
    _fields_ = [('inode', ctypes.c_uint64), ('offset', ctypes.c_int64), ('length', ctypes.c_uint16),
                ('type', ctypes.c_uint8), ('name', ctypes.c_char * 256)]


def libc():
    library = ctypes.CDLL(None, use_errno=True)
    library.opendir.restype = library.readdir.restype = ctypes.c_void_p
    library.telldir.restype = ctypes.c_long
    library.readdir.argtypes = library.telldir.argtypes = library.closedir.argtypes = [ctypes.c_void_p]
    library.rewinddir.argtypes = [ctypes.c_void_p]
    library.seekdir.argtypes = [ctypes.c_void_p, ctypes.c_long]
    return library


class Files(lib.TestCase):
    """A machine with every kind of drive, mounted once for all tests that only look."""

    @classmethod
    def make_vm(cls):
        media = lib.make_directory('media')
        for name in ('cdrom', 'floppy'):
            (media / name).write_bytes(bytes(1440 * 1024))
        devices = f'''
          <disk type="file" device="cdrom">
            <source file="{media}/cdrom"/><target dev="hda" bus="ide"/><readonly/>
          </disk>
          <disk type="file" device="cdrom"><target dev="hdb" bus="ide"/><readonly/></disk>
          <disk type="file" device="floppy"><source file="{media}/floppy"/><target dev="fda" bus="fdc"/></disk>
          <disk type="file" device="floppy"><target dev="fdb" bus="fdc"/></disk>
          <graphics type="vnc" port="-1" autoport="yes" passwd="geheim"/>'''
        disks = [Disk(), Disk(size=64 * MIB + 512, format='raw'), Disk(size=MIB, xml='<readonly/>')]
        return Vm(disks, devices=devices)

    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        cls.vm.run('dd if=/dev/urandom of=/dev/vda bs=1M seek=10 count=3 oflag=direct status=none')
        cls.xml = {'domain.xml': cls.vm.virsh('dumpxml', '--inactive', '--security-info', cls.vm.name),
                   'live.xml': cls.vm.virsh('dumpxml', '--security-info', cls.vm.name)}
        cls.before_ns = time.time_ns()
        cls.mount = cls.enterClassContext(Mount(cls.vm))
        cls.after_ns = time.time_ns()
        cls.names = ['domain.xml', 'initrd', 'kernel', 'live.xml', 'manifest.json', 'vda.raw', 'vdb.raw']

    def all_paths(self):
        root = self.mount.point
        return [root, root / '.vmsnap', *(root / name for name in self.names),
                *(root / '.vmsnap' / name for name in HIDDEN)]

    def test_listing(self):
        """Just these files; .vmsnap is not listed, but can be reached by its name."""
        self.assertEqual(sorted(os.listdir(self.mount.point)), self.names)
        self.assertEqual(run('ls', '-A', self.mount.point).stdout.split(), self.names)
        self.assertEqual(sorted(os.listdir(self.mount / '.vmsnap')), sorted([*HIDDEN, 'map']))
        self.assertEqual(sorted(os.listdir(self.mount / '.vmsnap/map')),
                         ['vda.borg', 'vda.json', 'vdb.borg', 'vdb.json'])
        found = run('find', self.mount.point, '-printf', '%P %y\n').stdout.splitlines()
        self.assertEqual(sorted(found), sorted([' d'] + [f'{name} f' for name in self.names]))
        with os.scandir(self.mount.point) as entries:
            for entry in entries:
                self.assertTrue(entry.is_file(follow_symlinks=False))
                self.assertEqual(entry.inode(), os.stat(entry.path).st_ino)

    def test_listing_can_be_left_and_taken_up(self):
        """telldir, seekdir, rewinddir: from each place the same entries follow."""
        library = libc()
        directory = library.opendir(os.fsencode(self.mount.point))

        def rest():
            entries = []
            while True:
                place = library.telldir(directory)
                entry = library.readdir(directory)
                if not entry:
                    return entries
                entries.append((place, DirectoryEntry.from_address(entry).name.decode()))

        try:
            entries = rest()
            self.assertEqual(sorted(name for _, name in entries), sorted(['.', '..', *self.names]))
            for number in reversed(range(len(entries))):
                library.seekdir(directory, entries[number][0])
                self.assertEqual([name for _, name in rest()], [name for _, name in entries[number:]])
            library.rewinddir(directory)
            self.assertEqual(rest(), entries)
        finally:
            library.closedir(directory)

    def test_wrong_names(self):
        """What is not there is not there, again and again, and a file is no directory."""
        for _ in range(2):
            for name in ('vda', 'vdc.raw', 'VDA.raw', 'vda.raw ', 'hda.raw', '.vmsnap/log', 'status.json', 'nvram.fd',
                         '.vmsnap/vda.raw', '.vmsnap/.vmsnap', 'x' * 255):
                with self.assertRaises(FileNotFoundError, msg=name):
                    os.stat(self.mount / name)
            with self.assertRaises(NotADirectoryError):
                os.stat(self.mount / 'vda.raw/x')

    def test_xml(self):
        """domain.xml and live.xml are what virsh shows, with their secrets, and libvirt takes the first back."""
        for name, expected in self.xml.items():
            self.assertEqual((self.mount / name).read_text().strip(), expected.strip())
            self.assertIn('geheim', expected)
        domain = ElementTree.fromstring((self.mount / 'domain.xml').read_text())
        domain.find('name').text = name = f'vm-{uuid.uuid4()}'
        domain.find('uuid').text = str(uuid.uuid4())
        copy = lib.SANDBOX / 'copy.xml'
        copy.write_text(ElementTree.tostring(domain, encoding='unicode'))
        run('virsh', 'define', '--validate', copy)
        self.addCleanup(run, 'virsh', 'undefine', name)

    def test_boot_files(self):
        """Kernel and initrd are there, and are what the machine was booted from."""
        run('cmp', self.mount / 'kernel', self.vm.directory / 'vmlinuz')
        run('cmp', self.mount / 'initrd', self.vm.directory / 'initrd')

    def test_manifest(self):
        """Says which snapshot this is, of what, what is in it, what is not and why, and who made it."""
        manifest = json.loads((self.mount / 'manifest.json').read_text())
        self.assertEqual(manifest['uuid'], str(uuid.UUID(manifest['uuid'])))
        self.assertEqual(manifest['uuid'], self.mount.status()['uuid'])
        self.assertEqual(manifest['source'], {'backend': 'libvirt', 'name': self.vm.name, 'uuid': self.vm.uuid})
        changed = {'since': None, 'modified': manifest['instant']}
        self.assertEqual(manifest['disks'], [
            {'name': 'vda', 'file': 'vda.raw', 'format': 'raw', 'size': 256 * MIB, 'dirty': 256 * MIB,
             'source': str(self.vm.images['vda']), **changed},
            {'name': 'vdb', 'file': 'vdb.raw', 'format': 'raw', 'size': 64 * MIB + 512, 'dirty': 64 * MIB + 512,
             'source': str(self.vm.images['vdb']), **changed}])
        self.assertEqual({each['name']: each['reason'] for each in manifest['left-out']}, {
            'hda': 'is a CD-ROM', 'hdb': 'is a CD-ROM', 'fda': 'is a floppy', 'fdb': 'is a floppy',
            'vdc': 'is read-only'})
        self.assertIsNone(manifest['checkpoint'])
        self.assertEqual(set(manifest['versions']), {'vmsnap', 'libvirt', 'qemu'})
        self.assertIn(manifest['versions']['vmsnap'], run('mount.vmsnap', '--version').stdout)
        self.assertIn(manifest['versions']['qemu'], run('qemu-system-x86_64', '--version').stdout)
        self.assertIn(manifest['versions']['libvirt'], run('virsh', '--version').stdout)

    def test_instant(self):
        """All dates are the instant, to the nanosecond: after the command was called, and before it was done."""
        instants = {date for path in self.all_paths()
                    for date in (path.stat().st_mtime_ns, path.stat().st_ctime_ns, path.stat().st_atime_ns)}
        self.assertEqual(len(instants), 1)
        instant, = instants
        self.assertLess(self.before_ns, instant)
        self.assertLess(instant, self.after_ns)
        text = json.loads((self.mount / 'manifest.json').read_text())['instant']
        self.assertRegex(text, r'^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{9}Z$')
        seconds = datetime.fromtimestamp(instant // 10**9, timezone.utc)
        self.assertEqual(text, f'{seconds:%Y-%m-%dT%H:%M:%S}.{instant % 10**9:09}Z')
        self.assertIn(text, (self.mount / '.vmsnap/status').read_text())
        self.assertEqual(self.mount.status()['start-time'], instant // 10**9)

    def test_stat(self):
        """By default all belongs to who mounts, and nobody else may look; buffers are large; sizes are exact."""
        for path in self.all_paths():
            status = path.stat()
            self.assertEqual((status.st_uid, status.st_gid), (0, 0))
            mode = 0o500 if path.is_dir() else 0o600 if path.name == 'speed' else 0o400
            self.assertEqual(oct(stat.S_IMODE(status.st_mode)), oct(mode), path)
            self.assertGreaterEqual(status.st_blksize, 128 * 1024)
            if path.is_file() and path.suffix != '.raw':
                self.assertEqual(len(path.read_bytes()), status.st_size)
        self.assertEqual((self.mount / 'vda.raw').stat().st_size, 256 * MIB)
        self.assertEqual((self.mount / 'vdb.raw').stat().st_size, 64 * MIB + 512)

    def test_owner_and_mode(self):
        """uid=, gid= and mode= say otherwise; then whom they name can enter if allow_other lets him."""
        self.mount.umount()
        try:
            with Mount(self.vm, 'uid=backupuser,gid=backupuser,mode=0640,allow_other') as mount:
                for path in (mount.point, mount / 'vda.raw', mount / '.vmsnap', mount / '.vmsnap/status.json'):
                    status = path.stat()
                    self.assertEqual((status.st_uid, status.st_gid), (4242, 4242))
                    self.assertEqual(oct(stat.S_IMODE(status.st_mode)), oct(0o750 if path.is_dir() else 0o640), path)
                self.assertEqual(run('ls', mount.point, user='backupuser').stdout.split(), self.names)
                run('cmp', mount / 'kernel', self.vm.directory / 'vmlinuz', user='backupuser')
            with Mount(self.vm, 'uid=0,allow_other') as mount:
                run('ls', mount.point, user='backupuser', status=2)
                run('cat', mount / 'manifest.json', user='backupuser', status=1)
            with Mount(self.vm, 'uid=backupuser') as mount:
                run('ls', mount.point, user='backupuser', status=2)
        finally:
            self.mount.mount()

    def test_df(self):
        """df shows the size of the files as used, and nothing free."""
        total = sum((self.mount / name).stat().st_size for name in self.names)
        text = run('df', '--block-size=1', '--output=source,fstype,size,used,avail,pcent', self.mount.point).stdout
        source, kind, size, used, available, percent = text.splitlines()[1].split()
        self.assertEqual((source, kind, int(available), percent), (self.vm.name, 'fuse.vmsnap', 0, '100%'))
        self.assertEqual(size, used)
        self.assertGreaterEqual(int(used), total)
        self.assertLess(int(used), total + 64 * 1024)
        flags = os.statvfs(self.mount.point).f_flag
        self.assertTrue(flags & os.ST_NOSUID and flags & os.ST_NODEV)

    def test_attributes(self):
        """Extended attributes tell the snapshot, the disk, and where the machine keeps it."""
        snapshot = self.mount.status()['uuid'].encode()
        disk, root, other = (self.mount / name for name in ('vdb.raw', '', 'manifest.json'))
        self.assertEqual({name: os.getxattr(disk, name) for name in os.listxattr(disk)}, {
            'user.vmsnap.uuid': snapshot, 'user.vmsnap.disk': b'vdb',
            'user.vmsnap.source': os.fsencode(self.vm.images['vdb'])})
        for path in (root, other):
            self.assertEqual({name: os.getxattr(path, name) for name in os.listxattr(path)}, {
                'user.vmsnap.uuid': snapshot, 'user.vmsnap.source': self.vm.name.encode()})
        for path, name in ((other, 'user.vmsnap.disk'), (disk, 'user.other'), (disk, 'security.capability')):
            with self.assertRaises(OSError) as caught:
                os.getxattr(path, name)
            self.assertEqual(caught.exception.errno, errno.ENODATA)
        self.assertIn('user.vmsnap.disk="vdb"', run('getfattr', '--absolute-names', '-d', disk).stdout)

    def test_nothing_can_be_changed(self):
        """Every way to change something is refused with EROFS, to root as well, and changes nothing."""
        root, disk, outside = self.mount.point, self.mount / 'vda.raw', lib.SANDBOX / 'outside'
        outside.touch()
        before = {path: path.lstat() for path in self.all_paths() if path.name not in ('status', 'status.json')}
        ways = {
            'create': lambda: os.close(os.open(root / 'new', os.O_CREAT | os.O_WRONLY)),
            'open for writing': lambda: os.close(os.open(disk, os.O_WRONLY)),
            'open for both': lambda: os.close(os.open(disk, os.O_RDWR)),
            'open and truncate': lambda: os.close(os.open(disk, os.O_RDONLY | os.O_TRUNC)),
            'open and truncate status': lambda: os.close(os.open(root / '.vmsnap/status', os.O_RDONLY | os.O_TRUNC)),
            'truncate': lambda: os.truncate(disk, 0),
            'unlink': lambda: os.unlink(disk),
            'rename': lambda: os.rename(disk, root / 'new'),
            'rename to': lambda: os.replace(root / 'kernel', disk),
            'link': lambda: os.link(disk, root / 'new'),
            'symlink': lambda: os.symlink('vda.raw', root / 'new'),
            'mkdir': lambda: os.mkdir(root / 'new'),
            'rmdir': lambda: os.rmdir(root / '.vmsnap'),
            'mknod': lambda: os.mknod(root / 'new'),
            'chmod': lambda: os.chmod(disk, 0o777),
            'chmod of the root': lambda: os.chmod(root, 0o777),
            'chown': lambda: os.chown(disk, 4242, 4242),
            'utime': lambda: os.utime(disk),
            'setxattr': lambda: os.setxattr(disk, 'user.vmsnap.uuid', b'x'),
            'removexattr': lambda: os.removexattr(disk, 'user.vmsnap.uuid'),
            'write to status': lambda: os.close(os.open(root / '.vmsnap/status', os.O_WRONLY)),
            'chmod of speed': lambda: os.chmod(root / '.vmsnap/speed', 0o666),
            'unlink of speed': lambda: os.unlink(root / '.vmsnap/speed'),
            'create beside status': lambda: os.mkdir(root / '.vmsnap/new'),
        }
        for name, change in ways.items():
            with self.subTest(change=name), self.assertRaises(OSError) as caught:
                change()
            self.assertEqual(errno.errorcode[caught.exception.errno], 'EROFS', name)
        self.assertEqual(before, {path: path.lstat() for path in before})
        self.test_listing()

    def test_same_inodes_next_time(self):
        """Every file has the inode number that it had in the snapshot before, and no two have the same."""
        def inodes():
            return {path.relative_to(self.mount.point): path.stat().st_ino for path in self.all_paths()}

        first = inodes()
        # The root of every FUSE mount has the number 1.
        self.assertEqual(len(set(first.values())), len(first))
        self.mount.umount()
        self.mount.mount()
        self.assertEqual(inodes(), first)

    def test_status_is_live(self):
        """Status goes on while the snapshot is read and the guest writes, for programs and for people."""
        uuid_before = self.mount.status()['uuid']
        self.mount.umount()
        self.mount.mount()
        # The mount does not wait for the maps of the disks, but stat(2) does.
        for name in ('vda.raw', 'vdb.raw'):
            (self.mount / name).stat()
        first = self.mount.status()
        self.assertNotEqual(first['uuid'], uuid_before)
        self.assertEqual((first['status'], first['total']), ('active', 320 * MIB + 512))
        self.assertEqual(first['dirty'], first['total'])
        self.assertEqual(first['zero-bytes'], sum(disk['zero-bytes'] for disk in first['disks']))
        self.assertEqual([disk['name'] for disk in first['disks']], ['vda', 'vdb'])
        for disk in first['disks']:
            self.assertEqual(disk['data'] + disk['zero-bytes'], disk['size'])
            self.assertEqual(disk['read'], 0)

        # A file that is open shows one state to its end.
        with open(self.mount / '.vmsnap/status.json') as opened:
            begin = opened.read(20)
            with open(self.mount / 'vda.raw', 'rb', buffering=0) as disk:
                os.pread(disk.fileno(), MIB, 10 * MIB)
            whole = json.loads(begin + opened.read())
        # Not the whole of it: others use the filesystem of the scratch files, so its free space moves by itself.
        self.assertEqual((whole['transferred'], whole['disks'][0]['read']), (first['transferred'], 0))
        middle = self.mount.status()
        self.assertGreaterEqual(middle['disks'][0]['read'], MIB)
        self.assertGreaterEqual(middle['transferred'], first['transferred'] + MIB)
        self.assertLess(middle['transferred'], middle['total'])

        self.vm.run('dd if=/dev/urandom of=/dev/vda bs=1M seek=10 count=3 oflag=direct status=none')
        for name in ('vda.raw', 'vdb.raw'):
            lib.read_all(self.mount / name)
        last = self.mount.status()
        self.assertGreaterEqual(last['disks'][0]['scratch-used'], first['disks'][0]['scratch-used'] + 3 * MIB)
        self.assertGreater(last['disks'][0]['scratch-left'], 0)
        self.assertEqual(last['transferred'], last['total'])
        text = (self.mount / '.vmsnap/status').read_text()
        self.assertIn(last['uuid'], text)
        self.assertRegex(text, r'\nstatus +active, 100 % done\nvda +256\.0 MiB, .* of data, .* read, scratch .* used')
        self.assertEqual(run('tail', '-n', '1', self.mount / '.vmsnap/status').stdout.split()[0], 'vdb')


class Firmware(unittest.TestCase):
    """
    Machines with firmware variables. They are defined and started, but their processor never runs: that would take
    long, and their variables would change.
    """

    def start(self, os_xml='', name=None):
        vm = self.enterContext(Vm([Disk(size=MIB)], os_xml=os_xml))
        if name:
            vm.xml = vm.xml.replace(f'<name>{vm.name}</name>', f'<name>{html.escape(name)}</name>')
            vm.name = name
        vm.define()
        vm.virsh('start', '--paused', vm.name)
        return vm

    def left_out(self, mount):
        manifest = json.loads((mount / 'manifest.json').read_text())
        return {each['name']: each['reason'] for each in manifest['left-out']}

    def test_uefi(self):
        """nvram.fd and loader are the firmware's variables, of this machine, and its code; in both of XML's styles."""
        code, variables = FIRMWARE / 'OVMF_CODE_4M.fd', FIRMWARE / 'OVMF_VARS_4M.fd'
        own = lib.SANDBOX / 'own-variables.fd'
        for nvram in (f'<nvram template="{variables}"/>',
                      f'<nvram type="file" template="{variables}"><source file="{own}"/></nvram>'):
            with self.subTest(nvram=nvram):
                vm = self.start(f'<loader readonly="yes" type="pflash">{code}</loader>{nvram}')
                live = ElementTree.fromstring(vm.virsh('dumpxml', vm.name)).find('os/nvram')
                source = live.find('source')
                file = Path(live.text if source is None else source.get('file'))
                # As if the machine had changed something.
                with open(file, 'r+b') as opened:
                    opened.seek(1000)
                    opened.write(b'changed')
                with Mount(vm) as mount:
                    run('cmp', mount / 'nvram.fd', file)
                    run('cmp', mount / 'loader', code)
                    self.assertIn(b'changed', (mount / 'nvram.fd').read_bytes())
                    self.assertEqual(self.left_out(mount), {})
                    with open(file, 'r+b') as opened:
                        opened.write(b'later')
                    self.assertNotEqual((mount / 'nvram.fd').read_bytes()[:5], b'later')

    def test_boot_files_that_cannot_be_read(self):
        """A boot file that is gone, or is no file, is named in the manifest; the disks are backed up all the same."""
        vm = self.start()
        (vm.directory / 'vmlinuz').unlink()
        (vm.directory / 'initrd').unlink()
        os.mkfifo(vm.directory / 'initrd')
        with Mount(vm) as mount:
            self.assertEqual(sorted(os.listdir(mount.point)), ['domain.xml', 'live.xml', 'manifest.json', 'vda.raw'])
            left_out = self.left_out(mount)
            self.assertEqual(set(left_out), {'kernel', 'initrd'})
            self.assertIn(f"'{vm.directory}/vmlinuz': No such file", left_out['kernel'])
            self.assertIn(f"'{vm.directory}/initrd'", left_out['initrd'])

    def test_strange_names(self):
        """A machine may be called what it likes: it is mounted, and found in the table of mounts, by that name."""
        name = f'b\\ö, "1" & \'2\' <{uuid.uuid4()}>'
        with Mount(self.start(name=name)) as mount:
            self.assertEqual(run('findmnt', '-n', '-o', 'SOURCE', mount.point).stdout.strip('\n'), name)
            self.assertEqual(json.loads((mount / 'manifest.json').read_text())['source']['name'], name)
            self.assertEqual(os.getxattr(mount.point, 'user.vmsnap.source').decode(), name)
            self.assertIn(name, (mount / '.vmsnap/status').read_text())

    def test_inodes_of_another_machine(self):
        """Two machines' disks of the same name have different inode numbers."""
        inodes = set()
        for _ in range(2):
            with Mount(self.start()) as mount:
                inodes.add((mount / 'vda.raw').stat().st_ino)
        self.assertEqual(len(inodes), 2)
