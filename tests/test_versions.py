"""What tells two versions of an entry apart, and which schedule is the newest."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from datetime import datetime, timedelta, tzinfo
from typing import Any
from uuid import uuid4

import pytest
from celery import Celery
from celery.beat import ScheduleEntry
from celery.schedules import crontab, schedule, solar
from hypothesis import given
from hypothesis import strategies as st

from celery_distsched import cron
from celery_distsched.drivers import StoreUrl
from celery_distsched.drivers.memory import MemoryDriver
from celery_distsched.fingerprint import fingerprint
from celery_distsched.record import Record, Version, may_claim, version_of
from celery_distsched.schedule_epoch import NameFilter, Schedule, ScheduleEpoch, register

NOW_US = 1_800_000_000_000_000


def of(**keys: Any) -> str:
    app = Celery(set_as_current=False)
    entry = ScheduleEntry(**{"name": "a", "task": "t", "schedule": 10.0, "app": app, **keys})
    return fingerprint(entry, {})


def some_function() -> None: ...


class Own(schedule):  # type: ignore[misc]
    """A schedule of the user's."""


class Unnamed(tzinfo):
    """A timezone that does not say which one it is."""

    def __init__(self, hours: int) -> None:
        self._offset = timedelta(hours=hours)

    def utcoffset(self, moment: datetime | None) -> timedelta:
        return self._offset

    def dst(self, moment: datetime | None) -> timedelta:
        return timedelta(0)

    def tzname(self, moment: datetime | None) -> str:
        return "unnamed"


CHANGES: list[dict[str, Any]] = [
    {},
    {"task": "other"},
    {"schedule": 11.0},
    {"schedule": schedule(timedelta(seconds=10), relative=True)},
    {"schedule": crontab(minute="5")},
    {"schedule": crontab(minute="5", hour="1")},
    {"schedule": cron("5 * * * *")},
    {"schedule": cron("5 * * * *", tz="Europe/Paris")},
    {"schedule": solar("sunset", 1, 2)},
    {"schedule": solar("sunset", 1, 3)},
    {"schedule": Own(timedelta(seconds=10))},
    {"args": (1,)},
    {"args": (timedelta(1),)},
    {"args": ({1, 2},)},
    {"args": (some_function,)},
    {"kwargs": {"a": 1}},
    {"kwargs": {"a": {2: 1}}},
    {"options": {"queue": "q"}},
]


def test_every_change_of_an_entry_changes_its_fingerprint() -> None:
    assert len({of(**change) for change in CHANGES}) == len(CHANGES)


#: Of `CHANGES`, in order.
FINGERPRINTS = (
    "02870e237b09483f", "cc947cd7eb85563c", "f959ac31d3188a68", "1bfffa772b9e90b4", "3a1d9b8d85198992",
    "989ee23b48375ff6", "014d72430d687391", "ecda3b81986ba865", "2b61b79bf6d6521b", "9ce9b72d02df8362",
    "5853f21e1d8c9fe0", "bb29559d1e42e11a", "6a1eb4cc1040a800", "6ea631601cea9dae", "0c2d9af01339b8cc",
    "0a2a72abb3cfd4c0", "0612325e0d71c335", "3c03e31626909643",
)  # fmt: skip


def test_fingerprints_are_the_same_in_every_release() -> None:
    # Another one would make every entry a new version in the next deploy.
    assert tuple(of(**change) for change in CHANGES) == FINGERPRINTS


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (schedule(10, relative=False), schedule(10, relative=0)),
        (crontab(minute="5"), crontab(minute=5)),
        (crontab(minute=1), crontab(minute=True)),
        (solar("sunset", 1, 2), solar("sunset", 1.0, 2.0)),
        (schedule(10), schedule(10, nowfun=some_function)),
    ],
)
def test_what_is_remembered_of_one_schedule_is_not_taken_for_one_that_is_but_equal(one: Any, other: Any) -> None:
    assert of(schedule=one) != of(schedule=other)
    assert of(schedule=other) != of(schedule=one)


@pytest.mark.parametrize("change", CHANGES, ids=range(len(CHANGES)))
def test_equal_entries_have_equal_fingerprints(change: dict[str, Any]) -> None:
    assert of(**change) == of(**change)


def test_another_timezone_of_the_app_is_another_version_of_its_crontabs() -> None:
    def in_zone(zone: str) -> str:
        app = Celery(set_as_current=False)
        app.conf.timezone = zone
        return fingerprint(ScheduleEntry("a", "t", schedule=crontab(minute="5", app=app), app=app), {})

    assert in_zone("Europe/Paris") != in_zone("UTC")


def test_a_fingerprint_is_the_same_in_every_process() -> None:
    """Sets, dicts and addresses come in another order, and at another place, in each."""
    program = (
        "from tests.test_versions import *;"
        "print(of(args=({'a', 'b', 'c', some_function}, object()), kwargs={'k': {1: 2, 'x': {'y'}}}));"
        "print(of(schedule=cron('5 * * * *', tz=Unnamed(3))))"
    )
    said = {
        subprocess.check_output([sys.executable, "-c", program], env={"PYTHONHASHSEED": str(seed)}, text=True)
        for seed in range(3)
    }
    assert len(said) == 1


def test_what_counts_of_a_timezone_that_does_not_say_which_one_it_is_is_its_offset() -> None:
    def in_zone(hours: int) -> str:
        return of(schedule=cron("5 * * * *", tz=Unnamed(hours)))

    assert in_zone(3) == in_zone(3)
    assert in_zone(3) != in_zone(4)


# Of a record


def test_equal_versions_of_records_are_one_object() -> None:
    text = Record(5, version=version_of("ab12", 7)).text()
    assert Record.parse(text).version is Record.parse(text).version is version_of("ab12", 7)


@pytest.mark.parametrize("epoch", ["1.0", "true", "01", '"1"', "null"])
def test_an_epoch_that_only_equals_a_number_is_no_epoch(epoch: str) -> None:
    # Equal keys are one key to a cache: what was read before must not make it right.
    assert Record.parse('{"last":5,"version":["ab12",1]}').version == Version("ab12", 1)
    with pytest.raises(ValueError, match="not a record"):
        Record.parse(f'{{"last":5,"version":["ab12",{epoch}]}}')


#: The beginning of the year 10000.
NO_DATE_US = 253_402_300_800_000_000
_VERSIONS = st.builds(Version, st.from_regex(r"[0-9a-f]{16}", fullmatch=True), st.integers(0))


@given(st.integers(0, NO_DATE_US - 1), st.booleans(), st.none() | _VERSIONS)
def test_a_record_is_read_as_it_was_written(last: int, paused: bool, version: Version | None) -> None:
    record = Record(last, paused=paused, version=version)
    assert Record.parse(record.text()) == record


# Who may claim


@pytest.mark.parametrize(
    ("stored", "mine", "live", "may"),
    [
        (None, Version("a", 1), {1}, True),
        (Version("a", 1), Version("a", 1), {1}, True),
        (Version("a", 2), Version("a", 1), {1, 2}, True),
        (Version("b", 2), Version("a", 1), {1, 2}, False),
        (Version("b", 2), Version("a", 1), {1}, True),
        (Version("b", 1), Version("a", 2), {1, 2}, True),
        # Numbered before the register was lost, and nobody has it any more.
        (Version("b", 1), Version("a", 1), {1}, True),
    ],
)
def test_of_the_versions_that_are_alive_the_newest_is_claimed(
    stored: Version | None, mine: Version, live: set[int], may: bool
) -> None:
    assert may_claim(stored, mine, live) is may


# The register


@pytest.fixture
def registered() -> Callable[..., ScheduleEpoch]:
    """Register schedules in one store; `live`: those that live nodes have."""
    driver = MemoryDriver(StoreUrl.parse("memory://epochs"), namespace=uuid4().hex, ttl_s=5.0, timeout_s=1.0)

    def call(digest: str, names: str, live: dict[str, int] | None = None, later_s: int = 0) -> ScheduleEpoch:
        found = register(driver, Schedule(digest, names.split()), live or {}, NOW_US + later_s * 1_000_000)
        assert found is not None
        return found

    return call


def test_a_new_schedule_has_the_next_number_and_the_others_of_the_same_take_it(
    registered: Callable[..., ScheduleEpoch],
) -> None:
    assert registered("one", "a").epoch == 1
    assert registered("one", "a", {"one": 1}).epoch == 1
    assert registered("two", "a b", {"one": 1}).epoch == 2
    # A node of the release before comes back while others of it are alive.
    assert registered("one", "a", {"one": 1, "two": 2}).epoch == 1
    # The same when none is: it is a roll-back.
    assert registered("one", "a", {"two": 2}).epoch == 3
    # The whole cluster starts again.
    assert registered("one", "a").epoch == 3


def test_an_entry_is_back_if_the_schedule_before_did_not_have_it(registered: Callable[..., ScheduleEpoch]) -> None:
    assert not registered("one", "kept away").is_back("away")
    registered("two", "kept", {"one": 1})
    third = registered("three", "kept away", {"two": 2})
    assert third.is_back("away")
    assert not third.is_back("kept")
    # Whoever joins later, or reads it again, sees the same.
    assert registered("three", "kept away", {"three": 3}) == third


def test_a_schedule_that_was_away_while_another_lived_is_registered_anew(
    registered: Callable[..., ScheduleEpoch],
) -> None:
    """A canary, or a release after a roll-back: what only it has was not run meanwhile, and nothing of that is."""
    registered("old", "kept")
    first = registered("canary", "kept new", {"old": 1})
    # One more that joins at the same moment has not seen the first yet.
    assert registered("canary", "kept new", {"old": 1}, later_s=1) == first
    again = registered("canary", "kept new", {"old": 1}, later_s=60)
    assert (again.epoch, again.since_us) == (first.epoch + 1, NOW_US + 60_000_000)
    assert again.is_back("new")
    assert not again.is_back("kept")


def test_what_another_live_node_carries_all_the_time_is_not_back(registered: Callable[..., ScheduleEpoch]) -> None:
    registered("one", "kept always")
    registered("two", "kept", {"one": 1})
    assert not registered("three", "kept always", {"one": 1, "two": 2}).is_back("always")


def test_a_register_that_is_garbage_is_written_anew() -> None:
    driver = MemoryDriver(StoreUrl.parse("memory://epochs"), namespace=uuid4().hex, ttl_s=5.0, timeout_s=1.0)
    from celery_distsched.drivers import Swap

    register_of = '{"epoch":%s,"digest":"x","since":%s,"names":""}'
    numbers = [register_of % ("1e999", 0), register_of % (1, "9" * 4000), register_of % (-1, 0)]
    for garbage in ("", "[]", "[" * 5000, *numbers, '{"epoch": 1}', '{"epoch":1,"digest":"x","since":0,"names":"*"}'):
        (text,) = driver.read(["\0schedule"])
        driver.swap([Swap("\0schedule", text, garbage)])
        found = register(driver, Schedule("one", ["a"]), {}, NOW_US)
        assert found is not None
        assert not found.is_back("a")


@given(st.sets(st.text(min_size=1), max_size=300))
def test_a_filter_knows_every_name_that_was_put_in(names: set[str]) -> None:
    known = NameFilter.of(names)
    assert all(name in known for name in names)


def test_a_filter_takes_few_others_for_known() -> None:
    known = NameFilter.of([f"entry {number}" for number in range(2000)])
    assert sum(f"other {number}" in known for number in range(10_000)) < 300


def test_the_register_of_many_entries_fits_into_one_key_of_consul() -> None:
    names = NameFilter.of([f"entry {number}" for number in range(200_000)])
    assert len(ScheduleEpoch(7, "x" * 32, NOW_US, names, names).text()) < 380_000
