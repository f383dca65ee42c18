"""`make chaos`: beats, stores and brokers hurt at random for minutes on end, and every occurrence accounted for."""

from __future__ import annotations
