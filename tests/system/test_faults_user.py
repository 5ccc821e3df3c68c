# SPDX-License-Identifier: LGPL-2.1-or-later

"""
The fault matrix, of an ordinary user's mounts, where there are fewer rights to clear up with, and where processes can
run out. The processor of the machine never runs, which saves the time of a boot: its guest has nothing to suffer.
"""

import contextlib
import json
import os
import pwd
import re
import subprocess
import time
import unittest
from pathlib import Path

import faults
import lib
from faults import SOON, kill
from lib import MIB, Disk, Mount, Vm, run

tearDownModule = faults.report_matrix

USER = 'backupuser'


def own_uid():
    """
    Gives the sandbox's user a number that no other sandbox's has: the kernel counts the processes of a number, not of a
    sandbox.
    """
    old = pwd.getpwnam(USER)
    uid = 10000 + os.stat('/proc/self/ns/pid').st_ino % 50000
    for path in (Path('/etc/passwd'), Path('/etc/group')):
        path.write_text(re.sub(rf'^({USER}:x):{old.pw_uid}\b(?::{old.pw_gid}\b)?',
                               lambda found: found[1] + f':{uid}' * (found[0].count(':') - 1),
                               path.read_text(), flags=re.MULTILINE))
    runtime = Path(f'/run/user/{uid}')
    Path(f'/run/user/{old.pw_uid}').rename(runtime)
    for path in (Path(old.pw_dir), runtime):
        os.chown(path, uid, uid)


def count_threads(user):
    uid = pwd.getpwnam(user).pw_uid
    count = 0
    for directory in Path('/proc').glob('[0-9]*'):
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            if directory.stat().st_uid == uid:
                count += len(os.listdir(directory / 'task'))
    return count


class User(faults.Rows, unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        own_uid()
        cls.vm = cls.enterClassContext(Vm([Disk(size=64 * MIB, io=('write -P 7 0 16M',)), Disk(size=MIB)], user=USER))
        xml = cls.vm.directory / 'paused.xml'
        xml.write_text(cls.vm.xml)
        cls.vm.virsh('create', '--paused', xml)

    def test_processes_run_out(self):
        """However few processes the user may have, there is a mount, or one line that says why not, and no trace."""
        with self.row('no more processes', 'at begin, as a user') as row:
            mount = Mount(self.vm)
            times, statuses = [], []
            # Enough is enough: with three more than it needs nothing else can happen.
            while statuses[-3:] != [0, 0, 0]:
                limit = count_threads(USER) + len(statuses)
                since = time.monotonic()
                result = run('prlimit', f'--nproc={limit}', 'mount.vmsnap', self.vm.name, mount.point, '-o',
                             mount.options, user=USER, status=None)
                try:
                    self.check_begun_or_not(mount, result)
                    times.append(self.wait_cleared(mount, since))
                except BaseException as error:
                    error.add_note(f'with room for {len(statuses)} more processes or threads, mount.vmsnap ended with '
                                   f'{result.returncode}: {result.stderr}')
                    raise
                statuses.append(result.returncode)
                self.assertLess(len(statuses), 50)
            self.assertGreater(len(statuses), 3)
            row.guest, row.left, row.cleared = 'runs', 'nothing', f'mount.vmsnap or its guardian, {max(times):.1f} s'
            mount.point.rmdir()

    def check_begun_or_not(self, mount, result):
        if result.returncode == 0:
            run('cat', mount / 'vda.raw', mount / 'vdb.raw', user=USER, text=False)
            mount.umount()
        else:
            self.assertIn(result.returncode, (2, 32))
            self.assertEqual(result.stderr.count('\n'), 1)

    def check_killed(self, row, victims):
        """Kills VICTIMS(daemon) while somebody reads, who must learn of it."""
        mount = Mount(self.vm)
        mount.mount()
        record, = Path(lib.runtime_dir(USER), 'vmsnap').glob('*.json')
        account = pwd.getpwnam(USER)
        with subprocess.Popen(['sh', '-c', 'while dd if="$1" of=/dev/null bs=4k count=1 iflag=direct; do :; done',
                               'sh', mount / 'vda.raw'], stderr=subprocess.DEVNULL,
                              user=account.pw_uid, group=account.pw_gid, extra_groups=[]) as reader:
            time.sleep(0.2)
            self.assertIsNone(reader.poll())
            since = time.monotonic()
            victims(json.loads(record.read_text())['pid'])
            reader.wait(timeout=SOON)
        row.readers = 'an error'
        return mount, since

    def test_kill_daemon(self):
        with self.row('kill -9 of the daemon', 'while a user reads') as row:
            mount, since = self.check_killed(row, kill)
            row.cleared = f'guardian, {self.wait_cleared(mount, since):.1f} s'
            mount.mount()
            mount.umount()
            mount.assert_nothing_left()
            row.guest, row.left = 'runs', 'nothing'

    def test_kill_both(self):
        with self.row('kill -9 of both', 'while a user reads; then a mount') as row:
            mount, _ = self.check_killed(row, faults.kill_both)
            since = time.monotonic()
            mount.mount()
            row.cleared = f'next mount, {time.monotonic() - since:.1f} s'
            mount.umount()
            mount.assert_nothing_left()
            row.guest, row.left = 'runs', 'nothing'
