"""This package and its peers: how each is told of a schedule, and where it keeps what an earlier beat left."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.workload import Workload
from celery_distsched.drivers import StoreUrl, Swap, open_driver
from celery_distsched.record import Record

ROOT = Path(__file__).resolve().parents[1]
NAMESPACE = "benchmark"


class Site(NamedTuple):
    """Where one run takes place."""

    broker: str
    #: URL of our store; for a peer, of the Redis that it keeps its state in.
    store: str
    #: Working directory of the beats, where stock beat and Django keep their files.
    folder: Path


class Contender(NamedTuple):
    """One scheduler."""

    name: str
    #: What follows ``celery beat -S``.
    scheduler: str
    #: What must be installed for it.
    package: str
    settings: Callable[[Site], dict[str, Any]]
    #: Writes what an earlier beat would have left: each entry has run before.
    seed: Callable[[Site, Workload], None]
    #: Seconds from its start until so many entries are loaded, on the safe side.
    setup_s: Callable[[int], float]
    #: Whether it takes the entries from ``beat_schedule``, and not from what was seeded.
    reads_config: bool = True
    environment: Mapping[str, str] = {}

    @property
    def installed(self) -> str | None:
        """Its version, or None."""
        try:
            return version(self.package)
        except PackageNotFoundError:
            return None


def _seed_ours(site: Site, workload: Workload) -> None:
    driver = open_driver(StoreUrl.parse(site.store), namespace=NAMESPACE, ttl_s=5.0, timeout_s=10.0, options={})
    swaps = [Swap(name, None, Record(workload.last_us(n)).text()) for n, name in enumerate(workload.names())]
    for start in range(0, len(swaps), driver.max_batch):
        driver.swap(swaps[start : start + driver.max_batch])
    driver.close()


def _seed_by(module: str) -> Callable[[Site, Workload], None]:
    """Seed in a process of its own: Django and RedBeat both keep one configuration a process."""

    def seed(site: Site, workload: Workload) -> None:
        words = [sys.executable, "-m", module, site.store, *map(str, workload)]
        environment = {**os.environ, "PYTHONPATH": str(ROOT), **DJANGO.environment}
        subprocess.run(words, cwd=site.folder, env=environment, check=True)

    return seed


OURS = Contender(
    name="celery_distsched",
    scheduler="celery_distsched:DistributedScheduler",
    package="celery-distsched",
    settings=lambda site: {"distsched_url": site.store, "distsched_namespace": NAMESPACE},
    seed=_seed_ours,
    setup_s=lambda size: 3.5 + size / 15_000,
)
REDBEAT = Contender(
    name="RedBeat",
    scheduler="redbeat.schedulers:RedBeatScheduler",
    package="celery-redbeat",
    settings=lambda site: {"redbeat_redis_url": site.store},
    seed=_seed_by("benchmarks.peers.redbeat_entries"),
    setup_s=lambda size: 3.5,
    reads_config=False,
)
DJANGO = Contender(
    name="django-celery-beat",
    scheduler="django_celery_beat.schedulers:DatabaseScheduler",
    package="django-celery-beat",
    settings=lambda site: {},
    seed=_seed_by("benchmarks.peers.django_rows"),
    setup_s=lambda size: 4.5 + size / 10_000,
    reads_config=False,
    environment={"DJANGO_SETTINGS_MODULE": "benchmarks.peers.django_settings"},
)
STOCK = Contender(
    name="celery beat",
    scheduler="celery.beat:PersistentScheduler",
    package="celery",
    settings=lambda site: {},
    seed=lambda site, workload: None,
    setup_s=lambda size: 3.5 + size / 7_000,
)
PEERS = (REDBEAT, DJANGO, STOCK)
