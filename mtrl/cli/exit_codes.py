"""How a command ends: the exit code and the one line that says why."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence

from mtrl import __version__
from mtrl.errors import EnvironmentFailure, NonFiniteError, UserError


def run_command(run: Callable[[list[str]], int], argv: Sequence[str] | None) -> int:
    """Run a command on `argv`, the process's arguments if None, and return its exit code.

    0 done; 1 non-finite numbers; 2 a mistake of the user, with nothing written; 75 environment failure;
    130 and 143 interrupted and terminated.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    if arguments == ["--version"]:
        print(f"mtrl {__version__}")
        return 0
    try:
        return run(arguments)
    except UserError as error:
        code, message = 2, f"error: {error}"
    except NonFiniteError as error:
        code, message = 1, f"error: {error}"
    except EnvironmentFailure as error:
        code, message = 75, f"error: {error}"
    except KeyboardInterrupt as error:
        code, message = 130, str(error) or "interrupted"
    print(message, file=sys.stderr)
    return code
