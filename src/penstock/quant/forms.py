"""All formats that packed weights run in, by name and by number."""

from functools import cache

from penstock.quant.fp8 import Fp8
from penstock.quant.ggml import KINDS, Ggml
from penstock.quant.grouped import BITS, GROUPS, Grouped
from penstock.quant.mxfp4 import Mxfp4

Form = Grouped | Ggml | Fp8 | Mxfp4

_STORED: tuple[Form, ...] = (*(Ggml(kind) for kind in KINDS), Fp8(), Mxfp4())
# The order is compiled into kernels, which know a format by its place here.
LAYOUTS: tuple[Form, ...] = (*(Grouped(bits, group) for bits in BITS for group in GROUPS), *_STORED)


def named(name: str) -> Form | None:
    """The format that a page's slice calls so; None for a dtype."""
    return next((form for form in _STORED if form.name == name), None) or Grouped.named(name)


@cache
def number(form: Form) -> int:
    """The place of a format's layout among LAYOUTS; however its codes were chosen, they are read alike."""
    return LAYOUTS.index(Grouped(form.bits, form.group) if isinstance(form, Grouped) else form)
