"""Progress of long operations: updated in place on a terminal, otherwise plain lines."""

import contextlib
import itertools
import sys
import threading
import time

from rich.console import Console
from rich.progress import (
    BarColumn,
    Progress,
    SpinnerColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.text import Text

SHOW_AFTER_SECONDS = 1.0  # shorter operations show nothing


def make_console(stream=None, quiet=False):
    """Return a rich Console that writes to a text stream; None: stdout."""
    return Console(file=stream or sys.stdout, quiet=quiet, force_jupyter=False)


def is_interactive(console):
    """Return whether lines of a console can be updated in place."""
    return console.is_interactive and not console.quiet


def print_line(console, text):
    """Print text as it is, without wrapping, markup or colors, above what is updated in place."""
    console.print(Text(text), soft_wrap=True)


def redirects():
    """Return options of rich displays: printed text appears above them, unless it goes to a file.

    rich would print it on the console of the display even if the stream is a file.
    """
    return dict(redirect_stdout=sys.stdout.isatty(), redirect_stderr=sys.stderr.isatty())


@contextlib.contextmanager
def status(text, done=None, console=None):
    """Show what the program is doing during the `with` block.

    On a terminal, a spinner with the elapsed time; otherwise the line "TEXT ...". At the end, the
    line "DONE in 12.3 s" is printed, unless the block raised an exception.

    Args:
      text: such as "compiling the training step".
      done: such as "compiled the training step"; None: nothing is printed at the end.
      console: rich Console; None: stdout.
    """
    console = console or make_console()
    start = time.monotonic()
    if is_interactive(console):
        columns = (SpinnerColumn(), TextColumn("{task.description} ...", markup=False))
        options = dict(console=console, transient=True, **redirects())
        with Progress(*columns, TimeElapsedColumn(), **options) as display:
            display.add_task(text, total=None)
            yield
    else:
        print_line(console, f"{text} ...")
        yield
    if done:
        print_line(console, f"{done} in {_format_seconds(time.monotonic() - start)}")


def _format_seconds(seconds):
    minutes, rest = divmod(round(seconds), 60)
    return f"{seconds:.1f} s" if seconds < 100 else f"{minutes} min {rest} s"


@contextlib.contextmanager
def steps(title, total, stream=None):
    """Show the progress of a `with` block of several steps, if it takes longer than a second.

    On a terminal, a bar is updated in place and removed at the end. Otherwise lines are printed,
    less and less often: "report: computing receptive fields (3 of 9)".

    Args:
      title: what is done, such as "report".
      total: number of steps.
      stream: text stream; None: stderr.

    Yields:
      A function of an optional text, to be called at the start of each step.
    """
    numbers = itertools.count()
    with _Display(title, total, stream or sys.stderr) as display:
        yield lambda text="": display.update(next(numbers), text)


def track(items, title, total=None, stream=None):
    """Iterate over items and show the progress, as `steps` does.

    Args:
      items: an iterable.
      title: what is done, such as "attend: drawing frames".
      total: number of items; None: len(items).
      stream: text stream; None: stderr.

    Yields:
      The items.
    """
    with steps(title, len(items) if total is None else total, stream) as start_step:
        for item in items:
            start_step()
            yield item


class _Display:
    """Display of `steps`. It appears SHOW_AFTER_SECONDS after the start, also within a step."""

    def __init__(self, title, total, stream):
        self.title = title
        self.total = total
        self.console = make_console(stream)
        self.start = time.monotonic()
        self.previous = None  # time of the previous line
        self.line = ""
        self.timer = threading.Timer(SHOW_AFTER_SECONDS, self._appear)
        self.timer.daemon = True
        self.bar = None
        if is_interactive(self.console):
            columns = (TextColumn("{task.description}", markup=False), BarColumn())
            counts = TextColumn("{task.completed:,} of {task.total:,}")
            options = dict(console=self.console, transient=True, **redirects())
            self.bar = Progress(*columns, counts, TimeRemainingColumn(), **options)
            self.task = self.bar.add_task(title, total=total)

    def __enter__(self):
        self.timer.start()
        return self

    def __exit__(self, *_):
        self.timer.cancel()
        self.timer.join()
        if self.bar is not None:
            self.bar.stop()

    def update(self, i, text):
        """Show that step i, counted from 0, has started."""
        title = f"{self.title}: {text}" if text else self.title
        if self.bar is not None:
            self.bar.update(self.task, completed=i, description=title)
            return
        count = f" ({i + 1:,} of {self.total:,})" if self.total > 1 else ""
        self.line = title + count
        if self.previous is not None:
            # Lines of a long loop are rarer and rarer: each tenth of the elapsed time.
            wait = max(SHOW_AFTER_SECONDS, (self.previous - self.start) / 10)
            if time.monotonic() - self.previous >= wait:
                self._print()

    def _appear(self):
        if self.bar is not None:
            self.bar.start()
        elif self.line:
            self._print()

    def _print(self):
        self.previous = time.monotonic()
        print_line(self.console, self.line)
