"""Random augmentation of training images, and mixup, for a whole batch at a time on its device."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Generator, Tensor

from mad.datasets import to_unit_range

PAD = 4
WARP = (15.0, 0.1, 0.05, 0.05)  # turn, scale, move and bend of ``warped``: small enough that digits stay what they are
SMALL = 0.01  # from an alpha of this on, torch draws from Beta(alpha, alpha) as it should
AREA, RATIO, DRAWS = (0.08, 1.0), (3 / 4, 4 / 3), 10  # ImageNet's usual


def crop(images: Tensor, draw: Generator) -> Tensor:
    """Return images (B, C, H, W) of the same dtype, each shifted by up to ``PAD`` pixels and padded with zeros."""
    height, width = images.shape[2:]
    padded = F.pad(images, [PAD] * 4)
    windows = padded.unfold(2, height, 1).unfold(3, width, 1)  # a view: (B, C, top, left, H, W)
    top, left = torch.randint(2 * PAD + 1, (2, len(images)), generator=draw).to(images.device)
    return windows[torch.arange(len(images), device=images.device), :, top, left]


def flip(images: Tensor, draw: Generator) -> Tensor:
    """Return images (B, C, H, W), each mirrored left to right with probability 1/2."""
    mirrored = torch.rand(len(images), generator=draw).lt(0.5).to(images.device)
    return torch.where(mirrored.view(-1, 1, 1, 1), images.flip(3), images)


def resized_crop(images: Tensor, draw: Generator) -> Tensor:
    """Return a random part of each image, enlarged to the image's size: floats in [0, 1], (B, C, H, W).

    As is usual for ImageNet, a part has 8 to 100 % of the area, and its aspect ratio is 3:4 to 4:3 times the image's.
    Interpolation is bilinear.
    """
    count = len(images)
    area = torch.empty(DRAWS, count).uniform_(*AREA, generator=draw)
    ratio = torch.empty(DRAWS, count).uniform_(*map(math.log, RATIO), generator=draw).exp()
    sides = torch.stack([(area * ratio).sqrt(), (area / ratio).sqrt()])  # shares of the width and the height
    fits = (sides <= 1).all(dim=0)
    fits[-1], sides[:, -1] = True, sides[:, -1].clamp(max=1)
    sides = sides[:, fits.int().argmax(dim=0), torch.arange(count)]  # the first draw that fits
    middle = (2 * torch.rand(2, count, generator=draw) - 1) * (1 - sides)
    wide, high = sides
    zero = torch.zeros(count)
    theta = torch.stack([wide, zero, middle[0], zero, high, middle[1]], dim=1).view(-1, 2, 3).to(images.device)
    grid = F.affine_grid(theta, list(images.shape), align_corners=False)
    return F.grid_sample(to_unit_range(images), grid, padding_mode="border", align_corners=False)


def warped(images: Tensor, draw: Generator, turn: float, scale: float, move: float, bend: float) -> Tensor:
    """Return each image turned, scaled, moved and bent at random: floats in [0, 1], (B, C, H, W).

    All draws are uniform, that of the size in its logarithm. What comes from outside repeats the nearest edge.

    Args:
        images: uint8 or float in [0, 1], (B, C, H, W).
        draw: a CPU generator.
        turn: most degrees, to either side.
        scale: 0.1 for 1/1.1 to 1.1 times the size.
        move: a share of the side, in each direction.
        bend: how far each of 4 x 4 points is moved, a share of the side; a bicubic surface goes through them.
    """
    count, (height, width) = len(images), images.shape[2:]

    def between(most: float, *shape: int) -> Tensor:
        return most * (2 * torch.rand(*shape, generator=draw) - 1)

    angle, size = math.pi / 180 * between(turn, count), between(math.log1p(scale), count).exp()
    sine, cosine, place = angle.sin() / size, angle.cos() / size, between(2 * move, 2, count)
    rows = [cosine, -sine * height / width, place[0], sine * width / height, cosine, place[1]]
    grid = F.affine_grid(torch.stack(rows, dim=1).view(-1, 2, 3), list(images.shape), align_corners=False)
    points = between(2 * bend, count, 2, 4, 4)
    if bend:
        bent = F.interpolate(points, (height, width), mode="bicubic", align_corners=True)
        grid = grid + bent.permute(0, 2, 3, 1)
    grid = grid.to(images.device)
    return F.grid_sample(to_unit_range(images), grid, padding_mode="border", align_corners=False)


def augmented(images: Tensor, kind: str, draw: Generator) -> Tensor:
    """Return augmented images (B, C, H, W); ``kind`` is one of ``AUGMENTATIONS``, ``draw`` a CPU generator."""
    if kind == "none":
        return images
    if kind == "warp":
        return warped(images, draw, *WARP)
    moved = resized_crop(images, draw) if kind.startswith("resized") else crop(images, draw)
    return flip(moved, draw) if kind.endswith("flip") else moved


def mixed(images: Tensor, targets: Tensor, alpha: float) -> tuple[Tensor, Tensor]:
    """Return sums of each image and a random other one, and the same sums of their targets (Zhang et al., ICLR 2018).

    The share of the first is one draw from Beta(alpha, alpha) for the whole batch. Torch's global generator draws it.

    Args:
        images: uint8 or float in [0, 1], (B, C, H, W); the sums are floats in [0, 1].
        targets: posteriors (B, K).
        alpha: above 0.
    """
    share = share_of(alpha)
    other, images = torch.randperm(len(images)).to(images.device), to_unit_range(images)
    return torch.lerp(images[other], images, share), torch.lerp(targets[other], targets, share)


def share_of(alpha: float) -> float:
    """Return a draw from Beta(alpha, alpha), by torch's global generator."""
    if alpha >= SMALL:
        return torch.distributions.Beta(alpha, alpha).sample().item()
    # Both gamma variables that torch divides by their sum are 0 to its precision then, and the share would be 1/2. A
    # variable of shape alpha is one of shape alpha + 1 times u^(1 / alpha), u uniform; here in logarithms.
    logs = torch.distributions.Gamma(alpha + 1, 1.0).sample((2,)).double().log() + torch.rand(2).double().log() / alpha
    return torch.softmax(logs, dim=0)[0].item()
