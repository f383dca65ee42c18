"""The nodes in one sorted set."""

from __future__ import annotations

from celery_distsched.drivers.base import Member
from celery_distsched.drivers.redis_driver import RedisDriver, Script
from celery_distsched.drivers.redis_errors import texts

_MEMBERS = Script("zset_members.lua")


class RedisZsetDriver(RedisDriver):
    """``redis://`` or ``redis+zset://user:password@host:port/db``; ``rediss…`` with TLS.

    Keyspace, after ``distsched:{<namespace, percent-encoded>}:``

    - ``nodes`` → sorted set of memberships, scored by the ms of the server's clock until which they are kept: 10 TTLs
      after the last renewal. Past that they go with the next `join` or `renew` of anybody, or all with the key.
    - ``infos`` → hash of membership → info; goes as ``nodes`` does.
    - ``ledger`` → hash of entry → record; stays.

    The pulse is the score: each renewal raises it.
    """

    show_script = Script("run_id.lua", "zset_show.lua")
    remove_script = Script("zset_remove.lua")
    swap_script = Script("run_id.lua", "zset_is_member.lua", "swap.lua")
    push_script = Script("zset_is_member.lua", "claim_and_push.lua")

    @property
    def _nodes(self) -> str:
        return f"{self._prefix}nodes"

    def _keys(self, membership: str = "") -> list[str]:
        return [self._nodes, f"{self._prefix}infos"]

    def _fence_key(self, membership: str) -> str:
        return self._nodes

    def members(self) -> dict[str, Member]:
        with self._connected() as client:
            scores, shown = map(texts, _MEMBERS.run(client, self._keys()))
            infos = dict(zip(shown[::2], shown[1::2], strict=True))
            pulses = zip(scores[::2], map(float, scores[1::2]), strict=True)
            return {membership: Member(f"{pulse:.0f}", infos.get(membership) or "") for membership, pulse in pulses}
