"""The paper's objective, and its inner product (section 4, eq. 4).

Notation in this package: y is the victim's clean posterior and p the surrogate's posterior, (B, K); q is a defended
posterior; u = y - p; Theta (B, K, K) holds the inner products J J^T of the gradients of the surrogate's logits.

The gradient of the log-likelihood of soft label q with respect to the surrogate's weights is J^T (q - p). So the
squared distance between the two normalized gradients, which MAD maximizes, is

    H(q) = 2 - 2 cos(q - p, y - p)    with <a, b> = a^T Theta b.

For the **last linear layer**, as in the published code, J^T (q - p) = (q - p) h^T, where h are the last features. Then
Theta is ||h||^2 times the identity, and the scale cancels. No backward pass is needed; ``theta`` is None below.
"""

from __future__ import annotations

import torch
from torch import Tensor

TINY = 1e-12


def times(theta: Tensor | None, vectors: Tensor) -> Tensor:
    """Return Theta v for each row v, (B, K)."""
    return vectors if theta is None else torch.bmm(theta, vectors.unsqueeze(2)).squeeze(2)


def dot(a: Tensor, b: Tensor) -> Tensor:
    """Return the inner product of corresponding rows, (B,)."""
    return (a * b).sum(dim=1)


def cosine(v: Tensor, u: Tensor, theta: Tensor | None = None) -> Tensor:
    """Return cos(v, u) in the Theta inner product, (B,), in [-1, 1]; 0 if a length is 0."""
    along = times(theta, u)
    lengths = dot(v, times(theta, v)).clamp(min=0).sqrt() * dot(u, along).clamp(min=0).sqrt()
    return (dot(v, along) / lengths.clamp(min=TINY)).clamp(-1, 1)


def objective(q: Tensor, y: Tensor, p: Tensor, theta: Tensor | None = None) -> Tensor:
    """Return H(q) in [0, 4] for each row, (B,): 0 is the clean gradient's direction, 4 the opposite."""
    return 2 - 2 * cosine(q - p, y - p, theta)
