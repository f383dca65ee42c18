"""``python -m example_project.demo``: several beats share one schedule, and one of them is killed."""
