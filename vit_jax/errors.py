"""The ways in which a command ends other than well. Imports nothing; everything may import it."""


class UserError(ValueError):
    """The user's mistake, in one or two plain lines: the cause and the remedy. Exit code 2."""

    exit_code = 2


class Diverged(Exception):
    """The loss or the parameters are no longer finite. Exit code 3."""

    exit_code = 3


class Preempted(Exception):
    """Stopped from outside after saving: the same command resumes. Exit code 75."""

    exit_code = 75


NO_SPACE = 4  # exit code where a disk or a quota is full
INTERRUPTED = 130  # exit code of a second Ctrl-C, as shells have it: 128 + SIGINT
