"""The app's settings. What differs from place to place comes from the environment."""

from __future__ import annotations

import os
from pathlib import Path

from example_project.schedule import beat_schedule

__all__ = ["beat_schedule"]

# This line makes any number of beats share the schedule.
beat_scheduler = "celery_distsched:DistributedScheduler"

# Where the beats find each other, and remember what has run. One of these:
#
#   distsched_url = "redis://localhost:6379/0"         # Redis or Valkey; the same as redis+zset://
#   distsched_url = "redis+zset://localhost:6379/0"    # ... all beats in one sorted set
#   distsched_url = "redis+scan://localhost:6379/0"    # ... one expiring key for each beat
#   distsched_url = "etcd://localhost:2379"
#   distsched_url = "consul://localhost:8500"
#   distsched_url = "sqlite:///beats.sqlite3"          # a file, if all beats are on one host
#
# None: the broker itself if that is a Redis; beside a broker of one host, such as filesystem://, a file in the working
# directory.
distsched_url = os.environ.get("DISTSCHED_URL")

# The share of a beat that has crashed moves on after this many seconds.
distsched_node_ttl = 5.0

broker_url = os.environ.get("BROKER_URL", "filesystem://")
broker_connection_retry_on_startup = True
task_ignore_result = True
timezone = "UTC"

if broker_url.startswith("filesystem:"):
    # A broker that needs no server: files in a folder. For trying things out, on one host.
    from example_project.filesystem_broker import install

    install()
    _folder = Path(os.environ.get("BROKER_FOLDER", Path(__file__).with_name("broker"))).absolute()
    _messages = _folder / "messages"
    _messages.mkdir(parents=True, exist_ok=True)
    broker_transport_options = {
        "data_folder_in": str(_messages),
        "data_folder_out": str(_messages),
        "control_folder": str(_folder / "control"),
        "polling_interval": 0.05,
    }
