"""Each of several beats on one host answers for itself, by the name that it was given."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import celery
import pytest

from tests.acceptance.beat import command_line
from tests.acceptance.cluster import Cluster
from tests.acceptance.queue import Queue


@pytest.mark.skipif(celery.VERSION < (5, 7), reason="beats answer to remote control from Celery 5.7 on")
def test_every_beat_of_a_host_answers_ping(store_url: Callable[[str], str], queue: Queue, tmp_path: Path) -> None:
    with Cluster(store_url("sqlite"), queue, entries=60) as cluster:
        beats = cluster.start(3, ("beat", "-l", "INFO", "--enable-remote-control", "-n", "{name}@%h"))
        asked = subprocess.run(
            command_line("inspect", "ping", "--json", "--timeout", "3"),
            env={**os.environ, **beats[0].environment()},
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert asked.returncode == 0, f"{asked}{cluster.story()}"
        answers = json.loads(asked.stdout)
    assert len(answers) == 3, asked.stdout
    for beat in beats:
        assert [node for node in answers if node.startswith(f"{beat.name}@")], f"{asked.stdout} has nothing of {beat!r}"
    assert all(answer == {"ok": "pong"} for answer in answers.values()), asked.stdout
