"""The film of README: videos of tasks side by side in one GIF."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("imageio_ffmpeg", reason="needs the extra [video]")

import imageio.v2 as imageio
from mtrl_pictures import film
from PIL import Image

from mtrl.training.video import CAPTION_HEIGHT

COLOURS = {"reach-v3": (200, 40, 40), "push-v3": (40, 40, 200)}


@pytest.mark.dear
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # imageio's pipes
@pytest.mark.parametrize(
    ("flags", "seconds"), [((), 2.0), (("--seconds", "1.5", "--speed", ".5", "--every", "3"), 3.0)]
)
def test_videos_are_side_by_side_at_a_known_speed_without_their_captions(
    flags: tuple[str, ...], seconds: float, tmp_path: Path
) -> None:
    paths = [tmp_path / f"{task}.mp4" for task in COLOURS]
    for path, colour, length in zip(paths, COLOURS.values(), (2, 1), strict=True):
        picture = np.zeros((96 + CAPTION_HEIGHT, 96, 3), np.uint8)
        picture[:96] = colour  # the caption stays black
        imageio.mimwrite(path, [picture] * (20 * length), fps=20)
    out = tmp_path / "film.gif"
    assert film.main([*map(str, paths), str(out), "--columns", "2", "--width", "64", *flags]) == 0
    opened: Any = Image.open(out)
    with opened as found:
        assert found.info["loop"] == 0
        assert found.size == (128, 64 + 16)  # two square pictures below their names
        total = 0
        for index in range(found.n_frames):
            found.seek(index)
            total += found.info["duration"]
            frame = np.asarray(found.convert("RGB"), int)
            # The shorter video shows its last frame until the longer one ends.
            for column, colour in enumerate(COLOURS.values()):
                middle = frame[20:-2, 64 * column + 2 : 64 * column + 62]
                assert np.abs(middle - colour).max() < 40
    assert total == pytest.approx(1000 * (seconds + 1), abs=310)  # a second for the last frame


def test_mistakes_end_with_exit_code_2(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text, out = tmp_path / "text.mp4", str(tmp_path / "film.gif")
    text.write_text("no video")
    for arguments, message in (
        ([], "expected VIDEO.mp4 ... OUT.gif; found nothing."),
        ([out], "expected VIDEO.mp4 ... OUT.gif; found "),
        ([str(text), str(text)], "expected VIDEO.mp4 ... OUT.gif; found "),  # which it would have replaced
        (["videos/*.mp4", out], "cannot read 'videos/*.mp4': No such file or directory."),
        ([str(text), str(text / "film.gif")], "film.gif': "),
        ([str(text), out], f"expected a video; found '{text}'"),
        ([str(text), out, "--every", "0"], "--every must be positive; found 0"),
    ):
        assert film.main(arguments) == 2
        assert message in capsys.readouterr().err
    assert text.read_text() == "no video"
