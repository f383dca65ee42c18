"""The nodes are pytest-celery's containers, as it ships them."""
