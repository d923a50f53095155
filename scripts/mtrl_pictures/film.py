"""The film of README: videos of tasks side by side in one GIF."""

import itertools
from pathlib import Path
from typing import Any

import imageio.v2 as imageio
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from mtrl.cli import command
from mtrl.cli.flags import parse_command
from mtrl.cli.named_files import check_readable, check_writable, naming
from mtrl.config.schema import Positive, PositiveInt
from mtrl.config.values import settings
from mtrl.errors import UserError
from mtrl.training.video import CAPTION_HEIGHT, FRAMES_PER_SECOND

_NAME_HEIGHT = 16  # pixels, for the task's name above its picture
_COLOURS = 96  # one palette for all frames: pixels that do not change cost nothing
_LAST_SECONDS = 1.0  # that the last frame is shown


@settings("--")
class _Flags:
    """Show videos of evaluate.py --video side by side in one GIF, the film of README."""

    paths: tuple[str, ...] = ()
    """Videos, one per task and named after it, and last the GIF to write."""
    columns: PositiveInt = 5
    """Videos beside each other."""
    width: PositiveInt = 160
    """Of each, in pixels."""
    seconds: Positive = 60.0
    """How much of each video is shown."""
    speed: Positive = 1.0
    """1: as fast as the arm; below: slower."""
    every: PositiveInt = 1
    """Keep every N-th frame; a larger N makes a smaller file."""


@command
def main(arguments: list[str]) -> int:
    """Read the videos and write the film."""
    flags = parse_command(_Flags, arguments, positional="paths")
    *videos, out = map(Path, flags.paths or ("",))
    if not videos or out.suffix.lower() != ".gif":  # a forgotten GIF would replace the last video
        raise UserError(f"expected VIDEO.mp4 ... OUT.gif; found {' '.join(flags.paths) or 'nothing'}.")
    for path in videos:
        check_readable(path)
    check_writable(out)
    most = max(1, round(flags.seconds * FRAMES_PER_SECOND))
    films = [_frames(path, flags.width, most)[:: flags.every] for path in videos]
    width, height = flags.width, max(film[0].height for film in films) + _NAME_HEIGHT
    columns = min(flags.columns, len(films))
    size = (columns * width, -(-len(films) // columns) * height)
    frames = []
    for index in range(max(map(len, films))):
        frame = Image.new("RGB", size, "white")
        draw, font = ImageDraw.Draw(frame), ImageFont.load_default(11)
        for place, (path, film) in enumerate(zip(videos, films, strict=True)):
            x, y = place % columns * width, place // columns * height
            name = path.stem.removesuffix("-v3")
            draw.text((x + width / 2, y + 2), name, font=font, fill="black", anchor="ma")
            frame.paste(film[min(index, len(film) - 1)], (x, y + _NAME_HEIGHT))
        frames.append(frame)
    # A palette of the first and the last frame has the colours of all.
    both = Image.fromarray(np.concatenate([np.asarray(frames[0]), np.asarray(frames[-1])]))
    palette = both.quantize(_COLOURS)
    first, *others = (frame.quantize(palette=palette, dither=Image.Dither.NONE) for frame in frames)
    each = round(1000 * flags.every / (FRAMES_PER_SECOND * flags.speed))
    durations = [each] * len(others) + [round(1000 * _LAST_SECONDS)]
    with naming(out, "write"):
        first.save(out, save_all=True, append_images=others, duration=durations, loop=0)
    seconds, length = sum(durations) / 1000, out.stat().st_size
    print(f"{out}: {size[0]} x {size[1]}, {seconds:.1f} s, {length:,} bytes")
    return 0


def _frames(path: Path, width: int, most: int) -> list[Image.Image]:
    """Return the first frames of a video without captions, smaller."""
    try:
        reader: Any = imageio.get_reader(path)
    except ValueError as error:
        raise UserError(
            f"expected a video; found '{path}', which cannot be read as one. Name the files of evaluate.py "
            "--video, and install what reads them: pip install 'mtrl-torch[video]'."
        ) from error
    with reader:
        frames = itertools.islice(reader.iter_data(), most)
        pictures = [np.asarray(frame)[:-CAPTION_HEIGHT] for frame in frames]
    size = (width, round(width * pictures[0].shape[0] / pictures[0].shape[1]))
    return [Image.fromarray(picture).resize(size, Image.Resampling.LANCZOS) for picture in pictures]
