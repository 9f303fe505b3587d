"""Display of the progress of a sweep while its runs are trained."""

import threading
import time

from rich.live import Live
from rich.table import Table
from rich.text import Text

from experiments import sweep_results
from vit_jax import progress
from vit_jax.errors import printable

REFRESH_SECONDS = 2.0  # minimum time between updates of the table
LINE_SECONDS = 60.0  # minimum time between lines, without a terminal


class Display:
    """A table of the settings, updated in place on a terminal; otherwise a line per minute.

    Use it as a context manager.

    Args:
        settings: a function without arguments, which returns a list of sweep_results.Setting.
        metric: the name of the validation score.
        stream: text stream; None: stdout.
    """

    def __init__(self, settings, metric, stream=None):
        self.settings = settings
        self.metric = metric
        self.console = progress.make_console(stream)
        self._live = None
        self._lock = threading.Lock()
        self._next = time.monotonic() + REFRESH_SECONDS

    def update(self):
        """Show the current state, unless it was shown a moment ago. May be called by threads."""
        if time.monotonic() < self._next or not self._lock.acquire(blocking=False):
            return
        try:
            settings = self.settings()
            if self._live is None:
                progress.print_line(self.console, sweep_results.summary(settings))
            elif settings:
                self._live.update(self._table(settings), refresh=True)
            seconds = LINE_SECONDS if self._live is None else REFRESH_SECONDS
            self._next = time.monotonic() + seconds
        finally:
            self._lock.release()

    def _table(self, settings):
        """Return the table, with the settings of running jobs first: the screen may be too low."""

        def is_idle(setting):
            return all(result.state != "running" for result in setting.results)

        settings = sorted(sweep_results.best_first(settings), key=is_idle)
        rows = sweep_results.table(settings, self.metric, live=True)
        table = Table(box=None, caption=Text(sweep_results.summary(settings)), pad_edge=False)
        for name in rows[0]:
            table.add_column(Text(printable(name)), overflow="fold")
        for row in rows:
            table.add_row(*(Text(printable(value)) for value in row.values()))
        return table

    def __enter__(self):
        if progress.is_interactive(self.console):
            options = dict(auto_refresh=False, transient=True, **progress.redirects())
            self._live = Live(console=self.console, **options)
            self._live.start()
        return self

    def __exit__(self, *_):
        if self._live is not None:
            self._live.stop()
