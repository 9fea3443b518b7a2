import dataclasses
import json
import re

from penstock.jobs.identity import answer_id, as_duplicate, identity, key
from penstock.jobs.lines import Line
from penstock.jobs.request import Parsed, parse


def line(number: int, **fields: object) -> Parsed:
    return parse(Line(number, json.dumps({"prompt": "a", **fields}).encode()))


def test_a_custom_id_never_meets_a_line_number() -> None:
    implicit, explicit = line(7), line(3, custom_id="line-7")
    assert identity(implicit) == identity(explicit) == "line-7"
    keys = {key(implicit), key(explicit), key(line(8)), key(line(3, custom_id="7")), key(line(3, custom_id="l:7"))}
    assert len(keys) == 5
    assert {len(one) for one in keys} == {16}


def test_a_line_without_a_name_goes_by_its_number_and_a_named_one_does_not() -> None:
    assert key(line(7)) != key(line(8))
    assert key(line(7, custom_id="a")) == key(line(8, custom_id="a"))


def test_an_id_tells_requests_and_jobs_apart() -> None:
    first = line(1, custom_id="a")
    same = answer_id("model", line(5, custom_id="a", user="someone"))
    assert re.fullmatch("batch_req_[0-9a-f]{24}", same)
    assert answer_id("model", first) == same
    others = [answer_id("other", first), answer_id("model", line(1)), answer_id("model", line(1, custom_id="b"))]
    others += [
        answer_id("model", line(1, custom_id="a", seed=1)),
        answer_id("model", line(1, custom_id="a", prompt="b")),
    ]
    assert len({same, *others}) == 6


def test_lines_with_a_fault_have_ids_of_their_bytes() -> None:
    one, other = parse(Line(1, b"{torn")), parse(Line(1, b"{tor"))
    assert answer_id("model", one) != answer_id("model", other)


def test_a_duplicate_keeps_its_name_and_goes_by_its_number() -> None:
    first, second = line(3, custom_id="a"), line(9, custom_id="a")
    duplicate = as_duplicate(second, 3)
    assert (duplicate.code, identity(duplicate)) == ("duplicate", "a")
    assert duplicate.fault == 'custom_id "a" is that of line 3 already: give each line its own'
    assert key(duplicate) == key(line(9)) != key(first)
    assert answer_id("model", duplicate) != answer_id("model", first)
    assert dataclasses.replace(duplicate, fault=None, code=None) == second
