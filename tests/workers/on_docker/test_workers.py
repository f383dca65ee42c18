"""Beats of this machine, with a broker, a worker and a place for results in containers: on each broker of theirs."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from pytest_celery import CeleryTestSetup

from tests.workers import checks
from tests.workers.programs import BeatProcess

pytestmark = [
    pytest.mark.docker,
    # The first to ask for the worker's image has it built.
    pytest.mark.timeout(900),
]


def test_a_worker_runs_everything_once_from_two_beats(
    celery_setup: CeleryTestSetup, new_beat: Callable[[], BeatProcess]
) -> None:
    checks.everything_runs_once(celery_setup, new_beat)


def test_runs_go_on_when_a_beat_is_killed(celery_setup: CeleryTestSetup, new_beat: Callable[[], BeatProcess]) -> None:
    checks.a_killed_beat_costs_nothing(celery_setup, new_beat)
