"""A Celery beat scheduler that runs on every host at once."""

__version__ = "0.1.0"
