"""The picture that an augmentation is shown on: a file read by Pillow, or a built-in one that is computed.

Pillow comes with matplotlib, the extra ``draw``; it is imported when a file is read.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from profiles.errors import Refusal, Unavailable, first_line, is_out_of_memory

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Pixels = NDArray[np.uint8]  # (H, W, 3)

LONGEST_SIDE = 224  # pixels of what is shown; larger pictures are shrunk
MOST_PIXELS = 2**26  # of a file, larger ones are not even decoded
BUILT_IN = (96, 96)


@dataclass(frozen=True)
class Photo:
    """Pixels (H, W, 3) of red, green and blue, and where they come from: the width, height and Pillow mode of the file,
    None for the built-in picture.
    """

    pixels: Pixels
    of_file: tuple[int, int] | None = None
    mode: str = "RGB"

    @property
    def size(self) -> tuple[int, int]:
        """Width and height of what is shown."""
        height, width = self.pixels.shape[:2]
        return width, height

    def record(self) -> dict[str, Any]:
        """Return the data of it: source, sizes as width and height, mode of the file."""
        source = "built in" if self.of_file is None else "file"
        return {"source": source, "mode": self.mode, "size": [*self.size], "file_size": [*(self.of_file or self.size)]}


def read(path: Path) -> Photo:
    """Return the picture in the file ``path``, upright, as red, green and blue, its sides at most `LONGEST_SIDE`.

    Transparent parts stand on white; gray values of more than 8 bits are stretched from the least to the greatest; of
    several pictures the first is taken. Raises `Refusal` for what is no picture or has more than `MOST_PIXELS`,
    `Unavailable` without Pillow; the message names the file.
    """
    try:
        from PIL import Image, UnidentifiedImageError
    except ImportError as error:
        raise Unavailable(f"reading {path} needs Pillow, which cannot be imported: pip install pillow") from error
    try:
        if not path.is_file():
            raise Refusal("a directory or device, no picture" if path.exists() else "there is no such file")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of large pictures, and of odd but readable data in files
            with Image.open(path) as image:
                size, mode = image.size, str(image.mode)  # decoding may change them
                _refuse_huge(*size)
                return Photo(_pixels(image), size, mode)
    except Refusal as error:
        raise Refusal(f"{path}: {error}") from error
    except UnidentifiedImageError as error:
        raise Refusal(f"{path}: not a picture in a format that Pillow reads, such as PNG or JPEG") from error
    except Exception as error:  # decoders of broken files raise whatever they run into
        if is_out_of_memory(error):
            raise
        said = getattr(error, "strerror", None) or first_line(error)
        raise Refusal(f"{path}: cannot be read as a picture: {said}") from error


def _refuse_huge(width: int, height: int) -> None:
    if width * height > MOST_PIXELS:
        raise Refusal(f"{width:,} × {height:,} pixels are more than {MOST_PIXELS:,}, the most that is read: shrink it")


def _pixels(image: Any) -> Pixels:
    """The pixels of a Pillow image, shrunk where it is large."""
    import numpy as np
    from PIL import Image, ImageOps

    longest = max(image.size)
    if longest > LONGEST_SIDE:
        image.draft("RGB", (2 * LONGEST_SIDE, 2 * LONGEST_SIDE))  # a JPEG is decoded at that size, much faster
    image = _colored(ImageOps.exif_transpose(image))
    if longest > LONGEST_SIDE:
        sides = (max(1, round(side * LONGEST_SIDE / max(image.size))) for side in image.size)
        image = image.resize(tuple(sides), Image.Resampling.BICUBIC)
    return np.array(image, dtype=np.uint8)


def _colored(image: Any) -> Any:
    """``image``, of any mode, in mode RGB."""
    import numpy as np
    from PIL import Image

    if image.mode.startswith("I") or image.mode == "F":
        values = np.nan_to_num(np.asarray(image, dtype=np.float64))
        span = values.max() - values.min()
        gray = np.round((values - values.min()) * 255 / (span or 1)).astype(np.uint8)
        return Image.fromarray(gray).convert("RGB")
    if "A" in image.mode or "a" in image.mode or "transparency" in image.info:
        above = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", above.size, "white"), above).convert("RGB")
    return image.convert("RGB")


def built_in(height: int = BUILT_IN[0], width: int = BUILT_IN[1]) -> Photo:
    """Return the built-in picture: gradients, a disc, a wedge, a bar and fine checks; no way up looks like another.

    Its values stay within 40 … 215, so that stretching them shows.
    """
    import numpy as np

    y, x = (np.arange(side) for side in (height, width))
    v, u = ((2 * at + 1) / (2 * at.size) for at in (y[:, None], x[None, :]))  # of pixel centres, in 0 … 1
    pixels = np.empty((height, width, 3))
    for channel, ramp in enumerate((60 + 110 * u + 0 * v, 70 + 90 * v + 0 * u, 190 - 60 * u - 60 * v)):
        pixels[..., channel] = ramp
    shapes = (
        ((u - 0.32) ** 2 + (v - 0.34) ** 2 < 0.2**2, (212, 66, 54)),
        ((v > 0.12) & (v < 0.56) & (abs(u - 0.76) < 0.42 * (v - 0.12)), (215, 190, 60)),
        ((v > 0.66) & (v < 0.76) & (u > 0.1) & (u < 0.9), (40, 44, 52)),
        ((v > 0.82) & (v < 0.94) & (u > 0.1) & (u < 0.5) & ((x + y[:, None]) % 2 == 0), (205, 205, 205)),
    )
    for inside, colour in shapes:
        pixels[inside] = colour
    return Photo(pixels.astype(np.uint8))


__all__ = ["Photo", "built_in", "read"]
