#!/usr/bin/python3
# SPDX-License-Identifier: LGPL-2.1-or-later

"""
Runs the unittest modules in FILE... and reports in TAP, which meson reads:

    tap.py FILE...

Each result is printed as soon as it is there, with the seconds since the one before: the first of a class thus includes
the boot of its machine. Why a test failed follows in "#" lines, with the end of what libvirtd and the guests said.
"""

import glob
import os
import sys
import time
import traceback
import unittest
from pathlib import Path

import forks

LOGS = ('/var/log/libvirt/libvirtd.log', os.environ['VMSNAP_SANDBOX'] + '/vm-*/console.log')
LOG_LINES = 15


def explain(text):
    for line in text.splitlines():
        print(f'# {line}')


class Result(unittest.TestResult):
    """Prints one TAP line a test; a test that fails in two ways, e.g. in two of its subtests, is one failed test."""

    def __init__(self):
        super().__init__()
        self._count = 0
        self._since = time.monotonic()
        self._problems = []
        self._skipped = None

    def addError(self, test, error):
        super().addError(test, error)
        self._problems.append(''.join(traceback.format_exception(*error)))
        self._report_if_no_test(test)

    def addFailure(self, test, error):
        super().addFailure(test, error)
        self._problems.append(''.join(traceback.format_exception(*error)))

    def addSubTest(self, test, subtest, error):
        super().addSubTest(test, subtest, error)
        if error:
            self._problems.append(f'in {subtest}:\n' + ''.join(traceback.format_exception(*error)))

    def addUnexpectedSuccess(self, test):
        super().addUnexpectedSuccess(test)
        self._problems.append('succeeds, but was expected to fail')

    def addSkip(self, test, reason):
        super().addSkip(test, reason)
        self._skipped = reason
        self._report_if_no_test(test)

    def stopTest(self, test):
        super().stopTest(test)
        self._report(test)

    def _report_if_no_test(self, test):
        # What goes wrong in setUpClass and the like comes without startTest and stopTest.
        if not isinstance(test, unittest.TestCase):
            self._report(test)

    def _report(self, test):
        self._count += 1
        name = test.id().removeprefix(test.__module__ + '.')
        skip = f' # SKIP {self._skipped}' if self._skipped is not None and not self._problems else ''
        print(f'{"not ok" if self._problems else "ok"} {self._count} - {name}{skip}')
        explain(f'{time.monotonic() - self._since:.1f} s')
        for problem in self._problems:
            explain(problem)
        if self._problems:
            for path in (path for pattern in LOGS for path in sorted(glob.glob(pattern))):
                lines = Path(path).read_text(errors='replace').splitlines()
                explain('\n'.join([f'the end of {path}:', *lines[-LOG_LINES:]]))
        self._since, self._problems, self._skipped = time.monotonic(), [], None

    def finish(self):
        print(f'1..{self._count}')


def main(files):
    sys.stdout.reconfigure(line_buffering=True)
    forks.watch()
    result = Result()
    for file in map(Path, files):
        sys.path.insert(0, str(file.resolve().parent))
        unittest.defaultTestLoader.loadTestsFromName(file.stem).run(result)
    result.finish()
    return 0 if result.wasSuccessful() else 1


if __name__ == '__main__':
    sys.exit(main(sys.argv[1:]))
