"""What is claimed and pushed in one call is what `apply_async` would have sent, byte for byte, to the same key."""

from __future__ import annotations

import copy
import json
import logging
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import date, datetime, timedelta, timezone
from decimal import Decimal
from typing import Any
from uuid import UUID
from zoneinfo import ZoneInfo

import celery
import pytest
from celery import Celery
from celery.beat import BeatLazyFunc
from hypothesis import HealthCheck, Phase, event, given, settings
from hypothesis import strategies as st
from kombu import entity
from kombu import serialization as kombu_serialization

from tests.same_redis.conftest import NewTwoWays
from tests.same_redis.two_ways import UNKNOWN, Left, TwoWays, app_of, same

# Any: kombu's calls have no types.
Exchange: Any = entity.Exchange
Queue: Any = entity.Queue
serialization: Any = kombu_serialization
TOMORROW = datetime.now(timezone.utc).replace(microsecond=0) + timedelta(days=1)


@pytest.fixture(scope="module", autouse=True)
def _serializers() -> Iterator[None]:
    """What projects register beside kombu's own: JSON that is spelled otherwise, and something that is no JSON."""
    serialization.register("sorted", _sorted, json.loads, "application/json", "utf-8")
    serialization.register("told", repr, str, "application/x-told", "utf-8")
    yield
    serialization.unregister("sorted")
    serialization.unregister("told")
    # With "sorted" went the reading of its content type, for all.
    serialization.register_json()


def _sorted(value: Any) -> str:
    return json.dumps(value, default=repr, sort_keys=True)


# What a schedule may hold


def few(most: int, choices: dict[str, st.SearchStrategy[Any]]) -> st.SearchStrategy[dict[str, Any]]:
    """Dicts with some of these keys: with most of them, nearly no message would go the fast way."""
    chosen = st.lists(st.sampled_from(sorted(choices)), max_size=most, unique=True)
    return chosen.flatmap(lambda keys: st.fixed_dictionaries({key: choices[key] for key in keys}))


plain = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=20)
    | st.sampled_from(["ü", "日本", '"', "\\", "\n", "\u2028", "🎂", "x" * 1500, "%s {0}", ""])
)
special = st.sampled_from(
    [datetime(2024, 5, 1, 12, tzinfo=timezone.utc), date(2024, 5, 1), Decimal("1.5"), UUID(int=5), b"\xff", b"text"]
)
values = st.recursive(
    plain | special,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)
args = st.lists(values, max_size=3) | st.lists(values, max_size=3).map(tuple)
kwargs = st.dictionaries(st.sampled_from(["left", "right", "größe", "x"]), values, max_size=3)
names = st.sampled_from(["nightly", "größer als 日本", 'with "quotes" and \\', "new\nline", "100%", " "])
headers = st.dictionaries(st.sampled_from(["tenant", "ü", "n"]), values, max_size=2)
signatures = st.sampled_from(
    [
        celery.signature("next", args=(1, "ü"), options={"queue": "later"}),
        celery.signature("next", kwargs={"deep": {"list": [1]}}, immutable=True),
        celery.chain(celery.signature("a"), celery.signature("b"), app=Celery(set_as_current=False)),
    ]
)
options = few(
    3,
    {
        "queue": st.sampled_from(["celery", "reports", "größe", "with:colon", Queue("object", Exchange("x"))]),
        "priority": st.none() | st.integers(-3, 12),
        "headers": headers,
        "expires": st.none() | st.integers(0, 10**6) | st.floats(0, 10**6) | st.sampled_from([TOMORROW, -5]),
        "serializer": st.sampled_from(["json", "json", "sorted", "told", "pickle"]),
        "compression": st.sampled_from(["gzip", "zlib"]),
        "ignore_result": st.booleans(),
        "shadow": st.sampled_from(["another name", "größe"]),
        "countdown": st.sampled_from([None, 0, 30]),
        "link": signatures | st.lists(signatures, max_size=2),
        "link_error": signatures,
        "time_limit": st.integers(1, 99),
        "soft_time_limit": st.floats(0.5, 1),
        "argsrepr": st.just("(…)"),
        "kwargsrepr": st.just("{…}"),
        "delivery_mode": st.sampled_from([1, 2]),
        "reply_to": st.just("answers"),
        "correlation_id": st.just("chosen"),
        "root_id": st.just("the root"),
        "group_id": st.just("the group"),
        "retry": st.booleans(),
        "retry_policy": st.just({"max_retries": 1}),
        "routing_key": st.just("any"),
    },
)
tasks = st.sampled_from([UNKNOWN, "plain", "typed", "untyped", "own", "limited", "packed"])
entries = st.fixed_dictionaries({}, optional={"task": tasks, "args": args, "kwargs": kwargs, "options": options})
# Few options, so that several entries are of one kind.
entries |= st.fixed_dictionaries(
    {"task": st.sampled_from([UNKNOWN, "plain"])}, optional={"args": args, "kwargs": kwargs}
)
schedules = st.dictionaries(names, entries, min_size=1, max_size=4)
confs = few(
    2,
    {
        "task_routes": st.sampled_from(
            [
                {"nobody.*": {"queue": "routed", "priority": 4}, "plain": "for plain"},
                {"plain": {"routing_key": "any", "ignore_result": True}},
                ({"*": {"queue": "all", "headers": {"by": "route"}}},),
                (lambda name, *_, **__: {"queue": f"for {name}", "priority": 3},),
                (lambda name, args, kwargs, *_, **__: {"queue": f"for {len(args)} and {len(kwargs)}"},),
            ]
        ),
        "task_serializer": st.sampled_from(["json", "sorted", "pickle"]),
        "task_compression": st.just("gzip"),
        "task_default_priority": st.integers(0, 9),
        "task_default_queue": st.just("default"),
        "task_ignore_result": st.booleans(),
        "task_default_delivery_mode": st.sampled_from(["transient", "persistent"]),
        # Known since Celery 5.7, and nothing to those before.
        "task_repr_maxlevels": st.integers(0, 5),
        "timezone": st.sampled_from(["Asia/Tokyo", "America/New_York"]),
        "enable_utc": st.booleans(),
        "broker_transport_options": st.fixed_dictionaries(
            {},
            optional={
                "global_keyprefix": st.sampled_from(["mine:", "größe/"]),
                "priority_steps": st.sampled_from([[0, 5], list(range(10)), [0]]),
                "sep": st.just(":"),
                "queue_order_strategy": st.just("priority"),
            },
        ),
    },
)


#: Without these the fast way would be of little use.
ENTRIES: dict[str, dict[str, Any]] = {
    "nothing but a task": {},
    "a registered task": {"task": "plain"},
    "a task with options of its own": {"task": "own"},
    "positional arguments": {"task": "typed", "args": [1, "ü"]},
    "keyword arguments": {"task": "typed", "args": [1], "kwargs": {"right": {"deep": [1.5, None]}}},
    "a queue": {"options": {"queue": "reports"}},
    "a priority": {"options": {"priority": 7}},
    "an expiry": {"options": {"expires": 60}},
    "headers": {"options": {"headers": {"tenant": "acme"}}},
    "no result": {"options": {"ignore_result": True}},
    "a callback": {"options": {"link": celery.signature("next", args=(1,))}},
    "hidden arguments": {"args": ["secret"], "options": {"argsrepr": "(…)", "kwargsrepr": "{…}"}},
}

#: What somebody may do to what the user's dict holds, while the beat runs.
CHANGES: dict[str, Callable[[dict[str, Any]], Any]] = {
    "one more argument": lambda entry: entry["args"].append(2),
    "an argument of another type": lambda entry: entry["args"][0].__setitem__(0, True),
    "within an argument": lambda entry: entry["args"][0].append(2),
    "a keyword argument": lambda entry: entry["kwargs"].update(more=1),
    "within a keyword argument": lambda entry: entry["kwargs"]["deep"].update(er=2),
    "the queue": lambda entry: entry["options"].update(queue="another"),
    "a header": lambda entry: entry["options"]["headers"].update(a=2),
}


class Answer:
    """An argument that says itself what it is in JSON, and nothing of that in its `repr`."""

    def __init__(self) -> None:
        self.is_ = 42

    def __repr__(self) -> str:
        return "<Answer>"

    def __json__(self) -> dict[str, int]:
        return {"is": self.is_}


#: What an entry may have that says nothing of what is in it but by its `repr`.
MORE: dict[str, dict[str, Any]] = {
    "plain": {},
    "with a UUID": {"args": [[1], UUID(int=1)]},
    "with a callback": {"options": {"headers": {"a": 1}, "link": celery.signature("next", args=(1,))}},
}


@settings(
    max_examples=150,
    deadline=None,
    derandomize=True,
    phases=[Phase.explicit, Phase.generate, Phase.shrink],
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(schedule=schedules, conf=confs)
def test_the_fast_way_yields_what_apply_async_yields(url: str, schedule: dict[str, Any], conf: dict[str, Any]) -> None:
    with quiet(), TwoWays(app_of(schedule, **conf), url) as ways:
        for planned in ways.planned().values():
            fast = ways.fast(planned)
            event("ordinary" if fast is None else "fast")
            if fast is not None:
                same(fast, ways.ordinary(planned))


@contextmanager
def quiet() -> Iterator[None]:
    """Celery's and ours say something of each entry that cannot work; here that is most of what is said."""
    logging.disable(logging.CRITICAL)
    try:
        yield
    finally:
        logging.disable(logging.NOTSET)


TRAPS: dict[str, tuple[list[dict[str, Any]], dict[str, Any]]] = {
    "a priority below the lowest": ([{"options": {"priority": -1}}], {}),
    "a priority above the highest": ([{"options": {"priority": 99}}], {}),
    "a priority that is a text": ([{"options": {"priority": "5"}}], {}),
    "a depth of what is shown": ([{"args": [[[[1]]]]}], {"task_repr_maxlevels": 1}),
    "mappings": ([{"kwargs": OrderedDict(left=OrderedDict(b=1, a=2))}], {}),
    "tuples": ([{"args": (1, (2, 3)), "kwargs": {"x": (4,)}}, {"args": [1, [2, 3]]}], {}),
    "a JSON of one's own after no arguments": (
        [{"options": {"serializer": "sorted"}}, {"kwargs": {"b": 1, "a": 2}, "options": {"serializer": "sorted"}}],
        {},
    ),
    "headers in another order": (
        [{"options": {"headers": {"a": 1, "b": 2}}}, {"options": {"headers": {"b": 2, "a": 1}}}],
        {},
    ),
    "headers that JSON makes equal": ([{"options": {"headers": {1: "x"}}}, {"options": {"headers": {"1": "x"}}}], {}),
    "a header in the task id's place": ([{"options": {"headers": {"id": "chosen"}}}], {}),
    "a header that hides the arguments": ([{"args": ["secret"], "options": {"headers": {"argsrepr": "(…)"}}}], {}),
    "stamps": ([{"options": {"stamped_headers": ["who"], "who": "me"}}], {}),
    "the end of summer time": ([{"options": {"expires": 3600}}], {"timezone": "Europe/Berlin", "enable_utc": False}),
}


@pytest.mark.parametrize(("entries", "conf"), TRAPS.values(), ids=TRAPS)
def test_a_trap_is_no_trap(two_ways: NewTwoWays, entries: list[dict[str, Any]], conf: dict[str, Any]) -> None:
    ways = two_ways({f"entry {number}": entry for number, entry in enumerate(entries)}, **conf)
    # Half an hour before the clocks are set back.
    berlin = datetime(2023, 10, 29, 2, 45, tzinfo=ZoneInfo("Europe/Berlin"))
    if "timezone" in conf:
        ways.app.now = lambda: berlin
    planned = ways.planned()
    assert len(planned) == len(entries)
    for one in planned.values():
        fast = ways.fast(one)
        if fast is not None:
            same(fast, ways.ordinary(one))


def test_a_queue_that_is_bound_later_gets_its_messages(two_ways: NewTwoWays) -> None:
    exchange = Exchange("named", type="direct")
    first, second = (Queue(name, exchange, routing_key="one") for name in ("first", "second"))
    entry = {"options": {"exchange": "named", "routing_key": "one"}}
    ways = two_ways({"nightly": entry}, task_queues=[first])
    (planned,) = ways.planned().values()
    with ways.app.connection_for_write() as connection:
        for queue in (first, second):
            queue(connection.default_channel).declare()
            fast = ways.fast(planned)
            if fast is not None:
                same(fast, ways.ordinary(planned))


def _changed(two_ways: NewTwoWays, entry: dict[str, Any], change: Callable[[dict[str, Any]], Any]) -> Left | None:
    """Return what the fast way sends after a change in place, if it sends it: what the ordinary way sends then."""
    ways = two_ways({"nightly": entry})
    (planned,) = ways.planned().values()
    before = ways.fast(planned)
    change(entry)
    fast, ordinary = ways.fast(planned), ways.ordinary(planned)
    assert before is not None
    if fast is not None:
        same(fast, ordinary)
    with pytest.raises(AssertionError):
        same(before, ordinary)
    return fast


@pytest.mark.parametrize("more", MORE.values(), ids=MORE)
@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_what_is_changed_in_place_is_sent_as_it_is_now(
    two_ways: NewTwoWays, change: Callable[[dict[str, Any]], Any], more: Mapping[str, Any]
) -> None:
    # Celery's beat looks at what the user's dict holds at each run.
    entry = copy.deepcopy({"args": [[1], "a"], "kwargs": {"deep": {"er": 1}}, "options": {"headers": {"a": 1}}, **more})
    assert _changed(two_ways, entry, change) is not None


@pytest.mark.parametrize(
    ("entry", "change"),
    [
        ({"args": [Answer()]}, lambda entry: setattr(entry["args"][0], "is_", 43)),
        ({"options": {"link": celery.signature("next")}}, lambda entry: entry["options"]["link"].set(queue="x")),
        ({"options": {"link": celery.signature("next")}}, lambda entry: entry["options"]["link"].set(immutable=True)),
    ],
    ids=["an argument", "a callback's queue", "a callback"],
)
def test_what_is_changed_without_a_trace_in_its_repr_is_sent_as_it_is_now(
    two_ways: NewTwoWays, entry: dict[str, Any], change: Callable[[dict[str, Any]], Any]
) -> None:
    _changed(two_ways, entry, change)


def test_an_argument_that_is_made_at_each_run_from_now_on_goes_the_ordinary_way(two_ways: NewTwoWays) -> None:
    entry: dict[str, Any] = {"args": [1]}
    ways = two_ways({"nightly": entry})
    (planned,) = ways.planned().values()
    assert ways.fast(planned) is not None
    entry["args"][0] = BeatLazyFunc(lambda: 2)
    assert ways.fast(planned) is None


@pytest.mark.parametrize("entry", ENTRIES.values(), ids=ENTRIES)
def test_what_nobody_hooks_into_goes_the_fast_way(two_ways: NewTwoWays, entry: dict[str, Any]) -> None:
    ways = two_ways({"nightly": entry})
    (planned,) = ways.planned().values()
    fast = ways.fast(planned)
    assert fast is not None
    same(fast, ways.ordinary(planned))
