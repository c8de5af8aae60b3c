"""The default data, which need no download: scikit-learn's handwritten digits, and letters from matplotlib's fonts."""

from __future__ import annotations

import math
import os
import string
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from mad.datasets.base import Images, Split
from mad.errors import MadError, check_number
from mad.seeds import generator

TEST_IMAGES = 500
GRID = 8  # the digits' resolution; the letters are reduced to it, so that they are not sharper
FONTS = ("DejaVuSans*", "DejaVuSerif*", "STIXGeneral*", "cmr10*", "cmss10*", "cmtt10*", "cmb10*", "cmmi10*")
CANVAS = 32
BYTES = 20_000  # of memory that drawing a letter takes at least
CAPITALS, SMALL = "ΓΔΘΛΞΠΣΦΨΩ", "δεζθλξπσφψ"  # Greek, without those that look Latin


def enlarge(grid: Tensor) -> Tensor:
    """Return images (N, 1, 8, 8) in [0, 1] as uint8 (N, 1, 28, 28), the size that LeNet takes."""
    large = F.interpolate(grid, size=(28, 28), mode="bilinear", align_corners=False)
    return large.clamp(0, 1).mul(255).round().to(torch.uint8)


@dataclass(frozen=True)
class Digits:
    """1,797 handwritten digits of 8 x 8 pixels, scaled to 28 x 28; a fixed 500 of them are the test split."""

    name: str = "digits"
    classes: int = 10
    shape: tuple[int, int, int] = (1, 28, 28)

    def train(self) -> Split:
        """Return the 1,297 training images."""
        return self._split(slice(TEST_IMAGES, None))

    def test(self) -> Split:
        """Return the 500 test images."""
        return self._split(slice(TEST_IMAGES))

    def images(self, shape: tuple[int, int, int]) -> Images:
        """Return the training images, for use as a pool."""
        return self.train().images

    def labels(self) -> Tensor:
        """Return the labels of the training images."""
        return self.train().labels

    def contents(self) -> None:
        """Return None: the images are part of scikit-learn."""

    def _split(self, part: slice) -> Split:
        from sklearn.datasets import load_digits  # a slow import

        raw = load_digits()
        # The split does not depend on an experiment's seed.
        chosen = torch.randperm(len(raw.target), generator=generator(0, "digits split"))[part]
        images = torch.from_numpy(raw.images).float().unsqueeze(1) / 16
        return Split(enlarge(images[chosen]), torch.from_numpy(raw.target).long()[chosen])


@dataclass(frozen=True)
class Letters:
    """``size`` letters A-Z and a-z in random fonts, sizes, rotations and shears, on the digits' 8 x 8 grid.

    Args:
        size: number of images.
        seed: seed of the fonts, letters and distortions.
    """

    alphabet: ClassVar[str] = string.ascii_letters
    fonts: ClassVar[tuple[str, ...]] = FONTS
    name: str = "letters"
    size: int = 10_000
    seed: int = 0

    def __post_init__(self) -> None:
        check_number("pool.size", self.size, 1, whole=True)

    def images(self, shape: tuple[int, int, int]) -> Tensor:
        """Return the letters, uint8 (size, 1, 28, 28).

        Pillow's FreeType draws the glyphs: of two of its versions 1.4 % of the images differed, by up to 8 of 255.

        Raises:
            MadError: if this machine's memory is too small for them.
        """
        if self.size * BYTES > (there := memory()):
            need = f"{self.size * BYTES / 1e9:,.0f} GB of memory to be drawn, and this machine has {there / 1e9:,.0f}"
            raise MadError(f"pool.size={self.size} needs about {need}: take at most {int(there / BYTES)}")
        draw = generator(self.seed, "letters")
        glyphs = render_glyphs(self.alphabet, self.fonts)
        chosen = torch.randint(len(glyphs), (self.size,), generator=draw)
        turn, shear, scale, right, down = torch.rand(5, self.size, generator=draw).mul(2).sub(1)
        turn, shear, scale = turn * math.radians(15), shear * 0.25, 1.0 + scale * 0.15
        cos, sin = torch.cos(turn) / scale, torch.sin(turn) / scale
        affine = torch.stack([cos, shear * cos - sin, right * 0.1, sin, shear * sin + cos, down * 0.1], 1)
        grid = F.affine_grid(affine.view(-1, 2, 3), [self.size, 1, CANVAS, CANVAS], align_corners=False)
        bent = F.grid_sample(glyphs[chosen], grid, align_corners=False)
        small = F.adaptive_avg_pool2d(bent, GRID)
        # Thin fonts fade when they shrink; a digit's darkest pixel is always near full ink.
        peak = small.amax(dim=(2, 3), keepdim=True).clamp(min=1e-3)
        return enlarge(small / peak)

    def contents(self) -> None:
        """Return None: the seed determines the images, but for what FreeType changes."""

    def labels(self) -> Tensor:
        """Return the letter of each image, int64 (size,), its place in ``alphabet``: 0 to 25 for a-z, then A-Z."""
        count = len(render_glyphs(self.alphabet, self.fonts))
        return torch.randint(count, (self.size,), generator=generator(self.seed, "letters")) % len(self.alphabet)


@dataclass(frozen=True)
class Greek(Letters):
    """``size`` Greek letters that no Latin letter looks like, drawn as ``Letters`` are.

    They are for defenses that train on outliers: outliers must not be the images that an adversary asks about.

    Args:
        size: number of images.
        seed: seed of the fonts, letters and distortions.
    """

    alphabet: ClassVar[str] = CAPITALS + SMALL
    fonts: ClassVar[tuple[str, ...]] = FONTS[:3]  # those that have them
    name: str = "greek"


def memory() -> float:
    """Return the bytes of memory that this machine has; infinity if it does not say."""
    try:
        return float(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    except (AttributeError, ValueError, OSError):
        return math.inf


def render_glyphs(alphabet: str, fonts: tuple[str, ...]) -> Tensor:
    """Return every letter in every font, cropped and centered: float (G, 1, CANVAS, CANVAS) in [0, 1]."""
    import matplotlib
    import numpy as np
    from PIL import Image, ImageDraw, ImageFont

    folder = Path(matplotlib.get_data_path()) / "fonts" / "ttf"
    files = sorted({file for pattern in fonts for file in folder.glob(pattern) if "Display" not in file.name})
    glyphs = []
    for file in files:
        font = ImageFont.truetype(str(file), 48)
        for letter in alphabet:
            left, top, right, bottom = font.getbbox(letter)
            ink = Image.new("L", (max(1, math.ceil(right - left)), max(1, math.ceil(bottom - top))))
            ImageDraw.Draw(ink).text((-left, -top), letter, fill=255, font=font)
            scale = 0.85 * CANVAS / max(ink.size)
            ink = ink.resize(
                (max(1, round(ink.width * scale)), max(1, round(ink.height * scale))), Image.Resampling.BOX
            )
            page = Image.new("L", (CANVAS, CANVAS))
            page.paste(ink, ((CANVAS - ink.width) // 2, (CANVAS - ink.height) // 2))
            glyphs.append(np.asarray(page, dtype=np.float32) / 255)
    return torch.from_numpy(np.stack(glyphs)).unsqueeze(1)
