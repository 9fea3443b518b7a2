"""Offloaded generation with Hugging Face accelerate; prints one JSON line.

The checkpoint is read in place (no offload copy) in either dtype: with float32 each tensor is widened as it is loaded,
which on a CPU without bf16 arithmetic is the faster choice though its KV cache is twice as large.
"""

from __future__ import annotations

import argparse

import torch
from result import Clock
from transformers import AutoModelForCausalLM


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--rows", type=int, default=128, help="prompts of one batch, all of equal length")
    parser.add_argument("--prompt-len", type=int, default=32)
    parser.add_argument("--gen-len", type=int, default=32)
    parser.add_argument("--dtype", choices=["bfloat16", "float32"], default="bfloat16")
    parser.add_argument("--resident", default="0.5GiB", help="weights that stay in memory; the rest is read from disk")
    parser.add_argument("--offload-dir", required=True, help="for tensors that cannot be read in place")
    parser.add_argument("--threads", type=int, default=0)
    arguments = parser.parse_args()
    if arguments.threads:
        torch.set_num_threads(arguments.threads)

    clock = Clock()
    model = AutoModelForCausalLM.from_pretrained(
        arguments.model,
        device_map="auto",
        max_memory={"cpu": arguments.resident},
        offload_folder=arguments.offload_dir,
        dtype=getattr(torch, arguments.dtype),
    )
    random = torch.Generator().manual_seed(0)
    shape = (arguments.rows, arguments.prompt_len)
    ids = torch.randint(3, model.config.vocab_size, shape, generator=random)
    clock.started()
    out = model.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        min_new_tokens=arguments.gen_len,
        max_new_tokens=arguments.gen_len,
        do_sample=False,
        pad_token_id=0,
    )
    clock.report(
        engine="accelerate",
        tokens=(out.shape[1] - ids.shape[1]) * out.shape[0],
        packages=("torch", "transformers", "accelerate"),
        prompts=arguments.rows,
        rows=arguments.rows,
        prompt_len=arguments.prompt_len,
        gen_len=arguments.gen_len,
        dtype=arguments.dtype,
    )


if __name__ == "__main__":
    main()
