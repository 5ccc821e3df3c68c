# SPDX-License-Identifier: LGPL-2.1-or-later

"""
Whatever the read path does for speed, the bytes stay right and the memory bounded: read-ahead of any size or none, any
number of connections, past the page cache or through it, a limit of speed; readers that stop in the middle.
"""

import concurrent.futures
import contextlib
import errno
import json
import mmap
import os
import signal
import subprocess
import time
from pathlib import Path

import lib
import test_truth
from lib import MIB, Disk, Mount, Vm, run

# Named like one of these, a program is taken for one that reads in large blocks, or for one that does not.
LARGE, SMALL = 'cat', 'python3'
DATA = 96 * MIB


@contextlib.contextmanager
def named(name):
    """Gives this thread, whose files are opened then, the name of a program."""
    comm = Path('/proc/thread-self/comm')
    before = comm.read_text()
    comm.write_text(name)
    try:
        yield
    finally:
        comm.write_text(before.strip())


def cached_bytes(path):
    """How much of a file is in the page cache."""
    return int(run('fincore', '--bytes', '--noheadings', '--output', 'RES', path).stdout)


def peak_memory(mount):
    status = Path(f'/proc/{mount.daemon()}/status').read_text()
    return int(next(line for line in status.splitlines() if line.startswith('VmHWM:')).split()[1]) * 1024


def set_speed(mount, text):
    (mount / '.vmsnap/speed').write_text(text)


class Reading(lib.TestCase):
    """vda is dense at its beginning, and raw, so that QEMU's count of bytes tells what it was asked for."""

    @classmethod
    def make_vm(cls):
        noise = test_truth.make_noise('dense', DATA)
        holes = tuple(f'write -s {noise} {start}k {length}k'
                      for start, length in ((0, 1024), (1030, 2), (2048, 300), (5 * 1024 + 1, 3000), (15 * 1024, 77)))
        return Vm([Disk(format='raw', io=(f'write -s {noise} 0 {DATA}',)),
                   Disk(size=16 * MIB + 512, io=holes)])

    def take_truth(self):
        self.vm.pause()
        self.addCleanup(lambda: self.vm.state() == 'paused' and self.vm.resume())
        return test_truth.Truth(self.vm)

    def overwrite(self):
        self.vm.run('(for d in vda vdb; do dd if=/dev/urandom of=/dev/$d bs=1M count=16 oflag=direct; done; '
                    'dd if=/dev/zero of=/dev/vda bs=1M seek=16 count=16 oflag=direct) >/tmp/log 2>&1 &')

    def bytes_read_by_qemu(self):
        pid = Path(f'/run/libvirt/qemu/{self.vm.name}.pid').read_text()
        return int(Path(f'/proc/{pid}/io').read_text().split()[1])

    def mount(self, options=''):
        return self.enterContext(Mount(self.vm, options))

    def test_truth(self):
        """Each byte is that of the instant, with every setting and for both kinds of programs, while the guest writes."""
        for options, name in (('', LARGE), ('', SMALL), ('readahead=0', LARGE), ('readahead=0', SMALL),
                              ('readahead=1', SMALL), ('readahead=300K', LARGE), ('readahead=3M,connections=1', LARGE),
                              ('readahead=1G,connections=16', LARGE), ('speed=1G', LARGE)):
            with self.subTest(options=options, name=name):
                truth = self.take_truth()
                with Mount(self.vm, options) as mount:
                    self.vm.resume()
                    self.overwrite()
                    with named(name):
                        self.read(mount, truth)

    def read(self, mount, truth):
        for name in truth.files:
            for way in (test_truth.read_forward, test_truth.read_backward, self.read_in_odd_blocks):
                lib.drop_cache(mount / name)
                way(mount, truth, name)
        with concurrent.futures.ThreadPoolExecutor(8) as pool:
            for reader in [pool.submit(self.read_interleaved, mount, truth, seed) for seed in range(8)]:
                reader.result()

    @staticmethod
    def read_in_odd_blocks(mount, truth, name, length=65_537):
        with open(mount / name, 'rb', buffering=0) as file:
            for offset in range(0, truth.size(name), length):
                truth.check(name, offset, file.read(length), 'odd blocks')

    @staticmethod
    def read_interleaved(mount, truth, seed):
        """Four runs through one open file at once, each from another place."""
        name, length = 'vda.raw', 100_000 + seed
        with named(LARGE if seed % 2 else SMALL), open(mount / name, 'rb', buffering=0) as file:
            for step in range(20):
                for run_start in range(0, 96 * MIB, 24 * MIB):
                    offset = run_start + seed * MIB + step * length
                    truth.check_length(name, offset, length, os.pread(file.fileno(), length, offset), 'interleaved')

    def test_page_cache(self):
        """Who reads in large blocks does not fill the page cache; who reads in small ones is served from it."""
        path = self.mount() / 'vda.raw'
        for command, is_large in ((['cat', path], True), (['cp', path, '/dev/null'], True),
                                  (['dd', f'if={path}', 'bs=1M', 'of=/dev/null'], True),
                                  (['dd', f'if={path}', 'ibs=128k', 'of=/dev/null'], True),
                                  (['dd', f'if={path}', 'bs=64k', 'of=/dev/null'], False),
                                  (['tar', '-cf', '/dev/zero', path], False),
                                  (['sha256sum', path], False)):
            with self.subTest(command=command[0]):
                lib.drop_cache(path)
                self.assertEqual(cached_bytes(path), 0)
                run(*command, text=False)
                # The kernel may give up some pages at any time.
                self.assertEqual(cached_bytes(path) > 0, not is_large)

    def test_mappings(self):
        """A file can be mapped, shared and read-only or private; for large blocks, the kernel allows the private."""
        truth = self.take_truth()
        mount = self.mount()
        self.vm.resume()
        for name in (LARGE, SMALL):
            with named(name):
                lib.drop_cache(mount / 'vdb.raw')
                test_truth.read_mapped(mount, truth, 'vdb.raw')
        with open(mount / 'vdb.raw', 'rb') as file, \
                mmap.mmap(file.fileno(), 0, mmap.MAP_SHARED, mmap.PROT_READ) as mapped:
            truth.check('vdb.raw', 0, mapped[:], 'shared')
            with self.assertRaises(PermissionError):
                mmap.mmap(file.fileno(), 0, mmap.MAP_SHARED, mmap.PROT_READ | mmap.PROT_WRITE)

    def test_memory(self):
        """64 readers at once, in large blocks and in small ones, are read ahead for within the bound."""
        each = DATA - 64 * MIB
        for readahead in (8, 64):
            with self.subTest(readahead=readahead), Mount(self.vm, f'readahead={readahead}M') as mount:
                path = mount / 'vda.raw'
                for block in ('1M', '16k'):
                    readers = [subprocess.Popen(['dd', f'if={path}', 'of=/dev/null', f'bs={block}', 'status=none',
                                                 'iflag=skip_bytes,count_bytes', f'skip={number * MIB}',
                                                 f'count={each}'])
                               for number in range(64)]
                    self.assertEqual([reader.wait(lib.PATIENCE) for reader in readers], [0] * 64)
                    lib.drop_cache(path)
                self.assertLessEqual(peak_memory(mount), (readahead + 32) * MIB)

    def test_connections(self):
        """As many connections to each disk as were asked for."""
        def sockets(count):
            with Mount(self.vm, f'connections={count}') as mount:
                directory = Path(f'/proc/{mount.daemon()}/fd')
                return sum(os.readlink(fd).startswith('socket:') for fd in directory.iterdir())

        self.assertEqual(sockets(7) - sockets(2), 2 * 5)

    def test_kernel_readahead(self):
        """Root's mounts have the kernel read ahead as much as one request can hold."""
        device = os.stat(self.mount().point).st_dev
        bdi = Path(f'/sys/class/bdi/{os.major(device)}:{os.minor(device)}/read_ahead_kb')
        self.assertEqual(bdi.read_text().strip(), '1024')

    def test_early_close(self):
        """Nothing is fetched any more for a reader that has gone, and little more than it wanted has been."""
        path = self.mount() / 'vda.raw'
        before = self.bytes_read_by_qemu()
        run('sh', '-c', f'cat {path} | head -c 8M | wc -c')
        lib.wait_until(lambda: self.bytes_read_by_qemu() >= before + 8 * MIB, 'QEMU has read what was wanted')
        time.sleep(0.5)
        after = self.bytes_read_by_qemu()
        self.assertLess(after - before, 24 * MIB)
        time.sleep(0.5)
        self.assertLess(self.bytes_read_by_qemu() - after, MIB)

    def test_readahead(self):
        """Who reads in sequence has the rest fetched ahead of him, in blocks of any size; with readahead=0, nothing is."""
        def fetched(options, block):
            with Mount(self.vm, options) as mount:
                before = self.bytes_read_by_qemu()
                # Past the page cache either way, in which the kernel would read ahead by itself.
                run('dd', f'if={mount / "vda.raw"}', 'of=/dev/null', f'bs={block}', 'iflag=direct,count_bytes',
                    f'count={4 * MIB}', 'status=none')
                # What is fetched ahead may still be under way.
                time.sleep(0.5)
                return self.bytes_read_by_qemu() - before

        for block in ('1M', '64k'):
            with self.subTest(block=block):
                self.assertGreater(fetched('', block), 5 * MIB)
                self.assertLess(fetched('readahead=0', block), 4 * MIB + 512 * 1024)

    def test_random_reads(self):
        """Who jumps about gets what he asks for, and QEMU reads nothing else."""
        fd = os.open(self.mount() / 'vda.raw', os.O_RDONLY | os.O_DIRECT)
        self.addCleanup(os.close, fd)
        buffer = mmap.mmap(-1, 4096)
        before = self.bytes_read_by_qemu()
        for number in range(500):
            os.preadv(fd, [buffer], number * 7919 % (DATA // 4096) * 4096)
        for number in reversed(range(500)):
            os.preadv(fd, [buffer], number * 4096)
        for number in range(500):
            os.preadv(fd, [buffer], number * 16384)
        self.assertLess(self.bytes_read_by_qemu() - before, 1500 * 4096 + MIB)

    def test_interrupted(self):
        """A reader that is interrupted while it waits goes away, and the mount ends as ever."""
        mount = self.mount('speed=2M')
        for number in (signal.SIGINT, signal.SIGKILL):
            readers = [subprocess.Popen(['dd', f'if={mount / "vda.raw"}', 'of=/dev/null', f'bs={block}', 'status=none'])
                       for block in ('1M', '4k')]
            time.sleep(0.3)
            for reader in readers:
                self.assertIsNone(reader.poll())
                reader.send_signal(number)
            self.assertEqual([reader.wait(lib.PATIENCE) for reader in readers], [-number] * 2)
        set_speed(mount, '0')

    def test_speed(self):
        """The limit holds for all readers together, and can be changed meanwhile, or taken away."""
        mount = self.mount('speed=8M')
        speed = mount / '.vmsnap/speed'
        self.assertEqual(speed.read_text(), f'{8 * MIB}\n')
        begin = time.monotonic()
        readers = [subprocess.Popen(['dd', f'if={mount / "vda.raw"}', 'of=/dev/null', 'bs=1M', 'count=4',
                                     f'skip={number * 8}', 'status=none']) for number in range(4)]
        self.assertEqual([reader.wait(lib.PATIENCE) for reader in readers], [0] * 4)
        self.assertGreater(time.monotonic() - begin, 1.8)

        run('sh', '-c', f'echo 64k >{speed}')
        self.assertEqual(speed.read_text(), f'{64 * 1024}\n')
        # 32 MiB would take more than eight minutes now: it must notice that there is no limit any more.
        reader = subprocess.Popen(['dd', f'if={mount / "vda.raw"}', 'of=/dev/null', 'bs=1M', 'count=32', 'skip=48',
                                   'status=none'])
        time.sleep(0.5)
        self.assertIsNone(reader.poll())
        run('sh', '-c', f'echo 0 >{speed}')
        self.assertEqual(reader.wait(lib.PATIENCE), 0)

    def test_speed_is_smooth(self):
        """Under a limit, no read of a block waits for much longer than the others."""
        with open(self.mount('speed=4M') / 'vda.raw', 'rb', buffering=0) as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_RANDOM)
            waited = []
            for offset in range(0, 8 * MIB, 64 * 1024):
                begin = time.monotonic()
                os.pread(file.fileno(), 64 * 1024, offset)
                waited.append(time.monotonic() - begin)
        self.assertLess(max(waited), 1)
        self.assertGreater(sum(waited), 1.7)

    def test_umount_under_limit(self):
        """What waits for its turn under a limit does not keep the mount from ending."""
        mount = self.mount('speed=64K')
        reader = subprocess.Popen(['cat', mount / 'vda.raw'], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        time.sleep(0.5)
        os.kill(mount.daemon(), signal.SIGTERM)
        mount.wait_ended()
        self.assertNotEqual(reader.wait(lib.PATIENCE), 0)

    def test_speed_is_for_root(self):
        """Nobody else may change the limit; what is no limit is refused; so is all in a mount that is read-only."""
        mount = self.mount('speed=1G,allow_other,mode=0666')
        speed = mount / '.vmsnap/speed'
        run('head', '-c', '1', mount / 'vda.raw', user='backupuser', text=False)
        self.assertIn('Permission denied', run('sh', '-c', f'echo 1M >{speed}', user='backupuser', status=2).stderr)
        self.assertIn('Permission denied', run('cat', speed, user='backupuser', status=1).stderr)
        for wrong in ('', 'fast', '-1', '1.5M', '1M 2M', '99999999T'):
            with self.assertRaises(OSError) as caught:
                set_speed(mount, wrong + '\n')
            self.assertEqual(caught.exception.errno, errno.EINVAL, wrong)
        self.assertEqual(speed.read_text(), f'{1024 * MIB}\n')
        mount.umount()
        mount.options += ',ro'
        mount.mount()
        with self.assertRaises(OSError) as caught:
            set_speed(mount, '1M\n')
        self.assertEqual(caught.exception.errno, errno.EROFS)

    def test_refused(self):
        """Values that make no sense are refused, before anything has begun."""
        for option in ('connections=0', 'connections=17', 'connections=two', 'readahead=', 'readahead=-1',
                       'readahead=1X', 'readahead=2T', 'speed=', 'speed=fast', 'speed=1Mb'):
            with self.subTest(option):
                self.assert_refused(f"failed to use option '{option.partition('=')[0]}.*", option, status=1)

    def test_status(self):
        """What was read ahead of a reader who never came for it does not count as read."""
        mount = self.mount('disks=vda')
        run('head', '-c', str(4 * MIB), mount / 'vda.raw', text=False)
        lib.wait_until(lambda: mount.disk_status('vda')['read'] >= 4 * MIB, 'what was read is counted')
        self.assertLess(mount.disk_status('vda')['read'], 8 * MIB)
        self.assertEqual(json.loads((mount / '.vmsnap/status.json').read_text())['status'], 'active')
