"""The files that a model's weights are read from."""

from collections.abc import Sequence
from pathlib import Path

from penstock.model.pages import Extent
from penstock.model.source import Source


def checkpoint_extents(source: Source) -> Sequence[Extent]:
    """The whole of each file with weights; none where they are random."""
    if source.kind == "random":
        return []
    files = [source.path] if source.kind == "gguf" else sorted(source.path.glob("*.safetensors"))
    return [Extent(str(file), 0, Path(file).stat().st_size, 0) for file in files]
