# SPDX-License-Identifier: LGPL-2.1-or-later

"""
The fault matrix, of scratch: when there is no room for what the guest overwrites, it is the snapshot that goes, and not
the guest.
"""

import subprocess
import threading
import time
from pathlib import Path

import faults
import lib
from faults import SOON
from lib import MIB, complaint, run

tearDownModule = faults.report_matrix

SCRATCH_MIB = 48

# Behind the region that is read: what the guest overwrites to fill the scratch, by far more than it can hold.
FILL_START_MIB, FILL_MIB = 32, 96

# How long the guest may stand still when something else has taken all room at once.
PAUSED_AT_MOST = 2


class Watch:
    """Watches a machine's state in the background."""

    def __init__(self, vm):
        self._vm = vm
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self.states = []

    def __enter__(self):
        self._thread.start()
        return self

    def __exit__(self, *_):
        self._done.set()
        self._thread.join()

    def _run(self):
        while not self._done.is_set():
            before = time.monotonic()
            self.states.append((before, self._vm.state()))
            time.sleep(0.02)

    def longest_pause(self):
        """How many seconds it was not running, at most, in one go."""
        longest, since = 0, None
        for at, state in self.states:
            if state.startswith('running'):
                since = None
            else:
                since = since or at
                longest = max(longest, at - since)
        return longest


class Scratch(faults.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.scratch = lib.make_directory('small')
        # Before the machine, since QEMU may live in a mount namespace of its own.
        run('mount', '-t', 'tmpfs', '-o', f'size={SCRATCH_MIB}m,mode=755', 'scratch', cls.scratch)
        cls.addClassCleanup(cls.scratch.rmdir)
        cls.addClassCleanup(run, 'umount', '--lazy', cls.scratch)
        super().setUpClass()

    @classmethod
    def prepare_guest(cls):
        super().prepare_guest()
        cls.fill()

    @classmethod
    def fill(cls, sleep_us=0):
        """Lets the guest write where it has written before, behind the region. Returns when it has done so."""
        pause = f'usleep {sleep_us};' if sleep_us else ''
        cls.vm.run(f'for i in $(seq {FILL_START_MIB} {FILL_START_MIB + FILL_MIB - 1}); do '
                   f'dd if=/tmp/noise of=/dev/vdb bs=1M count=1 seek=$i oflag=direct 2>/tmp/log || exit 1; {pause} done')

    def free(self):
        (self.scratch / 'filler').unlink(missing_ok=True)

    def tearDown(self):
        self.free()
        super().tearDown()
        for path in self.scratch.glob('*/*'):
            path.unlink()
        for path in self.scratch.glob('*'):
            path.rmdir()

    def check_broken(self, fault, when, options, fill, paused_at_most=PAUSED_AT_MOST):
        """FILL()s the scratch until the snapshot breaks."""
        with self.row(fault, when) as row:
            with self.mounted(f'scratch={self.scratch},{options}', overwrite=False) as (mount, readers):
                with Watch(self.vm) as watch:
                    fill()
                    row.readers = readers.wait_errors(time.monotonic(), within=SOON)
                    self.vm.touch()
                self.assertLessEqual(watch.longest_pause(), paused_at_most)
                # Before anybody unmounts.
                lib.wait_until(lambda: not self.vm.has_snapshot(), 'the job ends',
                               timeout=faults.CLEARED_WITHIN)
                status = mount.status()
                self.assertEqual(status['status'], 'error')
                self.assertIn('scratch', status['errmsg'])
            since = time.monotonic()
            said = complaint('umount', mount.point, status=32)
            self.assertIn('scratch', said)
            self.free()
            self.check_after(row, mount, 'umount', since, within=0)
            self.check_records()
            self.assertEqual(list(self.scratch.iterdir()), [])
            paused = watch.longest_pause()
            row.guest += f'; stood still for {paused:.1f} s' if paused else ''

    def test_full_slowly(self):
        """The guest writes step by step: it is never paused."""
        self.check_broken('scratch fills up slowly', 'while 8 readers read', 'scratch_reserve=8M',
                          lambda: self.fill(sleep_us=20000), paused_at_most=0)

    def test_full_fast(self):
        """The guest writes as fast as it can."""
        self.check_broken('scratch fills up fast', 'while 8 readers read', 'scratch_reserve=8M', self.fill)

    def test_max(self):
        """The scratch files may not grow past what was allowed, however much room there is."""
        self.check_broken('scratch_max reached', 'while 8 readers read', 'scratch_max=16M,scratch_reserve=1M',
                          lambda: self.fill(sleep_us=20000), paused_at_most=0)

    def test_full_at_once(self):
        """Something else takes all room at once, and the guest writes: vmsnap ends the job and lets it go on."""
        def fill():
            filler = self.scratch / 'filler'
            run('dd', 'if=/dev/zero', f'of={filler}', 'bs=1M', status=1)
            self.fill()

        self.check_broken('scratch filled by somebody else', 'while 8 readers read', 'scratch_reserve=4M', fill)
