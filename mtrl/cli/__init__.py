"""The commands mtrl-train, -evaluate, -report, -sweep and -export: one module each, with a `main`.

Imports the standard library only: the combiners need only torch, so other packages may not be installed.
"""

import contextlib
import errno
import functools
import importlib
import io
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from mtrl import __version__
from mtrl.errors import EnvironmentFailure, NonFiniteError, UserError

_TRAIN = (
    "gymnasium", "jinja2", "metaworld", "mujoco", "pydantic", "rich", "safetensors", "scipy",
    "tensorboard", "tyro", "yaml",
)  # fmt: skip
EXTRAS = dict.fromkeys(_TRAIN, "train") | {
    "Box2D": "gymnasium",
    "gymnasium_robotics": "gymnasium",
    "matplotlib": "report",
    "PIL": "report",
    "imageio": "video",
    "imageio_ffmpeg": "video",
    "ray": "cluster",
    "stable_baselines3": "sb3",
    "torchjd": "torchjd",
    "wandb": "wandb",
}
"""Package, by the name it is imported by -> the extra that installs it."""


class HelpShown(Exception):
    """The help that a command was asked for is printed; the command is done."""


_CODES = {UserError: 2, NonFiniteError: 1, EnvironmentFailure: 75}


def launch(module: str, argv: Sequence[str] | None = None, **defaults: Any) -> int:
    """Run `main(argv, **defaults)` of a module such as "mtrl.cli.train" and return its exit code.

    If a package is missing, print what to install. `argv` None stands for the process's arguments.
    """
    for stream in (sys.stdout, sys.stderr):
        # A name that the terminal's encoding lacks must not end a run.
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    try:
        with importing():
            main = importlib.import_module(module).main
        code: int = main(argv, **defaults)
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        if package in ("", "mtrl") or package in sys.stdlib_module_names:
            raise  # a defect, not a missing package
        if package in EXTRAS:
            message = f"'{package}' is not installed: pip install 'mtrl-torch[{EXTRAS[package]}]'."
        else:
            message = (
                f"'{error.name}' was not found. If a plug-in of yours imports it, install it or add its "
                "folder to PYTHONPATH."
            )
        print(f"error: {message}", file=sys.stderr)
        return 2
    return code


@contextlib.contextmanager
def importing() -> Iterator[None]:
    """Leave at once on a signal during imports, because torch turns a KeyboardInterrupt into other errors.

    For imports before anything is started or written.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def leave(number: int, _: object) -> None:
        os.write(2, b"interrupted before anything was started\n")
        os._exit(128 + number)

    before = {number: signal.signal(number, leave) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def exit_code(error: Exception) -> int:
    """Return the exit code for a UserError, a NonFiniteError or an EnvironmentFailure."""
    return next(code for kind, code in _CODES.items() if isinstance(error, kind))


def command(run: Callable[..., int]) -> Callable[..., int]:
    """Turn `run(arguments, **defaults)` into a command's `main(argv=None, **defaults)`.

    `main` returns an exit code: 0 done; 1 non-finite numbers; 2 a mistake of the user, or a run directory
    that is gone or cannot be written; 75 environment failure; 130 interrupted; 143 terminated.
    """

    @functools.wraps(run)
    def main(argv: Sequence[str] | None = None, **defaults: Any) -> int:
        arguments = list(sys.argv[1:] if argv is None else argv)
        if arguments == ["--version"]:
            print(f"mtrl {__version__}")
            return 0
        try:
            return run(arguments, **defaults)
        except HelpShown:
            return 0
        except (UserError, NonFiniteError, EnvironmentFailure) as error:
            code, message = exit_code(error), f"error: {error}"
        except OSError as error:
            code = 2
            if error.errno in (errno.EMFILE, errno.ENFILE):
                message = f"error: too many open files ({error}). Raise the limit: `ulimit -n 1024`."
            elif error.errno in (errno.EACCES, errno.EPERM, errno.ENAMETOOLONG) and error.filename:
                message = f"error: '{error.filename}': {error.strerror}. Give another path."
            else:
                raise
        except KeyboardInterrupt as error:
            code, message = 130, str(error) or "interrupted"
        print(message, file=sys.stderr)
        return code

    return main
