"""How the simulator's figures look: two themes, and one colour and line for a policy wherever it is drawn."""

from collections.abc import Iterable
from contextlib import AbstractContextManager
from dataclasses import dataclass

from penstock import drawing


@dataclass(frozen=True)
class Theme:
    """Colours of a page and of the figures on it."""

    name: str
    paper: str
    ink: str
    faint: str
    bound: str


# No colour of a theme is used for anything else: a drawn figure changes its theme by them.
LIGHT = Theme("light", paper="#ffffff", ink="#222222", faint="#cccccc", bound="#080808")
DARK = Theme("dark", paper="#15181d", ink="#e4e6ea", faint="#454b55", bound="#fafafa")

# Okabe and Ito's colours first, then others that stay apart from them on both papers.
_BY_POLICY = {
    "none": "#8C8C8C",
    "prior": "#B07D2B",
    "skipped-tokens": "#E69F00",
    "past-window": "#A0522D",
    "look-ahead": "#56B4E9",
    "look-ahead-batch": "#0072B2",
    "look-ahead-layer": "#2AB7A9",
    "look-ahead-batch-layer": "#009E73",
    "alpha": "#D55E00",
    "lru": "#CC79A7",
    "belady": "#7E6BC9",
}
_OTHERS = ("#C94F7C", "#7A9A01", "#C2A500", "#5D8AA8", "#6A7B3C")
_LINES = ("solid", (0, (5, 2)), (0, (2, 1.5)), (0, (6, 2, 1.5, 2)))
_WIDTHS = (4.0, 2.6, 1.2)  # of lines that lie on each other each is seen: the widest lies lowest

Dashes = str | tuple[float, tuple[float, ...]]


@dataclass(frozen=True)
class Palette:
    """Colours and lines of the migrations that one study has; build it with `palette`."""

    names: tuple[str, ...]

    def colour(self, migration: str) -> str:
        """A policy's colour, whatever its options."""
        base = base_name(migration)
        others = [n for n in dict.fromkeys(map(base_name, self.names)) if n not in _BY_POLICY]
        return _BY_POLICY.get(base) or _OTHERS[others.index(base) % len(_OTHERS)]

    def line(self, migration: str) -> Dashes:
        """Tells a policy's options apart, which share its colour."""
        same = [name for name in self.names if base_name(name) == base_name(migration)]
        return _LINES[same.index(migration) % len(_LINES)]

    def width(self, migration: str) -> float:
        """Tells policies apart that come to the same: neighbours in the list of all have different ones."""
        base, known = base_name(migration), list(_BY_POLICY)
        place = known.index(base) if base in known else len(known) + self.names.index(migration)
        return _WIDTHS[place % len(_WIDTHS)]


def palette(migrations: Iterable[str]) -> Palette:
    """The palette of these migrations, named as tables name them."""
    return Palette(tuple(sorted(set(migrations))))


def recoloured(svg: str, old: Theme, new: Theme) -> str:
    """A figure that was drawn in one theme in the colours of another."""
    for name in ("paper", "ink", "faint", "bound"):
        svg = svg.replace(getattr(old, name), getattr(new, name))
    return svg


def base_name(policy: str) -> str:
    """A policy's name without its options: ``alpha`` of ``alpha:window=4``, ``mine.py:Mine`` of ``mine.py:Mine``."""
    file, mark, name = policy.rpartition(".py:")
    return f"{file}{mark}{name.partition(':')[0]}"


def drawn_in(theme: Theme) -> AbstractContextManager[None]:
    """Settings of matplotlib that hold inside only."""
    return drawing.style(
        {
            "figure.facecolor": theme.paper,
            "savefig.facecolor": theme.paper,
            "axes.facecolor": theme.paper,
            "text.color": theme.ink,
            "axes.labelcolor": theme.ink,
            "axes.edgecolor": theme.faint,
            "xtick.color": theme.ink,
            "ytick.color": theme.ink,
            "axes.titleweight": "normal",
            "axes.titlesize": 10.5,
            "axes.titlepad": 6,
            "axes.titlelocation": "left",
            "grid.color": theme.faint,
            "grid.linewidth": 0.6,
            "legend.frameon": False,
            "legend.fontsize": 9,
        }
    )
