"""Pages: the unit that weights move in, as plain integers. Laying out and reading are elsewhere."""

from dataclasses import dataclass
from typing import Literal

SECTOR = 4096  # direct I/O moves whole sectors

Kind = Literal["layer", "experts", "embedding", "head"]


@dataclass(frozen=True, slots=True)
class Extent:
    """Where bytes of a page come from: ``nbytes`` at ``offset`` of a file go to byte ``at`` of the page."""

    path: str
    offset: int
    nbytes: int
    at: int


@dataclass(frozen=True, slots=True)
class Slice:
    """A parameter, or the part [start, stop) of its first dimension, at a byte offset of its page.

    shape: the view's own shape. dtype: torch's name of what is stored (``bfloat16``), or that of a packed format
    (``int4g64``). turned: the last two dimensions are the other way round than the parameter's; packed experts lie so
    that rows run along what a product sums over.
    """

    param: str
    start: int
    stop: int
    shape: tuple[int, ...]
    dtype: str
    offset: int
    nbytes: int
    turned: bool = False


@dataclass(frozen=True, slots=True)
class Page:
    """A set of slices that move together; ``nbytes`` is a multiple of a sector. ``layer`` is None outside the decoder.

    extents: where its bytes lie in files, or None where they must be converted as they are read.
    """

    index: int
    name: str
    kind: Kind
    layer: int | None
    slices: tuple[Slice, ...]
    nbytes: int
    extents: tuple[Extent, ...] | None
