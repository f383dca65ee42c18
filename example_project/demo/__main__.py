"""``python -m example_project.demo --store sqlite``: see `story` for what happens."""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import tempfile
from pathlib import Path

from example_project.demo.processes import Interrupted, ProcessGroup, Signals
from example_project.demo.report import grids
from example_project.demo.runs import Runs
from example_project.demo.scene import Scene
from example_project.demo.screen import screen_for
from example_project.demo.servers import STORES, MissingProgram, Server, server_for
from example_project.demo.story import Failed, Story
from example_project.demo.summary import summary
from example_project.demo.text import Line

_ROOT = Path(__file__).resolve().parents[2]


def main() -> int:
    """Run the demo; returns 0 only if nothing was lost and nothing doubled."""
    arguments = _arguments()
    folder = Path(tempfile.mkdtemp(prefix="celery-distsched-demo-"))
    status = 1
    try:
        with Signals() as signals:
            status = _run(arguments.store, arguments.pause, folder, signals)
    except Interrupted as exc:
        print("\nInterrupted; nothing is left running.")
        status = 128 + exc.signum
    except MissingProgram as exc:
        print(exc, file=sys.stderr)
        status = 2
    except Failed as exc:
        print(f"\nThe demo failed: {exc}.", file=sys.stderr)
        if exc.process is not None:
            print(f"Its last words:\n\n{exc.process.last_words()}\n", file=sys.stderr)
    finally:
        if status == 1:
            print(f"What was logged is in {folder}", file=sys.stderr)
        else:
            shutil.rmtree(folder, ignore_errors=True)
    return status


def _run(store: str, pause_s: float, folder: Path, signals: Signals) -> int:
    server = server_for(store, folder)
    environment = _environment(folder, server)
    # The last message is sent from here.
    os.environ.clear()
    os.environ.update(environment)
    from example_project import settings

    ttl_s = settings.distsched_node_ttl
    expected = grids(settings.beat_schedule)
    facts = {
        "store": server.url if server else "sqlite:// (a file)",
        "broker": settings.broker_url,
        "node ttl": f"{ttl_s:g} s",
    }
    scene = Scene(facts, expected, Runs(folder / "runs.jsonl"))
    screen = screen_for(scene)
    last_lines: list[Line] = []
    try:
        with ProcessGroup(folder, environment) as group:
            story = Story(group, scene, screen, signals, expected, ttl_s=ttl_s, pause_s=pause_s)
            try:
                report = story.tell(server)
            finally:
                scene.over()
        last_lines = summary(report, story.gaps, scene, ttl_s)
    finally:
        screen.close(last_lines)
    return 0 if report.clean else 1


def _environment(folder: Path, server: Server | None) -> dict[str, str]:
    """Return what the example's settings are to read: nothing of what the user may have set for another project."""
    ours = ("CELERY_", "BROKER_", "DISTSCHED_")
    environment = {name: value for name, value in os.environ.items() if not name.startswith(ours)}
    environment |= {
        "BROKER_FOLDER": str(folder / "broker"),
        "DEMO_RUNS": str(folder / "runs.jsonl"),
        "PYTHONPATH": os.pathsep.join(filter(None, (str(_ROOT), os.environ.get("PYTHONPATH")))),
        # Kombu's filesystem broker moves a message there before it reads it.
        "TMPDIR": str(folder),
    }
    if server is not None:
        environment["DISTSCHED_URL"] = server.url
    return environment


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m example_project.demo",
        description="Several beats share one schedule, and one of them is killed.",
    )
    parser.add_argument("--store", choices=STORES, default="sqlite", help="where the beats meet (default: %(default)s)")
    parser.add_argument(
        "--pause",
        type=float,
        default=3.0,
        metavar="SECONDS",
        help="quiet time between two events (default: %(default)s)",
    )
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
