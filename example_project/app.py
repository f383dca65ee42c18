"""The Celery app: ``celery -A example_project.app beat``, as often and on as many hosts as you like."""

from __future__ import annotations

from celery import Celery

app = Celery("example_project", config_source="example_project.settings", include=["example_project.tasks"])
