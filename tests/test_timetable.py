from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from celery_distsched.timetable import Timetable

_NAMES = st.sampled_from("abc")
_STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("set"), _NAMES, st.integers(0, 6)),
        st.tuples(st.just("drop"), _NAMES, st.just(0)),
        st.tuples(st.just("pop"), st.integers(1, 4), st.integers(0, 2)),
    ),
    min_size=5,
    max_size=60,
)


@given(_STEPS)
def test_a_name_comes_once_when_the_last_time_that_it_was_given_has_come(steps: list[tuple[str, object, int]]) -> None:
    timetable, at, now = Timetable(), dict[object, int](), 0
    for step, what, when in steps:
        if step == "set":
            timetable.set(str(what), now + when)
            at[what] = now + when
        elif step == "drop":
            timetable.drop(str(what))
            at.pop(what, None)
        else:
            assert isinstance(what, int)
            now += when
            came = timetable.pop_due(now, what)
            due = {name for name, time in at.items() if time <= now}
            assert due.issuperset(came)
            assert len(set(came)) == len(came) == min(what, len(due))
            for name in came:
                del at[name]
        assert len(timetable) == len(at)
        assert all(name in timetable for name in at)
    if at:
        assert min(at.values()) <= (timetable.next_us() or 0) <= max(at.values())
    else:
        assert timetable.next_us() is None


def test_the_earliest_time_is_the_next() -> None:
    timetable = Timetable()
    for name, at in (("a", 30), ("b", 10), ("c", 20)):
        timetable.set(name, at)
    assert timetable.next_us() == 10
    timetable.drop("b")
    assert timetable.next_us() == 20
    timetable.set("c", 40)
    assert timetable.next_us() == 30
    assert timetable.pop_due(29, 9) == []
    assert timetable.pop_due(40, 9) in (["a", "c"], ["c", "a"])
    assert timetable.next_us() is None


def test_who_falls_due_behind_a_long_queue_comes_with_the_next_batch() -> None:
    timetable = Timetable()
    for number in range(1_000):
        timetable.set(f"burst-{number}", 10 + number % 7)
    timetable.set("later", 30)
    assert len(timetable.pop_due(20, 50)) == 50
    assert "later" not in timetable.pop_due(29, 50)
    assert "later" in timetable.pop_due(30, 50)


def test_who_has_waited_longest_comes_too_however_many_fall_due_meanwhile() -> None:
    timetable = Timetable()
    for number in range(100):
        timetable.set(f"first-{number}", 1)
    served: list[str] = []
    for now in range(2, 22):
        for number in range(10):
            timetable.set(f"at-{now}-{number}", now)
        served += timetable.pop_due(now, 10)
    assert sum(name.startswith("first") for name in served) == 100


def test_changes_without_end_do_not_make_it_grow() -> None:
    timetable = Timetable()
    for number in range(20_000):
        timetable.set("restless", 1_000_000 + number)
    assert len(timetable._times) <= 1_010
    assert timetable.next_us() == 1_019_999
