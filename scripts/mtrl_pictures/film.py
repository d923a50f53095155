"""Show videos of `evaluate.py --video` side by side in one GIF, the film of README: VIDEO.mp4 ... OUT.gif."""

import argparse
import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import imageio.v2 as imageio
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from mtrl.training.video import CAPTION_HEIGHT, FRAMES_PER_SECOND

_NAME_HEIGHT = 16  # pixels, for the task's name above its picture
_COLOURS = 96  # one palette for all frames: pixels that do not change cost nothing
_LAST_SECONDS = 1.0  # that the last frame is shown


def main(arguments: Sequence[str] | None = None) -> int:
    """Read the videos and write the film."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("videos", type=Path, nargs="+", help="one per task, named after it")
    parser.add_argument("out", type=Path)
    parser.add_argument("--columns", type=int, default=5, help="videos beside each other")
    parser.add_argument("--width", type=int, default=160, help="of each, in pixels")
    parser.add_argument("--seconds", type=float, default=60.0, help="how much of each video is shown")
    parser.add_argument("--speed", type=float, default=1.0, help="1: as fast as the arm; below: slower")
    parser.add_argument(
        "--every", type=int, default=1, help="keep every N-th frame; a larger N makes a smaller file"
    )
    flags = parser.parse_args(arguments)
    most = round(flags.seconds * FRAMES_PER_SECOND)
    films = [_frames(path, flags.width, most)[:: flags.every] for path in flags.videos]
    width, height = flags.width, max(film[0].height for film in films) + _NAME_HEIGHT
    columns = min(flags.columns, len(films))
    size = (columns * width, -(-len(films) // columns) * height)
    frames = []
    for index in range(max(map(len, films))):
        frame = Image.new("RGB", size, "white")
        draw, font = ImageDraw.Draw(frame), ImageFont.load_default(11)
        for place, (path, film) in enumerate(zip(flags.videos, films, strict=True)):
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
    first.save(flags.out, save_all=True, append_images=others, duration=durations, loop=0)
    seconds, length = sum(durations) / 1000, flags.out.stat().st_size
    print(f"{flags.out}: {size[0]} x {size[1]}, {seconds:.1f} s, {length:,} bytes")
    return 0


def _frames(path: Path, width: int, most: int) -> list[Image.Image]:
    """Return the first frames of a video without captions, smaller."""
    reader: Any = imageio.get_reader(path)
    with reader:
        frames = itertools.islice(reader.iter_data(), most)
        pictures = [np.asarray(frame)[:-CAPTION_HEIGHT] for frame in frames]
    size = (width, round(width * pictures[0].shape[0] / pictures[0].shape[1]))
    return [Image.fromarray(picture).resize(size, Image.Resampling.LANCZOS) for picture in pictures]
