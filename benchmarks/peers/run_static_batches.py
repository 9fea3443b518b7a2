"""A job of unequal requests on Hugging Face accelerate: `generate` over static batches, read from disk.

Requests are sorted so that batches waste least, padded on the left to their longest prompt, and each batch runs until
its longest output is done; only what a request asked for counts. The costliest batch is first, so that what does not
fit shows at once. Two JSON lines: what is to be done, then what was.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path

import torch
from batch_job import EMBEDDING, Request, Watch, load, read_job
from result import Clock

Batch = list[Request]
ORDERS: dict[str, Callable[[Request], tuple[int, int]]] = {
    "output": lambda request: (request.output, len(request.prompt)),
    "prompt": lambda request: (len(request.prompt), request.output),
    "total": lambda request: (len(request.prompt) + request.output, request.output),
}
# What reading all weights once costs, in tokens that could be computed meanwhile: a run of 128 rows of a 5.9 GB model
# under 3 GiB read 0.3 GB/s, on two cores with 50 GFLOP/s in bfloat16 and 250 in float32.
SWEEP_TOKENS = {"bfloat16": 160, "float32": 800}


def sweeps(batch: Batch, chunk: int) -> int:
    """Calls of the model: one for each chunk of the padded prompts, one for each further token."""
    chunks = -(-longest_prompt(batch) // chunk) if chunk else 1
    return chunks + longest_output(batch) - 1


def longest_prompt(batch: Batch) -> int:
    return max(len(request.prompt) for request in batch)


def longest_output(batch: Batch) -> int:
    return max(request.output for request in batch)


def asked(batch: Batch) -> int:
    return sum(request.output for request in batch)


def cost(batch: Batch, chunk: int, sweep_tokens: int) -> int:
    """Padded tokens computed, and sweeps in tokens."""
    padded = len(batch) * (longest_prompt(batch) + longest_output(batch) - 1)
    return padded + sweep_tokens * sweeps(batch, chunk)


def cut(requests: list[Request], order: str, rows: int) -> list[Batch]:
    ordered = sorted(requests, key=ORDERS[order], reverse=True)
    return [ordered[first : first + rows] for first in range(0, len(ordered), rows)]


def best_order(requests: list[Request], rows: int, price: Callable[[Batch], int]) -> str:
    return min(ORDERS, key=lambda order: sum(map(price, cut(requests, order, rows))))


def sample(batches: list[Batch], part: int, price: Callable[[Batch], int]) -> list[Batch]:
    """Every k-th of the sorted batches, k at most `part` and such that two are left, beginning where tokens per cost
    come nearest to those of all."""
    step = max(1, min(part, len(batches) // 2))

    def rate(some: list[Batch]) -> float:
        return sum(map(asked, some)) / sum(map(price, some))

    whole = rate(batches)
    return min((batches[first::step] for first in range(step)), key=lambda some: abs(rate(some) - whole))


def padded(batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
    """Token ids and attention mask (rows, longest prompt), padded on the left."""
    width = longest_prompt(batch)
    ids = torch.zeros(len(batch), width, dtype=torch.long)
    mask = torch.zeros_like(ids)
    for row, request in enumerate(batch):
        ids[row, width - len(request.prompt) :] = torch.tensor(request.prompt)
        mask[row, width - len(request.prompt) :] = 1
    return ids, mask


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("job", type=Path)
    parser.add_argument("--rows", type=int, default=32, help="requests of a batch")
    parser.add_argument("--dtype", choices=["bfloat16", "float32"], default="bfloat16")
    parser.add_argument("--order", choices=["best", *ORDERS], default="best", help="what requests are sorted by")
    parser.add_argument("--part", type=int, default=1, help="run every k-th batch only, k at most this")
    parser.add_argument("--prefill-chunk", type=int, default=0, help="prompt tokens of a row in one call (0: all)")
    parser.add_argument("--resident", default=EMBEDDING, help=f"what stays in memory: {EMBEDDING}, or a size as 0.5GiB")
    parser.add_argument("--offload-dir", required=True, help="for tensors that cannot be read in place")
    arguments = parser.parse_args()

    def price(batch: Batch) -> int:
        return cost(batch, arguments.prefill_chunk, SWEEP_TOKENS[arguments.dtype])

    requests = read_job(arguments.job)
    order = best_order(requests, arguments.rows, price) if arguments.order == "best" else arguments.order
    everything = cut(requests, order, arguments.rows)
    batches = sorted(sample(everything, arguments.part, price), key=price, reverse=True)
    tokens = sum(map(asked, batches))
    plan = {
        "order": order,
        "rows": arguments.rows,
        "part": "all" if len(batches) == len(everything) else f"{len(batches)} of {len(everything)} batches",
        "prefill_chunk": arguments.prefill_chunk,
        "resident": arguments.resident,
        "wanted": tokens,
        "tokens_per_sweep": tokens / sum(sweeps(batch, arguments.prefill_chunk) for batch in batches),
        "tokens_per_sweep_of_all": asked(requests)
        / sum(sweeps(batch, arguments.prefill_chunk) for batch in everything),
    }
    print(json.dumps(plan), flush=True)

    clock = Clock()
    model = load(arguments.model, arguments.dtype, arguments.resident, arguments.offload_dir)
    clock.started()
    watch = Watch(model)
    for batch in batches:
        ids, mask = padded(batch)
        out = model.generate(
            ids,
            attention_mask=mask,
            min_new_tokens=longest_output(batch),
            max_new_tokens=longest_output(batch),
            do_sample=False,
            pad_token_id=0,
            prefill_chunk_size=arguments.prefill_chunk or None,
        )
        if out.shape[1] - ids.shape[1] != longest_output(batch):
            raise SystemExit(f"generated {out.shape[1] - ids.shape[1]} tokens a row, not {longest_output(batch)}")
    clock.report(
        engine="accelerate",
        tokens=tokens,
        packages=("torch", "transformers", "accelerate"),
        dtype=arguments.dtype,
        **plan,
        **watch.figures(tokens),
    )


if __name__ == "__main__":
    main()
