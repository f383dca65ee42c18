"""pytest-celery's fixtures of containers, with processes in their place."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import pytest
from pytest_celery import CELERY_REDIS_BACKEND, CELERY_REDIS_BROKER

from tests.servers import RedisServer
from tests.workers.programs import RedisProcess, WorkerProcess


@contextmanager
def _redis(*arguments: str) -> Iterator[RedisProcess]:
    with RedisServer(*arguments) as server:
        yield RedisProcess(server)


@pytest.fixture
def default_redis_broker() -> Iterator[RedisProcess]:
    # A broker that forgets what it had accepted would look like a beat that has not sent it.
    with _redis("--appendonly", "yes", "--appendfsync", "always") as redis:
        yield redis


@pytest.fixture
def default_redis_backend() -> Iterator[RedisProcess]:
    with _redis() as redis:
        yield redis


@pytest.fixture
def default_worker_container(
    default_worker_command: list[str],
    default_worker_env: Mapping[str, str],
    default_worker_initial_content: Mapping[str, bytes],
) -> Iterator[WorkerProcess]:
    # The containers' PYTHONPATH is a folder of theirs.
    environment = {name: value for name, value in default_worker_env.items() if name != "PYTHONPATH"}
    worker = WorkerProcess(default_worker_command, default_worker_initial_content, environment)
    with worker.server:
        yield worker
    # Shown with a test that fails.
    print(f"{worker.name}:\n{worker.logs()}")


@pytest.fixture(params=[CELERY_REDIS_BROKER])
def celery_broker(request: pytest.FixtureRequest) -> Any:
    return request.getfixturevalue(request.param)


@pytest.fixture(params=[CELERY_REDIS_BACKEND])
def celery_backend(request: pytest.FixtureRequest) -> Any:
    return request.getfixturevalue(request.param)
