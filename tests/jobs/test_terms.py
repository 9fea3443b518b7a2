"""What a person asks of a job and what it is bound to: the same after it was stored and read again."""

import json

from penstock.jobs.terms import Terms, Wish
from penstock.sampling import SamplingParams


def test_what_was_said_is_stored_as_json_has_it() -> None:
    said = Wish(SamplingParams(stop="END", stop_token_ids=(4, 5), top_k=3), chat=False).said()
    assert json.loads(json.dumps(said)) == said
    assert {name: value for name, value in said.items() if value is not None} == {
        "stop": ["END"],
        "stop_token_ids": [4, 5],
        "top_k": 3,
        "chat": False,
    }
    assert set(Wish(SamplingParams()).said().values()) == {None}


def test_terms_give_back_what_was_said() -> None:
    params = SamplingParams(stop=["a", "b"], seed=7, temperature=0.5)
    settings = {"model": "m", "dtype": "float32", **Wish(params, chat=None).said()}
    terms = Terms(json.loads(json.dumps(settings)))
    assert (terms.params, terms.chat) == (params, True)
    assert not Terms({**settings, "chat": False}).chat


def test_the_fingerprint_is_of_all_settings_in_any_order() -> None:
    one, other = {"model": "m", "seed": 0}, {"seed": 0, "model": "m"}
    assert Terms(one).fingerprint == Terms(other).fingerprint != Terms({**one, "seed": 1}).fingerprint
