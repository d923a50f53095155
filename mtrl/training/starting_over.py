"""Decides if a directory without checkpoints holds a complete run, one to start over, or results to keep."""

import contextlib
from pathlib import Path

from mtrl.config.presets import config_text, load_config
from mtrl.config.schema import Config
from mtrl.errors import UserError
from mtrl.runs.directory import BEST_NAME, CONFIG_NAME, UNSAVED_NAME, VERSIONS_NAME
from mtrl.runs.jsonl import read_history
from mtrl.training.resolve import check_same_run


def is_complete_without_checkpoints(config: Config, path: Path) -> bool:
    """Return whether `path`, which has no checkpoint, holds the complete run; if not, it may be started over.

    Raises:
        UserError: starting over would delete more than a run leaves that ended before its first checkpoint:
            the results of a run whose checkpoints are gone, or a configuration that no run wrote.
    """
    stored = path / CONFIG_NAME
    if not stored.is_file():
        return False  # a run writes it first; `RunDirectory.create` refuses all other files of a run
    if not (path / VERSIONS_NAME).exists() and not _is_written_by_a_run(stored):
        raise UserError(
            f"No run wrote '{stored}', and starting a run here would replace it. Choose another directory."
        )
    history = read_history(path)
    # A kill at the very start and former versions leave no mark: such a run must have no results.
    has_results = history.logged > 0 or (path / BEST_NAME).exists()
    is_young = (path / UNSAVED_NAME).is_file() or not has_results
    try:
        check_same_run(config, path)
    except UserError as error:
        if not is_young:
            raise
        held = f"It holds {history.logged:,} vector steps and no checkpoint"
        raise UserError(f"{error} {held}: if nobody needs them, delete that directory.") from error
    if history.final and history.evaluated_at == config.steps:
        return True
    if not is_young:
        raise UserError(
            f"'{path}' holds {history.logged:,} vector steps of a run whose checkpoints were removed or not "
            "copied. It cannot be continued, and starting it over would delete its results. Choose another "
            "directory, or copy its checkpoints."
        )
    return False


def _is_written_by_a_run(path: Path) -> bool:
    """Return whether a configuration has the form that runs write: complete, without comments."""
    with contextlib.suppress(UserError):
        return config_text(load_config(path)) == path.read_text(encoding="utf-8")
    return False
