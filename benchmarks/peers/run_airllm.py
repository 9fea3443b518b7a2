"""Layer-by-layer generation with AirLLM; prints one JSON line.

AirLLM keeps a copy of the checkpoint of its own, one file a layer, which it writes at its first start: `--split-only`
does that alone (outside any memory limit), so that the measured run starts from its files.
"""

from __future__ import annotations

import argparse

import torch
from airllm import AutoModel
from airllm.airllm_base import AirLLMBaseModel
from result import Clock


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--rows", type=int, default=16, help="prompts of one batch, all of equal length")
    parser.add_argument("--prompt-len", type=int, default=32)
    parser.add_argument("--gen-len", type=int, default=32)
    parser.add_argument("--dtype", choices=["bfloat16", "float32"], default="bfloat16")
    parser.add_argument("--shards-dir", required=True, help="AirLLM's own copy of the checkpoint")
    parser.add_argument("--split-only", action="store_true")
    arguments = parser.parse_args()

    # It wants a tokenizer at construction and never uses it for token ids; a random checkpoint has none.
    AirLLMBaseModel.get_tokenizer = lambda self, hf_token=None: None
    clock = Clock()
    model = AutoModel.from_pretrained(
        arguments.model,
        device="cpu",
        dtype=getattr(torch, arguments.dtype),
        layer_shards_saving_path=arguments.shards_dir,
    )
    if arguments.split_only:
        return
    random = torch.Generator().manual_seed(0)
    ids = torch.randint(3, model.config.vocab_size, (arguments.rows, arguments.prompt_len), generator=random)
    clock.started()
    out = model.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        min_new_tokens=arguments.gen_len,
        max_new_tokens=arguments.gen_len,
        use_cache=True,
        do_sample=False,
        pad_token_id=0,
        return_dict_in_generate=True,
    ).sequences
    clock.report(
        engine="airllm",
        tokens=(out.shape[1] - ids.shape[1]) * out.shape[0],
        packages=("torch", "transformers", "airllm"),
        prompts=arguments.rows,
        rows=arguments.rows,
        prompt_len=arguments.prompt_len,
        gen_len=arguments.gen_len,
        dtype=arguments.dtype,
    )


if __name__ == "__main__":
    main()
