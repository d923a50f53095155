"""Files that a command's flags name, and that cannot be read or written."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest

from mtrl.cli.named_files import check_readable, check_writable, naming
from mtrl.errors import UserError


def test_a_folder_is_made_and_nothing_is_left_in_it(tmp_path: Path) -> None:
    check_writable(tmp_path / "no" / "such" / "out.txt")
    assert list((tmp_path / "no" / "such").iterdir()) == []


def test_a_file_that_is_there_stays_as_it_is(tmp_path: Path) -> None:
    path = tmp_path / "out.txt"
    path.write_text("before")
    check_writable(path)
    check_readable(path)
    assert path.read_text() == "before"


def test_what_cannot_be_written_or_read_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for path in (tmp_path, tmp_path / "file" / "out.txt"):
        with pytest.raises(UserError, match=rf"cannot write '{path}': .+\. Name another file\."):
            check_writable(path)
    with pytest.raises(UserError, match=r"cannot read '.*none': No such file or directory\."):
        check_readable(tmp_path / "none")


def test_a_disk_that_fills_up_later_is_named_too(tmp_path: Path) -> None:
    with (
        pytest.raises(UserError, match=r"cannot write 'out\.txt': No space left on device"),
        naming(Path("out.txt"), "write"),
    ):
        raise OSError(errno.ENOSPC, "No space left on device")
