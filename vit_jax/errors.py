"""Exceptions with exit codes, and names in messages. Imports nothing."""


class UserError(ValueError):
    """A mistake by the user. Exit code 2.

    The message is one or two plain lines with the cause and the fix.
    """

    exit_code = 2


class DecodeError(UserError):
    """An image cannot be decoded. The message is one line: the file and the cause."""


class Diverged(Exception):
    """The loss or the parameters are not finite. Exit code 3."""

    exit_code = 3


class NoSpace(Exception):
    """A checkpoint or the metrics cannot be written, because the disk is full. Exit code 4."""

    exit_code = 4


class WorkdirLost(Exception):
    """The workdir was removed, replaced or taken over while training. Exit code 5."""

    exit_code = 5


class Preempted(Exception):
    """Stopped by a signal after saving; rerunning the same command resumes. Exit code 75."""

    exit_code = 75


INTERRUPTED = 130  # exit code after a second Ctrl-C: 128 + SIGINT, as in shells


def printable(name):
    """Return a name as one printable line, for messages.

    Characters that are not printable, such as newlines, terminal escapes, text-direction marks and
    undecodable bytes of file names, become backslash escapes: "a\\nb", "\\x1b[0m", "\\udcff".
    """
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in str(name))
