from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from tests.simulation.node import Node
from tests.simulation.plan import Plan


@dataclass(frozen=True)
class Policy:
    node: Any = Node
    skips: bool = True
    fits: Callable[[Plan], Plan] = lambda plan: plan


POLICIES: dict[str, Policy] = {"ours": Policy()}
