"""`mtrl-export`: write the policy of a run as files that need no run directory."""

from mtrl.cli import command, importing
from mtrl.cli.flags import parse_command
from mtrl.config.values import settings


@settings("--")
class _Flags:
    """Write the policy of a run's newest checkpoint as safetensors, JSON and a model card (README.md)."""

    run_dir: str
    """Run directory that a training wrote."""
    out: str | None = None
    """Folder for the files, new, empty or of an earlier export; None: policy/ in the run directory."""
    trust: bool = False
    """Run code that the run's configuration names, such as a method in a file; see SECURITY.md."""


@command
def main(arguments: list[str]) -> int:
    """Export the policy of a run."""
    flags = parse_command(_Flags, arguments, positional="run_dir")
    with importing():
        from mtrl.export.run import export_run

    folder = export_run(flags.run_dir, flags.out, trust=flags.trust)
    print(f"{folder}: {', '.join(sorted(path.name for path in folder.iterdir()))}")
    print(f"In Python: mtrl.load_policy({str(folder)!r}).predict(observations); README.md has more")
    return 0
