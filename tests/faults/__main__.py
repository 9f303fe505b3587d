"""Run fault cases.

python -m tests.faults --kind=kills --output=kills.jsonl
python -m tests.faults --limit=4

Without --kind, all kinds are run. Results are appended to --output, one JSON object per line, and
cases that are already in the file are skipped. The exit code is 1 if a case failed.
"""

import argparse
import sys

from tests.faults import runner


def main():
    parser = argparse.ArgumentParser(prog="python -m tests.faults", description=__doc__)
    parser.add_argument("--kind", choices=runner.KINDS, help="kind of fault; default: all")
    parser.add_argument("--limit", type=int, help="number of cases per kind; default: all")
    parser.add_argument("--output", help="file of the results, FILE.jsonl")
    args = parser.parse_args()
    sys.stdout.reconfigure(line_buffering=True)
    records = []
    for kind in [args.kind] if args.kind else runner.KINDS:
        records += runner.run_kind(kind, args.output, args.limit)
    failed = [record for record in records if not record["ok"]]
    for record in failed:
        print(f"\n{record['kind']}: {record['case']}\n{record['reason']}")
        print("\n".join(record.get("output", ())))
    sys.exit(bool(failed))


if __name__ == "__main__":
    main()
