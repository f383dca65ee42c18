"""The promises as invariants, under faults that a seed chooses; and each rule is missed when it is switched off."""

from __future__ import annotations

from typing import Any

import pytest

from tests.simulation.replay import simulate, violation


def test_the_promises_hold_whatever_happens() -> None:
    (summary,) = simulate("--count", "48", "--hours", "6")
    assert summary["violations"] == 0
    # The faults have had something to hit.
    for what in ("taken over", "sent again", "possibly lost", "skipped"):
        assert summary[what] > 0, summary


def test_nothing_is_taken_over_when_trust_has_run_out_while_reading() -> None:
    assert violation(114) is None


@pytest.mark.parametrize("seed", [40059, 42003, 42485])
def test_what_was_held_over_a_long_absence_is_neither_lost_nor_sent_again_by_a_loss(seed: int) -> None:
    """The broker was away for longer than a TTL; when it is back, the store loses its data, once or twice."""
    assert violation(seed, "--hours", "24") is None


def test_a_seed_decides_everything_whatever_process_it_runs_in() -> None:
    def outcome(*words: str) -> dict[str, Any]:
        (summary,) = simulate("--seed", "7", "--count", "4", "--hours", "6", *words)
        return {what: count for what, count in summary.items() if "minute" not in what and "CPU" not in what}

    assert outcome() == outcome("--jobs", "2")


@pytest.mark.parametrize("rule", ["margin", "hand-over is no misfire"])
def test_a_rule_is_missed_when_it_is_switched_off(rule: str) -> None:
    (found,) = simulate("--teeth", "--only", rule, "--count", "60")
    assert found["broken"]


def test_who_is_absent_is_robbed_where_absence_is_death() -> None:
    """A membership that is evicted from the store, with marks that are open since the broker is away."""
    faults = ("--faults", "evict", "stop_broker")
    for seed in (3, 7):
        assert violation(seed, *faults) is None
        broken = violation(seed, *faults, "--without", "absence is death only after a TTL")
        assert broken is not None
        assert broken.startswith(("trust: ", "one claim: "))
