"""The plan against a grid of measured runs: one ragged job under two budgets; prints a Markdown table.

    python benchmarks/grid.py --work DIR [--budgets 900MiB,1500MiB]

Under each budget the job runs with the plan's own choice, first and last of the sitting so that drift shows, with the
simple rule that planning replaced (all rows, at least 1,024 tokens a sweep), and with every pair of --rows and
--sweep-tokens of the grid. Every result is appended to a JSONL file; `--table-only` prints its table again.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from predict import Case, execute, ragged
from sitting import append, words

REQUESTS = 24
ROWS = (6, 12, 24)
SWEEP_TOKENS = (128, 1024)
RULE = f"--rows {REQUESTS} --sweep-tokens 1024"


def choices() -> Iterator[tuple[str, str]]:
    """(name, flags) of each run under a budget."""
    yield "plan", ""
    for rows in ROWS:
        for tokens in SWEEP_TOKENS:
            flags = f"--rows {rows} --sweep-tokens {tokens}"
            yield ("rule" if flags == RULE else "grid"), flags
    yield "plan", ""


def cases(budgets: Sequence[str]) -> Iterator[tuple[str, str, Case]]:
    for budget in budgets:
        for name, flags in choices():
            job = Case(f"grid {budget} {flags}", "llama3b", 4, ragged(REQUESTS), f"--cpu-memory {budget} {flags}")
            yield budget, name, job


def table(records: Sequence[dict]) -> str:
    lines = [
        "| budget | choice | rows in flight | tokens a sweep | sweeps | tok/s | of the grid's best | predicted |",
        "| --- | --- | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for budget in dict.fromkeys(r["budget"] for r in records):
        here = [r for r in records if r["budget"] == budget]
        best = max(r["run"]["total_tok_s"] for r in here if "run" in r and r["choice"] != "plan")
        for record in here:
            if "problem" in record:
                lines.append(f"| {budget} | {record['flags']} | | | | {record['problem']} | | |")
                continue
            run = record["run"]
            said = run["predicted"]["total_tok_s"]
            choice = record["choice"] + (f" `{record['flags']}`" if record["flags"] else "")
            lines.append(
                f"| {budget} | {choice} | {run['rows_mean']:.0f} | {run['policy']['sweep_tokens']} | {run['sweeps']} "
                f"| {run['total_tok_s']:.2f} | {run['total_tok_s'] / best:.0%} | {said:.2f} |"
            )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--penstock", default=str(Path(sys.executable).with_name("penstock")))
    parser.add_argument("--budgets", type=words, default=["900MiB", "1500MiB"])
    parser.add_argument("--results", type=Path)
    parser.add_argument("--no-profile", action="store_true", help="use the stored profile as it is")
    parser.add_argument("--table-only", action="store_true")
    arguments = parser.parse_args()
    results = arguments.results or arguments.work / "grid.jsonl"
    if not arguments.table_only:
        if not arguments.no_profile:
            subprocess.run([arguments.penstock, "profile", "--force"], check=True, stdout=sys.stderr)
        for budget, name, case in cases(arguments.budgets):
            flags = case.flags.removeprefix(f"--cpu-memory {budget}").strip()
            record = execute(case, arguments) | {"budget": budget, "choice": name, "flags": flags}
            append(results, record)
            print(
                table([record]).splitlines()[-1] if "problem" in record else record["run"]["total_tok_s"],
                file=sys.stderr,
            )
    print(table([json.loads(line) for line in results.read_text().splitlines()]))


if __name__ == "__main__":
    main()
