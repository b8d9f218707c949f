"""Show the progress of a long task, with an estimate of the time left."""

import sys
import time
import warnings
from collections.abc import Callable
from typing import Any

from molequi.util.run_log import log

_SECONDS_BETWEEN_LINES = 15.0


class ProgressBar:
    """A progress bar on a terminal and in a notebook with ipywidgets; elsewhere one line every 15 seconds.

    A bar inside another one is shown below it. If an exception or Ctrl-C ends the task, the bar stays where
    it was.

    Parameters
    ----------
    name : str
        What is done, shown first.
    total : float or None
        Amount of work; None if unknown. With ``unit=""`` a fraction of 1, shown in percent.
    unit : str
        What is counted, such as "step"; "B" counts bytes.
    show : bool
        False shows nothing.
    start : float
        Work that was done before. It is not used for the estimate of the time left.
    delay : float
        Seconds to wait before anything is shown, so that short tasks show nothing.
    keep : bool
        Leave the bar on the terminal at the end; print the last state to a log.
    clock : callable, optional
        Returns the time in s from which the lines of a log estimate the time left; by default
        that of the machine.

    Examples
    --------
    >>> with ProgressBar("read", 2, unit="file", show=False) as bar:
    ...     bar.advance()
    ...     bar.update(2, "done")
    """

    def __init__(
        self,
        name: str,
        total: float | None,
        *,
        unit: str = "step",
        show: bool = True,
        start: float = 0,
        delay: float = 0.0,
        keep: bool = False,
        clock: Callable[[], float] | None = None,
    ) -> None:
        self.name, self.total, self.unit, self.show = name, total, unit, show
        self.start = self.done = start
        self.delay, self.keep, self.text, self.clock = delay, keep, "", clock or time.monotonic
        self._bar: Any = None

    def __enter__(self) -> "ProgressBar":
        self._begun, self._shown, self._printed = time.monotonic(), -float("inf"), self.start
        self._zero = self.clock()
        kind = _bar_class() if self.show else None
        if kind is not None:
            percent = {"bar_format": "{desc}: {percentage:3.0f}% |{bar}| {elapsed}<{remaining} {postfix}"}
            self._bar = kind(
                desc=self.name,
                total=self.total,
                initial=self.start,
                unit=self.unit,
                unit_scale=self.unit == "B",
                delay=self.delay,
                leave=self.keep,
                mininterval=0.5,
                dynamic_ncols=True,
                **({} if self.unit else percent),
            )
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.close()
        elif self.show and self.keep and self._printed != self.done:
            self._print()

    def advance(self, count: float = 1, text: str | None = None) -> None:
        """Count work that was done since the last call.

        Parameters
        ----------
        count : float
            Amount of work.
        text : str or None
            Text to show behind the bar; None keeps the last one.
        """
        self.update(self.done + count, text)

    def update(self, done: float, text: str | None = None) -> None:
        """Show that `done` of the total work is done.

        Parameters
        ----------
        done : float
            Amount of work, including that before the start.
        text : str or None
            Text to show behind the bar; None keeps the last one.
        """
        before, self.done = self.done, done
        self.text = self.text if text is None else text
        if self._bar is not None:
            if text is not None:
                self._bar.set_postfix_str(text, refresh=False)
            self._bar.update(done - before)
        elif self.show:
            now = time.monotonic()
            if now - self._begun >= self.delay and now - self._shown >= _SECONDS_BETWEEN_LINES:
                self._print()

    def finish(self) -> None:
        """Say that nothing is left to do, although less was done than the total. The bar is then full."""
        self.total = self.done or None
        if self._bar is not None:
            self._bar.total = self.total
            if hasattr(self._bar, "container") and self.total:  # the widget of a notebook
                self._bar.container.children[1].max = self.total
            self._bar.refresh()

    def _print(self) -> None:
        self._shown, self._printed = time.monotonic(), self.done
        print(self._line(self.clock() - self._zero), file=sys.stderr, flush=True)

    def _line(self, seconds: float) -> str:
        """One line for a log: `md: 200/1000 step, 3:20 left, T 301 K`."""
        if self.total is None:
            parts = [f"{self.done:g} {self.unit}"]
        elif self.unit:
            parts = [f"{self.done:.10g}/{self.total:.10g} {self.unit}"]
        else:
            parts = [f"{100 * self.done / self.total:.0f} %"]
        if self.total is not None and self.done > self.start:
            left = round(seconds * max(self.total - self.done, 0) / (self.done - self.start))
            parts.append(f"{left // 60}:{left % 60:02d} left")
        return f"{self.name}: " + ", ".join([*parts, self.text] if self.text else parts)


def _bar_class() -> Any:
    """The class of the bar: a widget in a notebook, text on a terminal; None where neither can be shown."""
    with warnings.catch_warnings():
        # Without ipywidgets tqdm warns that a notebook gets no widget. Lines are printed there.
        warnings.simplefilter("ignore")
        from tqdm.auto import tqdm
        from tqdm.notebook import tqdm_notebook
    return tqdm if issubclass(tqdm, tqdm_notebook) or (sys.stderr and sys.stderr.isatty()) else None


def tell(text: str) -> None:
    """Print a line on stderr, and write it to the log files that are open.

    Parameters
    ----------
    text : str
        The line.
    """
    print(f"molequi: {text}", file=sys.stderr, flush=True)
    log(text)
