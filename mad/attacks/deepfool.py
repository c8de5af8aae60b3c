"""DeepFool (Moosavi-Dezfooli et al., CVPR 2016): how small a perturbation moves an image to another class."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from mad.datasets import Images, batch_limit, batches, to_unit_range
from mad.progress import bar

BATCH = 256  # images per gradient computation
CLASSES = 10  # the likeliest classes, toward which an image is moved, as in the published code
OVERSHOOT = 0.02
STEPS = 50


def distances(network: nn.Module, pool: Images, rows: Tensor, device: torch.device) -> Tensor:
    """Return the L2 norm of the perturbation that moves each of the rows (B,) of a pool to another class, (B,).

    It is infinite for an image that no pixel moves, unless it lies on the border already.
    """
    found, size = [], batch_limit(BATCH, pool.shape[1:])
    with bar("DeepFool", len(rows)) as progress:
        for images in batches(pool, rows, size, device):
            images = to_unit_range(images)
            moved = deepfool(network, images).flatten(1).norm(dim=1)
            with torch.no_grad():
                first, second = network(images).topk(2, dim=1).values.T
            found.append(moved.masked_fill((moved == 0) & (first > second), torch.inf).cpu())
            progress(len(images), "", None)
    return torch.cat(found)


def deepfool(network: nn.Module, images: Tensor, steps: int = STEPS, classes: int = CLASSES) -> Tensor:
    """Return the perturbation r (B, C, H, W), with which the network finds another class in images + (1 + 0.02) r.

    With f the logits at the moved image x, k its class before and w_c = grad(f_c - f_k), each step adds the smallest
    move across the nearest linearized border,

        (f_k - f_c) w_c / ||w_c||^2  for the class c with the least (f_k - f_c) / ||w_c||,

    among the ``classes`` that are likeliest before. Only images that are still of their class are computed on. Pixels
    may leave [0, 1], as in the paper.

    Args:
        network: images to logits (B, K), in eval mode; an image's logits must not depend on other images.
        images: floats in [0, 1], (B, C, H, W), on the network's device.
        steps: the most steps; an image that is still of its class keeps what it has then. So does one whose logits do
            not change with its pixels.
        classes: at least 2; the image's own is one of them.
    """
    moved, rows = torch.zeros_like(images), torch.arange(len(images), device=images.device)
    with torch.no_grad():
        ranked = network(images).topk(min(classes, network(images[:1]).shape[1]), dim=1).indices
    for turn in range(steps):
        at = images[rows] + (1 + OVERSHOOT) * moved[rows]
        if turn:  # a pass without gradients costs little beside the gradients of images that need no more
            with torch.no_grad():
                same = network(at).argmax(dim=1) == ranked[rows, 0]
            rows, at = rows[same], at[same]
        if not len(rows):
            break
        gaps, slopes = linearized(network, at, ranked[rows])
        norms = slopes.flatten(2).norm(dim=2)
        ratio, best = torch.where(norms > 0, -gaps / norms, torch.inf).min(dim=1)
        able = ratio.isfinite() & (ratio > 0)  # at 0 it lies on the border
        rows, place = rows[able], (able.nonzero().squeeze(1), best[able])
        moved[rows] += (ratio[able] / norms[place]).view(-1, 1, 1, 1) * slopes[place]
    return moved


def linearized(network: nn.Module, images: Tensor, classes: Tensor) -> tuple[Tensor, Tensor]:
    """Return f_c - f_k, (B, C - 1), and its gradient, (B, C - 1, C, H, W); k is the first of the ``classes`` (B, C)."""
    at = images.contiguous(memory_format=torch.channels_last).requires_grad_()
    with torch.enable_grad():
        logits = network(at).gather(1, classes)
        gaps = (logits[:, 1:] - logits[:, :1]).T
        last = len(gaps) - 1
        slopes = [torch.autograd.grad(gap.sum(), at, retain_graph=c < last)[0] for c, gap in enumerate(gaps)]
    return gaps.detach().T, torch.stack(slopes, dim=1)
