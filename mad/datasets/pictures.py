"""Reading image files as 8-bit pixels, as a viewer would show them."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from mad.errors import MadError

if TYPE_CHECKING:
    from PIL.Image import Image

SIXTEEN = 257  # divides 0..65535 to give 0..255
MIDDLE = 127.5
GRAY = ("1", "L", "LA", "La")
RANGELESS = {"I": "32-bit integers", "F": "floats"}  # the file does not say which value is white
ADVICE = "remove it, or save it as an 8-bit PNG"
ORIENTATION, TURNED = 0x0112, (5, 6, 7, 8)  # the EXIF tag, and its values that swap height and width
WIDTH, HEIGHT = 0x0100, 0x0101  # tags of TIFF
PHOTOMETRIC, WHITE_IS_ZERO = 0x0106, 0


@dataclass(frozen=True)
class Encoded:
    """The bytes of an image file that lie in a table.

    Args:
        data: the bytes.
        where: the table and the row, which errors name.
    """

    data: bytes
    where: str

    def __str__(self) -> str:
        return self.where


Source = Path | str | Encoded  # an image file, or its bytes


class Header(NamedTuple):
    """What the header of an image file says."""

    frames: int
    size: tuple[int, int]  # (H, W), as a viewer would show it
    gray: bool


@contextmanager
def opened(file: Source) -> Iterator[Image]:
    """Open an image file at its first frame, as a context manager.

    Pillow gets an open file: by a name it maps uncompressed ones into memory, a turned TIFF with the wrong width.

    Raises:
        MadError: for any error inside the block; it names the file.
    """
    from PIL import Image

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # an error only at twice the size
            with (
                BytesIO(file.data) if isinstance(file, Encoded) else Path(file).open("rb") as content,
                Image.open(content) as image,
            ):
                yield image
    except MadError:
        raise
    except Image.UnidentifiedImageError as error:
        raise MadError(f"{file} cannot be read as an image (of no format that is known); {ADVICE}") from error
    except Exception as error:  # damaged or hostile files make decoders raise many kinds of errors
        why = " ".join(str(getattr(error, "strerror", None) or error or type(error).__name__).split())[:150]
        raise MadError(f"{file} cannot be read as an image ({why}); {ADVICE}") from error


def header(file: Source) -> Header:
    """Return the header of an image file; its pixels are not read.

    Raises:
        MadError: if the header shows that ``pixels`` cannot read the file.
    """
    with opened(file) as image:
        refuse_rangeless(image, file)
        frames, gray = getattr(image, "n_frames", 1), image.mode in GRAY or sixteen(image)
        # Pillow decodes a PNG in search of an EXIF block after its pixels, where hardly one is.
        exif = image.getexif() if image.format != "PNG" or "exif" in image.info else {}
        turned = exif.get(ORIENTATION) in TURNED
        width, height = stored_size(image)
        return Header(frames, (width, height) if turned else (height, width), gray)


def pixels(file: Source, channels: int) -> Image:
    """Return the first frame of a file as a Pillow image, of mode ``L`` for 1 channel or ``RGB`` for 3.

    The image is rotated by its EXIF orientation, and 16 bits are scaled to 8. Transparent images are put on a white
    background, or on a black one if their visible part is light (above mid gray on average), so that shapes drawn by
    transparency stay visible in any color. Color becomes gray by its luma.

    Raises:
        MadError: if the file cannot be read, or holds 32-bit integers or floats, whose range is unknown.
    """
    from PIL import ImageOps

    with opened(file) as image:
        refuse_rangeless(image, file)
        ImageOps.exif_transpose(image, in_place=True)
        seen = eight_bits(image)
        if seen.has_transparency_data:
            seen = laid_over(seen.convert("RGBA"))
        if seen.mode not in ("1", "L", "RGB"):
            seen = seen.convert("RGB")
        return seen.convert("L" if channels == 1 else "RGB")


def stored_size(image: Image) -> tuple[int, int]:
    """Return width and height of an image as its file stores it; Pillow 11 turns the size of a TIFF as it opens it."""
    tags = getattr(image, "tag_v2", None)
    return image.size if tags is None else (tags[WIDTH], tags[HEIGHT])


def refuse_rangeless(image: Image, file: Source) -> None:
    """Raise MadError for 32-bit integers and floats, whose range is unknown."""
    if image.mode in RANGELESS and not sixteen(image):
        raise MadError(f"{file} holds {RANGELESS[image.mode]}, and nothing says which of them is white; {ADVICE}")


def sixteen(image: Image) -> bool:
    """Return whether an image has 16 bits; Pillow opens some 16-bit PNG and PPM files as 32-bit integers."""
    return image.mode.startswith("I;16") or (image.mode == "I" and image.format in ("PNG", "PPM"))


def eight_bits(image: Image) -> Image:
    """Return an image with values from 0 to 255; 16-bit values are scaled and rounded."""
    import numpy as np
    from PIL import Image

    if not sixteen(image):
        return image
    values = np.asarray(image).astype(np.uint32)
    if getattr(image, "tag_v2", {}).get(PHOTOMETRIC) == WHITE_IS_ZERO:  # Pillow sees to those of 8 bits only
        values = 255 * SIXTEEN - values
    scaled = Image.fromarray(((values + SIXTEEN // 2) // SIXTEEN).astype(np.uint8))
    clear = image.info.get("transparency")  # the one value that is transparent
    if isinstance(clear, int):
        scaled.putalpha(Image.fromarray(np.where(values == clear, 0, 255).astype(np.uint8)))
    return scaled


def laid_over(image: Image) -> Image:
    """Return an RGBA image as RGB on a white background, or on a black one if its visible part is light."""
    import numpy as np
    from PIL import Image

    alpha = np.asarray(image.getchannel("A"), dtype=np.float64)
    luma = np.asarray(image.convert("RGB").convert("L"), dtype=np.float64)
    light = (luma * alpha).sum() > MIDDLE * alpha.sum()
    ground = Image.new("RGBA", image.size, "black" if light else "white")
    return Image.alpha_composite(ground, image).convert("RGB")
