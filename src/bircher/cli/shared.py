"""What the commands share: options, exit statuses, and how errors are printed."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
import typer.core

from bircher.errors import UnsupportedPlatform

FAILED, REFUSED, STOPPED = 1, 2, 130

SavedRun = Annotated[Path, typer.Argument(metavar="RUN", help="The folder of a run.", show_default=False)]
Seed = Annotated[int, typer.Option(min=0, max=2**31 - 1, help="The seed of environments and actions.")]
Greedy = Annotated[bool, typer.Option("--greedy", help="Take the best action instead of drawing one.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object and nothing else.")]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(metavar="[KEY=VALUE]...", help="Settings of the search, such as search.num_simulations=200.",
                   show_default=False),
]  # fmt: skip


class OneSentenceGroup(typer.core.TyperGroup):
    """A group of commands whose usage errors are one sentence on stderr, like all other errors of a user."""

    def main(self, args: Sequence[str] | None = None, *rest: Any, standalone_mode: bool = True, **more: Any) -> Any:
        """Run a command; exit with its status."""
        if not standalone_mode:
            return super().main(args, *rest, standalone_mode=False, **more)
        try:
            status = super().main(args, *rest, standalone_mode=False, **more)
        except Exception as error:  # the base class of usage errors differs between versions of Typer
            message = getattr(error, "format_message", None)
            if message is None or not hasattr(error, "exit_code"):
                raise
            if type(error).__name__ == "NoArgsIsHelpError":  # the message of this error is the help text
                print(message(), file=sys.stderr)
            else:
                context = getattr(error, "ctx", None)
                advice = f" (see {context.command_path} --help)" if context else ""
                print_refusal((_option_here(error, context) or message().rstrip(".")) + advice)
            sys.exit(REFUSED)
        sys.exit(status if isinstance(status, int) else 0)


def _option_here(error: Exception, context: Any) -> str | None:
    """Return an error that says what replaces an unknown option, which is from other code or a setting.

    It is None if the command has no replacement.
    """
    from bircher.config import foreign_names

    option = getattr(error, "option_name", None)
    if type(error).__name__ != "NoSuchOption" or not option or context is None:
        return None
    here = foreign_names.of_option(option)
    if here is None and not getattr(error, "possibilities", None):
        here = option.lstrip("-").replace("-", "_")
        here = here if here in _names_of_settings() else None
    arguments = " ".join(str(parameter.metavar) for parameter in context.command.params)
    options = {name for parameter in context.command.params for name in parameter.opts}
    if here is None or here.startswith("bircher "):
        possible = here is not None
    elif here == foreign_names.ENVIRONMENT:
        possible = arguments.startswith("ENV")
    elif here.startswith("--"):
        possible = here in options
    else:
        takes_all = "ENV" in arguments.split() or "(AGENT" in arguments
        possible = "KEY=VALUE" in arguments and (takes_all or here.startswith("search."))
        here = " and ".join(part if "=" in part else f"{part}=VALUE" for part in here.split(" and "))
    return f"no option {option}; here: {here}" if possible else None


def _names_of_settings() -> set[str]:
    from bircher.config import settings
    from bircher.config.config import AGENTS

    return {*settings.SHORTCUTS, *(name for kind in AGENTS.values() for name in settings.names(kind))}


def print_refusal(sentence: str) -> None:
    """Print a sentence on stderr, on one line."""
    from bircher.errors import one_line

    print(f"bircher: {one_line(sentence)}", file=sys.stderr)


@contextlib.contextmanager
def exit_on_error(status: int = REFUSED) -> Iterator[None]:
    """Print an expected error as one sentence on stderr and exit; other errors are bugs, and have a traceback."""
    try:
        yield
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        raise typer.Exit(STOPPED) from None
    except UnsupportedPlatform as error:
        print(f"bircher: {error}", file=sys.stderr)
        raise typer.Exit(REFUSED) from None
    except Exception as error:
        from bircher.runs import launch

        if not isinstance(error, launch.FAILURES + launch.REFUSALS):
            raise
        print_refusal(str(error))
        raise typer.Exit(FAILED if isinstance(error, launch.FAILURES) else status) from None
