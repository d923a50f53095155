"""Versions of packages, the machine and the commit. Only `versions` imports torch."""

import contextlib
import functools
import importlib.metadata
import platform
import subprocess
from pathlib import Path

import mtrl
from mtrl.device.resources import available_cores


def package_versions() -> dict[str, str]:
    """Return the versions of packages that influence every run's results, without importing them."""
    packages = ("torch", "gymnasium", "numpy")
    return {**{name: _package_version(name) for name in packages}, "mtrl": mtrl.__version__}


def versions() -> dict[str, str]:
    """Return Python, machine, packages, CUDA device and git commit, as far as they are known."""
    import torch

    found = {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cpu": _cpu_model(),
        "cores": str(available_cores()),
        **package_versions(),
    }
    if torch.cuda.is_available():
        found["cuda"] = str(torch.version.cuda)
        found["cuda_device"] = torch.cuda.get_device_name()
    commit = _git_commit()
    return {**found, "git_commit": commit} if commit else found


def _package_version(distribution: str) -> str:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def _cpu_model() -> str:
    with contextlib.suppress(OSError), open("/proc/cpuinfo", encoding="utf-8") as lines:
        for line in lines:
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


@functools.cache  # a process runs the code that it has loaded, even if another commit is checked out later
def _git_commit() -> str | None:
    root = Path(__file__).resolve().parents[2]
    # An installed package must not report a repository that contains its virtual environment.
    if not (root / ".git").exists():
        return None
    commands = (("rev-parse", "HEAD"), ("status", "--porcelain", "--untracked-files=no"))
    try:
        commit, changes = (
            subprocess.run(
                ["git", "-C", str(root), *command], capture_output=True, text=True, timeout=10, check=True
            ).stdout.strip()
            for command in commands
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return commit + ("-dirty" if changes else "")
