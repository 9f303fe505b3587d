"""One trainer per workdir: real processes that hold, lose and contend for it."""

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time

import pytest

from tests import ROOT
from vit_jax.errors import UserError, WorkdirLost
from vit_jax.workdir import lease, owner

# Usage: WORKDIR lock|lease MACHINE. Checks the workdir for each line of stdin.
HOLD = """
import os, sys
from vit_jax.errors import UserError, WorkdirLost
from vit_jax.workdir import lease, owner

workdir, kind, machine = sys.argv[1:]
owner.uses_lease = lambda _: kind == "lease"
if machine != "this":
    lease.socket.gethostname = lambda: machine
    lease._machine = lambda: machine
try:
    owner.check_free(workdir)
    with owner.Owner(workdir, renew_seconds=0.2, takeover_seconds=1.5) as owned:
        print("owned", flush=True)
        for line in sys.stdin:
            owned.check(fresh=line == "fresh\\n")
            print("checked", flush=True)
except (UserError, WorkdirLost) as error:
    print(error, file=sys.stderr)
    sys.exit(error.exit_code)
"""
OWNER = dict(renew_seconds=0.2, takeover_seconds=1.5)
KINDS = pytest.mark.parametrize("kind", ["lock", "lease"])


@pytest.fixture
def start():
    """Function (workdir, kind, machine="this") that starts a process that runs HOLD."""
    processes = []

    def run(workdir, kind, machine="this"):
        command = [sys.executable, "-c", HOLD, str(workdir), kind, machine]
        pipes = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
        processes.append(subprocess.Popen(command, cwd=ROOT, text=True, **pipes))
        return processes[-1]

    yield run
    for process in processes:
        process.kill()
        process.wait()
        for stream in (process.stdin, process.stdout, process.stderr):
            stream.close()


@pytest.fixture
def force_lease(monkeypatch):
    monkeypatch.setattr(owner, "uses_lease", lambda _: True)


def assert_owned(process):
    assert process.stdout.readline() == "owned\n", process.stderr.read()


def assert_refused(process, first):
    """Assert that a process exits with 2 and names the first one in its last line."""
    assert process.wait(10) == 2
    line = process.stderr.read().splitlines()[-1]
    assert f"is being trained by process {first.pid} on " in line and "--workdir" in line


def put_lease(workdir, **changes):
    """Write the lease of a process that was killed."""
    record = {"id": "x", "renewed": 3} | lease.make_record() | changes
    (workdir / lease.NAME).write_text(json.dumps(record))


@KINDS
def test_second_trainer_is_refused(tmp_path, start, kind):
    first = start(tmp_path, kind)
    assert_owned(first)
    assert_refused(start(tmp_path, kind), first)
    first.stdin.close()
    assert first.wait(10) == 0
    assert_owned(start(tmp_path, kind))


@KINDS
@pytest.mark.parametrize("machine", ["this", "renamed"])
def test_rerun_at_once_after_sigkill(tmp_path, start, kind, machine):
    """The operating system releases a lock, and a lease shows that its process has ended."""
    first = start(tmp_path, kind)
    assert_owned(first)
    first.kill()
    first.wait()
    second = start(tmp_path, kind, machine)
    assert_owned(second)
    second.stdin.close()
    assert second.wait(10) == 0
    waits = kind == "lease" and machine == "renamed"  # it may be another machine
    assert second.stderr.read().startswith("waiting up to 1.5 s: ") == waits


@KINDS
def test_rerun_under_the_same_pid(tmp_path, monkeypatch, kind):
    """A container is restarted: its trainer has the same pid, and started later."""
    monkeypatch.setattr(owner, "uses_lease", lambda _: kind == "lease")
    put_lease(tmp_path, start=1)
    shutil.copy(tmp_path / lease.NAME, tmp_path / owner.LOCK)
    begin = time.monotonic()
    owner.check_free(tmp_path)
    with owner.Owner(tmp_path) as owned:
        owned.check()
        with pytest.raises(UserError, match=f"is being trained by process {os.getpid()} on "):
            owner.check_free(tmp_path)
    assert time.monotonic() - begin < 60  # it does not wait
    owner.check_free(tmp_path)


@KINDS
def test_one_of_many_started_together(tmp_path, start, kind):
    processes = [start(tmp_path, kind) for _ in range(6)]
    refused = []
    while len(refused) < 5:
        refused += [p for p in processes if p not in refused and p.poll() is not None]
        time.sleep(0.02)
    (first,) = set(processes) - set(refused)
    assert_owned(first)
    for process in refused:
        assert_refused(process, first)


def test_suspended_trainer_keeps_its_lock(tmp_path, start):
    first = start(tmp_path, "lock")
    assert_owned(first)
    first.send_signal(signal.SIGSTOP)
    assert_refused(start(tmp_path, "lock"), first)


def test_lock_is_not_inherited(tmp_path):
    """A process that outlives the trainer that started it does not hold the lock."""
    script = "\n".join(
        [
            "import multiprocessing, os, sys, time",
            "from vit_jax.workdir import owner",
            "if __name__ == '__main__':",
            "    with owner.Owner(sys.argv[1]):",
            "        child = multiprocessing.get_context('spawn').Process(",
            "            target=time.sleep, args=(60,)",
            "        )",
            "        child.start()",
            "        print(child.pid, flush=True)",
            "        os.kill(os.getpid(), 9)",
        ]
    )
    command = [sys.executable, "-c", script, str(tmp_path)]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    child = int(process.stdout.readline())
    assert process.wait(10) == -signal.SIGKILL
    os.kill(child, 0)
    try:
        owner.check_free(tmp_path)
        with owner.Owner(tmp_path):
            pass
    finally:
        os.kill(child, signal.SIGKILL)
        process.stdout.close()


def test_trainer_on_another_machine(tmp_path, start):
    """It is refused once the lease is renewed, and takes it over when it no longer is."""
    first = start(tmp_path, "lease", "one")
    assert_owned(first)
    second = start(tmp_path, "lease", "two")
    assert_refused(second, first)
    first.kill()
    begin = time.monotonic()
    third = start(tmp_path, "lease", "two")
    assert_owned(third)
    assert time.monotonic() - begin > 1.5
    third.stdin.close()
    assert third.wait(10) == 0
    waiting = f"waiting up to 1.5 s: {tmp_path} is, or was, trained by process {first.pid} on one"
    assert third.stderr.read().startswith(waiting)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("check", ["fresh", "cheap"])
def test_suspended_trainer_loses_its_lease(tmp_path, start, check):
    """It notices this before the next write, and leaves the lease of the other one alone."""
    first = start(tmp_path, "lease", "one")
    assert_owned(first)
    first.send_signal(signal.SIGSTOP)
    second = start(tmp_path, "lease", "two")
    assert_owned(second)
    first.send_signal(signal.SIGCONT)
    first.stdin.write(f"{check}\n")
    first.stdin.close()
    assert first.wait(10) == 5
    expected = f"{tmp_path} was taken over by process {second.pid} on two since "
    message = first.stderr.read()
    assert message.startswith(expected) and message.count("\n") == 1
    second.stdin.write("fresh\n")
    second.stdin.flush()
    assert second.stdout.readline() == "checked\n"


@KINDS
@pytest.mark.parametrize("change", ["deleted", "renamed", "replaced"])
def test_workdir_is_lost(tmp_path, monkeypatch, kind, change):
    monkeypatch.setattr(owner, "uses_lease", lambda _: kind == "lease")
    workdir = tmp_path / "run"
    workdir.mkdir()
    with owner.Owner(workdir, **OWNER) as owned:
        owned.check()
        if change == "deleted":
            shutil.rmtree(workdir)
        else:
            workdir.rename(tmp_path / "elsewhere")
        if change == "replaced":
            workdir.mkdir()
        with pytest.raises(WorkdirLost, match="/run (was|is gone).*rerun the same") as error:
            owned.check()
    assert "\n" not in str(error.value)
    assert workdir.exists() == (change == "replaced")


MALFORMED = [
    b"",
    b"\xff\x00",
    b"[" * 100_000,
    b"7",
    b'{"host": 1, "pid": 1, "since": ""}',
    b'{"host": "", "pid": -1, "since": ""}',
    b'{"host": "", "pid": "x", "since": ""}',
    b'{"host": "", "pid": 1e999, "since": ""}',
]


@pytest.mark.parametrize("contents", MALFORMED, ids=range(len(MALFORMED)))
def test_malformed_contents(tmp_path, contents):
    with owner.Owner(tmp_path):
        (tmp_path / owner.LOCK).write_bytes(contents)
        with pytest.raises(UserError, match="is being trained by another process; wait"):
            owner.check_free(tmp_path)


@pytest.mark.usefixtures("force_lease")
def test_malformed_lease_is_taken_over(tmp_path, capsys):
    for contents in (b"", b"[" * 100_000):
        (tmp_path / lease.NAME).write_bytes(contents)
        owner.check_free(tmp_path)
        with owner.Owner(tmp_path, renew_seconds=0.1, takeover_seconds=0.3) as owned:
            owned.check()
        assert "trained by another process\n" in capsys.readouterr().err


@pytest.mark.usefixtures("force_lease")
def test_untrusted_host_name_is_printable(tmp_path):
    put_lease(tmp_path, host="a\n\x1b[0m" + "b" * 1000)
    with pytest.raises(UserError) as error:
        owner.check_free(tmp_path)
    assert str(error.value).isprintable() and len(str(error.value)) < 400


@pytest.mark.usefixtures("force_lease")
def test_other_boots_and_containers_are_other_machines(tmp_path):
    """Their process with the same pid says nothing about the holder."""
    for changes in ({"machine": "other boot"}, {"machine": None}, {"start": None}):
        put_lease(tmp_path, **changes)
        assert lease.is_running((tmp_path / lease.NAME).read_bytes()) is None


def test_renewal_is_not_removed(tmp_path):
    """A lease that is renewed while another process takes it over is put back."""
    store = lease.DiskStore(tmp_path / lease.NAME)
    assert store.create(b"renewed")
    store.read = lambda: b"stale"
    assert not store.remove(b"stale")
    assert [p.read_bytes() for p in tmp_path.iterdir()] == [b"renewed"]
    assert not store.create(b"other")


class BrokenDisk(lease.DiskStore):
    broken = False

    def update(self, *args):
        if self.broken:
            raise OSError(5, "Input/output error")
        return super().update(*args)


def test_lease_that_cannot_be_renewed(tmp_path):
    """Errors are tolerated until another process may take over the lease."""
    store = BrokenDisk(tmp_path / lease.NAME)
    held = lease.Lease("runs/a", store, renew_seconds=0.1, takeover_seconds=0.6)
    held.acquire()
    store.broken = True
    held.check()
    time.sleep(0.3)
    held.check()
    store.broken = False
    time.sleep(0.6)
    held.check(fresh=False)
    store.broken = True
    time.sleep(0.7)
    with pytest.raises(WorkdirLost, match=r"runs/a could not be renewed for 0.6 s \(.*output"):
        held.check()
    held.release()
    assert list(tmp_path.iterdir()) == []


def test_file_system_without_locks(tmp_path, monkeypatch):
    def flock(*_):
        raise OSError(37, "No locks available")

    monkeypatch.setattr(owner.fcntl, "flock", flock)
    owner.check_free(tmp_path)
    with owner.Owner(tmp_path, **OWNER) as owned:
        owned.check()
        assert (tmp_path / lease.NAME).exists()
        with pytest.raises(UserError, match="is being trained by process"):
            owner.check_free(tmp_path)


def test_read_only_workdir():
    """Nobody can create a file in /proc/self, root neither."""
    for kind in (False, True):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(owner, "uses_lease", lambda _, kind=kind: kind)
            with pytest.raises(UserError, match="cannot write in /proc/self: .*--workdir") as error:
                with owner.Owner("/proc/self"):
                    pass
            assert "\n" not in str(error.value)


def test_check_free_creates_nothing(tmp_path):
    owner.check_free(tmp_path)
    owner.check_free(tmp_path / "missing")
    (tmp_path / "file").touch()
    with contextlib.suppress(UserError):
        owner.check_free(tmp_path / "file")
    assert os.listdir(tmp_path) == ["file"]


MOUNTS = r"""
27 1 254:0 / / rw,relatime shared:1 - ext4 /dev/vda rw
30 27 0:40 / /data rw - nfs4 server:/export rw
31 30 0:41 / /data/local\040disk rw - xfs /dev/sdb rw
32 27 0:42 / /mnt rw - ext4 /dev/sdc rw
33 27 0:43 / /mnt rw - fuse.sshfs host: rw
""".strip()


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("/data", "nfs4"),
        ("/data/runs/a", "nfs4"),
        ("/database", "ext4"),
        ("/data/local disk/a", "xfs"),
        ("/mnt/a", "fuse.sshfs"),
    ],
)
def test_file_system_of_a_path(path, expected):
    assert owner._filesystem(path, MOUNTS) == expected
