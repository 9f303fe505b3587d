"""Progress of tools: nothing for short loops, lines without a terminal, a bar that disappears."""

import io
import time

import pytest

from vit_jax import progress


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.fixture(autouse=True)
def short_delay(monkeypatch):
    monkeypatch.setattr(progress, "SHOW_AFTER_SECONDS", 0.1)
    monkeypatch.setenv("TERM", "xterm")


def test_short_loop_shows_nothing():
    for stream in (io.StringIO(), Terminal()):
        assert list(progress.track("abc", "predict", stream=stream)) == ["a", "b", "c"]
        assert stream.getvalue() == ""


def test_lines_without_terminal(monkeypatch):
    stream = io.StringIO()
    with progress.steps("report", 3, stream) as start_step:
        start_step("reading")
        start_step("computing receptive fields")
        while not stream.getvalue():  # appears during the step
            time.sleep(0.01)
        start_step("evaluating")  # less than SHOW_AFTER_SECONDS later
    assert stream.getvalue() == "report: computing receptive fields (2 of 3)\n"
    monkeypatch.setattr(progress, "SHOW_AFTER_SECONDS", 0.02)
    stream = io.StringIO()
    for _ in progress.track(range(1500), "prepare", stream=stream):
        time.sleep(0.0002 if stream.getvalue() else 0.05)
    lines = stream.getvalue().splitlines()
    assert lines[0] == "prepare (1 of 1,500)"
    assert 3 <= len(lines) <= 60, "lines are rarer and rarer"


def test_bar_on_terminal_is_removed():
    stream = Terminal()
    with pytest.raises(KeyboardInterrupt):
        for item in progress.track(range(1000), "attend: [drawing]", stream=stream):
            if item == 2:
                while "attend: [drawing]" not in stream.getvalue():
                    time.sleep(0.01)
                raise KeyboardInterrupt
    text = stream.getvalue()
    assert "of 1,000" in text and "(" not in text
    assert text.endswith("\x1b[2K"), "the line is erased"
    assert text.rindex("\x1b[?25h") > text.rindex("\x1b[?25l"), "the cursor is visible"
