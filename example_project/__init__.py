"""A small Celery project whose schedule is shared by several beats. Copy it and change what you like."""
