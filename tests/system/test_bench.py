# SPDX-License-Identifier: LGPL-2.1-or-later

"""tests/bench works: every row is measured for every contestant, and table, figures and chart are written."""

import contextlib
import json
import signal
import subprocess
import unittest
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import lib
from lib import run

BENCH = Path(__file__).resolve().parent.parent / 'bench/bench.py'
IMPACT = BENCH.with_name('impact.py')
INCREMENTAL = BENCH.with_name('incremental.py')
NBD = BENCH.with_name('nbd.py')
RELEASE = BENCH.with_name('release.py')
INSTANT = BENCH.with_name('instant.py')

BRIDGES = {'nbdfuse', 'QEMU FUSE'}
FILES = {'nbdcopy', *BRIDGES}
BACKUPS = {'nbdcopy', 'nbdcopy and its job', 'virtnbdbackup'}
# Who is measured besides vmsnap.
ROWS = {
    'dd-1M': FILES, 'dd-128k': FILES, 'cat': FILES, 'cp': FILES, 'dd-10k': BRIDGES, 'dd-4k': BRIDGES,
    '8-readers': FILES, '4-disks': FILES, 'random-1': BRIDGES, 'random-16': BRIDGES, 'cpu': FILES, 'cpu-qemu': FILES,
    'memory': set(), 'backup-cp': BACKUPS, 'backup-tar': BACKUPS, 'zero': set(), 'zero-read': set(),
    'mount': {'virsh backup-begin'}, 'sparse-walk': set(),
    'format-raw': set(), 'format-qcow2': set(), 'format-vma': set(),
    'growth-8M': {'nbdcopy'}, 'growth-16M': {'nbdcopy'},
    'growth-10-extents': {'nbdcopy'}, 'growth-100-extents': {'nbdcopy'},
}
WRITING = ('dd-1M', 'dd-128k', 'cat', 'cp')


def cells(table):
    """The lines of a table in Markdown."""
    return [[cell.strip() for cell in line.split('|')[1:-1]] for line in table.splitlines() if line[:1] == '|']


class Bench(unittest.TestCase):
    """One run, with hardly any data, of all there is. How fast anything is does not matter here."""

    @classmethod
    def setUpClass(cls):
        cls.output = lib.SANDBOX / 'results'
        cls.printed = run(BENCH, '--smoke', '--output', cls.output, timeout=300).stdout
        cls.figures = json.loads((cls.output / 'bench.json').read_text())

    def test_figures(self):
        found = {(row['name'], row['guest']): row for row in self.figures['rows']}
        expected = {(name, 'idle') for name in ROWS} | {(name, 'writing') for name in WRITING}
        self.assertEqual(set(found), expected)
        for (name, guest), row in found.items():
            with self.subTest(row=name, guest=guest):
                self.assertEqual(set(row['contestants']), {'vmsnap'} | ROWS[name])
                for contestant, figures in row['contestants'].items():
                    self.assertEqual(len(figures['rounds']), 1)
                    if name == 'zero-read':
                        self.assertEqual(figures['median'], 0)
                    else:
                        self.assertGreater(figures['median'], 0, contestant)
                for target in row['targets']:
                    self.assertIn('vmsnap', target['reached'])

    def test_circumstances(self):
        self.assertEqual(set(self.figures['versions']),
                         {'vmsnap', 'QEMU', 'libvirt', 'libnbd', 'virtnbdbackup', 'fio', 'kernel'})
        self.assertTrue(self.figures['cpu'])

    def test_table(self):
        table = (self.output / 'bench.md').read_text()
        self.assertEqual(self.printed.rstrip('\n'), table.rstrip('\n'))
        lines = cells(table)
        self.assertEqual({len(line) for line in lines}, {len(lines[0])})
        self.assertEqual([line[0] for line in lines[2:]], [row['name'] for row in self.figures['rows']])

    def test_chart(self):
        chart = ElementTree.parse(self.output / 'bench.svg').getroot()
        text = ' '.join(chart.itertext())
        for name in ('vmsnap', *FILES, 'GB/s'):
            self.assertIn(name, text)


def helpers():
    """The processes that only a benchmark has, and what is mounted."""
    found = set(Path('/proc/self/mountinfo').read_text().splitlines())
    for directory in Path('/proc').glob('[0-9]*'):
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            command = (directory / 'cmdline').read_bytes().split(b'\0')[0].decode()
            if Path(command).name in ('nbdfuse', 'nbdkit', 'cat', 'dd', 'qemu-system-x86_64', 'mount.vmsnap'):
                found.add(f'process {directory.name}, {command}')
    return found


class Impact(unittest.TestCase):
    """A short measurement of what a backup costs the guest. How much that is does not matter here."""

    CASES = ['none', 'vmsnap-limited', 'vmsnap', 'push']

    @classmethod
    def setUpClass(cls):
        cls.output = lib.SANDBOX / 'impact'
        cls.before = helpers()
        cls.printed = run(IMPACT, '--smoke', '--output', cls.output, timeout=300).stdout
        cls.after = helpers()
        cls.figures = json.loads((cls.output / 'impact.json').read_text())

    def test_figures(self):
        self.assertEqual([case['name'] for case in self.figures['cases']], self.CASES)
        for case in self.figures['cases']:
            with self.subTest(case=case['name']):
                [figures] = case['rounds']
                self.assertEqual(figures['due'], self.figures['pace'] * self.figures['seconds'])
                self.assertGreater(figures['written'], 0)
                self.assertLessEqual(figures['written'], figures['due'])
                self.assertTrue(0 < figures['p50'] <= figures['p99'] <= figures['max'], figures)
                self.assertGreater(figures['writes'], 0)

    def test_backup_is_active(self):
        for case in self.figures['cases']:
            with self.subTest(case=case['name']):
                [figures] = case['rounds']
                self.assertEqual(figures['job'], case['name'] != 'none')
                self.assertEqual(figures['backup'] > 0, case['name'] != 'none')
                if case['name'] in ('vmsnap-limited', 'push'):
                    # What they are let have at once, at their beginning, is more than that of so short a time.
                    self.assertLess(figures['backup'], 3 * self.figures['limit'])

    def test_nothing_left(self):
        self.assertEqual(self.after - self.before, set())
        self.assertEqual(run('virsh', '--quiet', 'list', '--all').stdout.strip(), '')

    def test_table(self):
        self.assertEqual(self.printed, (self.output / 'impact.md').read_text())
        lines = cells(self.printed)
        self.assertEqual({len(line) for line in lines}, {len(lines[0])})
        self.assertEqual([line[0] for line in lines[2:]], [case['title'] for case in self.figures['cases']])

    def test_chart(self):
        text = ' '.join(ElementTree.parse(self.output / 'impact.svg').getroot().itertext())
        for name in ('p50', 'p99', 'max', 'ms', *(case['title'] for case in self.figures['cases'])):
            self.assertIn(name, text)


class ImpactEnded(unittest.TestCase):
    """A measurement that is ended from outside takes along what it has started."""

    def test_end(self):
        before = helpers()
        process = subprocess.Popen([IMPACT, '--smoke', '--output', lib.SANDBOX / 'impact-ended'], text=True,
                                   stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
        try:
            # Its last case, so that all others have been there.
            lib.wait_until(lambda: 'mode="push"' in self.job().replace("'", '"'), 'the push backup has begun', 120)
        finally:
            process.send_signal(signal.SIGTERM)
            said = process.communicate(timeout=lib.PATIENCE)[1]
        self.assertEqual(process.returncode, 128 + signal.SIGTERM, said)
        self.assertEqual(helpers() - before, set())
        self.assertEqual(run('virsh', '--quiet', 'list', '--all').stdout.strip(), '')

    @staticmethod
    def job():
        """The backup job of the only machine, if there is one."""
        machine = run('virsh', '--quiet', 'list', '--name').stdout.strip()
        return run('virsh', '--quiet', 'backup-dumpxml', machine, status=None).stdout if machine else ''


class Nbd(unittest.TestCase):
    """A short measurement of an export that somebody else has begun."""

    ROWS = ['dd-1M', 'dd-128k', 'cat', 'cp', 'dd-10k', 'dd-4k', '8-readers', 'random-1', 'random-16', 'cpu', 'cpu-qemu']

    @classmethod
    def setUpClass(cls):
        cls.output = lib.SANDBOX / 'nbd'
        cls.before = helpers()
        cls.printed = run(NBD, '--smoke', '--output', cls.output, timeout=300).stdout
        cls.after = helpers()
        cls.figures = json.loads((cls.output / 'nbd.json').read_text())

    def test_figures(self):
        self.assertEqual([row['name'] for row in self.figures['rows']], self.ROWS)
        for row in self.figures['rows']:
            self.assertEqual(set(row['contestants']), {'vmsnap'} | ROWS[row['name']])

    def test_nothing_left(self):
        self.assertEqual(self.after - self.before, set())

    def test_table(self):
        self.assertEqual(self.printed, (self.output / 'nbd.md').read_text())
        self.assertEqual([line[0] for line in cells(self.printed)[2:]], self.ROWS)


class Incremental(unittest.TestCase):
    """A small measurement of incremental backups, which compares what they restore with the disk by itself."""

    CASES = ['virtnbdbackup', 'vmsnap-qcow2', 'vmsnap-changed']

    @classmethod
    def setUpClass(cls):
        cls.output = lib.SANDBOX / 'incremental'
        cls.before = helpers()
        cls.printed = run(INCREMENTAL, '--smoke', '--output', cls.output, timeout=300).stdout
        cls.after = helpers()
        cls.figures = json.loads((cls.output / 'incremental.json').read_text())

    def test_figures(self):
        self.assertEqual([case['name'] for case in self.figures['cases']], self.CASES)
        for case in self.figures['cases']:
            with self.subTest(case=case['name']):
                [figures] = case['rounds']
                for level in ('full', 'incremental'):
                    for quantity in ('seconds', 'read', 'stored'):
                        self.assertGreater(figures[level][quantity], 0)
                # All that was data, and much less than that.
                self.assertGreaterEqual(figures['full']['read'], self.figures['data'])
                self.assertLess(figures['incremental']['read'], self.figures['data'] / 2)
                self.assertLess(figures['incremental']['stored'], figures['full']['stored'] / 2)

    def test_same_changes(self):
        # All but the tables of the image, and what tells QEMU of events.
        read = [case['rounds'][0]['incremental']['read'] for case in self.figures['cases']]
        self.assertLess(max(read) - min(read), lib.MIB)

    def test_nothing_left(self):
        self.assertEqual(self.after - self.before, set())
        self.assertEqual(run('virsh', '--quiet', 'list', '--all').stdout.strip(), '')

    def test_table(self):
        self.assertEqual(self.printed, (self.output / 'incremental.md').read_text())
        lines = cells(self.printed)
        self.assertEqual({len(line) for line in lines}, {len(lines[0])})
        self.assertEqual([line[0] for line in lines[2:]], [case['title'] for case in self.figures['cases']])


class Release(unittest.TestCase):
    """A short measurement over the course of a backup, with and without release."""

    CASES = ['plain', 'release']

    @classmethod
    def setUpClass(cls):
        cls.output = lib.SANDBOX / 'release'
        cls.before = helpers()
        cls.printed = run(RELEASE, '--smoke', '--output', cls.output, timeout=300).stdout
        cls.after = helpers()
        cls.figures = json.loads((cls.output / 'release.json').read_text())

    def test_figures(self):
        self.assertEqual([case['name'] for case in self.figures['cases']], self.CASES)
        for case in self.figures['cases']:
            with self.subTest(case=case['name']):
                [figures] = case['rounds']
                self.assertEqual(len(figures['tenths']), 10)
                for each in (figures, *figures['tenths'], *self.figures['without']):
                    self.assertGreater(each['writes'], 0)
                    self.assertTrue(0 < each['p50'] <= each['p99'], each)
                ends = [tenth['seconds'] for tenth in figures['tenths']]
                self.assertEqual(ends, sorted(ends))
                self.assertGreater(figures['copied'], 0)
                self.assertLessEqual(figures['copied'], figures['writes'])

    def test_release_spares(self):
        # What does not depend on how fast anything is: the writes are the same, and what has been read is not copied.
        plain, release = (case['rounds'][0] for case in self.figures['cases'])
        self.assertEqual(plain['scratch'], plain['scratch-most'])
        self.assertLess(release['scratch'], plain['scratch'] / 4)
        self.assertLess(release['share'], plain['share'])
        self.assertLess(release['tenths'][-1]['copied'], plain['tenths'][-1]['copied'] / 2)

    def test_nothing_left(self):
        self.assertEqual(self.after - self.before, set())

    def test_table(self):
        self.assertEqual(self.printed, (self.output / 'release.md').read_text())
        lines = cells(self.printed)
        self.assertEqual({len(line) for line in lines}, {len(lines[0])})
        self.assertEqual([line[0] for line in lines[2:]],
                         [*(f'{percent} %' for percent in range(10, 101, 10)), 'whole'])

    def test_chart(self):
        text = ' '.join(ElementTree.parse(self.output / 'release.svg').getroot().itertext())
        for name in ('scratch', 'MiB', 'progress', 'p50', 'p99', *(case['title'] for case in self.figures['cases'])):
            self.assertIn(name, text)


class Instant(unittest.TestCase):
    """A short measurement of the ways to an instant of all disks, each of which is undone before the next one."""

    @classmethod
    def setUpClass(cls):
        cls.output = lib.SANDBOX / 'instant'
        cls.before = helpers()
        cls.printed = run(INSTANT, '--smoke', '--output', cls.output, timeout=300).stdout
        cls.after = helpers()
        cls.figures = json.loads((cls.output / 'instant.json').read_text())

    def test_figures(self):
        expected = {(way, state, 1 if way == 'none' else 2) for way in ('none', 'reopen', 'stop', 'transaction')
                    for state in ('clean', 'dirty', 'synced')}
        self.assertEqual({(each['way'], each['page-cache'], each['disks']) for each in self.figures['instants']},
                         expected)
        for each in self.figures['instants']:
            [figures] = each['rounds']
            self.assertGreater(figures['command'], 0)
            self.assertGreater(figures['gap'], 0)

    def test_nothing_left(self):
        self.assertEqual(self.after - self.before, set())

    def test_table(self):
        self.assertEqual(self.printed, (self.output / 'instant.md').read_text())
        lines = cells(self.printed)
        self.assertEqual({len(line) for line in lines}, {len(lines[0])})
        self.assertEqual([line[1] for line in lines[2:]], ['2'] * 3)
