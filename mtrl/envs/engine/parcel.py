"""A suite on its way into a worker process, whose interpreter has imported nothing of the user's yet."""

from __future__ import annotations

import pickle
import sys
from typing import Any, NamedTuple

from mtrl.envs.suite import TaskSuite
from mtrl.errors import UserError
from mtrl.registry import FILE_MODULE, load_object


class Parcel(NamedTuple):
    """A pickled suite, and the file that defines its class if no import finds that."""

    file: str | None
    name: str
    body: bytes

    def open(self) -> TaskSuite:
        """Return the suite; called in a worker."""
        if self.file is not None:
            load_object(
                f"{self.file}:{self.name}", "suite"
            )  # enters the module under the name pickle asks for
        suite: TaskSuite = pickle.loads(self.body)
        return suite


def pack(suite: TaskSuite) -> Parcel:
    """Return the suite for the workers.

    Raises:
        UserError: its class cannot be found by another process, or it holds what cannot be pickled.
    """
    cls: type[Any] = type(suite)
    if cls.__module__ == "__main__":
        raise UserError(
            f"the suite class {cls.__name__} is defined in the script itself, which workers never run: "
            "move it to a module of its own and import it from there."
        )
    try:
        body = pickle.dumps(suite)
    except (pickle.PicklingError, AttributeError, TypeError) as error:
        raise UserError(
            f"the suite {cls.__name__} cannot be sent to the workers ({error}): it must be a class at the "
            "top of a module and hold plain data only. Open files and simulations in make_env."
        ) from error
    file = sys.modules[cls.__module__].__file__ if cls.__module__.startswith(FILE_MODULE) else None
    return Parcel(file, cls.__qualname__, body)
