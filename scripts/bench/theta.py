"""All-layer inner products of gradients: closed forms against Jacobians that are formed.

    python scripts/bench/theta.py --json docs/bench/theta.json

`closed forms` is ``mad.gradients.theta``; `vmap(jacrev)` is ``torch.func``'s Jacobian of all parameters, then J J^T,
for `at once` images at a time; `one pass a class` goes image by image. A peak is one call's, in a process of its own,
above what that held before. `error` is against one pass a class in float64.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from common import arguments, matrix_rate, paired, ratio, report, several
from torch import Tensor, nn
from torch.func import functional_call, jacrev, vmap
from torch.utils.flop_counter import FlopCounterMode

from mad.architectures.lenet import LeNet
from mad.architectures.vgg import VGG16BN
from mad.cli.command import command
from mad.gradients import theta
from mad.training import place

CLASSES = 10
THETA, IN_MEMORY, CHUNKED, PASSES = "closed forms", "vmap(jacrev)", "vmap(jacrev), chunked", "one pass a class"
# What a call of each method takes: images, and of those at once. Ten gradients of VGG16-BN are 590 MB an image.
NETWORKS: dict[str, Any] = {
    "lenet": (LeNet, (1, 28, 28), {THETA: (256, 0), IN_MEMORY: (256, 256), CHUNKED: (256, 8), PASSES: (8, 1)}),
    "vgg16_bn": (VGG16BN, (3, 32, 32), {THETA: (17, 0), CHUNKED: (2, 1), PASSES: (2, 1)}),
}
FASTER, SMALLER = 10, 0.1


def by_jacrev(model: nn.Module, images: Tensor, at_once: int) -> Tensor:
    """Return Theta (B, K, K) from the Jacobians of ``at_once`` images, formed together."""
    parameters = {name: value.detach() for name, value in model.named_parameters()}
    jacobian = vmap(
        jacrev(lambda values, image: functional_call(model, values, (image.unsqueeze(0),)).squeeze(0)), (None, 0)
    )
    parts = []
    for few in images.split(at_once):
        rows = jacobian(parameters, few)
        parts.append(sum(rows.pop(name).flatten(2) @ each.flatten(2).mT for name, each in list(rows.items())))
    return torch.cat(parts)


def by_passes(model: nn.Module, images: Tensor) -> Tensor:
    """Return Theta (B, K, K) from one backward pass an image and class."""
    parameters = list(model.parameters())
    products = []
    for image in images:
        logits = model(image.unsqueeze(0))[0]
        rows = [torch.autograd.grad(logit, parameters, retain_graph=True) for logit in logits]
        matrix = torch.stack([torch.cat([part.flatten() for part in row]) for row in rows])
        products.append(matrix @ matrix.T)
    return torch.stack(products)


def network_and_images(network: str, device: str) -> tuple[nn.Module, Tensor]:
    """Return a network as it comes, and the images of a call."""
    make, shape, methods = NETWORKS[network]
    torch.manual_seed(0)
    images = torch.rand(methods[THETA][0], *shape).to(device).contiguous(memory_format=torch.channels_last)
    return place(make(shape, CLASSES).eval(), torch.device(device)), images


def calls(network: str, device: str) -> dict[str, Callable[[], Tensor]]:
    """Return each method's call."""
    model, images = network_and_images(network, device)

    def call(method: str, count: int, at_once: int) -> Callable[[], Tensor]:
        if method == THETA:
            return lambda: theta(model, images[:count])[1]
        if method == PASSES:
            return lambda: by_passes(model, images[:count])
        return lambda: by_jacrev(model, images[:count], at_once)

    return {method: call(method, *sizes) for method, sizes in NETWORKS[network][2].items()}


def resident(what: str) -> float:
    """Return this process's memory in MB: VmRSS is now, VmHWM the most so far."""
    lines = dict(line.split(":") for line in Path("/proc/self/status").read_text().splitlines())
    return int(lines[what].split()[0]) / 1024


def print_peak(network: str, method: str, device: str) -> None:
    """Print the MB that one call takes at its most."""
    run = calls(network, device)[method]
    if device.startswith("cuda"):
        before = torch.cuda.memory_allocated()
        run()
        print((torch.cuda.max_memory_allocated() - before) / 2**20)
    else:
        before = resident("VmRSS")
        run()
        print(resident("VmHWM") - before)


def peak(network: str, method: str, given: Any) -> float:
    """Return what ``print_peak`` says in a process of its own."""
    words = [sys.executable, __file__, "--peak", f"{network}/{method}", "--device", given.device]
    words += ["--threads", str(given.threads)]
    return float(subprocess.run(words, check=True, capture_output=True, text=True).stdout)


def measure(network: str, rate: float, given: Any) -> list[dict[str, Any]]:
    """Return a row for each method."""
    methods, runs = NETWORKS[network][2], calls(network, given.device)
    times = paired(runs, given.repeats, given.device)
    each = {method: [seconds / methods[method][0] for seconds in times[method]] for method in runs}
    memory = {method: peak(network, method, given) for method in runs}
    model, images = network_and_images(network, given.device)
    exact = by_passes(model.double(), images[: methods[PASSES][0]].double())
    operations = flops(runs[THETA]) / len(images)
    rows = []
    for method, (count, at_once) in methods.items():
        milliseconds = 1000 * statistics.median(each[method])
        row = {
            "network": network,
            "method": method,
            "images": count,
            "at once": at_once or None,
            "ms/image": milliseconds,
            "times ours": ratio(each[method], each[THETA]),
            "peak MB": memory[method],
            "MB, times ours": memory[method] / memory[THETA],
            "error": error(runs[method](), exact),
        }
        if method == THETA:
            row |= {"Mflop/image": operations / 1e6, "of roofline": 1000 * operations / milliseconds / rate}
        if method == IN_MEMORY:
            row["bar"] = f"ours {FASTER}x as fast, {SMALLER:g} of the memory"
            row["met"] = row["times ours"] >= FASTER and memory[THETA] <= SMALLER * memory[method]
        rows.append(row)
    return rows


def flops(run: Callable[[], Tensor]) -> int:
    """Return the floating-point operations, two a multiply-add, of a call's matrix products and convolutions."""
    with FlopCounterMode(display=False) as counter:
        run()
    return counter.get_total_flops()


def error(products: Tensor, exact: Tensor) -> float:
    """Return the largest difference from float64's, relative to the same image's largest entry."""
    products = products[: len(exact)].double()
    exact = exact[: len(products)]
    return ((products - exact).abs().amax((1, 2)) / exact.abs().amax((1, 2))).max().item()


@command
def main() -> None:
    """Measure every network, or one peak."""
    given = arguments(__doc__, peak="", networks=",".join(NETWORKS))
    if given.peak:
        network, _, method = given.peak.partition("/")
        several("peak", network, NETWORKS)
        print_peak(network, method, given.device)
        return
    rate = matrix_rate(given.device)
    rows = [row for network in several("networks", given.networks, NETWORKS) for row in measure(network, rate, given)]
    report(f"Theta of all layers, K = {CLASSES}, float32", rows, given)


if __name__ == "__main__":
    main()
