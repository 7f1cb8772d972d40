"""Measures of poses, and the field's protocols as functions of what a policy answered: per example, with intervals.

Errors are in mm. Every protocol says which joints and which root it takes, and gives a number for each example, so that
`bootstrap` can say how sure a mean is and two policies can be compared example by example.
Read next: evaluate.py, which asks the policy and prints them.
"""

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor
from torch.distributions import Distribution, Independent

from body import body_vertices, forward_kinematics

RECALL_AT = (1, 5, 10, 20)
# Of the 17 joints that Human3.6M's regressor gives, the 14 that 3DPW is measured on, in LSP's order; its joint 0 is the
# pelvis that is the root (Kolotouros et al., SPIN, 2019).
H36M_TO_14 = (6, 5, 4, 1, 2, 3, 16, 15, 14, 11, 12, 13, 8, 10)


# ---------------------------------------------------------------- measures

def mpjpe(joints: Tensor, true_joints: Tensor) -> Tensor:
    """Mean joint error (...,) in mm of (..., 24, 3) in metres: SMPL's 24 joints, pelvis aligned."""
    aligned = (joints - joints[..., :1, :]) - (true_joints - true_joints[..., :1, :])
    return 1000 * aligned.norm(dim=-1).mean(-1)


def similarity_fit(x: Tensor, y: Tensor) -> Tensor:
    """x (..., n, 3) turned, scaled and shifted to lie as near to y as can be in squares (Umeyama 1991)."""
    x, center = x - x.mean(-2, keepdim=True), y.mean(-2, keepdim=True)
    U, S, Vh = torch.linalg.svd(x.mT @ (y - center))  # (..., 3, 3)
    sign = torch.ones_like(S)
    sign[..., -1] = torch.det(U @ Vh).sign()  # a reflection is not a rotation
    scale = (S * sign).sum(-1) / x.square().sum((-1, -2)).clamp_min(1e-12)
    return scale[..., None, None] * (x @ ((U * sign[..., None, :]) @ Vh)) + center


def pa_mpjpe(joints: Tensor, true_joints: Tensor) -> Tensor:
    """Mean joint error (...,) in mm of (..., 24, 3) in metres after the similarity transform that fits best."""
    return 1000 * (similarity_fit(joints, true_joints) - true_joints).norm(dim=-1).mean(-1)


def hits(similarity: Tensor, at: Sequence[int] = RECALL_AT) -> dict[str, Tensor]:
    """Is the own one among the K nearest? similarity: (N, N), a row a sentence, a column a pose. Returns name -> (N,).

    Among equals chance decides, and its odds are given: a policy with one pose for all sentences finds none of them."""
    own, result = similarity.diagonal()[:, None], {}
    for way, rows in (("t2p", similarity), ("p2t", similarity.T)):
        nearer, equal = (rows > own).sum(1), (rows == own).sum(1)  # the own one is among its equals
        result |= {f"{way}_r{k}": ((k - nearer) / equal).clamp(0, 1) for k in at}
    return result


def recall(texts: Tensor, poses: Tensor) -> dict[str, float]:
    """Recall at 1, 5, 10, 20 of unit vectors (N, dim), row i of one belonging to row i of the other; pool: all N.

    `t2p`: is the pose among the K nearest to its text; `p2t`: the other way.
    """
    return {name: found.mean().item() for name, found in hits(texts @ poses.T).items()}


def frechet_distance(a: Tensor, b: Tensor) -> float:
    """Frechet distance of two clouds (N, dim) and (M, dim), covariances regularised by 1e-6 (Heusel et al. 2017)."""
    a, b = a.double(), b.double()
    eye = 1e-6 * torch.eye(a.shape[1], dtype=torch.float64, device=a.device)
    cov_a, cov_b = a.T.cov() + eye, b.T.cov() + eye
    values, vectors = torch.linalg.eigh(cov_a)
    root = (vectors * values.clamp_min(0).sqrt()) @ vectors.T
    cross = torch.linalg.eigvalsh(root @ cov_b @ root).clamp_min(0).sqrt().sum()
    return ((a.mean(0) - b.mean(0)).square().sum() + cov_a.trace() + cov_b.trace() - 2 * cross).item()


def bootstrap(values: np.ndarray, seed: int = 0, resamples: int = 1000) -> tuple[float, float]:
    """The 95 % interval of the mean of values (N,): percentiles over resamples with replacement (Efron 1979)."""
    rng = np.random.default_rng(seed)
    means = values[rng.integers(len(values), size=(resamples, len(values)))].mean(1)
    low, high = np.percentile(means, (2.5, 97.5))
    return float(low), float(high)


def compare(values: np.ndarray, others: np.ndarray, seed: int = 0) -> dict:
    """Two policies on the same examples, values and others (N,): the mean difference, its 95 % interval over resampled
    pairs, and in what share of the examples the first is lower or higher."""
    difference = values - others
    return {"difference": float(difference.mean()), "interval": list(bootstrap(difference, seed)),
            "lower_in": float((difference < 0).mean()), "higher_in": float((difference > 0).mean())}


# ---------------------------------------------------------------- protocols: most gives {name: (N,)}

def errors_24(out: dict, true: Tensor, betas: Tensor, body) -> dict[str, Tensor]:
    """SMPL's 24 joints, its pelvis joint the root: errors of the mean pose, and of samples beside.

    out: of evaluate.respond, `mean` (N, 24, 3, 3), `samples` (N, K, 24, 3, 3). true: (N, 24, 3, 3). betas: (N, 10)."""
    vertices, joints = body_vertices(body, out["mean"], betas)
    true_vertices, true_joints = body_vertices(body, true, betas)
    samples = sampled_joints(out, betas, body)  # (N, K, 24, 3)
    return {"mpjpe_mean": mpjpe(joints, true_joints), "pa_mpjpe_mean": pa_mpjpe(joints, true_joints),
            "pve_mean": 1000 * (vertices - true_vertices).norm(dim=-1).mean(-1),
            "mpjpe_sampled": mpjpe(samples, true_joints[:, None]).mean(1),
            "pa_mpjpe_sampled": pa_mpjpe(samples, true_joints[:, None]).mean(1)}


def sampled_joints(out: dict, betas: Tensor, body) -> Tensor:
    """The 24 joints (N, K, 24, 3) of each sample, by kinematics alone: SMPL's joints need no skin."""
    rest = body.J_regressor @ (body.v_template + torch.einsum("bl,vcl->bvc", betas, body.shapedirs))  # (N, 24, 3)
    return forward_kinematics(out["samples"], rest[:, None])[0]


def read_regressor(path: str | None) -> Tensor:
    """Human3.6M's joint regressor (17, V) from a .npy file."""
    try:
        regressor = torch.from_numpy(np.load(path, allow_pickle=False).astype(np.float32))
        if not regressor.isfinite().all():
            raise ValueError("it holds NaN or infinity")
    except Exception as error:  # numpy and the system each raise their own
        raise ValueError(f"--regressor {path}: 3dpw-14 needs J_regressor_h36m.npy, (17, 6890) ({error})") from error
    return regressor


def errors_14(out: dict, true: Tensor, betas: Tensor, body, regressor: Tensor) -> dict[str, Tensor]:
    """3DPW's protocol: 14 joints that Human3.6M's regressor (17, V) finds among the vertices, its pelvis the root."""
    if regressor.shape != (17, len(body.v_template)):
        raise ValueError(f"the regressor must be (17, {len(body.v_template)}), a column a vertex of the body, "
                         f"found {tuple(regressor.shape)}; Human3.6M's is for SMPL itself (--body)")
    joints, true_joints = (regressor @ body_vertices(body, rotmats, betas)[0] for rotmats in (out["mean"], true))
    joints, true_joints = ((j - j[:, :1])[:, H36M_TO_14] for j in (joints, true_joints))  # (N, 14, 3)
    return {"mpjpe_mean": 1000 * (joints - true_joints).norm(dim=-1).mean(-1),
            "pa_mpjpe_mean": pa_mpjpe(joints, true_joints)}


def best_of(out: dict, true: Tensor, betas: Tensor, body, counts: Sequence[int] = (1, 5, 10, 25)) -> dict[str, Tensor]:
    """The least error among the first N samples, beside their mean: a wider sigma improves the least alone."""
    errors = mpjpe(sampled_joints(out, betas, body), body_vertices(body, true, betas)[1][:, None])  # (N, K)
    found = {f"best_of_{n}": errors[:, :n].amin(1) for n in counts}
    return found | {f"mean_of_{n}": errors[:, :n].mean(1) for n in counts}


def retrieval(texts: Tensor, poses: Tensor, seed: int = 0, pool: int = 32,
              repeats: int = 10) -> tuple[dict[str, Tensor], dict[str, float]]:
    """PoseScript's recall of unit vectors (N, dim) of sentences and poses, both ways, and mRecall, the mean over
    K = 1, 5, 10 and both ways: in the full pool, for each example (N,), and in random pools of 32, hits averaged over
    `repeats` ways to part the set. With the latter R-precision, in the same pools, at 1, 2 and 3 (Guo et al. 2022)."""
    mean = lambda of: sum(of[f"{way}_r{k}"] for way in ("t2p", "p2t") for k in (1, 5, 10)) / 6
    full = hits(texts @ poses.T)
    rng, found = np.random.default_rng(seed), []
    for _ in range(repeats):
        order = rng.permutation(len(texts))
        for start in range(0, max(1, len(order) - pool + 1), pool):  # pools of one size; what is left over waits
            rows = torch.from_numpy(order[start:start + pool]).to(texts.device)
            found.append(hits(texts[rows] @ poses[rows].T, (*RECALL_AT, 2, 3)))
    pools = {name: torch.cat([of[name] for of in found]).mean().item() for name in found[0]}
    whole = {f"pools_{name}": pools[name] for name in full} | {"pools_mrecall": mean(pools)}
    return ({f"full_{name}": values for name, values in full.items()} | {"full_mrecall": mean(full)},
            whole | {f"r_precision_{k}": pools[f"t2p_r{k}"] for k in (1, 2, 3)})


def retrieval_beside_truth(each: dict[str, Tensor], seed: int) -> dict[str, float]:
    """Retrieval from a whole set's vectors, which leave `each`; what it gives for each example stays there. Beside it
    that of the true poses (ceiling) and of shuffled ones (floor)."""
    texts, poses, truth = (each.pop(name) for name in ("text", "pose", "truth"))
    full, whole = retrieval(texts, poses, seed)
    each |= full
    for name, others in (("true_", truth), ("shuffled_", poses.roll(1, 0))):
        full, pools = retrieval(texts, others, seed)
        whole |= {name + key: float(value.mean()) for key, value in full.items()}
        whole |= {name + key: value for key, value in pools.items()}
    return whole | ({"fid": frechet_distance(poses, truth)} if len(poses) > 1 else {})  # one pose has no spread


def chi_square_quantile(share: float, degrees: int) -> float:
    """The value below which `share` of a chi-square variable of that many degrees of freedom lies, by bisection."""
    low, high, half = 0.0, 10.0 * degrees + 100, torch.tensor(degrees / 2, dtype=torch.float64)
    for _ in range(100):
        middle = (low + high) / 2
        below = torch.special.gammainc(half, torch.tensor(middle / 2, dtype=torch.float64)).item() < share
        low, high = (middle, high) if below else (low, middle)
    return (low + high) / 2


def calibration(pose: Distribution, true: Tensor) -> dict[str, Tensor]:
    """Does sigma tell the truth? pose: N Gaussians; true: (N, D) raw. `nll`: nats a number; `inside_50`, `inside_90`:
    is the truth in the smallest region of that probability; `pit` (N, D): the share of each number's Gaussian below it,
    uniform if all is well."""
    D = true.shape[-1]
    if isinstance(pose, Independent):
        white = (true - pose.mean) / pose.stddev
    else:
        white = torch.linalg.solve_triangular(pose.scale_tril, (true - pose.mean)[..., None], upper=False)[..., 0]
    far = white.square().sum(-1)  # (N,) squared Mahalanobis distance
    inside = {f"inside_{share}": (far < chi_square_quantile(share / 100, D)).float() for share in (50, 90)}
    pit = 0.5 + 0.5 * torch.erf((true - pose.mean) / pose.stddev / math.sqrt(2))
    return {"nll": -pose.log_prob(true) / D, **inside, "pit": pit}


def draw_calibration(path: Path, pit: np.ndarray) -> None:
    """A histogram of PIT values (flat if all is well), and how many truths lie in central intervals of each share."""
    figure = Figure(figsize=(11, 4.6), layout="constrained")
    left, right = figure.subplots(1, 2)
    left.hist(pit.flatten(), 20, range=(0, 1), density=True, color="#0072b2")
    left.axhline(1, color="black", linestyle="--")
    left.set(xlabel="PIT: share of the Gaussian below the truth", ylabel="density")
    shares = np.linspace(0, 1, 21)
    right.plot(shares, [(np.abs(pit - 0.5) <= share / 2).mean() for share in shares], "o-", color="#0072b2")
    right.plot([0, 1], [0, 1], "--", color="black")
    right.set(xlabel="central interval, share of the Gaussian", ylabel="share of truths inside")
    for axis in (left, right):
        axis.tick_params(labelsize=12)
        axis.xaxis.label.set_fontsize(13)
        axis.yaxis.label.set_fontsize(13)
    figure.savefig(path, dpi=80)
