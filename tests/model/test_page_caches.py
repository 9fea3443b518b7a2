"""What is kept on disk is listed, and goes when it is told to, unless a run uses it."""

import os
import time

import pytest
from tests.model.test_page_cache import example

from penstock.model.page_cache import INDEX, open_or_build
from penstock.model.page_caches import listed, remove


def build(root, key, **about):
    pages, sources = example()
    return open_or_build(key, pages, sources, directory=root, about=about)


def test_caches_are_listed_latest_first(tmp_path):
    for key in ("old", "new"):
        build(tmp_path, key, model=key, stored="int4g64").lease.close()
    long_ago = time.time() - 1000
    os.utime(tmp_path / "old" / INDEX, (long_ago, long_ago))
    (tmp_path / "torn").mkdir()
    (tmp_path / "torn" / INDEX).write_text("{")
    found = listed(tmp_path)
    assert [kept.key for kept in found] == ["new", "old"]
    assert [kept.model for kept in found] == ["new", "old"]
    assert found[1].used_s == pytest.approx(long_ago)
    assert found[0].nbytes == (tmp_path / "new" / "pages.bin").stat().st_size
    build(tmp_path, "old").lease.close()
    assert [kept.key for kept in listed(tmp_path)] == ["old", "new"]  # opening it is using it


def test_what_is_in_use_stays(tmp_path):
    used, idle = build(tmp_path, "used"), build(tmp_path, "idle")
    idle.lease.close()
    found = listed(tmp_path)
    assert {kept.key: kept.in_use for kept in found} == {"used": True, "idle": False}
    assert remove(found) == idle.nbytes
    assert [kept.key for kept in listed(tmp_path)] == ["used"]
    used.lease.close()
    assert remove(listed(tmp_path)) == used.nbytes
    assert not listed(tmp_path)
    build(tmp_path, "used").lease.close()  # and can be built again
    assert len(listed(tmp_path)) == 1


def test_no_cache_is_an_empty_list(tmp_path):
    assert listed(tmp_path / "nowhere") == []
