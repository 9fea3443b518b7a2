"""How every figure looks, and how one reaches a file."""

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from io import StringIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

from penstock.errors import UserError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

INK, FRAME = "#222222", "#BBBBBB"
DPI = 130


def style(changes: Mapping[str, Any] | None = None) -> AbstractContextManager[None]:
    """Settings of matplotlib that hold inside only; changes: other ones than those of all figures."""
    import matplotlib

    settings: dict[Any, Any] = {
        "font.family": "DejaVu Sans",
        "font.size": 10,
        "text.color": INK,
        "axes.labelcolor": INK,
        "axes.edgecolor": FRAME,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.titleweight": "bold",
        "axes.titlesize": 11,
        "axes.titlepad": 10,
        "svg.hashsalt": "penstock",
        "text.parse_math": False,  # names of files and policies may have dollar signs
        **(changes or {}),
    }
    return matplotlib.rc_context(settings)


def svg(figure: "Figure") -> str:
    """A figure as SVG, the same for the same figure."""
    target = StringIO()
    with style():
        figure.savefig(target, format="svg", metadata={"Date": None})
    return target.getvalue()


def save(figure: "Figure", path: Path) -> None:
    """Write a figure: ``.svg``, or a PNG for any other ending; UserError where that cannot be."""
    with written(path), style():
        if path.suffix.lower() == ".svg":
            path.write_text(svg(figure), encoding="utf-8")
        else:
            figure.savefig(path, format="png", dpi=DPI)


@contextmanager
def written(path: Path) -> Iterator[None]:
    """Tell in one line that a picture which a person asked for with ``--plot`` cannot be written."""
    try:
        yield
    except OSError as error:
        raise UserError(f"--plot {path} cannot be written: {error.strerror}") from error
