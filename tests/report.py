#!/usr/bin/python3
# SPDX-License-Identifier: LGPL-2.1-or-later

"""
Says how the tests went, given meson's logs (one JSON object a line for each test program):

    report.py LOG...

Prints each failed case with what its program said about it, then "N passed, N failed, N skipped" as the last line. It
counts cases, not programs. A program that died, took too long, or failed without naming a case is a failed case itself;
so is a log that is not there, since then the build broke.
"""

import json
import re
import sys
from pathlib import Path

CASE = re.compile(r'^(?P<bad>not )?ok\b(?:.*# *(?P<directive>SKIP|TODO))?', re.IGNORECASE)


class Report:
    def __init__(self):
        self.passed = self.failed = self.skipped = 0

    def fail(self, name, said):
        self.failed += 1
        print(f'\nFAILED: {name}', *said, sep='\n')

    def add_log(self, path):
        if not path.exists():
            self.fail(path, ['no tests were run: the build failed'])
            return
        for line in path.read_text().splitlines():
            self.add_program(json.loads(line), path)

    def add_program(self, program, path):
        output = program.get('stdout', '').splitlines()
        name = f'{path.parts[0]}: {program["name"]}'
        cases = [(number, match) for number, line in enumerate(output) if (match := CASE.match(line))]
        bad_cases = 0
        for (number, match), (following, _) in zip(cases, cases[1:] + [(len(output), None)]):
            if match['directive']:
                self.skipped += 1
            elif match['bad']:
                bad_cases += 1
                self.fail(f'{name}: {output[number]}', output[number + 1:following])
            else:
                self.passed += 1

        result = program['result']
        if result in ('TIMEOUT', 'INTERRUPT') or result not in ('OK', 'SKIP') and not bad_cases:
            self.fail(f'{name}: {result}', output[-50:] + program.get('stderr', '').splitlines()[-50:])
        elif not cases:
            self.passed += result == 'OK'
            self.skipped += result == 'SKIP'


def main(logs):
    report = Report()
    for log in logs:
        report.add_log(Path(log))
    print(f'\n{report.passed} passed, {report.failed} failed, {report.skipped} skipped')
    return 0 if report.passed and not report.failed else 1


if __name__ == '__main__':
    sys.exit(main(sys.argv[1:]))
