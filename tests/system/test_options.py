# SPDX-License-Identifier: LGPL-2.1-or-later

"""The options of mount.vmsnap, and the names of domains, do what the manual page says."""

import json
import stat
import xml.sax.saxutils
from pathlib import Path

import lib
from lib import MIB, Disk, Mount, Vm, run

QEMU_UID = 64055  # libvirt-qemu


class Options(lib.TestCase):
    def tearDown(self):
        self.unmount_all()

    def left_out(self, mount):
        return json.loads((mount / 'manifest.json').read_text())['left-out']

    def disks(self, mount):
        return {path.name.removesuffix('.raw') for path in mount.point.glob('*.raw')}

    def test_connect(self):
        """connect= names the libvirt; for root the default is the system's, which also qemu:///session reaches."""
        for uri in ('qemu:///system', 'qemu:///session', 'qemu:///system?socket=/run/libvirt/libvirt-sock'):
            with self.subTest(uri), Mount(self.vm, f'connect={uri}') as mount:
                self.assertEqual(self.disks(mount), {'vda', 'vdb'})

    def test_connect_elsewhere(self):
        """A libvirt that is not there, or is another host's, is refused, the latter before it costs a connection."""
        unreachable = '; see that libvirtd runs, or name another with -o connect=URI'
        for uri, says in (('nosuch:///system', 'no connection driver available for nosuch:///system' + unreachable),
                          ('qemu:///system?socket=/nowhere',
                           "Failed to connect socket to '/nowhere': No such file or directory" + unreachable)):
            with self.subTest(uri):
                self.assert_refused(f"failed to connect to libvirt at '{uri}': {says}".replace('?', r'\?'),
                                    f'connect={uri}')
        for uri in ('qemu+ssh://host/system', 'qemu://root@host:16514/system'):
            with self.subTest(uri):
                self.assert_refused(f"failed to use libvirt at '{uri}': the machine runs on another host; "
                                    "run mount.vmsnap on 'host'".replace('+', r'\+'), f'connect={uri}')
        # A driver with domains of its own, and not ours.
        self.assert_refused(f"failed to find domain '{self.vm.name}': libvirt knows no such name, UUID or id; "
                            "see 'virsh list'", 'connect=test:///default')

    def test_disks(self):
        """disks= takes only these, exclude= all but these, both what is left; the manifest says what and why not."""
        excluded, not_asked_for = 'was excluded', 'was not asked for'
        for options, disks, left_out in (('disks=vda', {'vda'}, {'vdb': not_asked_for}),
                                         ('disks=vda:vdb', {'vda', 'vdb'}, {}),
                                         ('disks=vdb:vda', {'vda', 'vdb'}, {}),
                                         ('exclude=vdb', {'vda'}, {'vdb': excluded}),
                                         ('disks=vda:vdb,exclude=vda', {'vdb'}, {'vda': excluded}),
                                         ('disks=vdb,exclude=vda', {'vdb'}, {'vda': excluded}),
                                         ('disks=vda,disks=vdb', {'vdb'}, {'vda': not_asked_for})):
            with self.subTest(options), Mount(self.vm, options) as mount:
                self.assertEqual(self.disks(mount), disks)
                self.assertEqual({each['name']: each['reason'] for each in self.left_out(mount)}, left_out)
                # What is left out costs the guest nothing.
                self.assertEqual({path.stem for path in Path('/var/lib/vmsnap').glob('*/*')}, disks)

    def test_disks_that_are_not_there(self):
        """A name that no disk has is refused with the names that there are."""
        for options, name, option in (('disks=vda:VDB', 'VDB', 'disks'), ('exclude=hda:vdb', 'hda', 'exclude')):
            with self.subTest(options):
                self.assert_refused(f"failed to find disk '{name}' of {option}= in domain '{self.vm.name}': "
                                    'its disks are vda, vdb', options)

    def test_no_disk_left(self):
        """Nothing to back up is no backup."""
        for options, reasons in (('exclude=vda:vdb', 'vda was excluded, vdb was excluded'),
                                 ('disks=vda,exclude=vda', 'vda was excluded, vdb was not asked for')):
            with self.subTest(options):
                self.assert_refused(f"failed to back up domain '{self.vm.name}': no disk is left to back up "
                                    rf'\({reasons}\); change -o disks= or exclude=', options)

    def test_scratch(self):
        """scratch= is where QEMU writes, in a directory of its own for its user alone; by default /var/lib/vmsnap."""
        named = lib.make_directory('a scratch')
        named.chmod(0o711)
        write = 'dd if=/dev/urandom of=/dev/vda bs=1M count=8 oflag=direct status=none'
        for options, base in (('', Path('/var/lib/vmsnap')), (f'scratch={named}', named)):
            with self.subTest(options):
                self.vm.run(write)
                with Mount(self.vm, options) as mount:
                    private, = base.iterdir()
                    self.assertEqual(private.name, f'vmsnap-{mount.status()["uuid"]}')
                    self.assertEqual(private.stat().st_mode & 0o027, 0, 'for root and QEMU alone')
                    self.assertEqual({path.name for path in private.iterdir()}, {'vda.qcow2', 'vdb.qcow2'})
                    self.assertEqual({path.stat().st_uid for path in private.iterdir()}, {QEMU_UID})
                    before = used(private)
                    self.vm.run(write)
                    self.assertGreaterEqual(used(private) - before, 8 * MIB)
                self.assertEqual(list(base.iterdir()), [])
        self.assertEqual(stat.S_IMODE(named.stat().st_mode), 0o711)
        self.assertEqual(named.stat().st_uid, 0)
        named.rmdir()

    def test_scratch_relative(self):
        """A relative path is relative to where the command is called, and a symbolic link leads where it leads."""
        directory = lib.make_directory('relative')
        (lib.SANDBOX / 'link to scratch').symlink_to(directory)
        for path, cwd in (('relative', lib.SANDBOX), ('.', directory), ('../relative/.', directory),
                          ('link to scratch', lib.SANDBOX)):
            with self.subTest(path):
                mount = Mount(self.vm)
                run('mount.vmsnap', self.vm.name, mount.point, '-o', f'scratch={path}', cwd=cwd)
                self.assertEqual(len(list(directory.glob('vmsnap-*/*'))), 2)
                mount.umount()
                self.assertEqual(list(directory.iterdir()), [])
                mount.assert_nothing_left()
        directory.rmdir()

    def test_owner(self):
        """uid= and gid= take names and numbers."""
        for options, uid, gid in (('uid=backupuser', 4242, 0), ('gid=backupuser', 0, 4242),
                                  ('uid=12345678,gid=0', 12345678, 0)):
            with self.subTest(options), Mount(self.vm, options) as mount:
                for path in (mount.point, mount / 'vda.raw', mount / '.vmsnap', mount / '.vmsnap/status'):
                    self.assertEqual((path.stat().st_uid, path.stat().st_gid), (uid, gid), path)

    def test_allow_other(self):
        """Others than who mounts enter only with allow_other, and then as far as the mode lets them."""
        for options, allowed in (('mode=0444', False), ('allow_other', False), ('allow_other,mode=0444', True),
                                 ('allow_other,mode=0440,gid=backupuser', True)):
            with self.subTest(options), Mount(self.vm, options) as mount:
                for command in (['head', '-c1', mount / 'vda.raw'], ['ls', mount.point],
                                ['cat', mount / '.vmsnap/backup.xml']):
                    result = run(*command, user='backupuser', status=None)
                    self.assertEqual(result.returncode == 0, allowed, command)
                    self.assertTrue(allowed or 'Permission denied' in result.stderr, result.stderr)
                # Root, who has mounted it, always can.
                run('head', '-c1', mount / 'vda.raw')

    def test_timeout(self):
        """timeout= takes a second as well as an hour."""
        for seconds in (1, 3600):
            with Mount(self.vm, f'timeout={seconds}'):
                pass

    def test_wrong_values(self):
        """A value that makes no sense is refused, with what would."""
        for options, says in (
                ('uid=nosuch', "option 'uid=nosuch': there is no such user"),
                ('uid=-1', "option 'uid=-1': there is no such user"),
                ('uid=4294967295', "option 'uid=4294967295': there is no such user"),
                ('gid=nosuch', "option 'gid=nosuch': there is no such group"),
                ('gid=4294967296', "option 'gid=4294967296': there is no such group"),
                ('mode=rw', "option 'mode=rw': it is no octal mode such as 0440"),
                ('mode=0999', "option 'mode=0999': it is no octal mode such as 0440"),
                ('mode=07777', "option 'mode=07777': it is no octal mode such as 0440"),
                ('timeout=0', "option 'timeout=0': it is no number of seconds from 1 to 3600"),
                ('timeout=3601', "option 'timeout=3601': it is no number of seconds from 1 to 3600"),
                ('timeout=1h', "option 'timeout=1h': it is no number of seconds from 1 to 3600"),
                ('disks=vda::vdb', "option 'disks=vda::vdb': it has an empty name; write disks=vda:vdb"),
                ('exclude=:', "option 'exclude=:': it has an empty name; write exclude=vda:vdb"),
                ('allow_other=yes', "option 'allow_other=yes': it takes no value"),
                ('remount', "option 'remount': a snapshot cannot change; unmount it and mount it anew"),
                *((f'{name}{empty}', f"option '{name}': it needs a value, {name}=...") for empty in ('', '=')
                  for name in ('connect', 'disks', 'exclude', 'scratch', 'uid', 'gid', 'mode', 'timeout'))):
            with self.subTest(options):
                self.assert_wrong(options, f'failed to use {says}')
        self.assertEqual(lib.left_behind(self.vm), set())

    def test_unknown_options(self):
        """An option that nobody knows is refused, unless -s says to ignore it; a slip of the pen is not overlooked."""
        for option in ('nosuch', 'nosuch=1', 'disk=vda', 'Exclude=vda', 'allow-other', 'mode0440'):
            with self.subTest(option):
                name = option.split('=')[0]
                self.assert_wrong(option, f"failed to use option '{name}': vmsnap has no such option; "
                                          'see mount.vmsnap(8), or use -s')
        mount = Mount(self.vm)
        run('mount.vmsnap', '-s', self.vm.name, mount.point, '-o', 'nosuch,disks=vda,nosuch=1')
        self.assertEqual(self.disks(mount), {'vda'})
        mount.umount()
        mount.assert_nothing_left()

    def test_wrong_command_lines(self):
        """A command line without sense is answered with how to write it, exit status 1, and no mount."""
        usage = 'usage: mount.vmsnap SOURCE MOUNTPOINT [-o OPTION,...]; see mount.vmsnap --help'
        point = lib.make_directory('point')
        for arguments, says in (
                ((), usage), ((self.vm.name,), usage), ((self.vm.name, point, point), usage), (('-f',), usage),
                (('', point), "failed to mount '': the source has no name"),
                ((self.vm.name, point, '--nosuch'),
                 'failed to read the command line: Unknown option --nosuch; see mount.vmsnap --help'),
                ((self.vm.name, point, '-Z'),
                 'failed to read the command line: Unknown option -Z; see mount.vmsnap --help'),
                ((self.vm.name, point, '-o'),
                 'failed to read the command line: Missing argument for -o; see mount.vmsnap --help'),
                ((self.vm.name, point, '-o', 'exclude=vdb,scratch="/'),
                 "failed to read the options 'exclude=vdb,scratch=\"/': a quote is not closed")):
            with self.subTest(arguments):
                line = lib.complaint('mount.vmsnap', *arguments, status=1)
                self.assertEqual(line, f'mount.vmsnap: {says}')
        self.assertEqual(lib.left_behind(self.vm), set())
        point.rmdir()

    def test_help_and_version(self):
        """-h and -V tell on stdout, without a mount, and all options are in the help."""
        self.assertRegex(run('mount.vmsnap', '-V').stdout, r'^mount\.vmsnap \d+\.\d+\.\d+\n$')
        text = run('mount.vmsnap', '--help').stdout
        for name in ('connect=', 'disks=', 'exclude=', 'scratch=', 'uid=', 'gid=', 'mode=', 'allow_other', 'timeout=',
                     '--foreground', '--fake', '--sloppy', '--verbose'):
            self.assertIn(name, text)

    def assert_wrong(self, options, says):
        line = lib.complaint('mount.vmsnap', self.vm.name, self.vm.directory, '-o', options, status=1)
        self.assertEqual(line, f'mount.vmsnap: {says}')


def used(directory):
    return sum(path.stat().st_blocks * 512 for path in directory.iterdir())


def paused(name):
    """A domain of that name whose processor never runs, and which therefore costs no time."""
    vm = Vm([Disk(size=MIB)], memory=32 * MIB)
    vm.xml = vm.xml.replace(f'<name>{vm.name}</name>', f'<name>{xml.sax.saxutils.escape(name)}</name>')
    vm.name = vm.uuid  # by which virsh finds it
    vm.define()
    vm.virsh('start', '--paused', vm.name)
    return vm


class Names(lib.unittest.TestCase):
    """SOURCE is a name, a UUID or an id."""

    def assert_mounts(self, source, vm, *command):
        mount = Mount(vm)
        run(*(command or ('mount.vmsnap', '--')), source, mount.point, cwd='/usr')
        self.assertEqual(json.loads((mount / 'manifest.json').read_text())['source']['uuid'], vm.uuid)
        shown = run('findmnt', '--noheadings', '--output', 'SOURCE', '--mountpoint', mount.point).stdout
        self.assertEqual(shown.rstrip('\n'), source)
        mount.umount()
        mount.assert_nothing_left()

    def test_uuid_and_id(self):
        """Each domain can be named in three ways."""
        with paused('vm1') as vm:
            number = vm.virsh('domid', vm.uuid).strip()
            for source in ('vm1', vm.uuid, vm.uuid.upper(), number):
                with self.subTest(source):
                    self.assert_mounts(source, vm)

    def test_strange_names(self):
        """Whatever libvirt takes for a name is one, with mount(8) as well."""
        # libvirt itself makes no domain of the name "..".
        for name in ('a, b', 'quote"d it\'s', 'back\\slash', 'größe', '...', '4711'):
            with self.subTest(name), paused(name) as vm:
                self.assert_mounts(name, vm, 'mount', '-t', 'vmsnap')

    def test_names_like_options(self):
        """A name that looks like an option can be given after --."""
        with paused('-v') as vm:
            self.assert_mounts('-v', vm)

    def test_a_name_goes_before_an_id(self):
        """Where one domain's name is another's id, the name counts."""
        with paused('first') as first:
            number = first.virsh('domid', first.uuid).strip()
            with paused(number) as second:
                self.assert_mounts(number, second)
            self.assert_mounts(number, first)

    def test_name_in_fstab(self):
        """In fstab, a blank is written as \\040."""
        with paused('two words') as vm:
            mount = Mount(vm)
            Path('/etc/fstab').write_text(f'two\\040words {mount.point} vmsnap noauto 0 0\n')
            run('mount', mount.point, cwd='/usr')
            self.assertTrue((mount / 'vda.raw').exists())
            run('umount', mount.point)
            Path('/etc/fstab').write_text('')
            mount.assert_nothing_left()
