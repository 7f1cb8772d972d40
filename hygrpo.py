"""HyGRPO: group-relative policy optimisation of a hybrid action, an answer in words and a pose.

For every prompt the policy gives G answers a_i, and for every answer that holds <POSE>, K poses p_ik; the density is
pi(a, p | q) = pi(a | q) N(p; mu, Sigma) (Pose-RFT eq. 1-2). As it is computed here, to be made large (eq. 3-6):

    J = 1/(B G) sum_i 1/T_i sum_t [ min(r_it F_i, clip(r_it) F_i) - beta_text KL_it ]
      + w/(V D) sum_i [ 1/K sum_k sum_j min(r_ikj Delta_ikj, clip(r_ikj) Delta_ikj) - beta_pose KL_i ]
    r_it = pi(a_it) / pi_old(a_it),   r_ikj = N(p_ikj) / N_old(p_ikj),   KL from the SFT policy, in nats, exact
    A(R_i) = (R_i - mean of the others in the group) / (spread of the group)
    F_i = sum_m w_m A(R_m(a_i)) + sum_n w_n A(1/K sum_k R_n(p_ik)),   Delta_ikj = sum_n w_n A(R_nj(p_ik))
i: the B G answers, in the second line the V that hold a pose; t: the T_i tokens of an answer; j: the 24 joints of a
pose, six numbers each; m, n: rewards of words and of poses, with their weights; w: `pose_weight`; R_nj: the part of
R_n that joint j decides, or R_n itself where it has no parts.

Two advantages: a lucky sample of a pose is no merit of the words before it, and K poses of one answer differ in nothing
else. Two clips: a ratio of one token hardly moves, that of a Gaussian's many numbers does at once, so that the product
r_d r_c of eq. 3-4 would clip the words for what the pose did. "Old" is the policy that sampled; its densities are those
of the first epoch's own pass. With one inner epoch, the default, every ratio is therefore exactly 1 and no clip does
anything. Advantages add up to 0: J is then its KL terms alone, its gradient theirs and that of F log pi + Delta log N.
Related: a choice with numbers that go with it is a parameterised action (Masson et al. 2016). P-DQN (Xiong et al. 2018)
learns values of them; H-PPO (Fan et al. 2019) and HyLaR (arXiv 2604.20328) have a clip for each half, too. HPO
(2605.14297) takes the pathwise gradient for the numbers, here `--pose_gradient pathwise` (lab/pathwise.py). Why many
samples under one answer help: they drive the variance of its advantage to zero (2509.24494). GDPO: see below.

Departures from the paper:
- K poses for an answer instead of one: they come from one hidden state, so they cost next to nothing.
- Where all answers of a prompt are the same sentence, one is given (G = 1), and the group is its K poses.
- Delta is one number for a pose in the paper. Here each joint, whose ratio is its own, is compared by the part of a
  reward that it decides: of 24 joints one bends the elbow, and the luck of the others is noise to it.
- Of `statements` it is multiplied by 1 - mean, what the group lacks, as by the focal loss (Lin et al. 2017): divided by
  the spread, what holds in 63 of 64 poses would teach as much as what holds in half of them.
- F also holds the mean reward of an answer's poses: a description that leads to better poses is a better description.
- r_d is taken for each token, as in GRPO (Shao et al. 2024), and r_c for each joint: the density ratio of a
  144-dimensional Gaussian leaves any clip range after one small step. `pose_ratio="joint"` is the paper's literal form.
- The ratio's denominator is the policy that sampled, as in PPO. One reading of eq. 3-4 has pi_ref there; the full text
  was not at hand, so this may be no departure.
- The pose terms are divided by the D numbers of a pose, as the text terms are by the number of tokens.
- Each reward is compared within its group first, and the comparisons are weighed and added (GDPO, Liu et al. 2026).
  GRPO adds first (`--compare sum`), and the largest spread drowns the others. The mean leaves out the sample itself.
- The KL terms are exact (all logits and both Gaussians are at hand), text and pose with a coefficient each.

Pure functions of tensors. Shapes: B prompts, G answers, K poses, T answer tokens, W words, D = 144 numbers of a pose.
Read next: train_rft.py, where these functions stand in the loop.
"""

import math

import torch
from torch import Tensor
from torch.distributions import Distribution, Independent, kl_divergence

LOG_RATIO_LIMIT = 20.0  # exp of more than this says nothing but "far away", and would overflow


# ---------------------------------------------------------------- advantages (eq. 5)

def group_advantage(reward: Tensor, valid: Tensor, normalize: str = "std", baseline: str = "leave_one_out",
                    focal_gamma: float = 0.0) -> Tensor:
    """How much better each member of a group did than the others: (..., n), zero where not valid or nothing to compare.

    reward: (..., n), one group a row. valid: (..., n) bool. baseline: `leave_one_out` compares with the mean of the
    *other* valid members (unbiased; Kool et al. 2019), `mean` with that of all (GRPO; scales the gradient by (n-1)/n).
    normalize: `std` divides by the group's standard deviation (GRPO), which over-weights groups that hardly differ;
    `batch` by the root mean square over all groups with spread, so that rewards of different units can be added;
    `none` leaves the reward's unit (Dr. GRPO, Liu et al. 2025). focal_gamma: of rewards from 0 to 1; the power of what
    the group lacks, 1 - mean, by which all this is multiplied (as (1 - p)^gamma in the focal loss, Lin et al. 2017).
    """
    if baseline not in ("leave_one_out", "mean"):
        raise ValueError(f"baseline must be leave_one_out or mean, not {baseline!r}")
    if normalize not in ("std", "batch", "none"):
        raise ValueError(f"normalize must be std, batch or none, not {normalize!r}")
    count = valid.sum(-1, keepdim=True)  # (..., 1)
    reward = reward.float().masked_fill(~valid, 0.0)
    mean = reward.sum(-1, keepdim=True) / count.clamp_min(1)
    centred = (reward - mean).masked_fill(~valid, 0.0)  # (..., n)
    std = (centred.square().sum(-1, keepdim=True) / (count - 1).clamp_min(1)).sqrt()
    # Below the rounding error of its rewards a group has no spread: it says nothing, and must not be blown up.
    has_spread = valid & (std > 1e-6 * (1 + mean.abs()))
    advantage = centred.masked_fill(~has_spread, 0.0)
    if baseline == "leave_one_out":  # r_i - mean of the others = (r_i - mean of all) n / (n - 1)
        advantage = advantage * count / (count - 1).clamp_min(1)
    if normalize == "std":
        advantage = advantage / (std + 1e-4)
    elif normalize == "batch":
        advantage = advantage / (advantage.square().sum() / has_spread.sum().clamp_min(1)).sqrt().clamp_min(1e-8)
    return advantage * (1 - mean).clamp_min(0.0) ** focal_gamma


def advantages(text_rewards: dict[str, Tensor], pose_rewards: dict[str, Tensor], has_pose: Tensor,
               weights: dict[str, float], by_joint: dict[str, Tensor] | None = None,
               focal: dict[str, float] | None = None, **how) -> tuple[Tensor, Tensor]:
    """F (B, G) for the answers and Delta for the poses (Pose-RFT eq. 5), rewards normalised one by one.

    text_rewards: name -> (B, G). pose_rewards: name -> (B, G, K), read only where `has_pose` (B, G). A NaN marks a
    reward that its task does not have. weights: name -> weight. how: `normalize` and `baseline` of `group_advantage`.
    by_joint: name -> (B, G, K, 24), the part of a reward that each joint decides, NaN where it decides nothing. Delta
    (B, G, K, 24 or 1) then compares each joint by its own part, or by all of a reward without parts; else (B, G, K).
    focal: name -> `focal_gamma` for Delta, of rewards of poses that have one.
    Delta's baseline is all V x K valid poses of the prompt: with K = 1 this is the paper's normalisation over V.
    F's baseline is all G answers, or those with a pose for the mean reward of an answer's poses.
    """
    F = torch.zeros(has_pose.shape, device=has_pose.device)
    for name, reward in text_rewards.items():
        F = F + weights[name] * group_advantage(reward, ~reward.isnan(), **how)
    Delta = 0.0
    for name, reward in pose_rewards.items():
        F = F + weights[name] * group_advantage(reward.mean(-1), has_pose & ~reward.isnan().any(-1), **how)
        part = (by_joint or {}).get(name, reward[..., None])  # (B, G, K, 24 or 1)
        valid = has_pose[..., None, None] & ~part.isnan()
        delta = group_advantage(part.flatten(1, 2).mT, valid.flatten(1, 2).mT, **how,
                                focal_gamma=(focal or {}).get(name, 0.0))  # (B, 24 or 1, G K)
        Delta = Delta + weights[name] * delta.mT.unflatten(1, reward.shape[1:])
    return F, Delta if by_joint else Delta.squeeze(-1)


# ---------------------------------------------------------------- densities

def gaussian_log_prob_terms(pose: Distribution, sample: Tensor) -> Tensor:
    """The log-density of a Gaussian, number by number: (..., D), summing to `pose.log_prob(sample)`.

    pose: Independent Normal, LowRank- or MultivariateNormal with event shape (D,). sample: (..., D), the raw sample and
    never its projection onto rotations. With correlations, term i is the density of number i given those before it:
    log p(x) = sum_i log p(x_i | x_<i), read off the Cholesky factor.
    """
    if isinstance(pose, Independent):
        return pose.base_dist.log_prob(sample)
    z, L = standardised(pose, sample), pose.scale_tril
    return -0.5 * z.square() - L.diagonal(dim1=-2, dim2=-1).log() - 0.5 * math.log(2 * math.pi)


def standardised(pose: Distribution, sample: Tensor) -> Tensor:
    """The standard normal numbers z (..., D) of which a sample is made: p = mu + L z, L the Cholesky factor."""
    apart = sample - pose.mean
    if isinstance(pose, Independent):
        return apart / pose.stddev
    # The samples of one Gaussian are the columns of one system, or L would be solved anew for each.
    columns = apart.reshape(-1, *pose.scale_tril.shape[:-1]).movedim(0, -1)  # (..., D, samples)
    return torch.linalg.solve_triangular(pose.scale_tril, columns, upper=False).movedim(-1, 0).reshape(apart.shape)


def moved(pose: Distribution, sample: Tensor) -> Tensor:
    """How far the sample (..., D), drawn again from the same z, has moved: 0, with the gradient of mu + L z."""
    z = standardised(pose, sample).detach()
    drawn = pose.stddev * z if isinstance(pose, Independent) else (pose.scale_tril @ z[..., None])[..., 0]
    return pose.mean + drawn - sample


def pose_log_ratio(new_terms: Tensor, old_terms: Tensor, pose_ratio: str = "per_joint") -> Tensor:
    """log r_c, clamped: (..., 1) for `joint` (eq. 4) and `mean`, (..., 24) for `per_joint`. Terms are (..., D)."""
    difference = new_terms - old_terms
    if pose_ratio == "joint":
        log_ratio = difference.sum(-1, keepdim=True)
    elif pose_ratio == "per_joint":
        log_ratio = difference.unflatten(-1, (-1, 6)).sum(-1)
    elif pose_ratio == "mean":
        log_ratio = difference.mean(-1, keepdim=True)
    else:
        raise ValueError(f"pose_ratio must be joint, per_joint or mean, not {pose_ratio!r}")
    return log_ratio.clamp(-LOG_RATIO_LIMIT, LOG_RATIO_LIMIT)


def categorical_kl(log_softmax: Tensor, ref_log_softmax: Tensor) -> Tensor:
    """KL(pi || pi_ref) of two categorical distributions, exact: (..., W) log-probabilities to (...)."""
    return (log_softmax.exp() * (log_softmax - ref_log_softmax)).sum(-1)


# ---------------------------------------------------------------- the loss (eq. 6)

def clipped(log_ratio: Tensor, advantage: Tensor, clip_low: float, clip_high: float) -> tuple[Tensor, Tensor]:
    """min(r A, clip(r) A) of PPO, and where the clip is active: bool, of the same (broadcast) shape."""
    ratio = log_ratio.exp()
    free, bounded = ratio * advantage, ratio.clamp(1 - clip_low, 1 + clip_high) * advantage
    return torch.minimum(free, bounded), bounded < free


@torch.no_grad()
def ratio_metrics(kind: str, log_ratio: Tensor, advantage: Tensor, active: Tensor, seen: Tensor) -> dict[str, Tensor]:
    """Mean and spread of the ratios, and the shares of them held by the clip from below (A < 0) and from above (A > 0).

    log_ratio, active: one shape. advantage broadcasts to it. seen: bool, over its leading dimensions: what counts.
    """
    ratio, rises, active = log_ratio.exp()[seen], (advantage > 0).expand_as(active)[seen], active[seen]
    return {f"{kind}_ratio": ratio.mean(), f"{kind}_ratio_std": (ratio - ratio.mean()).square().mean().sqrt(),
            f"{kind}_clip_low": (active & ~rises).float().mean(), f"{kind}_clip_high": (active & rises).float().mean()}


def aggregate(per_token: Tensor, mask: Tensor, aggregation: str = "grpo", max_tokens: int | None = None) -> Tensor:
    """One number from the tokens (..., T) of many answers. mask: (..., T), by length: [[1, 1, 1], [1, 1, 0]].

    `grpo`: mean of each answer's mean, in which a token of a short answer weighs more; `bnpo`: mean over all tokens;
    `dr_grpo`: sum over answers x `max_tokens`, free of the length bias (Liu et al. 2025). max_tokens: the most that an
    answer may have, not the longest one at hand, or a batch's parts would not add up; None: all answers are given T.
    """
    mask = mask.to(per_token.dtype)
    total = (per_token * mask).sum(-1)  # (...,)
    if aggregation == "grpo":
        return (total / mask.sum(-1).clamp_min(1)).mean()
    if aggregation == "bnpo":
        return total.sum() / mask.sum().clamp_min(1)
    if aggregation == "dr_grpo":
        return total.sum() / (total.numel() * (max_tokens or mask.shape[-1]))
    raise ValueError(f"aggregation must be grpo, bnpo or dr_grpo, not {aggregation!r}")


def text_loss(log_prob: Tensor, old_log_prob: Tensor, kl: Tensor, F: Tensor, mask: Tensor, *, clip_low: float,
              clip_high: float, beta: float, **how) -> tuple[Tensor, dict[str, Tensor]]:
    """The discrete half of eq. 6, negated. log_prob, old_log_prob, kl: (..., T). F: (...,). mask: (..., T) bool, by
    length and never by token id, so that the end token is trained. how: `aggregation`, `max_tokens` of `aggregate`."""
    log_ratio = (log_prob - old_log_prob).clamp(-LOG_RATIO_LIMIT, LOG_RATIO_LIMIT).masked_fill(~mask, 0.0)
    kl = kl.masked_fill(~mask, 0.0)
    surrogate, active = clipped(log_ratio, F[..., None], clip_low, clip_high)
    metrics = ratio_metrics("text", log_ratio, F[..., None], active, mask)
    return aggregate(beta * kl - surrogate, mask, **how), metrics | {"text_kl": kl[mask].mean()}


def pose_loss(pose: Distribution, old_terms: Tensor, ref_pose: Distribution, sample: Tensor, Delta: Tensor,
              has_pose: Tensor, *, clip_low: float, clip_high: float, beta: float, pose_ratio: str = "per_joint",
              slope: Tensor | None = None) -> tuple[Tensor, dict[str, Tensor]]:
    """The continuous half of eq. 6, negated, over the V answers that hold a pose (zero when none does).

    pose, ref_pose: batch shape (...,), event shape (D,). old_terms, sample: (..., K, D). Delta: (..., K), or
    (..., K, 24) by `per_joint`. has_pose: (...,) bool. At ratio 1 each ratio gives the gradient of Delta log N / D.
    For two numbers of slopes a and b, joint: r = r_1 r_2, slope a + b; number by number: r_1 + r_2, a + b; `mean`:
    sqrt(r_1 r_2), (a + b) / 2, so it is multiplied by D = 2. slope: (..., K, D) of rewards by the sample, followed
    through mean and Sigma without a clip (lab/pathwise.py): it adds a gradient, and nothing to the value.
    """
    D = sample.shape[-1]
    terms = gaussian_log_prob_terms(pose, sample.movedim(-2, 0))  # (K, ..., D): the distribution broadcasts over K
    log_ratio = pose_log_ratio(terms, old_terms.movedim(-2, 0), pose_ratio)  # (K, ..., 1 or 24)
    advantage = (Delta if Delta.dim() == sample.dim() else Delta[..., None]).movedim(-2, 0)  # (K, ..., 1 or 24)
    surrogate, active = clipped(log_ratio, advantage, clip_low, clip_high)
    surrogate = surrogate.sum(-1).mean(0) * (D if pose_ratio == "mean" else 1)  # (...,)
    if slope is not None:
        surrogate = surrogate + (slope.movedim(-2, 0) * moved(pose, sample.movedim(-2, 0))).sum(-1).mean(0)
    kl = kl_divergence(pose, ref_pose)  # (...,) nats
    loss = ((beta * kl - surrogate) / D).masked_fill(~has_pose, 0.0).sum() / has_pose.sum().clamp_min(1)  # V
    seen = has_pose.expand(log_ratio.shape[:-1])  # (K, ...)
    return loss, ratio_metrics("pose", log_ratio, advantage, active, seen) | {
        "pose_kl": kl[has_pose].mean(), "pose_entropy": pose.entropy()[has_pose].mean() / D}


def detached(new, sample: Tensor) -> tuple[Tensor, Tensor]:
    """What later inner steps compare with: log-probabilities (B, G, T) and density terms (B, G, K, D) of the policy
    that sampled, from the very pass that is trained first, since a pass of its own would round differently."""
    terms = gaussian_log_prob_terms(new.pose, sample.movedim(-2, 0)).movedim(0, -2)
    return new.log_prob.detach(), terms.detach()


def loss(new, old_log_prob: Tensor, old_terms: Tensor, reference, rollout, F: Tensor, Delta: Tensor, *, clip_low: float,
         clip_high: float, beta_text: float, beta_pose: float, pose_ratio: str = "per_joint", pose_weight: float = 1.0,
         text_share: float = 1.0, pose_share: float = 1.0, slope: Tensor | None = None, **how) -> tuple[Tensor, dict]:
    """Eq. 6, negated: the discrete half plus `pose_weight` times the continuous half. Returns it and diagnostics of
    both halves: `valid` is the share of answers with a pose, `*_flat_groups` of prompts with nothing to compare.

    new, reference: scores with `log_prob` (B, G, T), `log_softmax` (B, G, T, W) and `pose`, a Gaussian of batch shape
    (B, G). old_log_prob (B, G, T), old_terms (B, G, K, D): under the policy that sampled. rollout: `tokens`,
    `token_mask` (B, G, T), `pose` (B, G, K, D) raw samples, `has_pose` (B, G). F: (B, G). Delta: (B, G, K) or
    (B, G, K, 24); slope: of `pose_loss`. text_share, pose_share: where these prompts are a part of a batch, their
    share of its B G answers and of the V with a pose: the losses of the parts, and their gradients, then add up to
    those of the batch (but for `bnpo`). how: of `aggregate`.
    """
    text, text_metrics = text_loss(
        new.log_prob, old_log_prob, categorical_kl(new.log_softmax, reference.log_softmax), F, rollout.token_mask,
        clip_low=clip_low, clip_high=clip_high, beta=beta_text, **how)
    pose, pose_metrics = pose_loss(
        new.pose, old_terms, reference.pose, rollout.pose, Delta, rollout.has_pose, pose_ratio=pose_ratio,
        clip_low=clip_low, clip_high=clip_high, beta=beta_pose, slope=slope)
    entropy = -(new.log_softmax.detach().exp() * new.log_softmax.detach()).sum(-1)  # (B, G, T) nats
    words = rollout.tokens.masked_fill(~rollout.token_mask, -1)  # (B, G, T)
    alike = (words == words[:, :1]).flatten(1).all(-1)  # (B,): then F compares the luck of poses, and moves no word
    metrics = {"loss_text": text, "loss_pose": pose} | text_metrics | pose_metrics | {
        "text_entropy": entropy[rollout.token_mask].mean(), "valid": rollout.has_pose.float().mean(),
        "text_flat_groups": ((F == 0).all(-1) | alike).float().mean(),
        "pose_flat_groups": ((Delta if slope is None else slope) == 0).flatten(1).all(-1).float().mean()}
    return text_share * text + pose_weight * pose_share * pose, {name: x.detach() for name, x in metrics.items()}
