"""Signals that wait until what was claimed has been sent and confirmed.

Celery's handlers call `close()` on the stack of whatever runs, and then end the process: in the middle of a slice that
would leave claims without their messages, and messages without their confirms.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

_SIGNALS = (signal.SIGTERM, signal.SIGINT)
#: Seconds that a signal waits at most: a supervisor may follow with SIGKILL.
_PATIENCE_S = 0.5


class Interrupts:
    """Holds SIGTERM and SIGINT back while `held`; `pending` says that one is waiting."""

    def __init__(self) -> None:
        self.pending = False

    @contextmanager
    def held(self) -> Iterator[None]:
        """Hold signals back inside, for at most half a second; elsewhere than in the main thread, do nothing."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        handlers: dict[int, Any] = {signum: signal.getsignal(signum) for signum in _SIGNALS}
        timers: list[threading.Timer] = []
        waiting: list[int] = []

        def wait(signum: int, frame: FrameType | None) -> None:
            if signum in waiting:
                # Patience is over, or somebody asks twice.
                waiting.remove(signum)
                signal.signal(signum, handlers[signum])
                signal.raise_signal(signum)
                return
            self.pending = True
            waiting.append(signum)
            # The main thread may be inside a call that only a signal of its own interrupts.
            main = threading.main_thread().ident
            timers.append(threading.Timer(_PATIENCE_S, signal.pthread_kill, (main, signum)))
            timers[-1].daemon = True
            timers[-1].start()

        for signum, handler in handlers.items():
            # None: set by something other than Python, which could not be put back.
            if handler is not None and handler is not signal.SIG_IGN:
                signal.signal(signum, wait)
        try:
            yield
        finally:
            for timer in timers:
                timer.cancel()
            for signum, handler in handlers.items():
                if handler is not None and signal.getsignal(signum) is wait:
                    signal.signal(signum, handler)
            self.pending = False
            for signum in waiting:
                signal.raise_signal(signum)


@contextmanager
def asked_again(after_s: float) -> Iterator[None]:
    """Have SIGTERM come once more, as from a supervisor who asks twice, if this takes longer than that.

    For what is done on the stack of the first one, where a broker that says nothing would keep it for longer than a
    supervisor waits. Elsewhere than in the main thread, or where nobody handles SIGTERM, do nothing.
    """
    main = threading.main_thread()
    if threading.current_thread() is not main or not callable(signal.getsignal(signal.SIGTERM)):
        yield
        return
    timer = threading.Timer(after_s, signal.pthread_kill, (main.ident, signal.SIGTERM))
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
        # In the farewell that follows, a signal that comes late would cut it off.
        timer.join()
