"""``penstock cache``: what is kept is shown, and deleted when it is told to."""

import json
import os
import time

import pytest
from tests.model.test_page_cache import example

from penstock.cli import main
from penstock.model.page_cache import INDEX, open_or_build


@pytest.fixture
def kept(tmp_path, monkeypatch):
    """Two caches, one of which was last used forty days ago; nobody uses either."""
    monkeypatch.setenv("PENSTOCK_CACHE", str(tmp_path))
    pages, sources = example()
    for key in ("aa11", "bb22"):
        about = {"model": f"model {key}", "stored": "bfloat16+int4g64"}
        open_or_build(key, pages, sources, about=about).lease.close()
    long_ago = time.time() - 40 * 86_400
    os.utime(tmp_path / "pages" / "aa11" / INDEX, (long_ago, long_ago))
    return tmp_path / "pages"


def keys(root):
    return sorted(path.name for path in root.iterdir() if path.is_dir())


def test_caches_are_listed(kept, capsys):
    assert main(["cache", "list"]) == 0
    said = capsys.readouterr().out.splitlines()
    assert "bb22" in said[0] and "0 days ago" in said[0] and "model bb22, bfloat16+int4g64" in said[0]
    assert "40 days ago" in said[1]
    assert said[2].startswith("2 caches, ")
    assert main(["cache", "list", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert [cache["key"] for cache in told["caches"]] == ["bb22", "aa11"]
    assert told["bytes"] == sum(cache["bytes"] for cache in told["caches"])


@pytest.mark.parametrize(
    ("asked", "left"), [(["--days", "30"], ["bb22"]), (["bb"], ["aa11"]), (["--all"], []), (["--days", "50"], None)]
)
def test_what_is_told_goes(kept, capsys, asked, left):
    assert main(["cache", "clear", *asked]) == 0
    assert keys(kept) == (["aa11", "bb22"] if left is None else left)
    assert capsys.readouterr().out.endswith(" freed\n")


def test_a_cache_in_use_is_left(kept, capsys):
    pages, sources = example()
    used = open_or_build("aa11", pages, sources)
    assert main(["cache", "clear", "--all"]) == 0
    assert keys(kept) == ["aa11"]
    assert "1 cache in use left" in capsys.readouterr().out
    assert main(["cache", "list"]) == 0
    assert "in use" in capsys.readouterr().out
    used.lease.close()


@pytest.mark.parametrize(
    ("asked", "said"),
    [([], "say which caches"), (["--all", "aa"], "say which caches"), (["cc"], "there is no page cache cc")],
)
def test_mistakes(kept, capsys, asked, said):
    assert main(["cache", "clear", *asked]) == 2
    assert said in capsys.readouterr().err
    assert keys(kept) == ["aa11", "bb22"]
