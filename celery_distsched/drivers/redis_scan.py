"""An expiring key for each node."""

from __future__ import annotations

from celery_distsched.drivers.base import Member
from celery_distsched.drivers.redis_driver import RedisDriver, Script
from celery_distsched.drivers.redis_errors import texts

_MEMBERS = Script("scan_members.lua")


class RedisScanDriver(RedisDriver):
    """``redis+scan://user:password@host:port/db``; ``rediss+scan://`` with TLS.

    Keyspace, after ``distsched:{<namespace, percent-encoded>}:``

    - ``node:<membership>`` → text ``<pulse> <info>``; expires 10 TTLs after the last renewal.
    - ``nodes`` → set of memberships, the index of these keys; expires with the last of them. It stands in for SCAN,
      which walks through all the keys of the database, whoever they belong to.
    - ``ledger`` → hash of entry → record; stays.
    """

    show_script = Script("run_id.lua", "scan_show.lua")
    remove_script = Script("scan_remove.lua")
    swap_script = Script("run_id.lua", "scan_is_member.lua", "swap.lua")
    push_script = Script("scan_is_member.lua", "claim_and_push.lua")

    @property
    def _index(self) -> str:
        return f"{self._prefix}nodes"

    def _keys(self, membership: str) -> list[str]:
        return [self._index, self._fence_key(membership)]

    def _fence_key(self, membership: str) -> str:
        return f"{self._prefix}node:{membership}"

    def members(self) -> dict[str, Member]:
        members = {}
        with self._connected() as client:
            shown = texts(_MEMBERS.run(client, [self._index], self._fence_key("")))
            for membership, held in zip(shown[::2], shown[1::2], strict=True):
                pulse, space, info = held.partition(" ")
                if space and pulse.isdecimal():
                    members[membership] = Member(pulse, info)
                else:
                    self._strangers.name(self._fence_key(membership), "is not a membership")
        return members
