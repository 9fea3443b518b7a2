"""``penstock cache``: converted and packed pages that are kept on disk."""

import json
import time
from typing import Annotated

import typer

from penstock.cli import figures, options
from penstock.errors import UserError
from penstock.units import format_bytes

EXAMPLES = """\
\b
Examples:
  penstock cache list
  penstock cache clear --days 30
  penstock cache clear 3f2a
  penstock cache clear --all
"""

WHICH = "Which caches"
_DAY_S = 86_400

app = typer.Typer(
    name="cache",
    help="Look after pages that are converted once and kept: of GGUF files, other dtypes, and packed weights.",
    epilog=EXAMPLES,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    no_args_is_help=True,
    context_settings=options.HELP,
)

Keys = Annotated[
    list[str] | None,
    typer.Argument(metavar="[KEY]...", help="caches by the beginning of their keys", show_default=False),
]
All = Annotated[bool, options.option(WHICH, "--all", "all of them")]
Days = Annotated[
    float | None, options.option(WHICH, "--days", "those that no run opened for so many days", metavar="N", min=0)
]


@app.command("list", cls=options.Command, short_help="show what is kept")
def list_(json_: options.Json = False) -> None:
    """Show every page cache, its model, its bytes, and when a run last opened it."""
    from penstock.model.page_caches import listed

    caches = listed()
    if json_:
        facts = [
            {
                "key": kept.key,
                "model": kept.model,
                "stored": kept.stored,
                "bytes": kept.nbytes,
                "used": kept.used_s,
                "in_use": kept.in_use,
            }
            for kept in caches
        ]
        print(json.dumps({"caches": facts, "bytes": sum(kept.nbytes for kept in caches)}))
        return
    for kept in caches:
        when = "in use" if kept.in_use else f"{figures.count(int((time.time() - kept.used_s) / _DAY_S), 'day')} ago"
        name = f"{kept.model or 'unknown'}, {kept.stored or 'unknown'}"
        typer.echo(f"{kept.key[:8]}  {format_bytes(kept.nbytes):>10}  {when:>12}  {name}")
    typer.echo(f"{figures.count(len(caches), 'cache')}, {format_bytes(sum(kept.nbytes for kept in caches))}")


@app.command("clear", cls=options.Command, short_help="delete what is not wanted any more")
def clear(keys: Keys = None, all_: All = False, days: Days = None, json_: options.Json = False) -> None:
    """Delete page caches; the next run that needs one builds it again. What a run uses now is left."""
    from penstock.model.page_caches import listed, remove

    if all_ + (days is not None) + bool(keys) != 1:
        raise UserError("say which caches: their keys (penstock cache list), --days N, or --all")
    caches = listed()
    for key in keys or ():
        if not any(kept.key.startswith(key) for kept in caches):
            raise UserError(f"there is no page cache {key}: penstock cache list shows what there is")
    now = time.time()
    chosen = [
        kept
        for kept in caches
        if all_
        or any(kept.key.startswith(key) for key in keys or ())
        or (days is not None and now - kept.used_s > days * _DAY_S)
    ]
    freed = remove(chosen)
    used = sum(kept.in_use for kept in chosen)
    if json_:
        print(json.dumps({"freed": freed, "in_use": used}))
        return
    left = f"; {figures.count(used, 'cache')} in use left" if used else ""
    typer.echo(f"{format_bytes(freed)} freed{left}")
