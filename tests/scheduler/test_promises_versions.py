"""Promise 9: in a rolling deploy the beats carry different schedules, and every entry runs as the newest has it."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest

from celery_distsched.drivers import Swap
from celery_distsched.record import Record
from tests.figures import Figure
from tests.scheduler.cluster import HOUR_US, HOURLY, Cluster, now_us, until

EVERY = ("sqlite", "redis+scan", "redis+zset", "etcd", "consul")


@pytest.fixture
def ttl_s(scheme: str) -> float:
    """The shortest that the store honours."""
    return 2.0 if scheme == "etcd" else 1.0


@pytest.mark.parametrize("scheme", EVERY)
def test_every_entry_that_a_live_node_knows_runs_once(cluster: Cluster, scheme: str, figure: Figure) -> None:
    old = cluster.started({"kept": every_second(), "removed": every_second()})
    new = cluster.started({"kept": every_second(), "added": every_second()})
    until(lambda: all(len(cluster.sent(name)) >= 3 for name in ("kept", "removed", "added")), why=cluster.sent)
    assert {sent.node for sent in cluster.sent("removed")} == {old.node}
    assert {sent.node for sent in cluster.sent("added")} == {new.node}
    each_second_once(figure, scheme, cluster, "kept", "removed", "added")


@pytest.mark.parametrize("scheme", EVERY)
def test_of_two_versions_the_newest_runs_and_the_old_one_again_when_it_is_alone(
    cluster: Cluster, scheme: str, figure: Figure
) -> None:
    old = cluster.started({"changed": every_second("old")})
    until(lambda: cluster.sent())
    new = cluster.started({"changed": every_second("new")})
    until(lambda: epoch_of(cluster, "changed") == 2)
    so_far = len(cluster.sent())
    until(lambda: len(cluster.sent()) >= so_far + 3)
    assert {(*sent.args, sent.node) for sent in cluster.sent()[so_far + 1 :]} == {("new", new.node)}
    # The deploy is rolled back.
    new.close()
    until(lambda: epoch_of(cluster, "changed") == 1)
    so_far = len(cluster.sent())
    until(lambda: len(cluster.sent()) >= so_far + 2)
    assert {(*sent.args, sent.node) for sent in cluster.sent()[so_far:]} == {("old", old.node)}
    each_second_once(figure, scheme, cluster, "changed")


@pytest.mark.parametrize("scheme", EVERY)
def test_a_crash_in_the_middle_of_a_deploy_starves_no_entry(cluster: Cluster, scheme: str, figure: Figure) -> None:
    old = cluster.started({"changed": every_second("old"), "kept": every_second()})
    new = cluster.started({"changed": every_second("new"), "added": every_second()})
    until(lambda: epoch_of(cluster, "changed") == 2)
    # It is silent from now on, and says no goodbye.
    new.stop()
    until(lambda: epoch_of(cluster, "changed") == 1)
    so_far = len(cluster.sent("changed"))
    until(lambda: len(cluster.sent("changed")) >= so_far + 2)
    assert {(*sent.args, sent.node) for sent in cluster.sent("changed")[so_far + 1 :]} == {("old", old.node)}
    each_second_once(figure, scheme, cluster, "changed", "kept")


@pytest.mark.parametrize("scheme", EVERY)
def test_a_deploy_in_steps_loses_nothing_and_doubles_nothing(cluster: Cluster, scheme: str, figure: Figure) -> None:
    """Every second an instant of each entry, while three beats are replaced one by one by those of a newer release."""
    before = dict.fromkeys(("kept", "changed", "removed"), every_second())
    after = {"kept": every_second(), "changed": every_second("new"), "added": every_second()}
    beats = [cluster.beat(before) for _ in range(2)]
    cluster.together(*beats)
    until(lambda: len({sent.entry for sent in cluster.sent()}) == 3)
    for _ in range(2):
        beats.append(cluster.started(after))
        beats.pop(0).close()
    seen = len(cluster.sent("added"))
    until(lambda: len(cluster.sent("added")) >= seen + 2 and len(cluster.sent("changed")) >= 4)
    each_second_once(figure, scheme, cluster, "kept", "changed", "added")
    changed = sorted(cluster.sent("changed"), key=lambda sent: sent.instant_us)
    arguments = [bool(sent.args) for sent in changed]
    assert arguments == sorted(arguments), "the old version ran again after the new one"
    assert arguments[-1]


@pytest.mark.parametrize("scheme", EVERY)
def test_an_entry_that_was_removed_and_comes_back_runs_nothing_of_the_past(cluster: Cluster) -> None:
    with_it, without_it = {"away": HOURLY, "kept": HOURLY}, {"kept": HOURLY}
    for schedule in (with_it, without_it):
        cluster.started(schedule).close()
    set_back(cluster, "away", "kept")
    cluster.started(with_it)
    until(lambda: cluster.sent())
    until(lambda: now_us() - cluster.record("away").last < HOUR_US)  # type: ignore[union-attr]
    assert [sent.entry for sent in cluster.sent()] == ["kept"]


@pytest.mark.parametrize("scheme", EVERY)
def test_what_a_restarted_cluster_has_missed_is_run(cluster: Cluster) -> None:
    cluster.started({"a": HOURLY, "b": HOURLY}).close()
    set_back(cluster, "a", "b")
    cluster.started({"a": HOURLY, "b": {**HOURLY, "args": ["changed"]}})
    until(lambda: len(cluster.sent()) == 2)


def every_second(*args: Any) -> dict[str, Any]:
    return {"task": "nobody.runs.it", "schedule": 1.0, "args": args}


def set_back(cluster: Cluster, *names: str) -> None:
    """While no beat runs: write these entries' records as if they had last run two hours and a half ago."""
    for name in names:
        (text,) = cluster.driver.read([name])
        assert text is not None
        long_ago = Record.parse(text)._replace(last=now_us() - 5 * HOUR_US // 2)
        (answer,) = cluster.driver.swap([Swap(name, text, long_ago.text())])
        assert answer.won


def epoch_of(cluster: Cluster, name: str) -> int:
    record = cluster.record(name)
    return record.version.epoch if record and record.version else 0


def each_second_once(figure: Figure, scheme: str, cluster: Cluster, *names: str) -> None:
    sent = {name: sorted(sent.instant_us for sent in cluster.sent(name)) for name in names}
    grids = {name: list(range(instants[0], instants[-1] + 1, 1_000_000)) for name, instants in sent.items()}
    wrong = sum((Counter(sent[name]) - Counter(grids[name])).total() for name in names)
    wrong += sum((Counter(grids[name]) - Counter(sent[name])).total() for name in names)
    runs = sum(map(len, grids.values()))
    figure.runs("versions", scheme, wrong, runs, "runs lost or sent twice, of entries that run every second")
    assert sent == grids
