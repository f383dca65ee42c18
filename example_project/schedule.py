"""What runs when. An ordinary ``beat_schedule``."""

from __future__ import annotations

from typing import Any

from celery.schedules import crontab

from celery_distsched import cron

beat_schedule: dict[str, dict[str, Any]] = {
    # cron() takes five fields, or six with the seconds first. This is every second.
    f"sensor-{number:02}": {
        "task": "example_project.tasks.read_sensor",
        "schedule": cron("* * * * * *"),
        "args": (number,),
    }
    for number in range(1, 25)
}

beat_schedule |= {
    # A number is an interval in seconds: a grid that does not drift, and goes on where it was after a restart.
    "prices": {"task": "example_project.tasks.refresh", "schedule": 1.5, "args": ("prices",)},
    "weather": {"task": "example_project.tasks.refresh", "schedule": 2.0, "args": ("weather",)},
    "traffic": {"task": "example_project.tasks.refresh", "schedule": 2.5, "args": ("traffic",)},
    "mailbox": {"task": "example_project.tasks.refresh", "schedule": 4.0, "args": ("mailbox",)},
    # Every fifth second of the clock.
    "backlog": {"task": "example_project.tasks.refresh", "schedule": cron("*/5 * * * * *"), "args": ("backlog",)},
    # Celery's own schedules work as ever. This is every minute. What could not be sent at all for a while (not even
    # by another beat) is made up for by one run; "catch_up" can ask for all of them, or for none.
    "report": {"task": "example_project.tasks.report", "schedule": crontab(), "catch_up": "all"},
}
