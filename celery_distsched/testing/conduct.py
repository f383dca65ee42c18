"""Promises 1 and 11 to 14: how a driver behaves whatever it is asked."""
# ruff: noqa: S101  (these are tests: what they claim, they assert)

from __future__ import annotations

import threading

from celery_distsched.drivers.base import Answer, Swap
from celery_distsched.errors import LeaseLost
from celery_distsched.testing.checks import (
    ODD_TEXTS,
    at_once,
    chunks,
    ended_well,
    every_call,
    forked,
    io_of_this_thread,
    recovered,
    refused,
)
from celery_distsched.testing.store import StoreUnderTest


class ConductContract(StoreUnderTest):
    """Passive, closable, safe for two threads, and deaf to other namespaces."""

    # 1. The constructor

    def test_the_constructor_does_no_io(self) -> None:
        first = self.node()  # imports what there is to import
        with io_of_this_thread() as seen:
            driver = type(first)(first.url, namespace=self.namespace, ttl_s=60.0, timeout_s=5.0, options=first.settings)
            repr(driver)
        assert seen == []
        assert driver.members() == {}
        driver.close()

    def test_a_driver_starts_no_thread(self) -> None:
        before = set(threading.enumerate())
        driver = self.node()
        for call in every_call(driver):
            call()
        assert set(threading.enumerate()) <= before

    # 11. Threads

    def test_two_threads_may_call_at_a_time(self) -> None:
        node = self.node()
        node.join("me", "0")

        def renew() -> None:
            for count in range(50):
                node.renew("me", str(count))
                assert node.members()["me"].info == str(count)

        def swap() -> None:
            for count in range(50):
                batch = [Swap(f"{count}-{n}", None, f"{count} {n}") for n in range(3)]
                assert node.swap(batch, fence="me") == [Answer(True, swap.new) for swap in batch]
                assert node.read([swap.key for swap in batch]) == [swap.new for swap in batch]

        at_once(renew, swap)

    # 12. Closing

    def test_close_may_be_called_twice_and_a_later_call_connects_again(self) -> None:
        node, reader = self.node(), self.node()
        node.close()
        node.join("me", "info")
        before = reader.members()
        for _ in range(2):
            node.close()
            node.close()
            assert reader.members() == before, "to close is not to leave"
            node.renew("me", "info")
            before = reader.members()
            assert node.swap([Swap("entry", None, "1"), Swap("other", "1", "1")], fence="me")[1] == Answer(False, None)

    # 13. Any text; no other namespace

    def test_keys_are_any_text_and_no_two_are_one(self) -> None:
        node, reader = self.node(), self.node()
        for keys in chunks(ODD_TEXTS, node.max_batch):
            node.swap([Swap(key, None, f"record of {key}") for key in keys])
        for keys in chunks(ODD_TEXTS, node.max_batch):
            assert reader.read(keys) == [f"record of {key}" for key in keys]

    def test_memberships_are_any_text_and_no_two_are_one(self) -> None:
        node, reader = self.node(), self.node()
        for membership in ODD_TEXTS:
            node.join(membership, f"info of {membership}")
        assert {name: member.info for name, member in reader.members().items()} == {
            n: f"info of {n}" for n in ODD_TEXTS
        }
        for gone, membership in enumerate(ODD_TEXTS):
            node.renew(membership, "renewed")
            assert node.swap([Swap(membership, None, "x")], fence=membership) == [Answer(True, "x")]
            node.remove(membership)
            assert set(reader.members()) == set(ODD_TEXTS[gone + 1 :])

    def test_namespaces_never_meet(self) -> None:
        own, seen = self.namespace, {}
        odd = [
            own,
            *(f"{own}{text}" for text in ODD_TEXTS),
            *(f"{text}{own}" for text in ODD_TEXTS if len(text) < 10),
            own[:-1],
            own[:-1] + "?",
        ]
        names = [*odd, f"{own}:nodes", f"{own}/nodes", f"{own}/ledger/a", f"{own}:a"]
        tails = ["k", *(text for text in ODD_TEXTS if len(text) < 5)]
        for name in names:
            node = seen[name] = self.node(name)
            assert node.members() == {}
            assert node.swap([Swap(tail, None, name) for tail in tails[:5]]) == [Answer(True, name)] * 5
            refused(LeaseLost, node.swap, [Swap("fenced", None, "x")], "me")
            node.join("me", name)
        for name, node in seen.items():
            assert {key: member.info for key, member in node.members().items()} == {"me": name}
            assert node.read(tails[:5]) == [name] * 5
        for count, (name, node) in enumerate(seen.items()):
            node.remove("me")
            assert node.members() == {}
            node.close()
            if count + 1 < len(names):
                assert "me" in seen[names[count + 1]].members(), name

    # 14. Forks

    def test_a_forked_process_has_connections_of_its_own(self) -> None:
        node = self.node()
        node.join("parent", "0")
        node.swap([Swap("parent", None, "0")])

        def work(who: str) -> None:
            """Each must get its own answers, while the other asks as well."""
            for count in range(30):
                node.join(who, str(count))
                assert node.members()[who].info == str(count)
                assert node.read([f"{who}-{count}"]) == [None]
                key = f"{who}-{count}"
                assert node.swap([Swap(key, None, key)], fence=who) == [Answer(True, key)]

        def first_connect_then_work() -> None:
            # gRPC may lose the first call after a fork, and says so.
            recovered(node.members)
            work("child")

        child = forked(first_connect_then_work)
        work("parent")
        ended_well(child, within_s=20.0)
        assert node.members()["parent"].info == "29"
