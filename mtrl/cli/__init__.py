"""The commands mtrl-train, -evaluate, -report, -sweep, -export and -benchmark; a module each, with `main`.

The combiners need torch alone, so a package may be missing here: `launch` says what to install.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence
from typing import Any

# Which extra installs a package, by the name it is imported by; all others belong to [train].
_EXTRAS = {"matplotlib": "report", "imageio": "video", "ray": "cluster", "torchjd": "torchjd"}


def launch(module: str, argv: Sequence[str] | None = None, **defaults: Any) -> int:
    """Run the command of a module, "mtrl.cli.train" for instance, and return its exit code.

    Args:
        module: has `main(argv, **defaults)`.
        argv: the arguments; those of the process if None.
        defaults: what `main` takes besides.
    """
    try:
        code: int = importlib.import_module(module).main(argv, **defaults)
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        if package in ("", "mtrl") or package in sys.stdlib_module_names:
            raise  # a defect, not a missing package
        extra = _EXTRAS.get(package, "train")
        print(f"error: '{package}' is not installed: pip install 'mtrl-torch[{extra}]'.", file=sys.stderr)
        return 2
    return code
