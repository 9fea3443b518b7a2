"""Which causal LM families of transformers run exactly: a full comparison of each, beside what the self-check says.

    python benchmarks/families.py --jobs 2            every family; writes docs/families.md and a JSON file
    python benchmarks/families.py --only llama,opt    some of them; prints, and writes nothing

Every family is made small from its default config, saved as a checkpoint and run by ``LLM`` without the self-check:
tokens and logits against the model's own ``generate``, on ragged prompts, more of them than rows, with chunked prefill
in several micro-batches. Each runs in a process of its own; a crash or a hang is a result too.
"""

import argparse
import datetime
import json
import multiprocessing
import os
import tempfile
import warnings
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from importlib import metadata
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

TIMEOUT_S = 240
STEPS = 10
SIZES = (7, 23, 4, 14, 9, 31, 5)
TOLERANCE = 1e-4
OPTIONS: dict[str, Any] = {"dtype": "float32", "device": "cpu", "weights": "cpu=50%,disk=50%", "rows": 4}
OPTIONS |= {"sweep_tokens": 24, "batch_tokens": 8}
ROOT = Path(__file__).resolve().parent.parent


INTRODUCTION = f"""\
Every causal LM family of transformers, made small from its default config, against the model's own `generate`: tokens
and logits (relative {TOLERANCE:g}) on {len(SIZES)} ragged prompts in 4 rows, prefill in chunks of 8, several
micro-batches, half of the pages streamed. *exact*: equal; *refused*: it does not run, in the words shown; *wrong*: it
runs and differs (with `--unchecked`); *unbuilt*: transformers itself does not make or run a small one from its
defaults. The third column is the self-check's own verdict, which is what lets a model run."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--jobs", type=int, default=1, help="families at a time")
    parser.add_argument("--only", default="", help="model types, with commas")
    parser.add_argument("--timeout", type=int, default=TIMEOUT_S, help="seconds for one family")
    parser.add_argument("--resume", action="store_true", help="keep what the JSON file holds of the same versions")
    parser.add_argument("--json", type=Path, default=ROOT / "docs" / "families.json", help="where all results go")
    asked = parser.parse_args()
    os.environ.update(OMP_NUM_THREADS="1", OMP_WAIT_POLICY="passive", HF_HUB_OFFLINE="1", PYTHONWARNINGS="ignore")
    names = asked.only.split(",") if asked.only else families()
    found = earlier(asked.json) if asked.resume else {}
    left = [name for name in names if name not in found]
    with ThreadPoolExecutor(asked.jobs) as pool:
        for name, result in zip(left, pool.map(lambda n: in_a_process(n, asked.timeout), left), strict=True):
            found[name] = result
            if not asked.only:
                asked.json.write_text(json.dumps({"versions": versions(), "families": found}, indent=1) + "\n")
            line = f"{name:28} {result['result']:8} check: {result.get('check', '-'):8} {result.get('reason') or ''}"
            print(line[:200], flush=True)
    print(counts(found))
    if not asked.only:
        (ROOT / "docs" / "families.md").write_text(page(found))


def earlier(path: Path) -> dict[str, dict[str, Any]]:
    """Results of an interrupted survey with these versions."""
    kept = json.loads(path.read_text()) if path.is_file() else {}
    found: dict[str, dict[str, Any]] = kept.get("families", {}) if kept.get("versions") == versions() else {}
    return found


def families() -> list[str]:
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    return sorted(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)


def in_a_process(name: str, timeout_s: int) -> dict[str, Any]:
    """One family's result, whatever becomes of its process, which starts with the libraries imported."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(
        ["torch", "transformers", "transformers.generation.utils", "penstock.engine.selfcheck"]
    )
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=send_survey, args=(name, sender))
    process.start()
    sender.close()
    try:
        if not receiver.poll(timeout_s):
            return {"result": "hang", "reason": f"took more than {timeout_s} s"}
        result: dict[str, Any] = receiver.recv()
        return result
    except EOFError:
        process.join()
        return {"result": "crash", "reason": f"exit status {process.exitcode}"}
    finally:
        process.kill()
        process.join()


def send_survey(name: str, sender: Connection) -> None:
    sender.send(survey(name))


def survey(name: str) -> dict[str, Any]:
    """The full comparison and the self-check of one family, in this process."""
    warnings.filterwarnings("ignore")
    import torch
    import transformers
    from transformers import CONFIG_MAPPING

    from penstock.engine import selfcheck, tiny_model
    from penstock.errors import UserError
    from penstock.model.source import Source, text_config

    transformers.logging.set_verbosity_error()
    try:
        config = filled(text_config(CONFIG_MAPPING[name]()))
    except UserError as error:
        return {"result": "refused", "check": "refused", "reason": str(error)}
    except Exception as error:  # a default config of theirs that is invalid, for whatever reason
        return {"result": "unbuilt", "check": "-", "reason": f"no default config: {first_line(error)}"}
    verdict = selfcheck.check(Source(name, "random", Path("."), config, None, "float32"))
    said = {
        "check": "exact" if verdict.exact else "refused",
        "check_s": round(verdict.seconds, 1),
        "said": verdict.reason,
    }
    torch.manual_seed(1)
    try:
        with torch.no_grad():
            tiny = tiny_model.tiny_config(config)
            model = tiny_model.build_tiny(tiny)
            want = [reference(model, prompt) for prompt in prompts(tiny)]
    except Exception as error:  # whatever transformers itself raises: the family cannot be compared
        return {"result": "unbuilt", **said, "reason": first_line(error)}
    return {**said, **compare(model, prompts(tiny), want)}


def filled(config: Any) -> Any:
    """The config with values where its class leaves out, by default, what its model cannot do without."""
    decoder = config.get_text_config(decoder=True)
    heads = getattr(decoder, "num_attention_heads", None)
    values = {
        "head_dim": heads and decoder.hidden_size // heads,
        "num_key_value_heads": heads,
        "num_experts_per_tok": 2,
    }
    for field, value in values.items():
        if field in vars(decoder) and getattr(decoder, field) is None:
            setattr(decoder, field, value)
    return config


def prompts(config: Any) -> list[list[int]]:
    import torch

    decoder = config.get_text_config(decoder=True)
    context = getattr(decoder, "max_position_embeddings", None) or 64
    generator = torch.Generator().manual_seed(7)
    sizes = [min(size, context - STEPS - 1) for size in SIZES]
    return [torch.randint(3, decoder.vocab_size, (size,), generator=generator).tolist() for size in sizes]


def reference(model: Any, prompt: list[int]) -> tuple[list[int], Any]:
    """transformers' own tokens and logits of each step, from rotary tables that remember no other row."""
    import copy

    import torch

    ids = torch.tensor([prompt])
    options = {"max_new_tokens": STEPS, "do_sample": False, "eos_token_id": None}
    options |= {"output_logits": True, "return_dict_in_generate": True}
    out = copy.deepcopy(model).generate(ids, attention_mask=torch.ones_like(ids), **options)
    return out.sequences[0].tolist()[len(prompt) :], torch.stack([step[0] for step in out.logits])


def compare(model: Any, asked: list[list[int]], want: list[tuple[list[int], Any]]) -> dict[str, Any]:
    """LLM's tokens and logits on the saved model against the reference."""
    import torch

    from penstock import LLM, SamplingParams
    from penstock.engine import engine
    from penstock.errors import UserError

    seen: dict[int, list[Any]] = {i: [] for i in range(len(asked))}
    draw = engine.sample

    def spy(logits: Any, draws: Any) -> Any:
        for row, drawn in zip(logits, draws, strict=True):
            seen[int(drawn.key)].append(row.clone())
        return draw(logits, draws)

    engine.sample = spy
    greedy = SamplingParams(max_tokens=STEPS, ignore_eos=True, temperature=0)
    with tempfile.TemporaryDirectory() as directory:
        try:
            model.save_pretrained(directory)
        except Exception as error:  # a few models cannot be saved by transformers itself
            return {"result": "unbuilt", "reason": f"cannot be saved: {first_line(error)}"}
        try:
            with LLM(directory, page_bytes=20000, unchecked=True, **OPTIONS) as llm:
                outputs = llm.generate([{"prompt_token_ids": ids} for ids in asked], greedy)
        except UserError as error:
            return {"result": "refused", "reason": str(error).replace(directory, "DIR")}
        except Exception as error:  # the flat path met something that it does not know: that is what is surveyed
            return {"result": "refused", "reason": first_line(error)}
    worst, equal = 0.0, 0
    for index, (tokens, logits) in enumerate(want):
        got = outputs[index].outputs[0].token_ids
        equal += got == tokens
        same = next((i for i, (a, b) in enumerate(zip(got, tokens, strict=True)) if a != b), STEPS - 1) + 1
        off = (torch.stack(seen[index][:same]) - logits[:same]).abs().max() / logits[:same].abs().max()
        worst = max(worst, float(off) if bool(off.isfinite()) else float("inf"))
    reason = (
        None if worst <= TOLERANCE else f"logits differ by {worst:.1e}, tokens equal in {equal} of {len(asked)} rows"
    )
    return {"result": "exact" if worst <= TOLERANCE else "wrong", "reason": reason, "difference": worst, "equal": equal}


def first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0][:200]


def versions() -> dict[str, str]:
    return {name: metadata.version(name) for name in ("penstock", "transformers", "torch")}


def counts(found: dict[str, dict[str, Any]]) -> str:
    """One line: how many of each, and how many that are wrong the self-check would have let through."""
    number = Counter(result["result"] for result in found.values())
    passed = [n for n, r in found.items() if r["result"] in ("wrong", "crash", "hang") and r.get("check") == "exact"]
    strict = [n for n, r in found.items() if r["result"] == "exact" and r.get("check") != "exact"]
    listed = ", ".join(f"{count} {kind}" for kind, count in number.most_common())
    return (
        f"{len(found)} families: {listed}. Passed by the self-check and not exact: {', '.join(passed) or 'none'}. "
        f"Refused by the self-check though exact here: {', '.join(strict) or 'none'}."
    )


def words(result: dict[str, Any]) -> str:
    return str(result.get("reason") or result.get("said") or "").replace("|", "/")[:160]


def page(found: dict[str, dict[str, Any]]) -> str:
    """docs/families.md."""
    said = versions()
    rows = [f"| {name} | {r['result']} | {r.get('check', '-')} | {words(r)} |" for name, r in sorted(found.items())]
    head = [
        "# Model families",
        "",
        f"{datetime.date.today().isoformat()}, penstock {said['penstock']}, transformers {said['transformers']}, "
        f"torch {said['torch']} on a CPU in float32. Made by `python benchmarks/families.py`.",
        "",
        INTRODUCTION,
        "",
        counts(found),
        "",
        "| model type | comparison | self-check | reason |",
        "| --- | --- | --- | --- |",
    ]
    return "\n".join([*head, *rows, ""])


if __name__ == "__main__":
    main()
