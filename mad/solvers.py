"""MAD's objective and the published way to maximise it (paper, section 4).

Letters: y the victim's clean posterior and p the surrogate's posterior, both (B, K); q a defended posterior; h the
surrogate's last features and W its last layer's weights.

The gradient of the log-likelihood of soft label q with respect to W is (q - p) h^T. Its direction is that of q - p,
since h is common to every q; so the paper's objective, eq. (4), the squared distance of two normalised gradients, is

    H(q) = 2 - 2 cos(q - p, y - p)

in plain R^K. No backward pass is needed: a surrogate forward and O(K) arithmetic an image.
"""

from __future__ import annotations

import torch
from torch import Tensor

TINY = 1e-12
NO_DIRECTION = 1e-6


def objective(q: Tensor, y: Tensor, p: Tensor) -> Tensor:
    """Return H(q) in [0, 4] for each row, (B,): 0 is the clean direction, 4 the opposite one."""
    return 2 - 2 * torch.cosine_similarity(q - p, y - p, dim=1, eps=TINY)


def vertex(y: Tensor, p: Tensor, epsilon: float) -> tuple[Tensor, Tensor]:
    """Mix y with the one-hot posterior e_k of the largest H, as far as the L1 budget allows.

    With u = p - y, <u, p - e_k> = <u, p> - u_k and ||p - e_k||^2 = ||p||^2 - 2 p_k + 1, so all K scores take O(K).
    ||y - e_k||_1 = 2 (1 - y_k) gives the step.

    Returns:
        The defended posteriors (B, K), and the chosen classes (B,).
    """
    u = p - y
    # At p = y there is no direction to turn away from; rounding must not choose one.
    u = torch.where(u.norm(dim=1, keepdim=True) > NO_DIRECTION, u, 0.0)
    dot = (u * p).sum(dim=1, keepdim=True) - u
    norm = ((p * p).sum(dim=1, keepdim=True) - 2 * p + 1).clamp(min=TINY).sqrt()
    # ||p - y|| is common to all classes and changes no argmin.
    target = (dot / norm).argmin(dim=1)
    room = (1 - y.gather(1, target.unsqueeze(1))).clamp(min=TINY)
    step = (epsilon / (2 * room)).clamp(max=1)
    q = y * (1 - step)
    return q.scatter_add_(1, target.unsqueeze(1), step), target
