"""What the comparisons share: what is built once, runs under a memory limit from a cold page cache, results."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
import time
from datetime import UTC, datetime
from pathlib import Path

HERE = Path(__file__).resolve().parent
PEERS = HERE / "peers"
DROP_CACHES = Path("/proc/sys/vm/drop_caches")
MEMCAP_LINE = re.compile(r"memcap: peak (\d+) MiB, limit hit (\d+) times, killed (\d+), exit (\d+)")


def build(command: list[str | Path], what: str) -> None:
    print(f"building {what}", file=sys.stderr)
    subprocess.run([str(part) for part in command], check=True, stdout=sys.stderr)


def checkpoint(work: Path, shape: str, layers: int | None) -> Path:
    """The model's directory under `work`, written where it is missing."""
    path = work / model_name(shape, layers)
    if not path.exists():
        others = ["--layers", str(layers)] if layers else []
        build([sys.executable, HERE / "make_model.py", shape, path, *others], f"checkpoint {path}")
    return path


def model_name(shape: str, layers: int | None) -> str:
    return shape + (f"-{layers}layers" if layers else "")


def peers_python(work: Path, given: Path | None) -> Path:
    """An interpreter with the peers: the given one, or one built under `work`."""
    python = given or work / "peers" / "bin" / "python"
    if not python.exists():
        if given:
            raise SystemExit(f"no interpreter at {python}; leave --peers-python out to have one built")
        build([sys.executable, PEERS / "install.py", python.parents[1]], "the peers' environment")
    return python


def drop_page_cache() -> bool:
    """Start from a cold page cache; False where that is not permitted."""
    os.sync()
    try:
        DROP_CACHES.write_text("3")
    except OSError:
        return False
    return True


def machine() -> dict:
    """What a figure depends on besides the command."""
    names = re.findall(r"^model name\s*: (.*)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    commit = subprocess.run(["git", "describe", "--always", "--dirty"], cwd=HERE, capture_output=True, text=True)
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "cpu": names[0] if names else "unknown",
        "cores": len(os.sched_getaffinity(0)),
        "load_before": round(os.getloadavg()[0], 2),
        "commit": commit.stdout.strip(),
    }


def last_json(text: str) -> dict | None:
    """The JSON object that stdout is (Penstock) or ends with (the peers)."""
    for part in (text, text.strip().rpartition("\n")[2]):
        try:
            value = json.loads(part)
        except json.JSONDecodeError:
            continue
        if isinstance(value, dict):
            return value
    return None


def capped(command: list[str], memory_gib: float, limit_seconds: float, cold: bool = True) -> tuple[dict, dict | None]:
    """Run under the memory limit and the time limit: the record, with `problem` where one was seen, and what was said.

    cold: drop the page cache first.
    """
    dropped = cold and drop_page_cache()
    record = machine() | {"cold_cache": dropped, "time_limit": limit_seconds, "command": shlex.join(command)}
    # outside of the limit's group, so that a run that is stopped still has its peak reported
    whole = [str(HERE / "memcap"), str(memory_gib), "timeout", "-k", "30", str(limit_seconds), *command]
    start = time.perf_counter()
    done = subprocess.run(whole, capture_output=True, text=True, env=os.environ | {"HF_HUB_OFFLINE": "1"})
    record["wall_seconds"] = round(time.perf_counter() - start, 1)
    said = MEMCAP_LINE.search(done.stderr)
    if said:
        peak, hits, kills, _ = map(int, said.groups())
        record |= {"peak_mib": peak, "limit_hits": hits, "killed": kills}
    value = last_json(done.stdout)
    if said and int(said[3]):
        record["problem"] = "killed for memory"
    elif record["wall_seconds"] >= limit_seconds:
        record["problem"] = f"over {limit_seconds:.0f} s"
    elif done.returncode or value is None:
        record["problem"] = f"exit {done.returncode}"
        record["stderr"] = done.stderr[-2000:]
    return record, value


def timed_out(record: dict) -> bool:
    return str(record.get("problem", "")).startswith("over ")


def notes(record: dict) -> list[str]:
    """What a reader of a table must know of a run."""
    said = [record["problem"]] if "problem" in record else []
    if not record["cold_cache"]:
        said.append("page cache not dropped")
    if record["load_before"] > 0.5:
        said.append(f"load {record['load_before']} before")
    return said


def cell(value: float | None, form: str) -> str:
    return "" if value is None else format(value, form)


def append(path: Path, record: dict) -> None:
    with path.open("a") as file:
        file.write(json.dumps(record) + "\n")


def read_records(path: Path, job: dict) -> list[dict]:
    """The lines of the file that belong to the job."""
    if not path.exists():
        return []
    records = [json.loads(line) for line in path.read_text().splitlines()]
    return [r for r in records if all(r.get(key) == value for key, value in job.items())]


def words(text: str) -> list[str]:
    return [word for word in text.split(",") if word]


def numbers(text: str) -> list[int]:
    return [int(word) for word in words(text)]
