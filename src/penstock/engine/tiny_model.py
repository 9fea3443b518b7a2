"""A tiny model of a checkpoint's kind, as transformers builds and runs it, and what it answers."""

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import transformers
from transformers import AutoModelForCausalLM

from penstock.engine.rotary import depends_on_length, longrope_switch
from penstock.errors import UserError, first_line
from penstock.model.shrink import LONGEST, lengths, shrink
from penstock.model.skeleton import build_skeleton

_SIGMA = 0.08  # smaller weights make a random model say one token for ever
_LARGEST = 64 << 20  # parameters of a tiny model: 256 MiB
# What foreign code raises when it is run in a way that it does not allow.
FAILURES = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    ImportError,
    LookupError,
    RuntimeError,
    TypeError,
    ValueError,
)

Logits = list[torch.Tensor]  # of one row, a step each


def tiny_config(config: Any, trust_remote_code: bool = False) -> Any:
    """A tiny config of the model; UserError where none can be built and run by transformers itself."""

    def runs(small: Any) -> None:
        skeleton = build_skeleton(small, torch.float32, trust_remote_code=trust_remote_code)
        count = sum(p.numel() for p in skeleton.parameters())
        if count > _LARGEST:
            raise UserError(f"cannot be built small enough to be checked ({count / 1e6:,.0f}M parameters are left)")
        try:
            model = build_tiny(small, trust_remote_code)
            logits = model(input_ids=torch.tensor([[5, 6, 7]]), use_cache=True).logits
        except FAILURES as error:
            raise UserError(f"transformers does not run a small one ({reason_of(error)})") from error
        if not bool(logits.isfinite().all()):
            raise UserError("a small one with random weights computes no finite logits")

    small = shrink(config, runs)
    if not getattr(small, "tie_word_embeddings", False):
        return small
    untied = copy.deepcopy(small)
    untied.tie_word_embeddings = False  # tied random embeddings repeat the last token for ever
    try:
        runs(untied)
    except UserError:
        return small
    return untied


@torch.no_grad()
def build_tiny(config: Any, trust_remote_code: bool = False) -> Any:
    """The model of a tiny config as transformers runs it, with random weights that make every part count."""
    model: Any = AutoModelForCausalLM.from_config(
        config, attn_implementation="eager", dtype=torch.float32, trust_remote_code=trust_remote_code
    )
    model.eval()
    model.generation_config = transformers.GenerationConfig(pad_token_id=0)
    for parameter in model.parameters():
        if parameter.dim() > 1:
            parameter.normal_(std=_SIGMA)
        elif parameter.is_floating_point():
            parameter.nan_to_num_(0.0, 0.0, 0.0).add_(torch.randn_like(parameter), alpha=0.02)
    return model


def prompts_for(config: Any, steps: int) -> list[list[int]]:
    """Prompts below, across and above each length, the longest last, with room for ``steps``; tokens 3 up."""
    context = getattr(config.get_text_config(decoder=True), "max_position_embeddings", None) or LONGEST
    sizes = {5, 11, 23}
    for length in lengths(config):
        sizes |= {length // 2, length - 3, length + 5, 2 * length + 1}
    most = min(int(context), LONGEST) - steps - 1
    kept = sorted({size for size in sizes if 2 <= size <= most} | {most} if most >= 2 else {1})
    vocabulary = int(config.get_text_config(decoder=True).vocab_size)
    return [torch.randint(min(3, vocabulary - 1), vocabulary, (size,)).tolist() for size in kept]


def own_logits(model: Any, prompt: Sequence[int], steps: int) -> Logits:
    """The model's own logits (vocabulary,) of ``steps`` greedy steps.

    Its ``generate``, or whole forwards where a row that crosses a longrope switch starts again.
    """
    with _fresh_rotary(model):
        if longrope_switch(model.config.get_text_config(decoder=True)) is None:
            ids = torch.tensor([prompt])
            out = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=steps, do_sample=False,
                                 output_logits=True, return_dict_in_generate=True)  # fmt: skip
            return [step[0] for step in out.logits]
    tokens, found = list(prompt), []
    for _ in range(steps):
        with _fresh_rotary(model):
            found.append(model(input_ids=torch.tensor([tokens]), use_cache=False).logits[0, -1])
        tokens.append(int(found[-1].argmax()))
    return found


@contextmanager
def _fresh_rotary(model: Any) -> Iterator[None]:
    """Let length-dependent rotary modules forget afterwards what they remembered of a row."""
    kept = []
    for module in model.modules():
        if depends_on_length(module):
            marks = {n: v for n, v in vars(module).items() if n.endswith("max_seq_len_cached")}
            kept.append((module, {**marks, **{n: b.clone() for n, b in module._buffers.items() if b is not None}}))
    try:
        yield
    finally:
        for module, state in kept:
            for name, value in state.items():
                setattr(module, name, value)


def reason_of(error: BaseException) -> str:
    """What an error says, in one line, without the family that it refuses."""
    return first_line(error).split(" models are refused: ")[-1].removesuffix(".")
