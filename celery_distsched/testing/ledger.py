"""Promises 6 to 8: the exact swap, its fence, and reading."""
# ruff: noqa: S101  (these are tests: what they claim, they assert)

from __future__ import annotations

import itertools
import time
from functools import partial

from celery_distsched.drivers.base import Answer, Swap
from celery_distsched.errors import LeaseLost
from celery_distsched.testing.checks import ODD_TEXTS, at_once, poll, refused
from celery_distsched.testing.store import StoreUnderTest


class LedgerContract(StoreUnderTest):
    """What `swap` and `read` promise."""

    # 6. The exact swap

    def test_a_swap_wins_only_against_exactly_what_it_expects(self) -> None:
        node, other = self.node(), self.node()
        assert node.swap([Swap("entry", None, "1")]) == [Answer(True, "1")]
        for wrong in (None, "2", "1.0", "1 ", " 1", "01", "", "one"):
            assert other.swap([Swap("entry", wrong, "9")]) == [Answer(False, "1")], wrong
        assert other.swap([Swap("entry", "1", "é")]) == [Answer(True, "é")]
        assert node.swap([Swap("entry", "e\u0301", "9")]) == [Answer(False, "é")]
        assert node.swap([Swap("entry", "1", "9")]) == [Answer(False, "é")]
        assert node.swap([Swap("absent", "1", "9")]) == [Answer(False, None)]
        assert node.read(["entry", "absent"]) == other.read(["entry", "absent"]) == ["é", None]

    def test_what_a_swap_expects_is_the_record_not_its_history(self) -> None:
        node, other = self.node(), self.node()
        node.swap([Swap("entry", None, "a")])
        other.swap([Swap("entry", "a", "b")])
        other.swap([Swap("entry", "b", "a")])
        assert node.swap([Swap("entry", "a", "a")]) == [Answer(True, "a")]
        assert other.swap([Swap("entry", "a", "c")]) == [Answer(True, "c")]

    def test_a_swap_that_loses_costs_no_other_of_its_batch(self) -> None:
        node, other = self.node(), self.node()
        other.swap([Swap("taken", None, "theirs"), Swap("mine", None, "old")])
        batch = [
            *(Swap("taken", None, "x"), Swap("new", None, "a"), Swap("absent", "old", "x")),
            *(Swap("mine", "old", "b"), Swap("also new", None, "c")),
        ]
        won = [Answer(True, "a"), Answer(True, "b"), Answer(True, "c")]
        assert node.swap(batch) == [Answer(False, "theirs"), won[0], Answer(False, None), *won[1:]]
        assert other.read([swap.key for swap in batch]) == ["theirs", "a", None, "b", "c"]

    def test_a_swap_that_was_begun_is_as_exact(self) -> None:
        node, other = self.node(), self.node()
        node.join("me", "")
        batch = [Swap(f"entry {number}", None, "mine") for number in range(min(300, node.max_batch))]
        first = node.swapping(batch, fence="me")
        second = other.swapping([swap._replace(new="theirs") for swap in batch], fence="me")
        mine, theirs = first(), second()
        records = node.read([swap.key for swap in batch])
        for one, another, record in zip(mine, theirs, records, strict=True):
            assert one.won != another.won
            assert one.record == another.record == record == ("mine" if one.won else "theirs")
        node.remove("me")
        refused(LeaseLost, lambda: node.swapping([Swap("late", None, "x")], fence="me")())
        assert node.read(["late"]) == [None]

    def test_an_empty_batch_has_an_empty_answer(self) -> None:
        node = self.node()
        node.join("me", "")
        assert node.swap([]) == []
        assert node.swap([], fence="me") == []
        assert node.read([]) == []

    def test_the_largest_batch_is_taken_whether_it_wins_or_loses(self) -> None:
        node, other = self.node(), self.node()
        node.join("me", "")
        keys = [f"an.entry.with.a.dotted.name-{n}" for n in range(node.max_batch)]
        old, new = '{"last":1767225600000000,"open":{"%d":"host-%d"}}' * 2, "new %d"
        batch = [Swap(key, None, old % (n, n, n, n)) for n, key in enumerate(keys)]
        assert node.swap(batch, fence="me") == [Answer(True, swap.new) for swap in batch]
        assert other.read(keys) == [swap.new for swap in batch]
        assert other.swap(batch) == [Answer(False, swap.new) for swap in batch]
        mixed = [Swap(swap.key, swap.new if n % 3 else None, new % n) for n, swap in enumerate(batch)]
        expected = [Answer(True, new % n) if n % 3 else Answer(False, batch[n].new) for n in range(len(batch))]
        assert node.swap(mixed, fence="me") == expected
        assert other.read(keys) == [answer.record for answer in expected]

    def test_the_largest_batch_of_long_names_is_taken(self) -> None:
        node = self.node()
        batch = [Swap(f"{n} {'long ü ' * 100}", None, f"record {n}") for n in range(node.max_batch)]
        assert node.swap(batch) == [Answer(True, swap.new) for swap in batch]
        assert node.swap(batch) == [Answer(False, swap.new) for swap in batch]
        assert node.read([swap.key for swap in batch]) == [swap.new for swap in batch]

    def test_of_swaps_that_expect_the_same_exactly_one_wins(self) -> None:
        nodes = [self.node(), self.node()]
        keys = [f"entry-{n}" for n in range(20)]
        before: dict[str, str | None] = dict.fromkeys(keys)
        for round_ in range(5):

            def compete(who: int, expected: dict[str, str | None], round_: int = round_) -> dict[str, Answer]:
                order = keys[who * 5 :] + keys[: who * 5]
                batch = [Swap(key, expected[key], f"round {round_}, thread {who}") for key in order]
                return dict(zip(order, nodes[who % 2].swap(batch), strict=True))

            outcomes = at_once(*(partial(compete, who, before) for who in range(4)))
            before = dict(zip(keys, nodes[0].read(keys), strict=True))
            for key in keys:
                winners = [who for who, answers in enumerate(outcomes) if answers[key].won]
                assert len(winners) == 1, (key, winners)
                assert before[key] == f"round {round_}, thread {winners[0]}"
                assert {answers[key].record for answers in outcomes} == {before[key]}

    # 7. The fence

    def test_without_its_fence_a_batch_writes_nothing(self) -> None:
        node, other = self.node(), self.node()
        other.join("other", "")
        other.swap([Swap("old", None, "1")])
        batch = [Swap("new", None, "x"), Swap("old", "1", "x"), Swap("lost", "1", "x")]
        refused(LeaseLost, node.swap, batch, "me")  # never joined
        node.join("me", "")
        assert node.swap([Swap("old", "1", "2"), Swap("lost", "1", "x")], "me") == [
            Answer(True, "2"),
            Answer(False, None),
        ]
        other.remove("me")
        for size in (1, 2, 3):
            refused(
                LeaseLost,
                node.swap,
                [Swap("new", None, "x"), Swap("old", "2", "x"), Swap("lost", "1", "x")][:size],
                "me",
            )
        assert other.read(["new", "old", "lost"]) == [None, "2", None]
        assert other.swap([Swap("old", "2", "3")], fence="other") == [Answer(True, "3")]

    def test_no_write_follows_the_removal_of_its_fence(self) -> None:
        writer, remover = self.node(), self.node()
        # They only make a batch take its time, so that a fence checked before the write, and not with it, is found out.
        hopeless = [Swap(f"hopeless-{n}", "something", "x") for n in range(min(50, writer.max_batch - 1))]
        for round_ in range(10):
            me, key = f"node-{round_}", f"entry-{round_}"
            writer.join(me, "")

            def write_until_lost(me: str = me, key: str = key) -> None:
                record: str | None = None
                gap_at = time.monotonic()
                deadline = gap_at + 10
                for count in itertools.count():
                    assert time.monotonic() < deadline, "the writer never lost its fence"
                    try:
                        writer.swap([*hopeless, Swap(key, record, str(count))], fence=me)
                    except LeaseLost:
                        return
                    record = str(count)
                    if count % 10 == 9:
                        # Where writers wait without a queue (SQLite), the remover only looks now and then whether there
                        # is a gap, and does not see one that is short beside the work: on a busy machine, never.
                        time.sleep(time.monotonic() - gap_at)
                        gap_at = time.monotonic()

            def remove(me: str = me, key: str = key) -> str | None:
                poll(lambda: remover.read([key]) != [None], within_s=5.0)
                remover.remove(me)
                return remover.read([key])[0]

            _, at_removal = at_once(write_until_lost, remove)
            assert remover.read([key]) == [at_removal]

    # 8. Reading

    def test_read_answers_in_the_order_of_its_keys(self) -> None:
        node = self.node()
        keys = [f"entry-{n}" for n in range(min(50, node.max_batch // 2))]
        node.swap([Swap(key, None, f"record of {key}") for key in keys])
        asked = [name for key in reversed(keys) for name in (f"no {key}", key)]
        assert node.read(asked) == [None if name.startswith("no ") else f"record of {name}" for name in asked]

    def test_a_record_is_kept_as_it_is(self) -> None:
        node = self.node()
        for n, record in enumerate((*ODD_TEXTS, '{"a": "é\\u0000\\n"}', "line\r\nline", "é" * 10_000, "x" * 380_000)):
            assert node.swap([Swap(f"entry-{n}", None, record)]) == [Answer(True, record)]
            assert node.read([f"entry-{n}"]) == [record]
            assert node.swap([Swap(f"entry-{n}", record, "seen")]) == [Answer(True, "seen")]
