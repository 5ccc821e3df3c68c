# SPDX-License-Identifier: LGPL-2.1-or-later

"""An ordinary user mounts machines of his own, with no more than fusermount3, and nobody else has a part in it."""

import contextlib
import json
import os
import stat
from pathlib import Path

import lib
from lib import MIB, Disk, Mount, Vm, bind_mount, complaint, run

USER = 'backupuser'
UID = 4242
RUNTIME = Path(f'/run/user/{UID}/vmsnap')
STATE = lib.SANDBOX / USER / '.local/state/vmsnap'
FUSE_CONF = Path('/etc/fuse.conf')


@contextlib.contextmanager
def open_to_others(*directories):
    """Lets other users through directories that are closed to them, so that it is not these that keep them out."""
    modes = {directory: directory.stat().st_mode & 0o777 for directory in directories}
    try:
        for directory in directories:
            directory.chmod(0o755)
        yield
    finally:
        for directory, mode in modes.items():
            directory.chmod(mode)


@contextlib.contextmanager
def fuse_conf(text):
    old = FUSE_CONF.read_text()
    FUSE_CONF.write_text(text)
    try:
        yield
    finally:
        FUSE_CONF.write_text(old)


class Session(lib.TestCase):
    @classmethod
    def make_vm(cls):
        return Vm(user=USER)

    def tearDown(self):
        self.unmount_all()

    def test_instant(self):
        """The disks are one instant while the guest goes on writing, and plain umount waits for the end."""
        self.vm.start_writer()
        with Mount(self.vm) as mount:
            self.vm.wait_written()
            newest = lib.check_instant(mount / 'vda.raw', mount / 'vdb.raw', user=USER)
            self.vm.wait_written()
            self.assertGreater(self.vm.alive(), newest)
            self.assertEqual(lib.check_instant(mount / 'vda.raw', mount / 'vdb.raw', user=USER), newest)
            uuid = json.loads(run('cat', mount / 'manifest.json', user=USER).stdout)['uuid']
            run('umount', mount.point, user=USER)
            self.assertEqual([each for each in lib.left_behind(self.vm) if uuid in each or 'process' in each], [])
        self.vm.stop_writer()

    def status(self, path):
        status = path.lstat()
        return stat.filemode(status.st_mode), status.st_uid, status.st_gid

    def test_files(self):
        """All files are below the user's own directories, and he owns the daemon and what is in the mount."""
        with Mount(self.vm) as mount:
            status = json.loads(run('cat', mount / '.vmsnap/status.json', user=USER).stdout)
            self.assertEqual(self.status(RUNTIME / status['uuid']), ('drwx------', UID, UID))
            self.assertEqual(self.status(RUNTIME / f'{status["uuid"]}.json'), ('-rw-------', UID, UID))
            scratch = STATE / f'vmsnap-{status["uuid"]}'
            self.assertEqual({path.name for path in scratch.iterdir()}, {'vda.qcow2', 'vdb.qcow2'})
            self.assertEqual({path.stat().st_uid for path in (scratch, *scratch.iterdir())}, {UID})
            pid = json.loads((RUNTIME / f'{status["uuid"]}.json').read_text())['pid']
            self.assertEqual(os.stat(f'/proc/{pid}').st_uid, UID)
            names = run('stat', '--format=%U %G %a %n', mount.point, mount / 'vda.raw', user=USER).stdout.splitlines()
            self.assertEqual([each.rsplit(' ', 1)[0] for each in names],
                             [f'{USER} {USER} 500', f'{USER} {USER} 400'])
            options = run('findmnt', '-n', '-o', 'SOURCE,FSTYPE', '--mountpoint', mount.point).stdout.split()
            self.assertEqual(options, [self.vm.name, 'fuse.vmsnap'])
        # Root's directories have no part in it.
        self.assertFalse(Path('/run/vmsnap').exists())
        self.assertEqual(list(Path('/var/lib/vmsnap').iterdir()), [])

    def test_state_home(self):
        """XDG_STATE_HOME moves the scratch."""
        state = lib.make_directory('state', USER)
        mount = Mount(self.vm)
        run('mount.vmsnap', self.vm.name, mount.point, user=USER, environment={'XDG_STATE_HOME': str(state)})
        self.assertEqual(len(list(state.glob('vmsnap/vmsnap-*/*.qcow2'))), 2)
        mount.umount()
        self.assertEqual(list(state.glob('vmsnap/*')), [])
        mount.assert_nothing_left()

    def test_nobody_else(self):
        """Neither another user nor root, for whom FUSE makes no exception, can look in; nor reach socket or scratch."""
        with Mount(self.vm) as mount, open_to_others(lib.SANDBOX / USER, RUNTIME.parent):
            uuid, = (path.stem for path in RUNTIME.glob('*.json'))
            private, scratch = RUNTIME / uuid, STATE / f'vmsnap-{uuid}'
            for command in (['ls', mount.point], ['head', '-c1', mount / 'vda.raw'], ['ls', private],
                            ['cat', private.with_suffix('.json')], ['ls', scratch],
                            ['head', '-c1', scratch / 'vda.qcow2'],
                            ['nbdinfo', f'nbd+unix:///vda?socket={private}/nbd.sock']):
                run(*command, user=USER)
                self.assertIn('Permission denied', run(*command, user='nobody', status=None).stderr, command)
            self.assertIn('Permission denied', run('ls', mount.point, status=2).stderr)

    def test_allow_other(self):
        """allow_other needs the administrator's word in fuse.conf; without it, the error names it."""
        with fuse_conf('# nothing\n'):
            self.assert_refused("failed to mount on '.+' as an ordinary user: option allow_other needs the line "
                                "'user_allow_other' in '/etc/fuse.conf'; add it there, or mount as root", 'allow_other')
        with fuse_conf('user_allow_other\n'), open_to_others(lib.SANDBOX / USER):
            for options, status in (('allow_other,mode=0444', 0), ('mode=0444', 1)):
                with Mount(self.vm, options) as mount:
                    run('head', '-c1', mount / 'vda.raw', user='nobody', status=status)

    def test_errors(self):
        """What an ordinary user may lack."""
        with bind_mount('/dev/null', '/usr/bin/fusermount3'):
            mount = Mount(self.vm)
            self.assertEqual(complaint('mount.vmsnap', self.vm.name, mount.point, user=USER, status=32),
                             f"mount.vmsnap: failed to mount on '{mount.point}' as an ordinary user: 'fusermount3' is "
                             'not installed; install the package fuse3, or mount as root')
            mount.assert_nothing_left()
        foreign = lib.make_directory('foreign')
        self.assert_refused(f"failed to mount on '{foreign}' as an ordinary user: you may not write to it; "
                            'name a directory of yours, or mount as root', point=foreign)
        self.assert_refused("failed to connect to libvirt at 'qemu:///system': .+; .+ -o connect=.*",
                            'connect=qemu:///system')
        self.assert_refused("failed to make the directory '/etc/.+': Permission denied", 'scratch=/etc')

    def test_long_runtime_directory(self):
        """The path of a socket has a limit of 107 bytes: past it, the error says which variable to change."""
        long = lib.make_directory('x' * 80, USER)
        mount = Mount(self.vm)
        socket = f'/run/user/{UID}/libvirt/libvirt-sock'
        line = complaint('mount.vmsnap', self.vm.name, mount.point, '-o', f'connect=qemu:///session?socket={socket}',
                         user=USER, environment={'XDG_RUNTIME_DIR': str(long)}, status=32)
        self.assertRegex(line, f"^mount.vmsnap: failed to use socket '{long}/vmsnap/[^']+/nbd.sock': the path is too "
                               'long; set XDG_RUNTIME_DIR to a shorter one$')
        self.assertEqual(list(long.rglob('*')), [long / 'vmsnap'])
        mount.assert_nothing_left()

    def test_fstab(self):
        """With `user` in a line of fstab, its user mounts and unmounts by mount point or source, as himself."""
        mount = Mount(self.vm)
        Path('/etc/fstab').write_text(f'{self.vm.name} {mount.point} vmsnap '
                                      'noauto,user,connect=qemu:///session,exclude=vdb,comment="a,b" 0 0\n')
        for name in (mount.point, self.vm.name):
            run('mount', name, user=USER)
            self.assertEqual(run('ls', mount.point, user=USER).stdout.split()[-1], 'vda.raw')
            options = run('findmnt', '-n', '-o', 'OPTIONS', '--mountpoint', mount.point).stdout.strip().split(',')
            self.assertLessEqual({'nosuid', 'nodev', 'noexec', f'user_id={UID}'}, set(options))
            run('umount', name, user=USER)
            self.assertEqual(lib.processes() + lib.mounts(), [])
        # Another user may not unmount it, and root can.
        run('mount', mount.point, user=USER)
        with open_to_others(lib.SANDBOX / USER):
            run('umount', mount.point, user='nobody', status=32)
        self.assertEqual(lib.mounts(), [str(mount.point)])
        run('umount', mount.point)
        mount.wait_ended()
        self.assertEqual(Path('/run/mount/utab').read_text(), '')
        Path('/etc/fstab').write_text('')
        mount.assert_nothing_left()

    def test_strange_name(self):
        """fusermount3 passes on a name that has in it what ends an option."""
        name = 'a, b\\c'
        with Vm([Disk(size=MIB)], user=USER, memory=32 * MIB) as vm:
            vm.xml = vm.xml.replace(f'<name>{vm.name}</name>', f'<name>{name}</name>')
            vm.name = vm.uuid  # by which virsh finds it
            vm.define()
            vm.virsh('start', '--paused', vm.name)
            mount = Mount(vm)
            run('mount.vmsnap', name, mount.point, user=USER)
            shown = run('findmnt', '--noheadings', '--output', 'SOURCE', '--mountpoint', mount.point).stdout
            self.assertEqual(shown.rstrip('\n'), name)
            mount.umount()
            mount.assert_nothing_left()

    def test_other_ends(self):
        """fusermount3, which knows no helper, and signals end it as well."""
        for end in (lambda mount: run('fusermount3', '-u', mount.point, user=USER),
                    lambda mount: run('umount', '-l', mount.point, user=USER),
                    lambda mount: run('kill', *(each.split()[1].rstrip(',') for each in lib.processes()), user=USER)):
            mount = Mount(self.vm)
            mount.mount()
            end(mount)
            mount.wait_ended()
            mount.assert_nothing_left()
