"""Compiles every kernel for CUDA devices of some kinds, and prints for each its multiplications and conversions."""

import re

import triton
import triton.language as tl
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from penstock.cuda import few, unpacking
from penstock.quant.forms import LAYOUTS, Form

DTYPES = {"fp32": tl.float32, "bf16": tl.bfloat16, "fp16": tl.float16}
SUSPECT = re.compile(r"\b(?:mul|add|sub|fma|mma|wgmma|cvt)\.[\w.]+")


def compile_for(capability: int, form: Form, dtype: str) -> None:
    read = {"elements": unpacking.RECORDS[form.record], "group": form.group, "record_bytes": form.record_bytes}
    made = {
        unpacking._unpack: (
            {"data": "*u8", "target": f"*{dtype}"},
            {**read, "tile": unpacking._TILE // form.group},
        ),
        few._multiply: (
            {"data": "*u8", "x": f"*{dtype}", "out": f"*{dtype}"},
            {
                **read,
                "met_as": DTYPES[dtype],
                "most": few.FEW,
                "tile": few._ROWS,
                "at_once": few._DEPTH // form.group,
            },
        ),
    }
    for kernel, (pointers, constants) in made.items():
        numbers = dict.fromkeys(kernel.arg_names, "i32") | dict.fromkeys(constants, "constexpr")
        source = ASTSource(kernel, numbers | pointers, constexprs=constants)
        code = triton.compile(source, target=GPUTarget("cuda", capability, 32)).asm
        assert code["cubin"]
        found = " ".join(sorted(set(SUSPECT.findall(code["ptx"]))))
        print(form.record, kernel.__name__, dtype, f"sm_{capability}: {found}")


if __name__ == "__main__":
    for each in {form.record: form for form in LAYOUTS}.values():
        compile_for(80, each, "bf16")
    for kind, name in ((80, "fp32"), (80, "fp16"), (90, "bf16"), (100, "bf16")):
        compile_for(kind, LAYOUTS[1], name)
