# SPDX-License-Identifier: LGPL-2.1-or-later

"""What the processes of a mount may do: the daemon next to nothing, and its guardian what the end needs."""

import concurrent.futures
import os
import re
from pathlib import Path

import lib
from lib import MIB, Disk, Mount, Vm, run

USER = 'backupuser'
CAPABILITIES = ('CapInh', 'CapPrm', 'CapEff', 'CapBnd', 'CapAmb')


def status_of(process):
    """What /proc says of a process or thread, as a dict."""
    return dict(re.findall(r'^(\w+):\t(.*)$', (process / 'status').read_text(), re.MULTILINE))


def threads_of(pid):
    return [status_of(task) for task in Path(f'/proc/{pid}/task').iterdir()]


def open_files(pid):
    """Where the descriptors of a process lead, without numbers of sockets and pipes."""
    return sorted(re.sub(r':\[\d+\]', '', os.readlink(fd)) for fd in Path(f'/proc/{pid}/fd').iterdir())


def use(mount):
    """Reads in several ways at once, below a limit: after that, all threads exist that are made when they are needed."""
    (mount / '.vmsnap/speed').write_text('1M')
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        for path in ('vda.raw', 'vda.raw', 'vda.raw', '.vmsnap/status', '.vmsnap/status.json', 'manifest.json'):
            pool.submit(lib.read_all, mount / path)


class Privileges(lib.TestCase):
    @classmethod
    def setUpClass(cls):
        disk = Disk(size=MIB, io=('write -P 1 0 1M',))
        cls.vm = cls.enterClassContext(Vm([disk])).start_paused()
        cls.mount = cls.enterClassContext(Mount(cls.vm))
        cls.daemon = cls.mount.daemon()
        cls.guardian = cls.mount.guardian()
        use(cls.mount)

    def test_daemon_has_no_rights(self):
        """None of the daemon's threads has a capability, or can gain one."""
        threads = threads_of(self.daemon)
        names = {thread['Name'] for thread in threads}
        # As many as HACKING.md tells: so these are all.
        self.assertLessEqual({'vmsnap-io', 'vmsnap-watch', 'vmsnap-throttle'}, {name[:15] for name in names})
        self.assertGreaterEqual(len(threads), 6)
        able = [(thread['Name'], {name: thread[name] for name in CAPABILITIES}, thread['NoNewPrivs'])
                for thread in threads
                if any(int(thread[name], 16) for name in CAPABILITIES) or thread['NoNewPrivs'] != '1']
        self.assertEqual(able, [])

    def test_guardian_has_rights(self):
        """The guardian has those of its caller, and the one thread that it was forked with."""
        mine = status_of(Path('/proc/self'))
        thread, = threads_of(self.guardian)
        for name in (*CAPABILITIES, 'NoNewPrivs', 'Uid', 'Gid', 'Groups'):
            self.assertEqual(thread[name], mine[name], name)
        self.assertNotEqual(int(thread['CapEff'], 16), 0)
        self.assertEqual(thread['Name'], 'vmsnap-guardian'[:15])

    def test_guardian_outlives_the_daemon(self):
        """When memory runs out, the kernel takes the daemon, which the guardian clears up after."""
        def score(pid):
            return int(Path(f'/proc/{pid}/oom_score_adj').read_text())

        self.assertEqual(score(self.daemon), score('self'))
        # In some containers not even root may do that.
        allowed = run('sh', '-c', 'echo -1000 >/proc/self/oom_score_adj', status=None).returncode == 0
        self.assertEqual(score(self.guardian), -1000 if allowed else score('self'))

    def test_guardian_is_detached(self):
        """Like the daemon, it has nothing of its caller's; and a session of its own, so that no terminal ends it."""
        self.assertEqual(os.readlink(f'/proc/{self.guardian}/cwd'), '/')
        self.assertEqual(os.getsid(self.guardian), self.guardian)
        for fd in range(3):
            self.assertEqual(os.readlink(f'/proc/{self.guardian}/fd/{fd}'), '/dev/null')

    def test_guardian_holds_nothing(self):
        """It neither keeps the mount alive nor the NBD server: it has the record and a socket to the daemon."""
        record = f'/run/vmsnap/{self.mount.status()["uuid"]}.json'
        # One socket leads to the daemon, another to syslog if there is one.
        self.assertEqual(set(open_files(self.guardian)), {'/dev/null', record, 'socket'})
        peers = run('ss', '--no-header', '--unix', '--all', '--processes').stdout
        mine = [line for line in peers.splitlines() if f'pid={self.guardian},' in line]
        self.assertEqual([line for line in mine if 'nbd.sock' in line or 'libvirt' in line], [])
        self.assertIn('/dev/fuse', open_files(self.daemon))


class PrivilegesOfUser(lib.TestCase):
    """An ordinary user has no rights to give up, and keeps those that executing fusermount3 gives."""

    @classmethod
    def setUpClass(cls):
        cls.vm = cls.enterClassContext(Vm([Disk(size=MIB)], user=USER)).start_paused()

    def test_session(self):
        """A mount of qemu:///session works and ends; daemon and guardian are the user's, with the rights of one."""
        with Mount(self.vm) as mount:
            run('cat', mount / 'vda.raw', user=USER, text=False)
            daemon, guardian = mount.daemon(), mount.guardian()
            for thread in threads_of(daemon) + threads_of(guardian):
                self.assertEqual(set(thread['Uid'].split()), {'4242'})
                self.assertEqual((int(thread['CapPrm'], 16), int(thread['CapEff'], 16)), (0, 0))
                self.assertEqual(thread['NoNewPrivs'], '0')
            self.assertEqual(Path(f'/proc/{guardian}/oom_score_adj').read_text(),
                             Path('/proc/self/oom_score_adj').read_text())
            self.assertNotIn('/dev/fuse', open_files(guardian))
