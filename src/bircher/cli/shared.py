"""What the commands share: options, exit statuses, and how an error is told."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import typer

from bircher.platforms import UnsupportedPlatform

FAILED, REFUSED, STOPPED = 1, 2, 130

SavedRun = Annotated[Path, typer.Argument(metavar="RUN", help="The folder of a run.", show_default=False)]
Seed = Annotated[int, typer.Option(min=0, max=2**31 - 1, help="Seeds the environments and the actions.")]
Greedy = Annotated[bool, typer.Option("--greedy", help="Take the most probable action instead of drawing one.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object and nothing else.")]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(metavar="[KEY=VALUE]...", help="Settings of the search, such as search.num_simulations=200.",
                   show_default=False),
]  # fmt: skip


@contextlib.contextmanager
def told(status: int = REFUSED) -> Iterator[None]:
    """Tell what is refused, or what failed, in one sentence on stderr; anything else is a bug: a traceback."""
    try:
        yield
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        raise typer.Exit(STOPPED) from None
    except UnsupportedPlatform as error:
        print(f"bircher: {error}", file=sys.stderr)
        raise typer.Exit(REFUSED) from None
    except Exception as error:
        from bircher.run import begin

        if not isinstance(error, begin.FAILURES + begin.REFUSALS):
            raise
        print("bircher: " + " ".join(str(error).split()), file=sys.stderr)
        raise typer.Exit(FAILED if isinstance(error, begin.FAILURES) else status) from None
