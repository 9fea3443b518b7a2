"""Packed KV: an engine answers what transformers does where a query sees earlier blocks packed, and its own as it is.

The reference keeps nothing: it computes whole sequences, and packs their keys and values anew for every token.
"""

import copy
from functools import cache

import pytest
import torch
from tests.parity.conftest import NEW_TOKENS
from tests.parity.families import VOCABULARY
from tests.parity.harness import Trail, engine_of, greedy, run
from tests.parity.reference import Answer
from tests.parity.test_matrix import LANES, MARKED, PLACEMENTS, skip_refused
from transformers import AttentionInterface
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, eager_mask

from penstock.engine.build import blueprint
from penstock.errors import UserError
from penstock.model import precision, source
from penstock.quant.grouped import Grouped
from penstock.quant.packed import Packed
from penstock.quant.rounding import pack_kv

# windows, softcaps, sinks beside experts, chunks, layers that read others' keys, and no rotary
FAMILIES = ("llama", "gemma2-softcap", "gpt_oss-sinks", "llama4-chunked", "gemma4-shared-kv", "starcoder2", "opt")
LENGTHS = (17, 32, 45, 5, 31, 57)  # below, at and above one block of 32 tokens
SHAPE = {"rows": 4, "sweep_tokens": 56, "batch_tokens": 40}
FORMS = {"int8g32": Grouped(8, 32), "int4g32": Grouped(4, 32)}
# Keys that rounding moved across a boundary get another code: a step of 255, or of 15. Packing itself moves logits by
# some 2e-3 and 3e-2.
BESIDE = {"device": "emulated", "attention": "cpu"}
PLACES = {
    **PLACEMENTS,
    "beside": {**BESIDE, "kv": "cpu=100%", "weights": "cpu=50%,disk=50%", "slots": 1},
    "beside-everywhere": {**BESIDE, "kv": "gpu=30%,cpu=40%,disk=30%"},
}
ROUNDING = {"int8g32": 1e-3, "int4g32": 5e-3}
NAME = "packed-kv-reference"

each_family = pytest.mark.parametrize("family", [pytest.param(f, marks=pytest.mark.xdist_group(f)) for f in FAMILIES])
_FORM: list[Grouped] = []


def packed(wide: torch.Tensor, form: Grouped, by_channel: bool) -> torch.Tensor:
    """Keys or values (1, heads, tokens, dim) with their full blocks packed and unpacked again."""
    out = wide.clone()
    for start in range(0, wide.shape[2] // form.group * form.group, form.group):
        part = wide[:, :, start : start + form.group].float()
        rows = part.transpose(2, 3) if by_channel else part
        codes = torch.from_numpy(pack_kv(rows.reshape(-1, rows.shape[-1]).numpy(), form))
        back = Packed(form, rows.shape[-1], codes.view(*rows.shape[:-1], -1)).wide(wide.dtype)
        out[:, :, start : start + form.group] = back.transpose(2, 3) if by_channel else back
    return out


def attention(module, query, key, value, attention_mask, scaling=None, softcap=None, s_aux=None, **kwargs):
    [form] = _FORM
    block = torch.arange(key.shape[2]) // form.group
    own = block[:, None] == block[None, :]
    group = query.shape[1] // key.shape[1]
    repeat = [x.repeat_interleave(group, 1) for x in (key, packed(key, form, True), value, packed(value, form, False))]
    scores = torch.where(own, query @ repeat[0].mT, query @ repeat[1].mT) * (scaling or query.shape[-1] ** -0.5)
    if softcap is not None:
        scores = (scores / softcap).tanh() * softcap
    scores = scores + attention_mask
    if s_aux is not None:
        scores = torch.cat([scores, s_aux.view(1, -1, 1, 1).expand(1, -1, scores.shape[2], 1)], 3)
    shares = scores.softmax(-1)[..., : key.shape[2]]
    out = (shares * own) @ repeat[2] + (shares * ~own) @ repeat[3]
    return out.transpose(1, 2), None


AttentionInterface.register(NAME, attention)
ALL_MASK_ATTENTION_FUNCTIONS.register(NAME, eager_mask)


@torch.inference_mode()
def answer(model, prompt, form: Grouped) -> Answer:
    _FORM[:] = [form]
    ids, steps = list(prompt), []
    for _ in range(NEW_TOKENS):
        steps.append(model(torch.tensor([ids]), use_cache=False).logits[0, -1].float())
        ids.append(int(steps[-1].argmax()))
    return Answer(list(prompt), ids[len(prompt) :], torch.stack(steps))


@pytest.fixture(scope="module")
def answers(subject):
    """The prompts' answers with KV packed in a format, of a family."""

    @cache
    def made(family: str, form: Grouped) -> list[Answer]:
        model = copy.deepcopy(subject(family).model)
        model.set_attn_implementation(NAME)
        draw = torch.Generator().manual_seed(2)
        prompts = [torch.randint(3, VOCABULARY, (n,), generator=draw).tolist() for n in LENGTHS]
        return [answer(model, prompt, form) for prompt in prompts]

    return made


@pytest.mark.parametrize("placement", [*MARKED, "beside", "beside-everywhere"])
@each_family
def test_tokens_are_those_of_keys_that_were_packed(subject, answers, compare, family, placement):
    skip_refused(family, placement)
    name = "int4g32"
    wanted = answers(family, FORMS[name])
    prompts = [one.prompt for one in wanted]
    tokens, trail = run(
        subject(family).path, prompts, NEW_TOKENS, dtype=f"float32+kv-{name}", **SHAPE, **PLACES[placement]
    )
    compare(wanted, tokens, trail.logits, ROUNDING[name])
    assert trail.chunks and trail.rows < len(prompts)
    assert all(trail.moved[lane] for lane in LANES.get(placement, ()))


def test_packing_is_not_without_effect(subject, answers):
    wide, tight = answers("llama", FORMS["int8g32"]), answers("llama", FORMS["int4g32"])
    assert (wide[-1].logits[0] - tight[-1].logits[0]).abs().max() > 1e-3 * wide[-1].logits.abs().max()
    assert torch.equal(wide[3].logits, tight[3].logits)  # a row that fills no block


@pytest.mark.parametrize("name", FORMS)
@pytest.mark.parametrize("family", ["llama", "gpt_oss-sinks", "gemma4-shared-kv"])
def test_rows_that_outgrow_the_gpu_answer_as_where_all_is_at_hand(subject, answers, family, name):
    """Some of their packed blocks on the gpu beside the open one, some on the cpu and attended to there."""
    parts = [one.prompt for one in answers(family, FORMS[name])]
    prompts = [[*parts[i], *parts[-1]][:94] for i in (2, 5)]  # they begin a fourth block as they go on
    path, cut = subject(family).path, {"rows": 2, "sweep_tokens": 200, "batch_tokens": 40}
    dtype = f"float32+kv-{name}"
    wanted, at_hand = run(path, prompts, NEW_TOKENS, dtype=dtype, weights="cpu=100%", **cut)
    how, trail = {**BESIDE, "kv": "gpu=90%,cpu=10%", "spare_blocks": 3, **cut}, Trail()
    with engine_of(path, [94, 94], NEW_TOKENS, dtype=dtype, **how) as engine:
        trail.watch(engine)
        rows = [engine.add(str(i), prompt, greedy(NEW_TOKENS)) for i, prompt in enumerate(prompts)]
        sunk = 0
        while engine.sweep() is not None:
            sunk += sum(row.sunk for row in engine.scheduler._room.rows.values())
        tokens = [engine.sequences[row].generated for row in rows]
    assert sunk and trail.micro_batches > 1 and tokens == wanted
    for row in rows:
        for position, logits in trail.logits[row].items():
            expected = at_hand.logits[row][position]
            assert (logits - expected).abs().max() < ROUNDING[name] * expected.abs().max()


@pytest.mark.parametrize("how", [{}, {**SHAPE, **PLACES["beside"]}])
def test_eight_bits_too(subject, answers, compare, how):
    wanted = answers("llama", FORMS["int8g32"])
    tokens, trail = run(
        subject("llama").path, [a.prompt for a in wanted], NEW_TOKENS, dtype="float32+kv-int8g32", **how
    )
    compare(wanted, tokens, trail.logits, ROUNDING["int8g32"])


@pytest.mark.parametrize("cut", [{"batch_tokens": 7}, {"sweep_tokens": 300, "batch_tokens": 300}, {"rows": 1}])
def test_what_a_row_sees_does_not_depend_on_how_it_was_cut(subject, answers, compare, cut):
    wanted = answers("llama", FORMS["int4g32"])
    how = {**SHAPE, "weights": "cpu=100%", **cut}
    tokens, trail = run(
        subject("llama").path, [a.prompt for a in wanted], NEW_TOKENS, dtype="float32+kv-int4g32", **how
    )
    compare(wanted, tokens, trail.logits, ROUNDING["int4g32"])


def test_a_row_that_is_computed_again_sees_what_it_saw(subject, answers, compare):
    wanted = answers("llama", FORMS["int4g32"])
    trail, prompts = Trail(), [a.prompt for a in wanted]
    lengths = [len(prompt) for prompt in prompts]
    with engine_of(subject("llama").path, lengths, NEW_TOKENS, dtype="float32+kv-int4g32", **SHAPE) as engine:
        trail.watch(engine)
        rows = [engine.add(str(i), prompt, greedy(NEW_TOKENS)) for i, prompt in enumerate(prompts)]
        while engine.sweep() is not None:
            if len(trail.sweeps) in (3, 5):
                for row in rows[:3]:
                    engine.scheduler.recompute(row)
        tokens = [engine.sequences[row].generated for row in rows]
    assert trail.dropped
    compare(wanted, tokens, trail.logits, ROUNDING["int4g32"])


def test_prompts_that_begin_alike_share_packed_blocks(subject, answers, compare):
    first = answers("llama", FORMS["int4g32"])[-1].prompt
    model = copy.deepcopy(subject("llama").model)
    model.set_attn_implementation(NAME)
    prompts = [first[:40], [*first[:40], 5, 6, 7], [*first[:36], 9]]
    wanted = [answer(model, prompt, FORMS["int4g32"]) for prompt in prompts]
    tokens, trail = run(subject("llama").path, prompts, NEW_TOKENS, dtype="float32+kv-int4g32", **SHAPE)
    compare(wanted, tokens, trail.logits, ROUNDING["int4g32"])
    computed = sum(span.count for sweep in trail.sweeps for batch in sweep.micro_batches for span in batch)
    assert computed == sum(len(p) + NEW_TOKENS - 1 for p in prompts) - 2 * 32


@pytest.mark.parametrize("cut", [{"rows": 2}, {"batch_size": 1, "num_batches": 2}])
def test_places_of_open_blocks_are_free_when_rows_have_ended_or_were_aborted(subject, cut):
    model = subject("llama")
    how = {"dtype": "float32+kv-int4g32", "weights": "cpu=100%", "sweep_tokens": None, "batch_tokens": 20, **cut}
    with engine_of(model.path, [40] * 5, 4, **how) as engine:
        rows = [engine.add(str(i), prompt, greedy(4)) for i, prompt in enumerate(model.prompts[:5])]
        places = engine.kv.open
        taken = []
        engine.sweep()
        engine.abort(rows[0])  # in flight
        engine.abort(rows[4])  # waits
        while engine.sweep() is not None:
            taken.append(set(places._places))
        assert max(map(len, taken)) == 2 and rows[4] not in set().union(*taken)
        assert set().union(*taken) >= set(rows[1:4]) and rows[0] not in taken[0]
        assert not places._places and len(places._free) == 2


def test_latent_attention_is_refused_by_name(subject):
    found = source.resolve(str(subject("deepseek_v3-mla").path))
    with pytest.raises(UserError, match="deepseek_v3 models is transformed before it is attended to"):
        blueprint(found, precision.choose("float32+kv-int8g64", None, "cpu", False))
