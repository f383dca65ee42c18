"""The way to the end: what beats send, workers run, on pytest-celery's nodes.

`on_processes` puts programs of this machine in the place of pytest-celery's containers; `on_docker` has the containers.
"""
