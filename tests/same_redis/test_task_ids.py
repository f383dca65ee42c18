"""The quick way to task ids gives those of the slow one."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from celery_distsched.message import TaskIds, task_id


@given(st.text(), st.text(), st.integers(0, 2**62))
def test_a_task_id_is_the_same_however_it_is_made(namespace: str, entry: str, instant_us: int) -> None:
    assert TaskIds(namespace).of(entry)(instant_us) == task_id(namespace, entry, instant_us)
