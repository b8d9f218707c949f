"""Handle the signals that end a process: finish the present step, save, then stop."""

import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from types import FrameType
from typing import Any, NoReturn

Handler = Callable[[int, FrameType | None], Any] | int


@contextmanager
def keep_handlers() -> Iterator[dict[int, Handler]]:
    """Give SIGINT and SIGTERM back to their handlers at the end, whoever changed them in between.

    In other threads than the main one nothing is changed.

    Yields
    ------
    dict of int to callable or int
        The handlers by the number of their signal; empty in other threads, which can set none.
    """
    before: dict[int, Handler] = {}
    if threading.current_thread() is threading.main_thread():
        found = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
        before = {number: one for number, one in found.items() if one is not None}  # None: not of Python
    try:
        yield before
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def catch_signals() -> Iterator[list[int]]:
    """Collect SIGINT and SIGTERM in a list instead of stopping the process.

    The second signal of a kind acts as usual. In other threads than the main one nothing is caught, and the
    list stays empty.

    Yields
    ------
    list of int
        The signals received so far.
    """
    received: list[int] = []
    with keep_handlers() as before:

        def handle(number: int, frame: FrameType | None) -> None:
            received.append(number)
            signal.signal(number, before[number])

        for number in before:
            signal.signal(number, handle)
        yield received


def stop_process(received: Sequence[int], text: str = "") -> NoReturn:
    """Stop the process as the first received signal asks.

    Parameters
    ----------
    received : sequence of int
        The signals that this process received; it may be empty.
    text : str
        What is kept and how to go on, for the message of a KeyboardInterrupt.

    Raises
    ------
    SystemExit
        With status 143 if the first signal is SIGTERM.
    KeyboardInterrupt
        Otherwise, also if another process received the signal.
    """
    if received and received[0] == signal.SIGTERM:
        raise SystemExit(143)
    raise KeyboardInterrupt(*[text] * bool(text))
