# SPDX-License-Identifier: LGPL-2.1-or-later

"""What was found, as a table in Markdown, all figures in JSON, and a chart in SVG."""

import json
import os
import re
import statistics
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from lib import SANDBOX, run
from peers import BRIDGES, NBDCOPY

TABLE, FIGURES, CHART = 'bench.md', 'bench.json', 'bench.svg'
PROGRAMS = {'libnbd': ('nbdcopy', '--version'), 'virtnbdbackup': ('virtnbdbackup', '-V'), 'fio': ('fio', '--version')}
COLOURS = '#1b5e9e', '#e08214', '#7fbf7b', '#998ec3', '#b0b0b0', '#8c510a', '#35978f', '#d6604d'


class Results:
    """The figures of each line of the table, which is a row with a state of the guest: one of each round."""

    def __init__(self, lines, variants):
        self.lines = lines
        self.variants = variants  # vmsnap's contestants
        self._figures = {}

    def add(self, row, guest, name, figure):
        self._figures.setdefault((row.name, guest), {}).setdefault(name, []).append(figure)

    def of(self, row_name, guest):
        """{contestant: [figures]}"""
        return self._figures.get((row_name, guest), {})

    def rounds(self):
        return max(len(rounds) for figures in self._figures.values() for rounds in figures.values())

    def reached(self, row, guest, target, name):
        """What a contestant is compared with a target, in each round; empty if there is nothing to compare with."""
        own = self.of(row.name, guest).get(name, [])
        if target.base:
            other = self.of(target.base, guest).get(name, [])
        elif target.peers:
            # The better one of each round: of what is to be large, the largest.
            better = max if target.op == '>=' else min
            other = list(map(better, zip(*(self.of(row.name, guest).get(peer, []) for peer in target.peers))))
        else:
            return own
        return [a - b if target.difference else a / b for a, b in zip(own, other)]


def limit_of(target, contestant):
    """The number that a target asks of vmsnap with its mount options; None if it only compares."""
    return target.limit(contestant.options) if callable(target.limit) else target.limit


def is_met(target, limit, value):
    return {'>=': value >= limit, '<=': value <= limit, '<': value < limit}[target.op]


def number(value):
    return f'{value:,.0f}' if abs(value) >= 1000 else f'{value:.3g}'


def progress(row, guest, name, figure):
    """Tells those who wait."""
    print(f'  {row.name:24} {guest:8} {name:20} {number(figure)} {row.unit}', file=sys.stderr, flush=True)


def describe(target, value):
    """A value that was reached, with what it is a value of."""
    if target.base:
        return f'{number(value)} x {target.base}'
    if target.difference:
        return f'{number(value)} over {target.peers[0]}'
    if len(target.peers) > 1:
        return f'{number(value)} x the better bridge'
    return f'{number(value)} x {target.peers[0]}' if target.peers else number(value)


def judge(results, row, guest, contestant):
    """For each target of a row that can be compared: (value, what it is, what it must be, whether it is)."""
    for target in row.targets:
        reached = results.reached(row, guest, target, contestant.name)
        if not reached:
            continue
        value, limit = statistics.median(reached), limit_of(target, contestant)
        if limit is None:
            yield number(value), describe(target, value), '', ''
        else:
            yield (number(value), describe(target, value), f'{target.op} {number(limit)}',
                   'yes' if is_met(target, limit, value) else '**no**')


def markdown(results, about):
    own = [contestant.name for contestant in results.variants]
    columns = own + [NBDCOPY, *BRIDGES]
    lines = [['row', 'work', 'guest', 'unit', *columns, 'others', 'reached', 'must be', 'is']]
    lines.append(['---'] * len(lines[0]))
    for row, guest in results.lines:
        medians = {name: number(statistics.median(rounds)) for name, rounds in results.of(row.name, guest).items()}
        for variant in results.variants[1:]:
            judged = list(judge(results, row, guest, variant))
            if judged and variant.name in medians:
                # What the variant has reached of the first target; the rest is in the JSON.
                medians[variant.name] += f' ({judged[0][0]})'
        others = '<br>'.join(f'{name} {median}' for name, median in medians.items() if name not in columns)
        judged = list(judge(results, row, guest, results.variants[0]))
        lines.append([row.name, row.title, guest, row.unit, *(medians.get(name, '') for name in columns), others,
                      *('<br>'.join(each[i] for each in judged) for i in (1, 2, 3))])
    table = ''.join(f'| {" | ".join(line)} |\n' for line in lines)
    variants = ''.join(f'{contestant.name} is mounted with "{contestant.options}". ' for contestant in results.variants
                       if contestant.options)
    return (f'{table}\nMedians of {results.rounds()} round(s); what is compared is compared within each round. '
            f'{variants}{computer(about)}\n')


def figures(results, about):
    """Everything, for programs."""
    found = []
    for row, guest in results.lines:
        targets = []
        for target in row.targets:
            reached = {}
            for contestant in results.variants:
                values = results.reached(row, guest, target, contestant.name)
                limit = limit_of(target, contestant)
                if values:
                    median = statistics.median(values)
                    reached[contestant.name] = {
                        'rounds': values, 'median': median, 'limit': limit,
                        'met': None if limit is None else is_met(target, limit, median)}
            targets.append({'op': target.op, 'peers': list(target.peers), 'base': target.base,
                            'difference': target.difference, 'reached': reached})
        found.append({'name': row.name, 'title': row.title, 'guest': guest, 'unit': row.unit,
                      'contestants': {name: {'rounds': rounds, 'median': statistics.median(rounds)}
                                      for name, rounds in results.of(row.name, guest).items()},
                      'targets': targets})
    return about | {'options': {contestant.name: contestant.options for contestant in results.variants}, 'rows': found}


def draw(results, path):
    """Bars from left to right, in a group for each row that is a speed."""
    shown = [(row, guest) for row, guest in results.lines if row.in_chart and results.of(row.name, guest)]
    names = [contestant.name for contestant in results.variants] + [NBDCOPY, *BRIDGES]
    bars = {name: {i: statistics.median(results.of(row.name, guest)[name])
                   for i, (row, guest) in enumerate(shown) if name in results.of(row.name, guest)} for name in names}
    bars = {name: values for name, values in bars.items() if values}
    if shown:
        draw_bars(path, f'Reading a disk of a running machine: median of {results.rounds()} round(s)', 'GB/s',
                  [f'{row.title}{"" if guest == "idle" else f", guest {guest}"}' for row, guest in shown], bars)


def draw_bars(path, title, label, groups, bars, label_of='{:.2f}'.format, logarithmic=False):
    """A chart of GROUPS, which are titles, with the same BARS in each: {name: {number of the group: value}}."""
    # A bar is 1 high, and there is room for one between two groups; downwards.
    group = len(bars) + 1
    tics = ', '.join(f'"{name}" {i * group + (len(bars) - 1) / 2}' for i, name in enumerate(groups))
    values = [value for values in bars.values() for value in values.values()]
    low, high = (min(values) / 2, 3 * max(values)) if logarithmic else (0, 1.1 * max(values))
    data, plots = '', []
    for place, (name, values) in enumerate(bars.items()):
        # Where there is no such bar, a space between the others remains.
        data += f'$data{place} << END\n' + ''.join(f'{i * group + place} {value:.3g} "{label_of(value)}"\n'
                                                  for i, value in values.items()) + 'END\n'
        colour = COLOURS[place % len(COLOURS)]
        plots += [f'$data{place} using 2:1:({low:.3g}):2:($1 - 0.45):($1 + 0.45) with boxxyerror title "{name}" '
                  f'linecolor rgb "{colour}"',
                  f'$data{place} using 2:1:3 with labels left offset 0.3,0 font ",9" notitle']
    script = SANDBOX / 'chart.gnuplot'
    script.write_text(f'''{data}
set terminal svg size 900,{110 + 15 * group * len(groups)} font "sans-serif,12" background "white"
set output "{path}"
set title "{title}"
set xlabel "{label}"
{"set logscale x" if logarithmic else ""}
set xrange [{low:.3g}:{high:.3g}]
set yrange [{group * len(groups) - 1}:-1]
set ytics ({tics}) scale 0
set grid xtics back linetype 1 linewidth 1 linecolor rgb "#dddddd"
set border 3
set xtics nomirror
set ytics nomirror
set key outside top right horizontal samplen 2
set style fill solid noborder
plot {", ".join(plots)}
''')
    run('gnuplot', script)


@dataclass(frozen=True)
class Panel:
    """A part of a chart: LINES are {name: [(x, y)]}, and LABEL says what y is."""
    label: str
    lines: dict
    logarithmic: bool = False


def draw_lines(path, title, label, panels):
    """A chart of PANELS, one below the other, over the same x, which LABEL names."""
    parts = ''
    for number, panel in enumerate(panels):
        values = [y for points in panel.lines.values() for _, y in points]
        low, high = (min(values) / 2, 3 * max(values)) if panel.logarithmic else (0, 1.1 * max(values))
        data, plots = '', []
        for place, (name, points) in enumerate(panel.lines.items()):
            block = f'$panel{number}line{place}'
            data += f'{block} << END\n' + ''.join(f'{x} {y:.4g}\n' for x, y in points) + 'END\n'
            plots.append(f'{block} with linespoints linewidth 2 pointtype 7 pointsize 0.4 '
                         f'linecolor rgb "{COLOURS[place % len(COLOURS)]}" title "{name}"')
        parts += f'''{data}
{"set logscale y" if panel.logarithmic else "unset logscale y"}
set yrange [{low:.4g}:{high:.4g}]
set ylabel "{panel.label}"
{f'set xlabel "{label}"' if number == len(panels) - 1 else 'unset xlabel'}
plot {", ".join(plots)}
'''
    script = SANDBOX / 'chart.gnuplot'
    script.write_text(f'''
set terminal svg size 900,{60 + 270 * len(panels)} font "sans-serif,12" background "white"
set output "{path}"
set multiplot layout {len(panels)},1 title "{title}"
set grid back linetype 1 linewidth 1 linecolor rgb "#dddddd"
set border 3
set xtics nomirror
set ytics nomirror
set lmargin 10
set rmargin at screen 0.62
set key at screen 0.99,graph 1 right top vertical samplen 2
set xrange [0:*]
{parts}
unset multiplot
''')
    run('gnuplot', script)


def version(*command):
    """The first thing in what a program says that looks like a version."""
    said = run(*command)
    return re.search(r'\d+(\.\d+)+', said.stdout + said.stderr)[0]


def about_here(programs=()):
    """The computer, and the versions of vmsnap, the machine's programs, and other PROGRAMS, {name: command}."""
    cpu = re.search(r'model name\s*: (.*)', Path('/proc/cpuinfo').read_text())
    memory = int(re.search(r'MemTotal:\s+(\d+) kB', Path('/proc/meminfo').read_text())[1])
    programs = {'vmsnap': ('mount.vmsnap', '-V'), 'QEMU': ('qemu-system-x86_64', '--version'),
                'libvirt': ('virsh', '--version'), **dict(programs)}
    return {
        'date': time.strftime('%Y-%m-%d'),
        'cpu': cpu[1] if cpu else os.uname().machine,
        'cpus': os.cpu_count(),
        'memory-gib': round(memory / 1024 / 1024),
        'versions': {name: version(*command) for name, command in programs.items()} | {'kernel': os.uname().release},
    }


def computer(about):
    """What about_here() has found, in words."""
    versions = ', '.join(f'{what} {version}' for what, version in about['versions'].items())
    return f'{about["cpus"]} x {about["cpu"]}, {about["memory-gib"]} GiB; {versions}.'


def write(results, directory, seconds):
    """Writes table, figures and chart of all rounds so far."""
    directory.mkdir(parents=True, exist_ok=True)
    about = about_here(PROGRAMS) | {'rounds': results.rounds(), 'seconds': round(seconds)}
    (directory / TABLE).write_text(markdown(results, about))
    (directory / FIGURES).write_text(json.dumps(figures(results, about), indent=2) + '\n')
    draw(results, directory / CHART)
