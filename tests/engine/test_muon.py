"""Muon: the orthogonal update, what goes to AdamW, and a state that is kept."""

import copy

import pytest
import torch
from torch import nn

from engine.muon import MuonAdamW, orthogonal


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.Flatten(), nn.Linear(8 * 4, 16), nn.ReLU(), nn.Linear(16, 4))


def optimiser(model: nn.Module, matrices=(0, 2)) -> MuonAdamW:
    return MuonAdamW([{"params": list(model.parameters())}], [model[i].weight for i in matrices], muon_lr=0.02,
                     muon_decay=0.1, lr=1e-3, weight_decay=0.01)


def steps(model: nn.Module, optimizer: torch.optim.Optimizer, count: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    for _ in range(count):
        x = torch.randn(5, 3, 4, 4, generator=generator)
        model(x).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()


@pytest.mark.parametrize("shape", [(20, 6), (6, 20), (3, 12, 12)])
def test_all_singular_values_are_brought_near_one_and_the_directions_stay(shape):
    matrices = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    U, S, Vh = torch.linalg.svd(matrices, full_matrices=False)
    made = orthogonal(matrices)
    found = torch.linalg.svdvals(made)
    large = S > 0.02 * S[..., :1]  # five iterations do not lift the smallest ones all the way
    assert ((found > 0.6) & (found < 1.3))[large].all()
    inside = U.mT @ made @ Vh.mT  # diagonal where U and V are those of the matrix itself
    assert (inside - inside.diagonal(dim1=-2, dim2=-1).diag_embed()).abs().max() < 1e-4


def test_a_step_by_hand():
    model = network()
    weight, optimizer = model[2].weight, optimiser(model)
    before = weight.detach().clone()
    model(torch.ones(1, 3, 4, 4)).square().mean().backward()
    gradient = weight.grad.clone()
    optimizer.step()
    update = orthogonal(0.05 * gradient + 0.95 * 0.05 * gradient)  # momentum starts at nothing
    torch.testing.assert_close(weight.detach(), before * (1 - 0.02 * 0.1) - 0.02 * update)  # 16 rows, 32 columns


def test_without_matrices_it_is_adamw():
    ours, theirs = network(), network()
    steps(ours, optimiser(ours, ()), 3, seed=2)
    steps(theirs, torch.optim.AdamW(theirs.parameters(), lr=1e-3, weight_decay=0.01, fused=True), 3, seed=2)
    assert all(torch.equal(a, b) for a, b in zip(ours.parameters(), theirs.parameters()))


def test_a_kept_state_goes_on_to_the_same_bits():
    whole, stopped = network(), network()
    optimizer = optimiser(whole)
    steps(whole, optimizer, 3, seed=3)
    first = optimiser(stopped)
    steps(stopped, first, 3, seed=3)
    resumed = copy.deepcopy(stopped)
    second = optimiser(resumed)
    second.load_state_dict(first.state_dict())
    steps(whole, optimizer, 2, seed=4)
    steps(resumed, second, 2, seed=4)
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), resumed.parameters()))
    assert not torch.equal(whole[0].weight, stopped[0].weight)
