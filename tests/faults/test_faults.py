"""A part of the fault cases. `python -m tests.faults` runs all of them, `make test-faults` more."""

import json

import pytest

from experiments.reliability import __main__ as reliability
from tests import ROOT
from tests.faults import kills, runner
from tests.faults.case import Case

LIMITS = {  # number of cases of `make test-faults`, about ten minutes on one core
    "kills": 2,
    "flips": 60,
    "full_disk": 3,
    "signals": 8,
    "two_trainers": 4,
    "divergence": 5,
    "pictures": 400,
    "weights": 120,
    "commands": 400,
}


def failures(records):
    return [json.dumps(record, indent=1) for record in records if not record["ok"]]


def test_a_process_that_dies_at_every_point_of_a_save(tmp_path):
    """Six processes end at the six points; the run ends with the bits of an uninterrupted one."""
    short = dict(total_steps=8, checkpoint_every=1, eval_every=0, optim__warmup=2)
    details = kills.crash_points("digits", 1, tmp_path, **short)
    assert details["tried"] == 6


@pytest.mark.parametrize("kind, count", [("flips", 50), ("commands", 40)])
def test_some_cases(kind, count):
    cases = [case for case in runner.load_cases(kind) if "by command" not in case.name]
    cases = cases[:: len(cases) // count][:count]
    assert not failures([runner.run_case(kind, case) for case in cases])


@pytest.mark.faults
@pytest.mark.parametrize("kind", LIMITS)
def test_more_cases(kind):
    assert not failures(runner.run_kind(kind, limit=LIMITS[kind]))


def test_failed_cases_are_recorded_and_not_repeated(tmp_path, monkeypatch):
    """A rerun skips the cases of the file and ignores its torn last line."""
    done = []

    def run(name, folder):
        done.append(name)
        assert folder.is_dir() and not list(folder.iterdir())
        if name == "b":
            raise AssertionError("not survived\nlast line")
        return {"value": 1}

    cases = [Case(name, lambda folder, name=name: run(name, folder)) for name in "abc"]
    monkeypatch.setattr(runner, "load_cases", lambda _: cases)
    output = tmp_path / "results.jsonl"
    runner.run_kind("kills", output, limit=2)
    with open(output, "a") as file:
        file.write('{"kind": "kills", "case": "c", "o')
    records = runner.run_kind("kills", output)
    assert done == ["a", "b", "c"] and [r["ok"] for r in records] == [True, False, True]
    assert records[1]["reason"] == "AssertionError: not survived"
    assert records[1]["output"] == ["last line"] and records[0]["value"] == 1
    assert [json.loads(line) for line in output.read_text().splitlines()] == records


def test_table_of_results_is_current():
    page = (ROOT / "docs/reliability.md").read_text()
    table = page.partition(reliability.BEGIN)[2].partition(reliability.END)[0]
    assert table == reliability.table(), "run python -m experiments.reliability --add=FILE"
    assert reliability.KINDS.keys() == set(runner.KINDS)
