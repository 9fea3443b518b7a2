"""Calls every kernel as products and pages do, has Triton compile it for a CUDA device that is not there instead of
running it, and prints for each what it was compiled for and its arithmetic instructions."""

import re
from itertools import product

import torch
from triton.backends.compiler import GPUTarget
from triton.runtime import driver
from triton.runtime.jit import JITFunction

from penstock.cuda import few, unpacking
from penstock.quant.forms import LAYOUTS, Form
from penstock.quant.packed import Packed

ARITHMETIC = re.compile(r"\b(?:mul|add|sub|fma|mma|wgmma|cvt)\.[\w.]+")
SIZES = [(1, 1, 1), (33, 4, 3), (64, 16, 16)]  # rows, records of a row, tokens


class Absent:
    """What Triton asks of a device before it compiles for it."""

    def __init__(self, capability: int) -> None:
        self.capability = capability

    def get_current_device(self) -> int:
        return self.capability  # Triton keeps what it compiled by device

    def get_current_stream(self, device: int) -> int:
        return 0

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", self.capability, 32)


def compile_for(capability: int, form: Form, dtype: torch.dtype) -> None:
    driver.set_active(Absent(capability))
    compiled = {}

    def instead(kernel, *arguments, **options):
        made = run(kernel, *arguments, **{**options, "warmup": True})
        compiled.setdefault(kernel.__name__, {})[made.hash] = made.asm

    run, JITFunction.run = JITFunction.run, instead
    for rows, records, tokens in SIZES:
        columns = records * form.group - form.cut_short
        weight = Packed(form, columns, torch.zeros(rows, form.row_bytes(columns), dtype=torch.uint8))
        unpacking.unpack(weight.data, form, torch.empty(rows, columns, dtype=dtype))
        few.multiply_few(torch.zeros(tokens, columns, dtype=dtype), weight, torch.empty(tokens, rows, dtype=dtype))
    JITFunction.run = run
    for name, variants in compiled.items():
        found = {instruction for asm in variants.values() for instruction in ARITHMETIC.findall(asm["ptx"])}
        assert all(asm["cubin"] for asm in variants.values())
        print(form.record, name, str(dtype), len(variants), *sorted(found))


if __name__ == "__main__":
    few._met_as = lambda x: few._DTYPES[x.dtype]  # as on CUDA; these tensors are the CPU's
    for each in {form.record: form for form in LAYOUTS}.values():
        compile_for(80, each, torch.bfloat16)
    for capability, dtype in product((90, 100), few._DTYPES):
        compile_for(capability, LAYOUTS[1], dtype)
