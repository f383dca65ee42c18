"""The engine, or the reason why there is none."""

from __future__ import annotations

import gc
import warnings
from collections.abc import Iterator
from contextlib import closing
from typing import Any

import docker
import pytest


@pytest.fixture(scope="session")
def docker_client() -> Iterator[Any]:
    """Be the way to the engine, which all of pytest-celery's containers go, and close it in the end."""
    with warnings.catch_warnings():
        # The client forgets its socket open where nobody answers.
        warnings.simplefilter("ignore", ResourceWarning)
        reason = _missing()
        gc.collect()
    if reason:
        pytest.skip(f"there is no Docker engine: {reason}")
    with closing(docker.from_env()) as client:
        yield client


def _missing() -> str | None:
    try:
        with closing(docker.from_env(timeout=2)) as client:
            client.ping()
    except (docker.errors.DockerException, OSError) as exc:
        return str(exc)
    return None
