"""All-layer inner products of gradients: closed forms against Jacobians that are formed.

    python scripts/bench/theta.py --json docs/bench/theta.json

`theta` is ``mad.gradients.theta``; `jacrev` is ``torch.func``'s vmap(jacrev) over all parameters, then J J^T; `passes`
is one backward pass a class, image by image. Memory is the peak of one call above what its fresh process held before.
"""

from __future__ import annotations

import functools
import statistics
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from common import arguments, matrix_rate, paired, ratio, report
from torch import Tensor, nn
from torch.func import functional_call, jacrev, vmap
from torch.utils.flop_counter import FlopCounterMode

from mad.architectures.lenet import LeNet
from mad.architectures.vgg import VGG16BN
from mad.gradients import theta
from mad.training import place

CLASSES = 10
# Images a call of each method, and of a Jacobian at once: ten of VGG16-BN's gradients are 600 MB an image.
NETWORKS: dict[str, dict[str, Any]] = {
    "lenet": {"make": LeNet, "shape": (1, 28, 28), "theta": 256, "jacrev": 256, "passes": 8, "at_once": 256},
    "vgg16_bn": {"make": VGG16BN, "shape": (3, 32, 32), "theta": 16, "jacrev": 2, "passes": 2, "at_once": 1},
}
BAR = {"lenet": (10, 0.1)}


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


def prepared(network: str, device: str) -> dict[str, tuple[int, Callable[[], Tensor]]]:
    """Return, for each method, how many images it takes and the call."""
    facts = NETWORKS[network]
    torch.manual_seed(0)
    model = place(facts["make"](facts["shape"], CLASSES).eval(), torch.device(device))
    images = torch.rand(facts["theta"], *facts["shape"]).to(device).contiguous(memory_format=torch.channels_last)
    first = {method: images[: facts[method]] for method in ("theta", "jacrev", "passes")}
    return {
        "theta": (facts["theta"], lambda: theta(model, first["theta"])[1]),
        "jacrev": (facts["jacrev"], functools.partial(by_jacrev, model, first["jacrev"], facts["at_once"])),
        "passes": (facts["passes"], functools.partial(by_passes, model, first["passes"])),
    }


def resident(what: str) -> float:
    """Return this process's memory in MB: VmRSS is now, VmHWM the most so far."""
    lines = dict(line.split(":") for line in Path("/proc/self/status").read_text().splitlines())
    return int(lines[what].split()[0]) / 1024


def print_peak(network: str, method: str, device: str) -> None:
    """Print the MB that one call takes at its most."""
    run = prepared(network, device)[method][1]
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
    command = [sys.executable, __file__, "--peak", f"{network} {method}", "--device", given.device]
    command += ["--threads", str(given.threads)]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def measure(network: str, rate: float, given: Any) -> dict[str, Any]:
    """Return a network's row."""
    runs = prepared(network, given.device)
    times = paired({method: run for method, (_, run) in runs.items()}, given.repeats, given.device)
    each = {method: [seconds / runs[method][0] for seconds in times[method]] for method in runs}
    milliseconds = {method: 1000 * statistics.median(values) for method, values in each.items()}
    memory = {method: peak(network, method, given) for method in runs}
    with FlopCounterMode(display=False) as counter:
        ours = runs["theta"][1]()
    operations = counter.get_total_flops() / len(ours)
    theirs, slow = runs["jacrev"][1](), runs["passes"][1]()
    faster, leaner = ratio(each["jacrev"], each["theta"]), memory["jacrev"] / memory["theta"]
    row = {
        "network": network,
        "images (theta, jacrev, passes)": ", ".join(str(count) for count, _ in runs.values()),
        **{f"{method} ms/image": value for method, value in milliseconds.items()},
        "jacrev / theta": faster,
        "passes / theta": ratio(each["passes"], each["theta"]),
        **{f"{method} MB": value for method, value in memory.items()},
        "memory, jacrev / theta": leaner,
        "Mflop/image": operations / 1e6,
        "share of roofline": operations / (milliseconds["theta"] / 1000) / rate,
        "largest difference": max(difference(ours, theirs), difference(ours, slow)),
    }
    if network in BAR:
        speed, share = BAR[network]
        row["bar"] = f"{speed}x as fast as jacrev, {share:g} of its memory"
        row["met"] = faster >= speed and memory["theta"] <= share * memory["jacrev"]
    return row


def difference(ours: Tensor, theirs: Tensor) -> float:
    """Return the largest difference, relative to the largest entry of the same image."""
    ours = ours[: len(theirs)]
    return ((ours - theirs).abs().amax((1, 2)) / theirs.abs().amax((1, 2))).max().item()


def main() -> None:
    """Measure every network, or one peak."""
    given = arguments(__doc__, peak="", networks=",".join(NETWORKS))
    if given.peak:
        print_peak(*given.peak.split(), given.device)
        return
    rate = matrix_rate(given.device)
    rows = [measure(network, rate, given) for network in given.networks.split(",")]
    report(f"Theta of all layers, K = {CLASSES}, float32", rows, given)


if __name__ == "__main__":
    main()
