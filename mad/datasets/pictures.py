"""One image file to pixels of 8 bits: what a person would see, or a refusal that names the file."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from mad.errors import MadError

if TYPE_CHECKING:
    from PIL.Image import Image

SIXTEEN = 257  # what 0 to 65535 is divided by to be 0 to 255
MIDDLE = 127.5
RANGELESS = {"I": "32-bit integers", "F": "floats"}  # nothing in the file says which value is white
ADVICE = "remove it from the pool, or save it as an 8-bit PNG"


@contextmanager
def opened(file: Path | str) -> Iterator[Image]:
    """Open an image file, at its first frame.

    Raises:
        MadError: naming the file, for whatever goes wrong with it inside the block.
    """
    from PIL import Image

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # half of what is refused: a large camera's
            with Image.open(file) as image:
                yield image
    except MadError:
        raise
    except Image.UnidentifiedImageError as error:
        raise MadError(f"{file} cannot be read as an image (of no format that is known); {ADVICE}") from error
    except Exception as error:  # what a damaged or hostile file makes decoders raise is no short list
        why = " ".join(str(getattr(error, "strerror", None) or error or type(error).__name__).split())[:150]
        raise MadError(f"{file} cannot be read as an image ({why}); {ADVICE}") from error


def check(file: Path | str) -> int:
    """Read only a file's header; return how many frames it has.

    Raises:
        MadError: if ``pixels`` could make no image of it, as far as the header tells.
    """
    with opened(file) as image:
        refuse_rangeless(image, file)
        return getattr(image, "n_frames", 1)


def pixels(file: Path | str, channels: int) -> Image:
    """Return a file's first frame as a person sees it, of mode ``L`` (1 channel) or ``RGB``.

    Turned upright as its EXIF orientation says. 16 bits are scaled to 8. What is transparent is laid over white, or
    over black where what is visible is light (on average, above mid gray), so that a shape that only the transparency
    draws is seen, whatever its color. Color becomes gray by its luma.

    Raises:
        MadError: if it cannot be read, or holds numbers of no known range (32-bit integers or floats).
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


def refuse_rangeless(image: Image, file: Path | str) -> None:
    """Refuse numbers that may mean anything."""
    if image.mode in RANGELESS and not sixteen(image):
        raise MadError(f"{file} holds {RANGELESS[image.mode]}, and nothing says which of them is white; {ADVICE}")


def sixteen(image: Image) -> bool:
    """Whether an image's values go from 0 to 65535; Pillow has some of those, in these formats, as 32-bit integers."""
    return image.mode.startswith("I;16") or (image.mode == "I" and image.format in ("PNG", "PPM"))


def eight_bits(image: Image) -> Image:
    """Return an image whose values go from 0 to 255; of 16 bits, the nearest."""
    import numpy as np
    from PIL import Image

    if not sixteen(image):
        return image
    values = np.asarray(image).astype(np.uint32)
    scaled = Image.fromarray(((values + SIXTEEN // 2) // SIXTEEN).astype(np.uint8))
    clear = image.info.get("transparency")  # the one value that is transparent
    if isinstance(clear, int):
        scaled.putalpha(Image.fromarray(np.where(values == clear, 0, 255).astype(np.uint8)))
    return scaled


def laid_over(image: Image) -> Image:
    """Return an RGBA image without its transparency: over white, or over black if what is visible of it is light."""
    import numpy as np
    from PIL import Image

    alpha = np.asarray(image.getchannel("A"), dtype=np.float64)
    luma = np.asarray(image.convert("RGB").convert("L"), dtype=np.float64)
    light = (luma * alpha).sum() > MIDDLE * alpha.sum()
    ground = Image.new("RGBA", image.size, "black" if light else "white")
    return Image.alpha_composite(ground, image).convert("RGB")
