"""The one call: each claim is made whole or not at all, and says which."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import redis

from celery_distsched.drivers import StoreUrl, open_driver
from celery_distsched.drivers.base import Answer, Claim, Elsewhere, PushRefused
from celery_distsched.errors import LeaseLost, StoreUnavailable
from tests.servers import RedisServer
from tests.wire import Wire

ME = "me#1"


@pytest.fixture
def client(url: str) -> Iterator[Any]:
    with redis.Redis.from_url(url, decode_responses=True) as client:
        client.flushdb()
        yield client
        client.flushdb()


@pytest.fixture(params=["redis+zset", "redis+scan"])
def driver(request: pytest.FixtureRequest, url: str, client: Any) -> Iterator[Any]:
    store = StoreUrl.parse(url.replace("redis://", f"{request.param}://"))
    driver = open_driver(store, namespace="claims", ttl_s=5.0, timeout_s=1.0, options={})
    driver.join(ME, "{}")
    yield driver
    driver.close()


@pytest.fixture
def run_id(driver: Any) -> str:
    found: str = driver.server()[0]
    return found


def claim(entry: str, expected: str | None, new: str, *messages: str, to: str = "queue") -> Claim:
    return Claim(entry, expected, new, to, messages or (f"{entry} {new}",))


def test_a_claim_that_is_won_is_in_the_ledger_and_in_the_queue(driver: Any, client: Any, run_id: str) -> None:
    claims = [claim("a", None, "1"), claim("b", None, "1", to="another")]
    assert driver.claim_and_push(claims, ME, run_id)() == [Answer(True, "1"), Answer(True, "1")]
    assert driver.read(["a", "b"]) == ["1", "1"]
    assert client.lrange("queue", 0, -1) == ["a 1"]
    assert client.lrange("another", 0, -1) == ["b 1"]


def test_a_claim_that_is_lost_pushes_nothing_and_costs_no_other(driver: Any, client: Any, run_id: str) -> None:
    driver.claim_and_push([claim("a", None, "1")], ME, run_id)()
    claims = [claim("a", None, "2"), claim("b", None, "1"), claim("a", "0", "2"), claim("c", "1", "2")]
    answers = driver.claim_and_push(claims, ME, run_id)()
    assert answers == [Answer(False, "1"), Answer(True, "1"), Answer(False, "1"), Answer(False, None)]
    assert client.lrange("queue", 0, -1) == ["b 1", "a 1"]


def test_a_claim_that_is_repeated_after_a_lost_reply_pushes_nothing_more(driver: Any, client: Any, run_id: str) -> None:
    again = claim("a", None, "1")
    driver.claim_and_push([again], ME, run_id)()
    assert driver.claim_and_push([again], ME, run_id)() == [Answer(False, "1")]
    assert client.llen("queue") == 1


def test_the_messages_of_a_claim_are_in_the_queue_in_their_order(driver: Any, client: Any, run_id: str) -> None:
    messages = [f"number {number}" for number in range(32)]
    driver.claim_and_push([claim("a", None, "1", *messages)], ME, run_id)()
    # A worker takes from the tail.
    assert [client.rpop("queue") for _ in messages] == messages


def test_a_queue_of_the_wrong_type_leaves_its_claim_unmade_and_costs_no_other(
    driver: Any, client: Any, run_id: str
) -> None:
    client.set("taken", "by somebody")
    claims = [claim("a", None, "1"), claim("b", None, "1", to="taken"), claim("c", None, "1")]
    first, refused, last = driver.claim_and_push(claims, ME, run_id)()
    assert (first, last) == (Answer(True, "1"), Answer(True, "1"))
    assert isinstance(refused, PushRefused)
    assert "WRONGTYPE" in refused.error
    assert driver.read(["a", "b", "c"]) == ["1", None, "1"]
    assert client.get("taken") == "by somebody"


def test_who_is_no_member_claims_and_pushes_nothing(driver: Any, client: Any, run_id: str) -> None:
    driver.remove(ME)
    with pytest.raises(LeaseLost):
        driver.claim_and_push([claim("a", None, "1")], ME, run_id)()
    assert driver.read(["a"]) == [None]
    assert client.llen("queue") == 0


def test_where_the_broker_is_another_server_nothing_is_done(driver: Any, client: Any) -> None:
    with pytest.raises(Elsewhere):
        driver.claim_and_push([claim("a", None, "1")], ME, "0" * 40)()
    assert driver.read(["a"]) == [None]
    assert client.llen("queue") == 0


def test_a_server_that_has_forgotten_its_scripts_is_told_again(driver: Any, client: Any, run_id: str) -> None:
    driver.claim_and_push([claim("a", None, "1")], ME, run_id)()
    client.script_flush()
    assert driver.claim_and_push([claim("a", "1", "2")], ME, run_id)() == [Answer(True, "2")]
    assert client.lrange("queue", 0, -1) == ["a 2", "a 1"]


def test_any_text_is_claimed_and_pushed_as_it_is(driver: Any, client: Any, run_id: str) -> None:
    odd = 'größe "quoted"\n\\ %s {0} \x00 日本'
    driver.claim_and_push([Claim(odd, None, odd, odd, (odd,))], ME, run_id)()
    assert driver.read([odd]) == [odd]
    assert client.lrange(odd, 0, -1) == [odd]


def test_an_answer_that_was_lost_is_not_taken_for_that_of_the_next_call(
    redis_server: RedisServer, wire_to: Callable[[RedisServer], Wire], client: Any
) -> None:
    wire = wire_to(redis_server)
    driver: Any = open_driver(
        StoreUrl.parse(redis_server.url(port=wire.port, path="/9")),
        namespace="lost",
        ttl_s=5.0,
        timeout_s=0.5,
        options={},
    )
    driver.join(ME, "{}")
    run_id = driver.server()[0]
    driver.claim_and_push([claim("warm", None, "1")], ME, run_id)()
    wire.freeze()
    waiting = driver.claim_and_push([claim("a", None, "1"), claim("b", None, "1")], ME, run_id)
    with pytest.raises(StoreUnavailable):
        waiting()
    wire.mend()
    assert driver.claim_and_push([claim("c", None, "1")], ME, run_id)() == [Answer(True, "1")]
    driver.close()


def test_a_server_that_takes_no_writes_for_now_is_no_broker_that_refuses(url: str, driver: Any, run_id: str) -> None:
    with redis.Redis.from_url(url) as admin:
        admin.config_set("maxmemory", 1)
        try:
            landing = driver.claim_and_push([claim("a", None, "1"), claim("b", None, "1", to="another")], ME, run_id)
            with pytest.raises(StoreUnavailable, match="used memory"):
                landing()
        finally:
            admin.config_set("maxmemory", 0)
        assert admin.keys("queue") == admin.keys("another") == []
    assert driver.read(["a", "b"]) == [None, None]
    # What refuses by its kind does so still, and the connection is of use.
    assert driver.claim_and_push([claim("a", None, "1")], ME, run_id)() == [Answer(True, "1")]
