"""Whole `celery beat` processes, hurt from outside; what reaches the broker's queue is compared with what should."""

from __future__ import annotations
