"""What the tables say, as pictures."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

from benchmarks.report import Curve

_COLOURS = {
    "celery_distsched": "#1b6ca8",
    "RedBeat": "#d1495b",
    "django-celery-beat": "#3d8c5c",
    "celery beat": "#8d8d8d",
}


def draw(curves: Sequence[Curve], path: Path) -> bool:
    """Write an SVG; False where matplotlib is not installed, or there is nothing to draw."""
    try:
        import matplotlib as mpl
    except ImportError:
        return False
    if not curves:
        return False
    mpl.use("svg")
    # The same figures make the same file.
    mpl.rcParams["svg.hashsalt"] = "benchmarks"
    from matplotlib import pyplot as plt

    plots = {
        "rate": ("Burst: all due in one second", "entries", "messages/s", "log", "log"),
        "lateness": ("Steady load: lateness of arrival", "share of messages, %", "ms", "linear", "log"),
        "cpu": ("Idle: CPU", "entries", "% of one core", "log", "linear"),
        "tick": ("Idle: one tick", "entries", "ms", "log", "log"),
    }
    shown = [name for name in plots if any(curve.plot == name for curve in curves)]
    rows = math.ceil(len(shown) / 2)
    figure, axes = plt.subplots(rows, min(2, len(shown)), figsize=(11, 4.2 * rows), squeeze=False)
    for name, axis in zip(shown, axes.flat, strict=False):
        title, x, y, x_scale, y_scale = plots[name]
        for curve in curves:
            if curve.plot == name:
                points = [(at, value) for at, value in curve.points if math.isfinite(value)]
                xs = [100 * at if name == "lateness" else at for at, _ in points]
                ys = [value for _, value in points]
                axis.plot(xs, ys, marker=None if name == "lateness" else "o", label=curve.label,
                          color=_COLOURS.get(curve.label))  # fmt: skip
        axis.set(title=title, xlabel=x, ylabel=y, xscale=x_scale, yscale=y_scale)
        axis.grid(visible=True, which="major", alpha=0.3)
        axis.legend(fontsize=8)
    for axis in list(axes.flat)[len(shown) :]:
        axis.set_axis_off()
    figure.tight_layout()
    figure.savefig(path, metadata={"Date": None})
    plt.close(figure)
    return True
