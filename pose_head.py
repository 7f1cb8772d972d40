"""The Gaussian pose head (Pose-RFT eq. 2): from the hidden state at <POSE> to a distribution over body poses.

    N(p; mu(h), Sigma(h)),   p in R^144: the first two columns of 24 rotation matrices, raw, before Gram-Schmidt
The density is that of the raw numbers, hence exact; rewards see the rotations. Also here: the draws of a rollout.
Read next: rewards.py, which says how good the drawn poses and words are.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.distributions import Distribution, Independent, LowRankMultivariateNormal, MultivariateNormal, Normal

from body import matrix_to_rot6d

POSE_DIM = 144  # 24 joints x 6 numbers of rotation


class PoseHead(nn.Module):
    """Hidden state (..., H) to a Gaussian over the 144 numbers of a pose (Pose-RFT eq. 2), always in float32.

    covariance: `diag`, `lowrank` (diagonal plus `rank` shared directions) or `full` (Cholesky factor). The diagonal
    never falls below `sigma_floor`: without one reinforcement narrows the Gaussian until nothing is tried any more.
    Adam moves a sum over H numbers by H times its rate: rates, given for H = 128, are therefore multiplied by `rate`,
    and the mean starts smaller likewise (Yang et al. 2022, muP), so that a step moves the poses alike at any H.
    """

    def __init__(self, hidden_size: int, covariance: str = "diag", rank: int = 8, sigma_floor: float = 0.02):
        super().__init__()
        sizes = {"diag": 0, "lowrank": POSE_DIM * rank, "full": POSE_DIM * (POSE_DIM - 1) // 2}
        if covariance not in sizes or not 0 <= sigma_floor <= 10:
            raise ValueError(f"covariance must be diag, lowrank or full, not {covariance!r}, sigma_floor 0 to 10")
        self.covariance, self.rank, self.sigma_floor = covariance, rank, sigma_floor
        width, self.rate = 2 * hidden_size, 128 / hidden_size
        self.trunk = nn.Sequential(nn.LayerNorm(hidden_size), nn.Linear(hidden_size, width), nn.GELU())
        self.mean, self.sigma = nn.Linear(width, POSE_DIM), nn.Linear(width, POSE_DIM)
        self.correlation = nn.Linear(width, sizes[covariance]) if sizes[covariance] else None
        self.mean.weight.data.mul_(self.rate ** 0.5)
        nn.init.zeros_(self.sigma.weight)
        nn.init.constant_(self.sigma.bias, -1.5)  # softplus: standard deviations start near 0.2
        self.register_buffer("rest", matrix_to_rot6d(torch.eye(3)).repeat(24), persistent=False)
        if self.correlation is not None:
            nn.init.zeros_(self.correlation.bias)
            nn.init.normal_(self.correlation.weight, std=1e-3)

    def forward(self, hidden: Tensor) -> Distribution:
        features = self.trunk(hidden.float())
        mean = self.rest + self.mean(features)  # (..., 144)
        sigma = self.sigma_floor + nn.functional.softplus(self.sigma(features))
        if self.covariance == "diag":
            return Independent(Normal(mean, sigma, validate_args=False), 1, validate_args=False)
        correlation = self.correlation(features)
        if self.covariance == "lowrank":
            factor = correlation.unflatten(-1, (POSE_DIM, self.rank))
            return LowRankMultivariateNormal(mean, factor, sigma.square(), validate_args=False)
        row, column = torch.tril_indices(POSE_DIM, POSE_DIM, offset=-1, device=mean.device)
        scale_tril = torch.diag_embed(sigma)  # (..., 144, 144)
        scale_tril[..., row, column] = correlation * sigma[..., row]  # in units of sigma, or training diverges
        return MultivariateNormal(mean, scale_tril=scale_tril, validate_args=False)


def draw_random_numbers(seeds: Sequence[int], group_size: int, poses_per_answer: int,
                        max_tokens: int) -> tuple[Tensor, Tensor]:
    """All chance in a rollout: uniform numbers (B, G, max_tokens) for words, standard normal ones (B, G, K, 144) for
    the poses. Each prompt has a seed of its own, so that it is answered alike in whatever batch it stands."""
    generators = [torch.Generator().manual_seed(int(seed)) for seed in seeds]
    return (torch.stack([torch.rand(group_size, max_tokens, generator=g) for g in generators]),
            torch.stack([torch.randn(group_size, poses_per_answer, POSE_DIM, generator=g) for g in generators]))


def draw_poses(pose: Distribution, noise: Tensor) -> Tensor:
    """Raw samples (..., K, 144) of Gaussians of batch shape (...), from standard normal noise (..., K, 144)."""
    if isinstance(pose, Independent):
        return pose.mean[..., None, :] + pose.stddev[..., None, :] * noise
    return pose.mean[..., None, :] + noise @ pose.scale_tril.mT


def draw_tokens(odds: Tensor, uniform: Tensor) -> Tensor:
    """An index (...) from each row of odds (..., W), by inverting its cumulative sum at uniform (...): one random
    number a row, where `torch.multinomial` draws one a word and takes 16 times as long (72 rows, 1,200 words, CPU)."""
    cumulative = odds.cumsum(-1)  # (..., W)
    place = cumulative[..., -1:] * uniform[..., None]  # (..., 1)
    return torch.searchsorted(cumulative, place, right=True).squeeze(-1).clamp_max(odds.shape[-1] - 1)
