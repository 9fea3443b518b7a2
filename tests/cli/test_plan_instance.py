import json
from pathlib import Path

import pytest

from penstock.cli.plan_instance import run_instance
from penstock.errors import UserError

EXAMPLE = Path(__file__).parents[2] / "examples" / "three-layers.toml"

TIGHT = """
name = "tight"
layers = 2
compute_s = "1ms"
memory = { gpu = "20MB", cpu = "unlimited" }
links = { "cpu->gpu" = "1GB/s" }
sizes = { weights = "16MB", kv = "10MB", activations = "4MB" }
[[answers]]
name = "everything on the gpu"
weights = "gpu"
kv = "gpu"
activations = "gpu"
"""


def test_the_example(capsys: pytest.CaptureFixture[str]) -> None:
    run_instance(EXAMPLE, as_json=False)
    assert capsys.readouterr().out.splitlines() == [
        "optimum           0 ms a layer: nothing moves",
        "as printed        2.6 ms a layer, and the optimum takes none: disk→cpu binds",
        "",
        "instance          three layers, 3 layers",
        "a layer           weights 16 MB · KV 2 MB · activations 8 MB",
        "memory            gpu 4 GB · cpu 16 GB · disk unlimited",
        "links             cpu→gpu 10 GB/s · disk→cpu 1 GB/s",
        "                  what rests on disk does not cross cpu→gpu",
        "",
        "                          gpu        cpu       disk",
        "optimum",
        "  weights               100 %          –          –",
        "  KV                    100 %          –          –",
        "  activations           100 %          –          –",
        "as printed",
        "  weights                70 %       20 %       10 %",
        "  KV                     60 %       30 %       10 %",
        "  activations            40 %       50 %       10 %",
        "",
        "ms a layer            cpu→gpu   disk→cpu    compute    busiest all layers",
        "optimum                     0          0          0          0          0",
        "as printed               0.78        2.6          0        2.6        7.8",
        "",
        "one more MB       saves nothing on any tier",
        "note              sizes.weights is 16 MB and counts; dimensions make 25.2 MB: 8·hidden² + 4·hidden·ffn",
        "note              sizes.kv is 2 MB and counts; dimensions make 9.4 MB: 4·batch·(prompt + generate/2)·hidden",
        "note              sizes.activations is 8 MB and counts; dimensions make 8.2 kB: 2·batch·hidden",
    ]


def test_what_binds_and_what_would_help(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "tight.toml"
    path.write_text(TIGHT)
    run_instance(path, as_json=False)
    lines = capsys.readouterr().out.splitlines()
    assert lines[:3] == [
        "optimum           20 ms a layer: cpu→gpu binds",
        "everything on th… 1 ms a layer, 0.05× the optimum: compute binds",
        "                  does not fit: gpu 40 MB short",
    ]
    assert "links             cpu→gpu 1 GB/s · compute 1 ms a layer" in lines
    assert lines[-2:] == ["one more MB       on gpu saves 0.5 ms a layer", "what binds        cpu→gpu 100 %"]


def test_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run_instance(EXAMPLE, as_json=True)
    account = json.loads(capsys.readouterr().out)
    assert account["sizes_bytes"] == {"weights": 16_000_000, "kv": 2_000_000, "activations": 8_000_000}
    assert account["memory_bytes"]["disk"] is None
    assert account["optimum"]["shares"]["weights"] == {"gpu": 1.0, "cpu": 0.0, "disk": 0.0}
    assert account["optimum"]["binding_lane"] is None
    (printed,) = account["answers"]
    assert printed["name"] == "as printed"
    assert printed["layer_s"] == pytest.approx(2.6e-3)
    assert printed["total_s"] == pytest.approx(7.8e-3)
    assert printed["binding_lane"] == "disk→cpu"
    assert printed["fits"] is True
    assert printed["ratio"] is None
    assert len(account["notes"]) == 3
    (tmp_path / "tight.toml").write_text(TIGHT)
    run_instance(tmp_path / "tight.toml", as_json=True)
    account = json.loads(capsys.readouterr().out)
    assert account["optimum"]["duals"]["s_per_byte"] == {"gpu": pytest.approx(0.5e-9)}
    assert account["answers"][0]["short_bytes"] == {"gpu": 40_000_000}
    assert account["answers"][0]["fits"] is False


def test_a_mistake_prints_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "wrong.toml"
    path.write_text(TIGHT.replace("1GB/s", "0GB/s"))
    with pytest.raises(UserError, match=r"wrong\.toml: links\.cpu→gpu is '0GB/s'"):
        run_instance(path, as_json=True)
    assert capsys.readouterr().out == ""
