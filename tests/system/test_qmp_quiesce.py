# SPDX-License-Identifier: LGPL-2.1-or-later

"""
quiesce= over the guest agent's own socket, and a monitor that hangs: whatever happens, the guest is not frozen for longer
than it was said, and nothing is left in QEMU.
"""

import contextlib
import json
import os
import signal
import socket
import subprocess
import threading
import time

import lib
from bare import BareVm, Proxy
from faults import children
from lib import MIB, Disk, Mount, complaint, run


class Quiesce(lib.TestCase):
    @classmethod
    def make_vm(cls):
        return BareVm([Disk(filesystem=64 * MIB), Disk()], agent=True)

    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        cls.vm.run('mount -t ext4 /dev/vda /mnt')
        cls.agent = cls.vm.directory / 'agent'

    def tearDown(self):
        self.unmount_all()

    def consistency(self, mount):
        return json.loads((mount / 'manifest.json').read_text())['consistency']

    def test_frozen_at_the_instant(self):
        """What was written to a file is there, without a recovery of the journal; the guest goes on at once."""
        self.vm.run('dd if=/dev/urandom of=/mnt/file bs=1M count=4 status=none')  # and no sync
        expected = self.vm.run('sha256sum </mnt/file').split()[0]
        with Mount(self.vm, f'quiesce=require,agent={self.agent}') as mount:
            self.vm.touch()
            self.assertEqual(self.consistency(mount), 'filesystem')
            self.assertEqual(mount.said, '')
            copy = lib.SANDBOX / 'copy.raw'
            run('cp', mount / 'vda.raw', copy)
        self.assertIn('clean', run('dumpe2fs', '-h', copy).stdout)
        self.assertNotIn('needs_recovery', run('dumpe2fs', '-h', copy).stdout)
        point = lib.make_directory('look')
        run('mount', '-o', 'loop,ro,noload', copy, point)
        self.addCleanup(run, 'umount', '--lazy', point)
        self.assertEqual(lib.sha256(point / 'file'), expected)

    def test_no_agent(self):
        """Where nobody answers: require begins nothing, try says what it goes without."""
        nobody = lib.SANDBOX / 'nobody.qga'
        self.assert_refused(f"failed to reach the guest agent at '{nobody}': No such file or directory; .+",
                            f'quiesce=require,agent={nobody}')
        with Mount(self.vm, f'quiesce=try,agent={nobody}') as mount:
            self.assertIn('only as consistent as after a power failure', mount.said)
            self.assertEqual(self.consistency(mount), 'crash')

    def test_agent_that_hangs(self):
        """One that is stopped: it answers in no time."""
        self.vm.run('kill -STOP $(cat /run/qemu-ga.pid)')
        try:
            begin = time.monotonic()
            options = f'freeze_timeout=1,agent={self.agent}'
            said = complaint('mount.vmsnap', self.vm.source, Mount(self.vm).point, '-o', f'quiesce=require,{options}',
                             status=32)
            self.assertIn('failed to reach the guest agent', said)
            self.assertLess(time.monotonic() - begin, 10)
            self.assertFalse(self.vm.has_snapshot())
            with_try = lib.make_directory('with-try')
            run('mount.vmsnap', self.vm.source, with_try, '-o', f'quiesce=try,{options}')
            run('umount', with_try)
        finally:
            self.vm.run('kill -CONT $(cat /run/qemu-ga.pid)')
        self.vm.wait_agent()
        self.assertFalse(self.vm.frozen())

    def start_mount(self, proxy, options):
        mount = Mount(self.vm)
        process = subprocess.Popen(['mount.vmsnap', proxy.source, mount.point, '-o', options], stdin=subprocess.DEVNULL,
                                   stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
        return mount, process

    def test_thawed_in_time(self):
        """A QEMU that does not answer at the instant: the guest is thawed when its time is up."""
        proxy = Proxy(self.vm)
        self.addCleanup(proxy.close)
        proxy.hold('blockdev-reopen')
        mount, process = self.start_mount(proxy, f'quiesce=require,freeze_timeout=2,agent={self.agent}')
        self.assertTrue(proxy.held.wait(20))
        begin = time.monotonic()
        self.vm.touch()  # returns when the filesystem takes writes again
        waited = time.monotonic() - begin
        self.assertGreater(waited, 1)
        self.assertLess(waited, 5)
        proxy.release()
        said = process.communicate(timeout=30)[1]
        self.assertEqual((process.returncode, said.count('\n')), (32, 1), said)
        mount.wait_ended()
        mount.assert_nothing_left()

    def test_killed_while_frozen(self):
        """Whoever clears up thaws: the guardian, and where that was killed, too, the next mount."""
        for both in (False, True):
            with self.subTest(both=both), contextlib.closing(Proxy(self.vm)) as proxy:
                proxy.hold('blockdev-reopen')
                mount, process = self.start_mount(proxy, f'quiesce=require,freeze_timeout=60,agent={self.agent}')
                self.assertTrue(proxy.held.wait(20))
                daemon, = children(process.pid)
                for pid in (children(daemon) if both else []) + [daemon]:
                    os.kill(pid, signal.SIGKILL)
                process.communicate(timeout=20)
                proxy.release()
                if both:
                    self.assertTrue(self.vm.frozen())
                    run('mount.vmsnap', '--cleanup')
                lib.wait_until(lambda: not self.vm.frozen(), 'the guest is thawed', timeout=10)
                mount.wait_ended()
                mount.assert_nothing_left()
            self.assert_mountable()

    def test_monitor_that_hangs(self):
        """At whatever command: mount.vmsnap says so in time, and nothing is left when it answers again."""
        for command in ('qmp_capabilities', 'query-block', 'nbd-server-start', 'add-fd', 'blockdev-add', 'qom-set',
                        'blockdev-reopen', 'block-export-add'):
            with self.subTest(command), contextlib.closing(Proxy(self.vm)) as proxy:
                proxy.hold(command)
                mount, process = self.start_mount(proxy, 'timeout=2')
                self.assertTrue(proxy.held.wait(20))
                begin = time.monotonic()
                said = process.communicate(timeout=30)[1]
                self.assertLess(time.monotonic() - begin, 15)
                self.assertEqual((process.returncode, said.count('\n')), (32, 1), said)
                self.vm.touch()
                proxy.release()
                mount.wait_ended()
                mount.assert_nothing_left()
        self.assert_mountable()

    def test_hostile_agent(self):
        """A guest that says what it likes: a mock, since the real agent does not."""
        path = lib.SANDBOX / 'hostile.qga'
        answers = [b'\xff' * 100000, b'{"return": {}}\n' * 1000, b'[' * 100000, b'not JSON\n', b'{"return": ' + b'9' * 100000,
                   b'']
        with socket.socket(socket.AF_UNIX) as server:
            server.bind(str(path))
            server.listen()

            def serve():
                for answer in answers * 2:
                    client, _ = server.accept()
                    with client:
                        client.recv(65536)
                        with contextlib.suppress(OSError):
                            client.sendall(answer)
                        time.sleep(0.1)

            threading.Thread(target=serve, daemon=True).start()
            for _ in answers:
                said = complaint('mount.vmsnap', self.vm.source, Mount(self.vm).point, '-o',
                                 f'quiesce=require,freeze_timeout=1,agent={path}', status=32)
                self.assertIn('failed to reach the guest agent', said)
        self.assert_mountable()
