"""Run the cases of a kind of fault, one JSON line per case. A rerun skips the cases in the file."""

import contextlib
import importlib
import json
import tempfile
import time
import traceback
from pathlib import Path

KINDS = (
    "kills",
    "flips",
    "full_disk",
    "signals",
    "two_trainers",
    "divergence",
    "pictures",
    "weights",
    "commands",
)


def load_cases(kind):
    """Return the cases of a kind; their names are unique."""
    cases = importlib.import_module(f"tests.faults.{kind}").cases()
    names = [case.name for case in cases]
    assert len(set(names)) == len(names), f"{kind}: names of cases are not unique"
    return cases


def run_case(kind, case):
    """Run a case in an empty directory, which is removed afterwards, and return its record."""
    start = time.monotonic()
    record = {"kind": kind, "case": case.name, "ok": True}
    with tempfile.TemporaryDirectory(prefix="fault-", ignore_cleanup_errors=True) as folder:
        try:
            details = case.run(Path(folder))
        except Exception as error:
            reason, *output = str(error).splitlines() or [""]
            if not isinstance(error, AssertionError):
                output += traceback.format_exc().splitlines()[-6:]
            details = {"reason": f"{type(error).__name__}: {reason}", "output": output[-12:]}
            record["ok"] = False
    return record | {"seconds": round(time.monotonic() - start, 2)} | details


def read_records(path):
    """Read a file of records; [] if it does not exist. An incomplete last line is ignored."""
    records = []
    for line in Path(path).read_text().splitlines() if Path(path).exists() else []:
        with contextlib.suppress(ValueError):
            records.append(json.loads(line))
    return records


def run_kind(kind, output=None, limit=None):
    """Run the cases of a kind that are not yet in a file, and append their records to it.

    Args:
      kind: one of `KINDS`.
      output: path of the file, one JSON object per line; None: the records are not stored.
      limit: number of cases, evenly spaced over all cases of the kind; None: all.

    Returns:
      The records of these cases, including those that were already in the file.
    """
    cases = load_cases(kind)
    if limit is not None and limit < len(cases):
        cases = [cases[i * len(cases) // limit] for i in range(limit)]
    records = {record["case"]: record for record in read_records(output)} if output else {}
    if output:
        _drop_incomplete_line(Path(output))
    failed = 0
    for number, case in enumerate(cases, 1):
        if case.name not in records:
            records[case.name] = record = run_case(kind, case)
            if output:
                with open(output, "a") as file:
                    file.write(json.dumps(record) + "\n")
            state = "ok" if record["ok"] else f"FAILED: {record['reason']}"
            print(f"{kind} {number}/{len(cases)}  {record['seconds']:.1f} s  {case.name}: {state}")
        failed += not records[case.name]["ok"]
    print(f"{kind}: {len(cases)} cases, {failed} failed", flush=True)
    return [records[case.name] for case in cases]


def _drop_incomplete_line(path):
    """Create the file if necessary, and remove a last line without a newline."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()
    data = path.read_bytes()
    if data and not data.endswith(b"\n"):
        path.write_bytes(data[: data.rfind(b"\n") + 1])
