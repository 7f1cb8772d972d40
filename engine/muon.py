"""Muon (Jordan et al. 2024): momentum whose matrices are made orthogonal before they are applied.

    M <- 0.95 M + 0.05 G,    N = 0.05 G + 0.95 M (Nesterov),    W <- W - lr sqrt(max(1, rows / columns)) U V^T,
    where N = U S V^T
All directions of a matrix so learn at one pace, also those of which the gradient is small. It is for matrices inside a
network and for filters of convolutions, each flattened to a row. Tables of embeddings, last layers and all that is no
matrix stay with AdamW. Why not `torch.optim.Muon`: it takes no filters, and computes in bfloat16, slow on most CPUs.
Read next: checkpoint.py, which keeps its state.
"""

from collections.abc import Iterable

import torch
from torch import Tensor, nn


def orthogonal(matrices: Tensor, iterations: int = 5) -> Tensor:
    """About U V^T of matrices (..., m, n) = U S V^T, by a Newton-Schulz iteration whose coefficients lift small
    singular values fast and leave large ones between 0.7 and 1.2. Five iterations are usual; for filters three do."""
    x = matrices / matrices.norm(dim=(-2, -1), keepdim=True).clamp_min(1e-7)
    if is_tall := x.shape[-2] > x.shape[-1]:
        x = x.mT
    for _ in range(iterations):
        gram = x @ x.mT
        x = 3.4445 * x + (-4.7750 * gram + 2.0315 * gram @ gram) @ x
    return x.mT if is_tall else x


class MuonAdamW(torch.optim.AdamW):
    """Muon for those parameters that are among `matrices`, at `muon_lr`, AdamW for the others of the groups. It is one
    optimiser, so that one schedule drives it and one state is kept."""

    def __init__(self, groups: Iterable[dict], matrices: Iterable[nn.Parameter], muon_lr: float,
                 muon_decay: float, iterations: int = 5, **adamw):
        matrices = list(matrices)
        taken = set(map(id, matrices))
        groups = [group | {"params": [p for p in group["params"] if id(p) not in taken], "muon": False}
                  for group in groups]
        super().__init__([*groups, {"params": matrices, "lr": muon_lr, "weight_decay": muon_decay, "muon": True}],
                         fused=True, **adamw)
        self.iterations = iterations

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            for p in group["params"] if group["muon"] else ():
                if p.grad is None:
                    continue
                state = self.state[p]
                if not state:  # `step` is not used, but AdamW looks for it when a state is read
                    state |= {"step": torch.zeros(()), "exp_avg": torch.zeros_like(p)}
                momentum = state["exp_avg"].lerp_(p.grad, 0.05)
                update = orthogonal(p.grad.lerp(momentum, 0.95).flatten(1), self.iterations)  # (rows, columns)
                rows, columns = update.shape
                p.mul_(1 - group["lr"] * group["weight_decay"])
                p.sub_(update.view_as(p), alpha=group["lr"] * max(1, rows / columns) ** 0.5)
                p.grad = None  # AdamW passes over it
        return super().step(closure)
