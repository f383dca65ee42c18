"""What the two Redis drivers share: scripts, and all but the form in which nodes show that they live."""

from __future__ import annotations

import hashlib
import logging
import math
from abc import abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib import resources
from typing import Any, ClassVar

from redis.exceptions import NoPermissionError, NoScriptError, ResponseError

from celery_distsched.drivers.base import Answer, Claim, Driver, Elsewhere, Pushing, PushRefused, Swap
from celery_distsched.drivers.parts import Strangers, part
from celery_distsched.drivers.redis_client import new_client
from celery_distsched.drivers.redis_errors import FAILURES, led_astray, listed, misread, texts, translated
from celery_distsched.drivers.redis_options import OPTIONS
from celery_distsched.drivers.secret import Secrets
from celery_distsched.drivers.url import StoreUrl
from celery_distsched.errors import LeaseLost, StoreUnavailable

logger = logging.getLogger(__name__)

# A membership is kept for this many TTLs after its last renewal. Observers judge who is dead and remove it; Redis only
# sweeps up what nobody is left to remove, and a step of its clock must not sweep up the living.
_KEPT_TTLS = 10
# Of a call's time, how much may be spent on waiting for replicas; the rest is for the network.
_WAIT_SHARE = 0.6


class Script:
    """Lua for one atomic step inside the server: called by its hash, sent in full where the server does not know it."""

    def __init__(self, *files: str) -> None:
        folder = resources.files("celery_distsched.drivers") / "lua"
        self._source = "\n".join((folder / file).read_text(encoding="utf-8") for file in files)
        # What Redis calls a script by; nothing is signed with it.
        self._hash = hashlib.sha1(self._source.encode(), usedforsecurity=False).hexdigest()

    def calls(self, keys: Sequence[str], *arguments: str | int) -> Iterator[tuple[str | int, ...]]:
        """Return the two ways to call it: the second is for a server that does not know it."""
        yield "EVALSHA", self._hash, len(keys), *keys, *arguments
        yield "EVAL", self._source, len(keys), *keys, *arguments

    def send(self, client: Any, keys: Sequence[str], *arguments: str | int) -> Callable[[], Any]:
        """Send the call over a connection of its own; returns what waits for its answer, to be called once."""
        client = client.client()
        connection = client.connection
        try:
            connection.send_command("EVALSHA", self._hash, len(keys), *keys, *arguments)
        except BaseException:
            connection.disconnect()
            client.close()
            raise

        def answer() -> Any:
            try:
                return connection.read_response()
            except NoScriptError:
                return client.eval(self._source, len(keys), *keys, *arguments)
            except ResponseError:
                raise
            except BaseException:
                # The answer may still come, and would be taken for that of the next call.
                connection.disconnect()
                raise
            finally:
                client.close()

        return answer

    def run(self, client: Any, keys: Sequence[str], *arguments: str | int) -> Any:
        """Return the script's answer; safe after a restart or SCRIPT FLUSH."""
        try:
            return client.evalsha(self._hash, len(keys), *keys, *arguments)
        except NoScriptError:
            return client.eval(self._source, len(keys), *keys, *arguments)


class RedisDriver(Driver):
    """A connection, the ledger, and the membership but for its form, which subclasses add.

    Keyspace: every key begins with ``distsched:{<namespace, percent-encoded>}:``, and what is in the braces is the
    hash tag of Redis Cluster, so that one script may reach all of them. ``…ledger`` → hash of entry → record; stays.
    """

    options = OPTIONS

    #: A join or a renewal, and the end of a membership.
    show_script: ClassVar[Script]
    remove_script: ClassVar[Script]
    #: The swap, with this driver's way to tell whether the fence is there.
    swap_script: ClassVar[Script]
    #: The same for claiming and pushing in one step.
    push_script: ClassVar[Script]

    def __init__(
        self, url: StoreUrl, *, namespace: str, ttl_s: float, timeout_s: float, options: Mapping[str, Any] | None = None
    ) -> None:
        super().__init__(url, namespace=namespace, ttl_s=ttl_s, timeout_s=timeout_s, options=options)
        self._kept_ms = math.ceil(_KEPT_TTLS * ttl_s * 1000)
        # Percent-encoded, a namespace can neither close the brace nor be a pattern.
        self._prefix = f"distsched:{{{part(namespace)}}}:"
        self._ledger = f"{self._prefix}ledger"
        self._replicas = int(self.settings.get("wait_replicas", 0))
        self._strangers = Strangers(url.masked)
        self._secrets = Secrets(url, self.settings)
        self._client: Any = self._new_client()
        #: What the last answer that could not be read was found out by.
        self._misread = ""

    @abstractmethod
    def _keys(self, membership: str) -> list[str]:
        """Return the keys that hold a membership."""

    @abstractmethod
    def _fence_key(self, membership: str) -> str:
        """Return the key that the swap's fence looks at."""

    def join(self, membership: str, info: str) -> int:
        return self._show(membership, info, "join", "")

    def renew(self, membership: str, info: str) -> int:
        return self._show(membership, info, "renew", self.incarnation)

    def _show(self, membership: str, info: str, how: str, known: str) -> int:
        keys = self._keys(membership)
        with self._connected() as client:
            answer = self._run(self.show_script, client, keys, membership, info, self._kept_ms, how, known)
            if answer is None:
                raise LeaseLost(f"{membership} is not a member any more")
            seconds, microseconds, run_id = texts(answer)
            store_us = int(seconds) * 1_000_000 + int(microseconds)
        self.incarnation = run_id
        return store_us

    def remove(self, membership: str, pulse: str | None = None) -> bool:
        with self._connected() as client:
            return bool(int(self.remove_script.run(client, self._keys(membership), membership, pulse or "")))

    def read(self, keys: Sequence[str]) -> list[str | None]:
        if not keys:
            return []
        with self._connected() as client:
            return texts(client.hmget(self._ledger, list(keys)), len(keys))

    def swap(self, swaps: Sequence[Swap], fence: str | None = None) -> list[Answer]:
        if not swaps:
            return []
        arguments = [fence or "", self.incarnation, "settle" if self._replicas else ""]
        for key, expected, new in swaps:
            arguments += (key, "" if expected is None else f"={expected}", new)
        with self._connected() as client:
            lost = self._run(self.swap_script, client, [self._ledger, self._fence_key(fence or "")], *arguments)
            if lost is None:
                raise LeaseLost(f"{fence} is not a member any more")
            answers = [Answer(True, swap.new) for swap in swaps]
            for number, record in zip(lost[::2], texts(lost[1::2]), strict=True):
                answers[number] = Answer(False, record)
        return answers

    def _run(self, script: Script, client: Any, keys: Sequence[str], *arguments: str | int) -> Any:
        """Write, and wait until so many replicas have what is written now, if any are asked for.

        A swap that they do not have in time has an unknown outcome: it is repeated until they do, and nothing is sent
        on the strength of it before. A heartbeat that they do not have is what tells of it.
        """
        if not self._replicas:
            return script.run(client, keys, *arguments)
        wait_ms = int(_WAIT_SHARE * self.timeout_s * 1000)
        for call in script.calls(keys, *arguments):
            # Not a transaction, which could not wait; but one connection, which WAIT is about.
            with client.pipeline(transaction=False) as steps:
                answer, acknowledged = (
                    steps.execute_command(*call).wait(self._replicas, wait_ms).execute(raise_on_error=False)
                )
            if not isinstance(answer, NoScriptError):
                break
        for said in (answer, acknowledged):
            if isinstance(said, Exception):
                raise said
        if acknowledged < self._replicas and answer is not None:
            raise StoreUnavailable(
                f"{self.url.masked}: {acknowledged} replicas have what was written, and wait_replicas asks for"
                f" {self._replicas}: it is not acted on until they have it"
            )
        return answer

    def server(self) -> tuple[str, int]:
        """Return which server this is, by its run_id, and which of its databases."""
        with self._connected() as client:
            if "cluster" in self.url.scheme:
                # The broker's queues lie in other slots: no script may reach both.
                return "a cluster", 0
            return client.info("server")["run_id"], client.connection_pool.connection_kwargs["db"]

    def claim_and_push(self, claims: Sequence[Claim], fence: str, run_id: str) -> Pushing:
        """Swap and push in one step for each claim, if the broker's server, `run_id`, is this one.

        At most 1000 claims and 4000 messages. Of one list's claims that are won either all are made or none is.

        Returns:
            What waits for the server's answer, to be called once. Until then there is time for other work.

        Raises:
            StoreUnavailable: What was done is unknown: a record that has come to `new` has its messages in the queue.
                This may come with the answer too, and with the answer only:
            Elsewhere: It is another server; nothing was done.
            LeaseLost: The fence is not there; nothing was done.
        """
        if run_id != self.incarnation:
            # Not the server that was joined: what it has of the ledger may be an old copy.
            return _elsewhere
        of_list: dict[str, list[int]] = {}
        for at, claim in enumerate(claims):
            of_list.setdefault(claim.list_key, []).append(at)
        order = [at for ats in of_list.values() for at in ats]
        arguments: list[str | int] = [fence, run_id, len(claims), *(claims[at].key for at in order)]
        for at in order:
            _, expected, new, _, messages = claims[at]
            arguments += ("" if expected is None else f"={expected}", new, len(messages))
        arguments += map(len, of_list.values())
        for at in order:
            arguments += claims[at].messages
        keys = [self._ledger, self._fence_key(fence), *of_list]
        with self._connected() as client:
            answer = self.push_script.send(client, keys, *arguments)

        def answers() -> list[Answer | PushRefused]:
            with self._connected():
                try:
                    not_made = answer()
                except NoPermissionError as exc:
                    # Judged before anything is done; and which list this user may not push to, it does not say.
                    if len(of_list) > 1:
                        return self._one_list_at_a_time(claims, of_list.values(), fence, run_id)
                    refused = PushRefused(f"the store's user may not push to {claims[0].list_key}: {exc}")
                    return [refused] * len(claims)
                if not_made is None:
                    raise LeaseLost(f"{fence} is not a member any more")
                if not_made == "elsewhere":
                    raise Elsewhere
                found: list[Answer | PushRefused] = [Answer(True, claim.new) for claim in claims]
                for number, *reason in listed(not_made):
                    why, what = texts(reason, 2)
                    found[order[number]] = Answer(False, what) if why == "lost" else PushRefused(what)
            return found

        return answers

    def warnings(self) -> list[str]:
        # INFO says it too, and is allowed in more places than CONFIG.
        with self._connected() as client:
            memory = client.info("memory")
        policy = str(memory.get("maxmemory_policy", ""))
        if not memory.get("maxmemory") or not policy.startswith("allkeys-"):
            return []
        return [
            f"{self.url.masked} evicts keys when it is full (maxmemory-policy {policy}), the ledger too, and forgets"
            " then what has run: set maxmemory-policy to noeviction, or give the schedule a Redis of its own"
        ]

    def _one_list_at_a_time(
        self, claims: Sequence[Claim], lists: Iterable[Sequence[int]], fence: str, run_id: str
    ) -> list[Answer | PushRefused]:
        answers: dict[int, Answer | PushRefused] = {}
        for ats in lists:
            answers.update(zip(ats, self.claim_and_push([claims[at] for at in ats], fence, run_id)(), strict=True))
        return [answers[at] for at in range(len(claims))]

    def close(self) -> None:
        # A new client instead of none: no other thread ever meets a client that is gone. A connection that one is using
        # now is closed with the last reference to it.
        client, self._client = self._client, self._new_client()
        client.connection_pool.disconnect(inuse_connections=False)

    @contextmanager
    def _connected(self) -> Iterator[Any]:
        client = self._client
        guides = client.connection_pool.connection_kwargs.get("find")
        guide = guides.first if guides else None
        with translated(self.url, self._prefix, self._secrets):
            try:
                yield client
            except FAILURES as exc:
                if led_astray(exc):
                    client.connection_pool.disconnect(inuse_connections=False)
                    if guides:
                        guides.misled(guide)
                if misread(exc):
                    # At each poll it is likely the same.
                    level = logging.DEBUG if repr(exc) == self._misread else logging.ERROR
                    self._misread = repr(exc)
                    shown = self._secrets.harmless(exc)
                    logger.log(level, "%s: an answer that cannot be read", self.url.masked, exc_info=shown)
                raise

    def _new_client(self) -> Any:
        return new_client(self.url, self.settings, self.timeout_s, self._ledger, self._secrets)


def _elsewhere() -> Sequence[Answer | PushRefused]:
    raise Elsewhere
