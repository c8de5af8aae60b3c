"""Image files come out as a person sees them, or a line names the file."""

import struct
import zlib

import numpy as np
import pytest
import torch
from PIL import Image
from toys import CPU

from mad.datasets import batches, checked, pictures
from mad.datasets.folder import Files, ImageFolder
from mad.errors import MadError

SHAPE = np.zeros((12, 12), dtype=bool)
SHAPE[2:10, 4:7] = True  # neither square nor in the middle, so that no turn or mirroring keeps it
RAMP = np.arange(144).reshape(12, 12) * 65535 // 143


def read(file, channels=1):
    return Files([file], (channels, 12, 12))[0]


def contrast(image):
    """How far, of 255, the shape lies from what is around it."""
    values = image.float().mean(dim=0).numpy()
    return abs(values[SHAPE].mean() - values[~SHAPE].mean())


@pytest.mark.parametrize("name", ["a.png", "a.tif", "a.pgm"])
def test_16_bits_are_scaled_and_not_clipped(tmp_path, name):
    Image.fromarray(RAMP.astype(np.uint16)).save(tmp_path / name)
    for channels in (1, 3):
        found = read(tmp_path / name, channels).double().numpy()
        assert np.abs(found - RAMP / 257).max() <= 0.5


@pytest.mark.parametrize(("order", "black"), [("<", 1), (">", 1), ("<", 0)])  # Pillow refuses the fourth
def test_16_bits_in_either_order_and_with_white_as_0_are_the_same(tmp_path, order, black):
    """In a TIFF whose photometric interpretation is 0, 0 is white: Pillow turns such a file of 8 bits only."""
    header = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(f"{order}I", 8 + 288)
    entries = [(256, 3, 12), (257, 3, 12), (258, 3, 16), (259, 3, 1), (262, 3, black), (273, 4, 8), (277, 3, 1)]
    entries += [(278, 3, 12), (279, 4, 288)]
    ifd = struct.pack(f"{order}H", len(entries))
    for tag, kind, value in entries:
        ifd += struct.pack(f"{order}HHIHH" if kind == 3 else f"{order}HHII", tag, kind, 1, value, *[0] * (kind == 3))
    values = RAMP if black else 65535 - RAMP
    (tmp_path / "big.tif").write_bytes(header + values.astype(f"{order}u2").tobytes() + ifd + bytes(4))
    assert np.abs(read(tmp_path / "big.tif").double().numpy() - RAMP / 257).max() <= 0.5


@pytest.mark.parametrize("shade", [0, 90, 200, 255])
@pytest.mark.parametrize("mode", ["RGBA", "LA", "P", "1-bit", "16-bit"])
@pytest.mark.parametrize("channels", [1, 3])
def test_a_shape_that_only_transparency_draws_is_seen(tmp_path, shade, mode, channels):
    alpha, flat = np.where(SHAPE, 255, 0).astype(np.uint8), np.full((12, 12), shade, dtype=np.uint8)
    file, how = tmp_path / "one.png", {}
    if mode == "P":
        made, how = Image.fromarray(SHAPE.astype(np.uint8), "P"), {"transparency": 0}
        made.putpalette([shade] * 6)
    elif mode == "1-bit":
        made, how = Image.fromarray(SHAPE), {"transparency": 0 if shade > 127 else 255}
        alpha = alpha if shade > 127 else 255 - alpha
    elif mode == "16-bit":
        made, how = Image.fromarray(np.where(SHAPE, shade * 257, shade * 257 ^ 1).astype(np.uint16)), {}
        made.save(file)
        with_transparency(file, shade * 257 ^ 1)
        made = None
    else:
        made = Image.fromarray(np.dstack([flat] * (3 if mode == "RGBA" else 1) + [alpha]).squeeze(), mode)
    if made is not None:
        made.save(file, **how)
    assert contrast(read(file, channels)) >= 127


def with_transparency(file, value):
    """Say in a gray PNG that one value is transparent."""
    content = file.read_bytes()
    place = content.index(b"IDAT") - 4
    file.write_bytes(content[:place] + chunk(b"tRNS" + struct.pack(">H", value)) + content[place:])


def test_half_transparent_is_half_laid_over_and_opaque_is_as_it_was(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (12, 12, 3), dtype=np.uint8)
    full = np.full((12, 12, 1), 255, dtype=np.uint8)
    Image.fromarray(np.concatenate([pixels, full], axis=2)).save(tmp_path / "opaque.png")
    Image.fromarray(pixels).save(tmp_path / "plain.png")
    assert torch.equal(read(tmp_path / "opaque.png", 3), read(tmp_path / "plain.png", 3))
    Image.new("RGBA", (12, 12), (0, 0, 0, 51)).save(tmp_path / "thin.png")
    assert (read(tmp_path / "thin.png").int() - 204).abs().max() <= 1
    Image.new("RGBA", (12, 12), (0, 0, 0, 0)).save(tmp_path / "none.png")
    assert (read(tmp_path / "none.png") == 255).all()


@pytest.mark.parametrize("turn", range(1, 9))
def test_a_photograph_stands_upright(tmp_path, turn):
    upright = np.where(SHAPE, 255, 0).astype(np.uint8)
    undo = {
        1: upright,
        2: upright[:, ::-1],
        3: upright[::-1, ::-1],
        4: upright[::-1],
        5: upright.T,
        6: np.rot90(upright),
        7: upright.T[::-1, ::-1],
        8: np.rot90(upright, -1),
    }[turn]
    exif = Image.Exif()
    exif[0x0112] = turn
    Image.fromarray(np.ascontiguousarray(undo)).save(tmp_path / "one.png", exif=exif)
    assert torch.equal(read(tmp_path / "one.png")[0], torch.tensor(upright))


@pytest.mark.parametrize("turn", range(1, 9))
@pytest.mark.parametrize("kind", ["jpg", "png", "raw", "tiff_lzw", "strips"])
@pytest.mark.parametrize("deep", [False, True])
def test_an_oblong_photograph_has_the_size_and_the_pixels_that_are_seen(tmp_path, turn, kind, deep):
    stored = np.arange(6 * 16).reshape(6, 16) * 2
    seen = {
        1: stored,
        2: stored[:, ::-1],
        3: stored[::-1, ::-1],
        4: stored[::-1],
        5: stored.T,
        6: np.rot90(stored, -1),
        7: stored.T[::-1, ::-1],
        8: np.rot90(stored),
    }[turn]
    deep = deep and kind != "jpg"
    made = Image.fromarray(stored.astype(np.uint16) * 257 if deep else stored.astype(np.uint8))
    exif, tags = Image.Exif(), {0x0112: turn, 278: 2 if kind == "strips" else 6}  # rows of a strip
    exif[0x0112] = turn
    file = tmp_path / f"one.{kind if kind in ('jpg', 'png') else 'tif'}"
    how = {"compression": kind if kind == "tiff_lzw" else "raw", "tiffinfo": tags} if file.suffix == ".tif" else {}
    made.save(file, **(how or {"exif": exif, "quality": 100}))
    for source in (file, pictures.Encoded(file.read_bytes(), "row 1")):
        assert pictures.header(source).size == seen.shape
        found = np.asarray(pictures.pixels(source, 1)).astype(int)
        assert found.shape == seen.shape
        assert np.abs(found - seen).max() <= (8 if kind == "jpg" else 0)


def test_inks_palettes_and_bits(tmp_path):
    Image.new("CMYK", (12, 12), (0, 255, 255, 0)).save(tmp_path / "cmyk.tif")
    Image.new("CMYK", (12, 12), (0, 255, 255, 0)).save(tmp_path / "cmyk.jpg")
    for name in ("cmyk.tif", "cmyk.jpg"):
        assert (read(tmp_path / name, 3).int() - torch.tensor([255, 0, 0]).view(3, 1, 1)).abs().max() <= 3
        assert (read(tmp_path / name).int() - 76).abs().max() <= 3
    Image.new("RGB", (12, 12), (10, 200, 30)).quantize(4).save(tmp_path / "palette.gif")
    assert (read(tmp_path / "palette.gif", 3)[:, 0, 0] == torch.tensor([10, 200, 30])).all()
    Image.fromarray(SHAPE).save(tmp_path / "bits.png")
    assert contrast(read(tmp_path / "bits.png")) == 255
    Image.new("YCbCr", (12, 12), (76, 85, 255)).save(tmp_path / "ycc.tif")
    assert (read(tmp_path / "ycc.tif", 3).int() - torch.tensor([255, 0, 0]).view(3, 1, 1)).abs().max() <= 3
    Image.new("LAB", (12, 12), (136, 80 + 128, 67 + 128)).save(tmp_path / "lab.tif")
    for channels, value in ((3, [255, 0, 0]), (1, [76])):
        assert (read(tmp_path / "lab.tif", channels).int() - torch.tensor(value).view(-1, 1, 1)).abs().max() <= 12


def floats(file):
    Image.fromarray(RAMP.astype(np.float32)).save(file)


def integers(file):
    Image.fromarray(RAMP.astype(np.int32)).save(file)


def chunk(content):
    """A chunk of a PNG, from its name and data."""
    return struct.pack(">I", len(content) - 4) + content + struct.pack(">I", zlib.crc32(content))


def bomb(file):
    """A PNG of 20,000 x 20,000 pixels: small, as it is black."""
    head = b"IHDR" + struct.pack(">IIBBBBB", 20_000, 20_000, 1, 0, 0, 0, 0)
    body = b"IDAT" + zlib.compress(bytes(2501 * 20))
    file.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(map(chunk, (head, body, b"IEND"))))


def cut(file):
    noise = np.random.default_rng(0).integers(0, 256, (40, 40, 3), dtype=np.uint8)
    Image.fromarray(noise).save(file, "png")
    file.write_bytes(file.read_bytes()[:2000])


def empty(file):
    file.touch()


def text(file):
    file.write_text("no image")


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("make", "name", "words"),
    [
        (floats, "odd.tif", "floats, and nothing says which of them is white"),
        (integers, "odd.tif", "32-bit integers"),
        (bomb, "odd.png", "exceeds limit"),
        (cut, "odd.png", ""),
        (empty, "odd.png", ""),
        (text, "odd.png", "of no format that is known"),
    ],
)
def test_what_has_no_pixels_is_one_line_that_names_it(tmp_path, monkeypatch, make, name, words, stream):
    Image.new("L", (12, 12), 9).save(tmp_path / "a.png")
    make(tmp_path / name)
    if stream:
        monkeypatch.setattr("mad.datasets.base.IN_MEMORY", 0)
    with pytest.raises(MadError, match=rf"^[^\n]*{name}[^\n]*{words}[^\n]*; remove it, or save[^\n]*$"):
        list(batches(ImageFolder(str(tmp_path)).images((3, 12, 12)), None, 2, CPU))


def test_a_stream_is_looked_through_before_anything_is_trained(tmp_path, monkeypatch):
    Image.new("L", (12, 12), 9).save(tmp_path / "a.png")
    bomb(tmp_path / "b.png")
    monkeypatch.setattr("mad.datasets.base.IN_MEMORY", 0)
    with pytest.raises(MadError, match=r"b\.png"):
        ImageFolder(str(tmp_path)).images((1, 12, 12))


@pytest.mark.parametrize("name", ["a.gif", "a.tif", "a.webp", "a.png"])
def test_of_several_frames_the_first_is_taken_and_said(tmp_path, capsys, name):
    checked.say.cache_clear()
    frames = [Image.new("RGB", (12, 12), (shade, shade, shade)) for shade in (40, 200)]
    frames[0].save(tmp_path / name, save_all=True, append_images=frames[1:], lossless=True)
    for _ in range(2):
        assert (ImageFolder(str(tmp_path)).images((1, 12, 12)).int() - 40).abs().max() <= 2
    said = " ".join(capsys.readouterr().err.split())
    assert said.count("took only the first frame of 1 files") == 1
    assert str(tmp_path / name) in said


def test_a_large_camera_is_no_bomb(tmp_path, monkeypatch, recwarn):
    Image.new("L", (12, 12), 9).save(tmp_path / "a.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    assert (np.asarray(pictures.pixels(tmp_path / "a.png", 1)) == 9).all()
    assert not recwarn.list
