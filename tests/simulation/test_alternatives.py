"""Two other ways to decide who sends, under the same faults: they break the promises, and ours does not."""

from __future__ import annotations

import pytest

from tests.simulation.replay import first_violation, violation

_DOUBLED, _NEVER_SENT = "was sent again as if it were the first time", "was never sent"


@pytest.mark.parametrize(
    ("fault", "what"),
    [
        # Who is cut off from the store keeps its ring, and the others share out what is its own.
        ("cut", _DOUBLED),
        # All do, each with its own: what was joining is in some rings, and in others not.
        ("stop_store", _DOUBLED),
        # Who was frozen sends what the others have sent meanwhile.
        ("freeze", _DOUBLED),
        # The clock of one host goes back: it sends the same hour once more.
        ("step_clock", _DOUBLED),
        # Until a node is found dead nobody sends what is its own, and nobody makes up for it.
        ("crash", _NEVER_SENT),
    ],
)
def test_a_ring_without_claims_doubles_and_loses_runs(fault: str, what: str) -> None:
    busy = ("--seed", "3", "--step", "4", "--count", "40")
    seed, broken = first_violation(what, "--policy", "upstream", "--faults", fault, *busy)
    assert broken.startswith("delivery: ")
    assert violation(seed, "--plain", "--faults", fault) is None


def test_a_ring_without_claims_keeps_its_promises_while_nothing_happens() -> None:
    """The comparison is fair: the life of seed 3 has no clock that steps, and so nothing happens in it."""
    assert violation(3, "--policy", "upstream", "--faults", "step_clock") is None


@pytest.mark.parametrize(
    "broken",
    [
        # Two nodes see an entry first: the later anchor is the greater, so it wins, and moves the grid.
        "are not on its grid",
        # Who has won never hears of it, and what is stored does not tell.
        "stays open in peace",
    ],
)
def test_a_claim_that_is_but_the_last_instant_loses_runs(broken: str) -> None:
    often = ("--hours", "6", "--gap", "0.2")
    seed, _ = first_violation(broken, "--policy", "first-draft", *often, "--count", "200")
    assert violation(seed, "--plain", *often) is None
