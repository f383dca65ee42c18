"""Several runs side by side: most of a run is waiting."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

Result = TypeVar("Result")


def at_once(runs: Mapping[str, Callable[[], Result]]) -> Callable[[str], Result]:
    """Do all of these; what is returned gives the result of one, by its name, or raises what it raised."""
    with ThreadPoolExecutor(len(runs)) as pool:
        futures = {name: pool.submit(run) for name, run in runs.items()}
    return lambda name: futures[name].result()
