import re
import shutil
import subprocess
from dataclasses import fields
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from penstock.sim.figure_style import DARK, LIGHT, palette, recoloured
from penstock.sim.report import write_report
from penstock.sim.row import Curve, Row
from penstock.sim.table import table

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
PLACEMENTS, MIGRATIONS = ("prefer-hbm", "alpha-layers"), ("none", "alpha", "alpha:target=0.9", "mine.py:Mine")
PROBE = """<script>addEventListener("load", () => {
  const told = [...document.images].map(i => i.naturalWidth + " " + i.currentSrc.length);
  const asked = performance.getEntriesByType("resource").map(e => e.name).filter(n => !n.startsWith("data:"));
  document.body.dataset.images = told.join(","); document.body.dataset.asked = asked.join(",");
  document.body.dataset.paper = getComputedStyle(document.body).backgroundColor; })</script>"""


def made_row(placement: str, migration: str, skip: float, time_s: float) -> Row:
    plain = {"str": "x", "int": 1, "float": 0.5, "bool": False}
    values = {field.name: plain.get(getattr(field.type, "__name__", ""), 0.5) for field in fields(Row)}
    set_here = {"placement": placement, "migration": migration, "skip": skip, "time_s": time_s, "migrated_bytes": 10**9}
    bounds = {"lb0_s": 20.0, "lb1_s": 25.0, "lb1_at_weights_s": 30.0, "oracle_share": 30 / time_s}
    sizes = {"decode_tokens": 2048, "hbm_capacity_bytes": 4 * 10**9, "scenario": "made <&>", "mean_alpha_bytes": None}
    return Row(**{**values, **set_here, **bounds, **sizes, "id": f"{placement}{migration}{skip}"})


@pytest.fixture(scope="module")
def study() -> tuple[pl.DataFrame, dict[str, Curve]]:
    rows = [
        made_row(placement, migration, skip, 40 + 7 * p + 3 * m - 20 * skip)
        for skip in (0.0, 0.6)
        for p, placement in enumerate(PLACEMENTS)
        for m, migration in enumerate(MIGRATIONS)
    ]
    alpha = np.array([np.nan, 0.6, 0.7, 0.8])
    curve = Curve(np.arange(4), np.full(4, 9.5), alpha, np.full(4, 3 * 10**9))
    return table((row, {}) for row in rows), {row.id: curve for row in rows[:3]}


@pytest.fixture(scope="module")
def report(study, tmp_path_factory) -> Path:
    return write_report(tmp_path_factory.mktemp("report"), *study)


def test_every_figure_is_also_a_file_of_its_own(report):
    names = {path.stem for path in report.parent.glob("*.svg")}
    assert names == {"times-1", "times-2", "against-skip", "alpha", "occupancy", "gap"}
    assert {path.stem for path in report.parent.glob("*.png")} == names
    assert all(path.read_bytes()[:4] == b"\x89PNG" for path in report.parent.glob("*.png"))


def test_the_page_says_the_answer_and_has_a_table_under_each_figure(report):
    page = report.read_text(encoding="utf-8")
    assert "made &lt;&amp;&gt;" in page and "made <&>" not in page
    told = "16 runs in 2 settings. The fastest is prefer-hbm with none (skip 0.6): 28.00 s for 2,048 tokens, 107.1 %"
    assert told in page
    assert page.count("<table>") == page.count("<picture>") == 6
    outside = re.sub(r'"data:[^"]*"', "", page)
    assert "http" not in outside and "src=" in outside


def test_a_study_of_one_run_has_its_figures_too(study, tmp_path):
    frame, _ = study
    page = write_report(tmp_path, frame.head(1), {}).read_text(encoding="utf-8")
    assert {path.stem for path in tmp_path.glob("*.svg")} == {"times", "gap"}
    assert "One run. The fastest is prefer-hbm with none: 40.00 s for" in page


def test_a_policy_keeps_its_colour_and_its_options_differ_in_line():
    few, many = palette(["alpha", "a.py:Mine"]), palette([*MIGRATIONS, "alpha:target=0.7", "b.py:Mine:window=2"])
    assert few.colour("alpha") == many.colour("alpha") == many.colour("alpha:target=0.9")
    assert many.colour("b.py:Mine") == many.colour("b.py:Mine:window=2") != many.colour("mine.py:Mine")
    assert len({str(many.line(name)) for name in ("alpha", "alpha:target=0.7", "alpha:target=0.9")}) == 3


def test_a_figure_changes_its_theme_and_nothing_else(report):
    svg = (report.parent / "times-1.svg").read_text(encoding="utf-8")
    dark = recoloured(svg, LIGHT, DARK)
    assert LIGHT.ink not in dark and DARK.paper in dark
    assert recoloured(dark, DARK, LIGHT) == svg


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here: apt-get install chromium")
@pytest.mark.parametrize("dark", [False, True])
def test_a_browser_draws_it_and_asks_nobody(report, dark, tmp_path):
    probed = tmp_path / "probed.html"
    probed.write_text(report.read_text(encoding="utf-8").replace("</body>", PROBE + "</body>"), encoding="utf-8")
    flags = ["--headless", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr", "--virtual-time-budget=9000"]
    scheme = f"--blink-settings=preferredColorScheme={0 if dark else 1}"
    home = f"--user-data-dir={tmp_path / 'profile'}"
    command = [str(CHROMIUM), *flags, scheme, home, "--dump-dom", probed.as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert "CONSOLE" not in done.stderr
    images, asked, paper = (re.search(f'data-{name}="([^"]*)"', done.stdout) for name in ("images", "asked", "paper"))
    assert images and asked and paper
    widths = [int(image.split()[0]) for image in images[1].split(",")]
    assert len(widths) == 6 and min(widths) > 500
    assert asked[1] == ""
    channels = [int(channel) for channel in re.findall(r"\d+", paper[1])]
    assert (max(channels) < 60) == dark
