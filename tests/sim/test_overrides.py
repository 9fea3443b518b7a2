import pytest
from tests.sim.documents import document

from penstock.errors import UserError
from penstock.sim.overrides import combinations, read_settings, read_sweeps, with_settings


def test_settings_are_numbers_words_and_sizes() -> None:
    given = [
        "omega=0.8,phi=.5",
        "hbm=2000 GB/s",
        "mode=inclusive",
        "overlap=1",
        "n_decode=7",
        "options.rotated=true",
        "skip_levels=[0, 0.5]",
    ]
    assert read_settings("--set", given) == {
        "omega": 0.8,
        "phi": 0.5,
        "bandwidths.hbm": "2000 GB/s",
        "mode": "inclusive",
        "trace.overlap": 1,
        "decode_tokens": 7,
        "options.rotated": True,
        "skip_levels": [0, 0.5],
    }


def test_options_of_policies_need_no_table() -> None:
    assert read_sweeps("--sweep", ["target=0.7,0.8", "budget=all,slack", "skip=0,.3"]) == {
        "options.target": (0.7, 0.8),
        "budget": ("all", "slack"),
        "skip": (0, 0.3),
    }


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("decode_token=5", "did you mean decode_tokens"),
        ("xyz=5", "known are"),
        ("decode_tokens", "give KEY=VALUE"),
        ("decode_tokens=", "give KEY=VALUE"),
    ],
)
def test_unknown_keys_are_refused(text: str, told: str) -> None:
    with pytest.raises(UserError, match=told):
        read_settings("--set", [text])


@pytest.mark.parametrize(
    ("texts", "told"),
    [
        (["target=0.7,0.7"], "twice"),
        (["omega=0.7", "omega=0.8"], "twice"),
        (["migration=alpha,none"], "with --migration"),
        (["name=a,b"], "cannot be swept"),
    ],
)
def test_sweeps_of_nothing_are_refused(texts: list[str], told: str) -> None:
    with pytest.raises(UserError, match=told):
        read_sweeps("--sweep", texts)


def test_setting_a_key_leaves_the_document_as_it_was() -> None:
    before = document()
    changed = with_settings(before, {"bandwidths.hbm": 5, "options.window": 3, "layers": 4})
    assert changed["bandwidths"] == {"hbm": 5, "ext_read": 200, "ext_write": 200, "ext_internal": 400}
    assert (changed["options"], changed["layers"]) == ({"window": 3}, 4)
    assert before == document()


def test_a_set_key_replaces_its_alias() -> None:
    assert with_settings({"n_decode": 4}, {"decode_tokens": 5}) == {"decode_tokens": 5}


def test_combinations_are_all_of_them() -> None:
    assert list(combinations({"a": (1, 2), "b": (3,)})) == [{"a": 1, "b": 3}, {"a": 2, "b": 3}]
    assert list(combinations({})) == [{}]
