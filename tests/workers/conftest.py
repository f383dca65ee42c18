"""A project whose beats are ours, for pytest-celery's workers, whatever these run in."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from celery import Celery

from tests.workers import tasks
from tests.workers.programs import BeatProcess
from tests.workers.runs import ENTRIES, EVERY_S

pytest.register_assert_rewrite("tests.workers.checks")


@pytest.fixture
def default_worker_tasks(default_worker_tasks: set[ModuleType]) -> set[ModuleType]:
    return {*default_worker_tasks, tasks}


@pytest.fixture
def default_worker_app(celery_setup_app: Celery, tmp_path: Path) -> Celery:
    celery_setup_app.conf.update(
        beat_scheduler="celery_distsched:DistributedScheduler",
        beat_schedule={entry: {"task": "tell", "schedule": EVERY_S} for entry in ENTRIES},
        distsched_url=f"sqlite:///{tmp_path}/store.sqlite3",
        distsched_node_ttl=2.0,
    )
    return celery_setup_app


@pytest.fixture
def new_beat(
    default_worker_initial_content: Mapping[str, bytes], celery_worker_cluster_config: Mapping[str, Any]
) -> Iterator[Callable[[], BeatProcess]]:
    """Start a beat of the project that the workers have; it ends with the test."""
    environment = {
        "CELERY_BROKER_URL": ";".join(celery_worker_cluster_config["celery_broker_cluster_config"]["host_urls"]),
        "CELERY_RESULT_BACKEND": ";".join(celery_worker_cluster_config["celery_backend_cluster_config"]["host_urls"]),
    }
    beats: list[BeatProcess] = []

    def new() -> BeatProcess:
        beats.append(BeatProcess(default_worker_initial_content, environment))
        beats[-1].start()
        return beats[-1]

    yield new
    for beat in beats:
        beat.teardown()
        # Shown with a test that fails.
        print(f"{beat.name()}:\n{beat.logs()}")
