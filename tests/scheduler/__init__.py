"""The scheduler in process, on real stores."""
