"""Long commands are written as redis-py would write them."""

from __future__ import annotations

from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from redis.connection import PythonRespSerializer

from celery_distsched.drivers.redis_packer import Packer


def _encode(word: Any) -> bytes:
    return word if isinstance(word, bytes) else str(word).encode("utf-8", "backslashreplace")


@given(st.sampled_from(["EVALSHA", "CLIENT SETINFO"]), st.lists(st.text() | st.binary() | st.integers(), max_size=20))
def test_a_command_is_written_as_redis_py_writes_it(command: str, words: list[Any]) -> None:
    theirs = PythonRespSerializer(6000, _encode).pack(command, *words)  # type: ignore[no-untyped-call]
    assert b"".join(Packer().pack(command, *words)) == b"".join(theirs)
