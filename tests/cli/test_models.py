import json
from typing import Any

import pytest

import penstock.model
from penstock.cli import main

FACTS: dict[str, Any] = {
    "name": "SmolLM2-135M-Instruct",
    "family": "llama",
    "parameters": 134_515_008,
    "bytes": 269_030_016,
    "layers": 30,
    "pages": 61,
    "page_bytes_max": 56_623_104,
    "kv_bytes_per_token": 23_040,
    "state_bytes_per_row": 0,
    "core_bytes": 262_144,
    "dtype": {"stored": "bfloat16", "compute": "float32", "kv": "bfloat16"},
    "holds": {"rows": 64, "row_tokens": 512, "budget_bytes": {"cpu": 2**30}, "weights_bytes": {"cpu": 2**28}},
}


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    asked: dict[str, Any] = {}

    def describe(model: str, **flags: Any) -> dict[str, Any]:
        asked.update(flags, model=model)
        return FACTS

    monkeypatch.setattr(penstock.model, "describe", describe, raising=False)
    return asked


def test_table(asked: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["models", "demo", "--cpu-memory", "1GiB"]) == 0
    assert asked["model"] == "demo"
    assert asked["cpu_memory"] == "1GiB"
    assert capsys.readouterr().out.splitlines() == [
        "model       SmolLM2-135M-Instruct (llama)",
        "weights     257 MiB in bfloat16, 135 M parameters, 30 layers",
        "pages       61 of 54 MiB at most, beside a core of 256 KiB",
        "computes in float32",
        "KV          22.5 KiB per token in bfloat16",
        "budget      cpu 1 GiB",
        "holds       weights cpu 256 MiB",
        "            64 rows of 512 tokens",
    ]


def test_json(asked: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["models", "demo", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == FACTS
