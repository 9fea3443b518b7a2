"""Batched generation with llama.cpp from a memory-mapped GGUF; prints one JSON line."""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence

import numpy as np
from llama_cpp import llama_cpp as lib
from result import Clock

MOST_ROWS = 256  # LLAMA_MAX_SEQ
CALL_TOKENS = 2048


class Context:
    """A model and a context of `rows` sequences with room for `row_tokens` tokens each."""

    def __init__(self, path: str, rows: int, row_tokens: int, ubatch: int, threads: int) -> None:
        lib.llama_backend_init()
        self.model = lib.llama_model_load_from_file(path.encode(), lib.llama_model_default_params())
        if not self.model:
            raise SystemExit(f"llama.cpp cannot load {path}")
        self.vocabulary = lib.llama_vocab_n_tokens(lib.llama_model_get_vocab(self.model))
        params = lib.llama_context_default_params()
        params.n_ctx, params.n_batch, params.n_ubatch, params.n_seq_max = rows * row_tokens, CALL_TOKENS, ubatch, rows
        params.n_threads = params.n_threads_batch = threads
        params.kv_unified = True
        self.context = lib.llama_init_from_model(self.model, params)
        if not self.context:
            raise SystemExit(f"llama.cpp cannot make a context of {rows} rows of {row_tokens} tokens")

    def decode(
        self, tokens: Sequence[int], positions: Sequence[int], rows: Sequence[int], wanted: Sequence[bool]
    ) -> list[int]:
        """Run one batch; the greedy token at each wanted index."""
        batch = lib.llama_batch_init(len(tokens), 0, 1)
        batch.n_tokens = len(tokens)
        for i, (token, position, row, want) in enumerate(zip(tokens, positions, rows, wanted, strict=True)):
            batch.token[i], batch.pos[i], batch.n_seq_id[i] = int(token), position, 1
            batch.seq_id[i][0], batch.logits[i] = row, int(want)
        status = lib.llama_decode(self.context, batch)
        if status != 0:
            raise SystemExit(f"llama_decode returned {status} for {len(tokens)} tokens")
        picked = [self.greedy(i) for i, want in enumerate(wanted) if want]
        lib.llama_batch_free(batch)
        return picked

    def greedy(self, index: int) -> int:
        logits = np.ctypeslib.as_array(lib.llama_get_logits_ith(self.context, index), (self.vocabulary,))
        return int(logits.argmax())


def generate(context: Context, prompts: np.ndarray, gen_len: int) -> None:
    """All prompts (rows, length) in batches of CALL_TOKENS, then one token of every row at a time."""
    rows, length = prompts.shape
    last: list[int] = []
    per_call = max(1, CALL_TOKENS // length)
    for first in range(0, rows, per_call):
        group = range(first, min(rows, first + per_call))
        last += context.decode(
            prompts[group.start : group.stop].ravel().tolist(),
            list(range(length)) * len(group),
            [row for row in group for _ in range(length)],
            ([False] * (length - 1) + [True]) * len(group),
        )
    for step in range(1, gen_len):
        last = context.decode(last, [length + step - 1] * rows, range(rows), [True] * rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("gguf")
    parser.add_argument("--rows", type=int, default=128, help=f"prompts of one batch, at most {MOST_ROWS}")
    parser.add_argument("--prompt-len", type=int, default=32)
    parser.add_argument("--gen-len", type=int, default=32)
    parser.add_argument("--dtype", default="bfloat16", help="of the file, for the record")
    parser.add_argument("--ubatch", type=int, default=512, help="tokens computed together")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    arguments = parser.parse_args()
    if arguments.rows > MOST_ROWS:
        parser.error(f"llama.cpp takes at most {MOST_ROWS} rows, not {arguments.rows}")

    clock = Clock()
    context = Context(
        arguments.gguf,
        arguments.rows,
        arguments.prompt_len + arguments.gen_len,
        arguments.ubatch,
        arguments.threads,
    )
    random = np.random.default_rng(0)
    prompts = random.integers(3, context.vocabulary, (arguments.rows, arguments.prompt_len))
    clock.started()
    generate(context, prompts, arguments.gen_len)
    clock.report(
        engine="llamacpp",
        tokens=arguments.rows * arguments.gen_len,
        packages=("llama-cpp-python",),
        prompts=arguments.rows,
        rows=arguments.rows,
        prompt_len=arguments.prompt_len,
        gen_len=arguments.gen_len,
        dtype=arguments.dtype,
    )


if __name__ == "__main__":
    main()
