"""A job of unequal requests on transformers' continuous batching over layers that accelerate reads from disk.

`generate_batch` knows one output length for all requests, so they are given one by one to the manager that it is made
of. Whatever stops it is its result: one JSON line either way, with `problem` where it does not run.
"""

from __future__ import annotations

import argparse
import json
import logging
import math
import os
import sys
import time
import traceback
from pathlib import Path

from batch_job import EMBEDDING, Request, Watch, load, read_job
from result import Clock
from transformers import ContinuousBatchingConfig, GenerationConfig

PAGE_TOKENS = 16


class Failed(Exception):
    """A request that ended with an error, in the words of the library."""


def blocks(requests: list[Request], rows: int) -> int:
    """Blocks of KV for so many rows of the mean length, and at least for the longest."""
    lengths = [len(request.prompt) + request.output for request in requests]
    tokens = max(rows * sum(lengths) / len(lengths), max(lengths) + PAGE_TOKENS)
    return -(-int(tokens) // PAGE_TOKENS)


def run(arguments: argparse.Namespace) -> None:
    requests = read_job(arguments.job)
    wanted = sum(request.output for request in requests)
    print(json.dumps({"rows": arguments.rows, "wanted": wanted}), flush=True)
    clock = Clock()
    # nothing but a resident embedding will do: KV is made on the device of the first parameter, and that of one on disk
    # is torch's meta device, where nothing can be computed
    model = load(arguments.model, arguments.dtype, EMBEDDING, arguments.offload_dir)
    # the one that it would guess is made for all memory of the machine, whatever the limit is
    settings = ContinuousBatchingConfig(
        page_size=PAGE_TOKENS,
        num_blocks=blocks(requests, arguments.rows),
        max_batch_tokens=arguments.batch_tokens,
        max_requests_per_batch=arguments.rows,
    )
    greedy = GenerationConfig(do_sample=False, eos_token_id=-1, pad_token_id=0)
    with model.continuous_batching_context_manager(
        generation_config=greedy, continuous_batching_config=settings, warmup=False
    ) as manager:
        clock.started()
        watch = Watch(model)
        for request in requests:
            manager.add_request(request.prompt, max_new_tokens=request.output, streaming=True, eos_token_id=-1)
        tokens, done = collect(manager, len(requests), arguments.seconds)
        clock.report(
            engine="generate_batch",
            tokens=tokens,
            packages=("torch", "transformers", "accelerate"),
            rows=arguments.rows,
            dtype=arguments.dtype,
            part="all" if done == len(requests) else f"the first {arguments.seconds:.0f} s, {done} requests done",
            wanted=wanted if done == len(requests) else tokens,
            batch_tokens=arguments.batch_tokens,
            **watch.figures(tokens),
        )
        if done < len(requests):
            os._exit(0)  # leaving would wait for the rest


def collect(manager, number: int, seconds: float) -> tuple[int, int]:
    """Tokens of all answers, of unfinished ones too after so many seconds, and how many are finished; Failed with the
    first error."""
    tokens, done, end = dict[str, int](), 0, time.perf_counter() + seconds
    while done < number and time.perf_counter() < end:
        answer = manager.get_result(timeout=1)
        if answer is not None and answer.error:
            raise Failed(answer.error)
        if answer is not None:
            tokens[answer.request_id] = len(answer.generated_tokens)
            done += answer.is_finished()
        elif not manager.is_running():
            raise Failed(str(manager.background_thread_status.fatal_error or "its thread ended before the requests"))
    return sum(tokens.values()), done


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("job", type=Path)
    parser.add_argument("--rows", type=int, default=32, help="requests in flight at most; KV is made for so many")
    parser.add_argument("--batch-tokens", type=int, default=256, help="tokens of one call at most")
    parser.add_argument("--dtype", choices=["bfloat16", "float32"], default="bfloat16")
    parser.add_argument("--seconds", type=float, default=math.inf, help="stop then, and count what there is")
    parser.add_argument("--offload-dir", required=True, help="for tensors that cannot be read in place")
    arguments = parser.parse_args()
    logging.basicConfig(stream=sys.stderr)
    try:
        run(arguments)
    except Exception as error:  # of whatever kind: that it does not run, and why, is what is wanted to be known
        traceback.print_exc()
        said = str(error).strip().splitlines() or [type(error).__name__]
        print(json.dumps({"engine": "generate_batch", "problem": f"does not run: {said[-1]}"}), flush=True)


if __name__ == "__main__":
    main()
