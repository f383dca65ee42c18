"""The last words of the demo."""

from __future__ import annotations

import time
from collections.abc import Sequence

from example_project.demo.report import Occurrence, Report
from example_project.demo.scene import Scene
from example_project.demo.story import Gap
from example_project.demo.text import Line, Style, cell

#: Most occurrences that are named.
_NAMED = 10


def summary(report: Report, gaps: Sequence[Gap], scene: Scene, ttl_s: float) -> list[Line]:
    """Say what was computed from the messages that arrived in the worker."""
    lines: list[Line] = [[], [("  What arrived in the worker, compared with the schedule", Style.BOLD)], []]
    for beat in scene.beats:
        runs = [run for run in scene.runs.by_pid[beat.process.pid] if run.instant_us <= report.until_us]
        fate = beat.label if beat.gone else "joined later" if beat.late else ""
        lines.append(
            [
                cell(f"    beat {beat.number}", 12, beat.colour),
                (f"{len(runs):>6} runs   ", Style.PLAIN),
                (fate, Style.DIM),
            ]
        )
    lines += [[], [("    the longest time without a run of an entry that runs every second", Style.PLAIN)]]
    for gap in gaps:
        promise = (
            f"   (at most {ttl_s:g} s to miss it, 1 s to take over, 1 s to the next run)" if "kill" in gap.when else ""
        )
        lines.append([(f"{gap.seconds:>16.1f} s      {gap.when}", Style.PLAIN), (promise, Style.DIM)])
    counts = {
        "due": report.expected,
        "arrived": report.expected - len(report.lost),
        "lost": len(report.lost),
        "doubled": len(report.doubled),
        "off schedule": len(report.strays),
    }
    lines += [[], [("    ", Style.PLAIN), *_counts(counts)]]
    if report.same_id:
        lines.append(
            [(f"    {report.same_id} messages came again under the task id that they had before", Style.PLAIN)]
        )
    if report.excused:
        why = "sent again: their beat was killed between sending them and noting it, which a worker sees by the id"
        lines.append([(f"    {len(report.excused)} of these {why}", Style.PLAIN)])
    missed = {entry for entry, _ in report.lost}
    for entry in scene.expected.keys() - scene.runs.last.keys() - missed:
        lines.append([(f"    {entry} was not due in this time", Style.DIM)])
    for what, occurrences in (("lost", report.lost), ("doubled", report.doubled), ("off schedule", report.strays)):
        lines += [[(f"      {what}: {text}", Style.RED)] for text in _named(occurrences)]
    verdict = ("Nothing lost, nothing doubled.", Style.GREEN) if report.clean else ("This is not clean.", Style.RED)
    if report.clean and report.excused:
        verdict = ("Nothing lost, and nothing doubled without its reason.", Style.GREEN)
    return [*lines, [], [("    ", Style.PLAIN), verdict], []]


def _counts(counts: dict[str, int]) -> Line:
    line: Line = []
    for name, count in counts.items():
        if name == "off schedule" and not count:
            continue
        bad = count and name in ("lost", "doubled", "off schedule")
        line += [(f"{count}", Style.RED if bad else Style.BOLD), (f" {name}   ", Style.PLAIN)]
    return line


def _named(occurrences: Sequence[Occurrence]) -> list[str]:
    texts = [
        f"{entry} at {time.strftime('%H:%M:%S', time.localtime(at / 1e6))}.{at % 1_000_000:06}"
        for entry, at in occurrences[:_NAMED]
    ]
    left = len(occurrences) - _NAMED
    return [*texts, f"and {left} more"] if left > 0 else texts
