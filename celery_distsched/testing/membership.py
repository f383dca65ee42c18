"""Promises 2 to 5: who is a member, for how long, and how one ceases to be."""
# ruff: noqa: S101  (these are tests: what they claim, they assert)

from __future__ import annotations

import time

from celery_distsched.drivers.base import Answer, Member, Swap
from celery_distsched.errors import LeaseLost
from celery_distsched.testing.checks import refused
from celery_distsched.testing.store import StoreUnderTest


class MembershipContract(StoreUnderTest):
    """What `join`, `renew`, `members` and `remove` promise."""

    # 2. Visible, with another pulse each time

    def test_a_membership_shows_in_every_readers_members_with_its_last_info(self) -> None:
        node, reader = self.node(), self.node()
        for show, info in ((node.join, "first"), (node.renew, 'seen|by:1 "\\ü\n'), (node.renew, "3"), (node.join, "4")):
            show("me", info)
            for members in (node.members(), reader.members()):
                assert list(members) == ["me"]
                assert isinstance(members["me"], Member)
                assert members["me"].info == info

    def test_each_renewal_changes_the_pulse_even_with_the_same_info(self) -> None:
        node, reader = self.node(), self.node()
        pulses = []
        for show in (node.join, node.renew, node.renew, node.join, node.renew):
            show("me", "info")
            pulses.append(reader.members()["me"].pulse)
        assert len(set(pulses)) == len(pulses), pulses

    def test_the_pulse_of_a_silent_member_stands_still_whatever_others_do(self) -> None:
        silent, busy = self.node(), self.node()
        silent.join("silent", "info")
        busy.join("busy", "info")
        before = busy.members()["silent"]
        for count in range(3):
            busy.renew("busy", "info")
            busy.swap([Swap(f"entry-{count}", None, "record")], fence="busy")
            silent.swap([Swap(f"other-{count}", None, "record")], fence="silent")
            assert busy.members()["silent"] == before

    def test_the_stores_clock_is_told_in_microseconds_or_not_at_all(self) -> None:
        node = self.node()
        for told in (node.join("me", ""), node.renew("me", "")):
            if told is not None:
                assert isinstance(told, int)
                assert abs(told / 1e6 - time.time()) < 3600

    # 3. Stays for a TTL

    def test_a_crashed_nodes_membership_stays_for_a_whole_ttl_after_its_last_renewal(self) -> None:
        ttl_s = self.node().min_ttl_s
        node, reader = self.node(ttl_s=ttl_s), self.node(ttl_s=ttl_s)
        node.join("me", "")
        joined_at = time.monotonic()
        while time.monotonic() < joined_at + 0.6 * ttl_s:
            assert "me" in reader.members()
            time.sleep(0.02)
        renewed_at = time.monotonic()
        node.renew("me", "last words")
        node.close()
        while True:
            members = reader.members()
            if time.monotonic() > renewed_at + ttl_s:
                break
            assert "me" in members, f"gone {time.monotonic() - renewed_at:.2f} s after its renewal, of {ttl_s:g} s"
            time.sleep(0.02)

    # 4. A lost membership stays lost

    def test_a_renewal_of_what_never_joined_does_not_make_a_member(self) -> None:
        node = self.node()
        for _ in range(2):
            refused(LeaseLost, node.renew, "me", "info")
            assert node.members() == {}

    def test_a_renewal_of_a_lost_membership_does_not_bring_it_back(self) -> None:
        node, other = self.node(), self.node()
        node.join("me", "info")
        node.renew("me", "info")
        other.remove("me")
        for _ in range(2):
            refused(LeaseLost, node.renew, "me", "info")
            assert other.members() == {}
        refused(LeaseLost, node.swap, [Swap("entry", None, "mine")], "me")

    def test_who_lost_a_membership_joins_again_under_a_new_one_or_the_same(self) -> None:
        node, other = self.node(), self.node()
        node.join("me-1", "info")
        other.remove("me-1")
        refused(LeaseLost, node.renew, "me-1", "info")
        for membership in ("me-2", "me-1"):
            node.join(membership, "back")
            node.renew(membership, "here")
            assert other.members()[membership].info == "here"
            assert node.swap([Swap(membership, None, "mine")], fence=membership) == [Answer(True, "mine")]

    # 5. Removal

    def test_remove_takes_out_that_membership_only_whoever_calls_it(self) -> None:
        node, other = self.node(), self.node()
        for membership in ("a", "ab", "b"):
            node.join(membership, "")
        other.remove("a")
        assert set(node.members()) == set(other.members()) == {"ab", "b"}
        node.remove("b")
        assert set(node.members()) == set(other.members()) == {"ab"}

    def test_remove_with_a_pulse_leaves_alone_who_has_renewed(self) -> None:
        node, other = self.node(), self.node()
        node.join("me", "")
        seen = other.members()["me"].pulse
        node.renew("me", "")
        assert other.remove("me", seen) is False
        assert set(other.members()) == {"me"}
        assert node.swap([Swap("key", None, "mine")], fence="me") == [Answer(True, "mine")]
        assert other.remove("me", other.members()["me"].pulse) is True
        assert other.members() == {}
        assert other.remove("me", seen) is True

    def test_remove_does_nothing_where_there_is_none(self) -> None:
        node = self.node()
        node.remove("nobody")
        node.join("me", "")
        for _ in range(2):
            node.remove("me")
            node.remove("nobody")
        assert node.members() == {}
