from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from celery_distsched import ring as ring_module
from celery_distsched.ring import HashRing, Places

nodes = st.lists(st.text(min_size=1), min_size=1, max_size=6, unique=True)
keys = st.lists(st.text(), max_size=30, unique=True)

# Names as hosts have them in a data centre, in Kubernetes and in containers.
HOSTS = ("beat-{}", "10.0.0.{}", "celery-beat-{}.beat.production.svc.cluster.local", "{:012x}")
ENTRIES = [f"reports.daily-{number}" for number in range(10_000)]


def named(pattern: str, count: int) -> list[str]:
    return [f"{pattern.format(number)}/0" for number in range(count)]


def owners(ring: HashRing, names: list[str]) -> dict[str, str | None]:
    return {name: ring.owner(name) for name in names}


@given(listed=nodes.flatmap(lambda names: st.tuples(st.just(names), st.permutations(names))), names=keys)
def test_the_order_in_which_nodes_are_listed_does_not_matter(
    listed: tuple[list[str], list[str]], names: list[str]
) -> None:
    one, other = (HashRing(order) for order in listed)
    assert one == other
    assert owners(one, names) == owners(other, names)
    assert [one.arcs(node) for node in listed[0]] == [other.arcs(node) for node in listed[0]]


@given(nodes, keys)
def test_every_entry_belongs_to_a_node_of_the_ring(listed: list[str], names: list[str]) -> None:
    assert set(owners(HashRing(listed), names).values()) <= set(listed)


def test_nothing_belongs_to_anybody_on_an_empty_ring() -> None:
    assert HashRing().owner("reports.daily") is None
    assert HashRing().arcs("beat-0/0") == []
    assert Places.of(["reports.daily"]).share(HashRing(), "beat-0/0") == set()


@given(nodes, keys)
def test_a_share_is_what_the_ring_gives_to_a_node(listed: list[str], names: list[str]) -> None:
    ring, places = HashRing(listed), Places.of(names)
    for node in listed:
        assert places.share(ring, node) == {name for name in names if ring.owner(name) == node}
    assert places.share(ring, "not among them " + "".join(listed)) == set()


@given(nodes, nodes)
def test_what_moved_is_the_difference_of_two_shares(before: list[str], others: list[str]) -> None:
    places, after = Places.of(ENTRIES[:300]), [*before[1:], *others]
    rings = HashRing(before), HashRing(after)
    for node in {*before, *after}:
        held, given_ = (places.share(ring, node) for ring in rings)
        assert places.moved(rings[0], node, rings[1], node) == (given_ - held, held - given_)
    # Its place there may be another one, or none.
    held = places.share(rings[0], before[0])
    assert places.moved(rings[0], before[0], rings[1], None) == (set(), held)
    assert places.moved(rings[0], None, rings[0], before[0]) == (held, set())


def test_a_share_reaches_round_the_corner_of_the_ring(monkeypatch: pytest.MonkeyPatch) -> None:
    top = (1 << 64) - 1
    points = {"a": (5, 10), "b": (10, top - 1)}
    monkeypatch.setattr(ring_module, "_points", points.__getitem__)
    monkeypatch.setattr(ring_module, "point", int)
    # At a point, just after it, before the first and after the last; 10 is a point of both nodes.
    names = ["0", "5", "6", "10", "11", str(top - 1), str(top)]
    ring, places = HashRing("ab"), Places.of(names)
    assert owners(ring, names) == dict(zip(names, "aaaabba", strict=True)) == owners(HashRing("ba"), names)
    for node in "ab":
        assert places.share(ring, node) == {name for name in names if ring.owner(name) == node}


def test_owners_are_the_same_in_every_release() -> None:
    # Nodes of two releases share a ring during a deploy: another hash would move every entry twice.
    ring = HashRing(["beat-0/0", "beat-1/0", "beat-2/0"])
    expected = {
        "celery.backend_cleanup": "beat-2/0",
        "reports.daily": "beat-0/0",
        "entry-0": "beat-2/0",
        "entry-1": "beat-0/0",
        "Grüße": "beat-2/0",
        "": "beat-0/0",
    }
    assert owners(ring, list(expected)) == expected


@given(nodes.filter(lambda listed: len(listed) > 1), keys)
def test_when_a_node_leaves_only_its_entries_move(listed: list[str], names: list[str]) -> None:
    before, after = HashRing(listed), HashRing(listed[1:])
    for name in names:
        if before.owner(name) != listed[0]:
            assert after.owner(name) == before.owner(name)


@pytest.mark.parametrize("pattern", HOSTS)
def test_the_busiest_of_ten_nodes_has_little_more_than_its_share(pattern: str) -> None:
    counts = Counter(owners(HashRing(named(pattern, 10)), ENTRIES).values())
    assert len(counts) == 10
    assert max(counts.values()) <= 1.15 * len(ENTRIES) / 10


@pytest.mark.parametrize("pattern", HOSTS)
def test_a_node_that_joins_or_leaves_moves_little_more_than_its_share(pattern: str) -> None:
    for count in (2, 5, 10):
        without, joined = HashRing(named(pattern, count - 1)), HashRing(named(pattern, count))
        moved = [name for name in ENTRIES if without.owner(name) != joined.owner(name)]
        assert {joined.owner(name) for name in moved} == {named(pattern, count)[-1]}
        assert len(moved) <= 1.1 * len(ENTRIES) / count
