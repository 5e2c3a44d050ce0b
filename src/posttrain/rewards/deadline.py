"""A time limit for Python code in this process."""

import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


@contextmanager
def deadline(seconds: float) -> Iterator[None]:
    """Raise `TimeoutError` inside the block once `seconds` of wall-clock time are over.

    An alarm (SIGALRM) in the main thread; off the main thread, where there is no alarm, and for `seconds` of 0 or less,
    the block runs without a limit. Blocks may be nested: the earlier end counts, whose ever it is, and a timer and its
    handler that were there before go on when the block is left.

    What it cannot stop: a call into C that does not return (a long matrix product, a regular expression), code that
    catches `Exception` and goes on, and what follows code that sets and clears alarms of its own without putting ours
    back, as math-verify does unless its time limits are None (`tasks.answers` calls it so). Code that is not trusted
    belongs in `sandbox`.
    """
    if seconds <= 0 or threading.current_thread() is not threading.main_thread():
        yield
        return
    started = time.monotonic()
    remaining, interval = signal.setitimer(signal.ITIMER_REAL, 0)
    if 0 < remaining <= seconds:  # the one that is there ends earlier
        signal.setitimer(signal.ITIMER_REAL, remaining, interval)
        yield
        return

    def expire(number: int, frame: FrameType | None) -> None:
        raise TimeoutError(f"it took more than {seconds:g} s")

    before = signal.signal(signal.SIGALRM, expire)
    try:
        signal.setitimer(signal.ITIMER_REAL, seconds)
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
        if remaining > 0:
            left = remaining - (time.monotonic() - started)
            signal.setitimer(signal.ITIMER_REAL, max(left, 1e-6), interval)
