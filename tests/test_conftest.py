"""A test that leaves a thread behind fails; a thread of a fixture that outlives the test is none of its own."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

TESTS = """
import threading
import pytest

def start(name, event):
    thread = threading.Thread(target=event.wait, name=name, daemon=True)
    thread.start()
    return thread

@pytest.fixture(scope="session")
def service():
    event = threading.Event()
    yield start("of-the-session", event)
    event.set()

def test_leaves_a_daemon():
    start("left-behind", threading.Event())

def test_asks_late_for_a_fixture(request):
    assert request.getfixturevalue("service").is_alive()

def test_ends_its_thread():
    event = threading.Event()
    thread = start("ended", event)
    event.set()
    thread.join()
"""


def test_only_the_test_that_leaves_a_thread_behind_is_failed(tmp_path: Path) -> None:
    (tmp_path / "test_threads.py").write_text(TESTS)
    root = Path(__file__).parents[1]
    ran = subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "tests.conftest", "-p", "no:cacheprovider", "-q", "-rA", str(tmp_path)],
        cwd=root,
        capture_output=True,
        text=True,
    )
    assert "the test left threads behind: left-behind" in ran.stdout
    assert "3 passed, 1 error" in ran.stdout
