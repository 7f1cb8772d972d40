"""HyGRPO's mathematics: golden numbers, torch.distributions, closed forms and invariances."""

import math
from types import SimpleNamespace

import pytest
import torch
from torch.distributions import (Categorical, Independent, LowRankMultivariateNormal, MultivariateNormal, Normal,
                                 kl_divergence)

import hygrpo
from lab import summed
from model import PoseHead, PosePolicy
from test_model import CORPUS, EXAMPLES
from builtin.tiny import build_tiny

RATIOS = ("joint", "per_joint", "mean")
KINDS = ("diag", "lowrank", "full")
PI = torch.tensor([[.5, .4, .2], [.3, .6, .9]], dtype=torch.float64)
OLD = torch.tensor([[.5, .5, .1], [.3, .4, .9]], dtype=torch.float64)
REF = torch.tensor([[.4, .4, .2], [.3, .5, .9]], dtype=torch.float64)
ADVANTAGE = torch.tensor([1.0, -1.0], dtype=torch.float64)
MASK = torch.tensor([[1, 1, 1], [1, 1, 0]]).bool()


def randn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def k3_kl(log_prob: torch.Tensor, ref_log_prob: torch.Tensor) -> torch.Tensor:
    """GRPO's estimate r - 1 - log r, r = pi_ref / pi (Schulman 2020): its value is unbiased, its gradient is not."""
    log_ratio = ref_log_prob - log_prob
    return log_ratio.exp() - 1 - log_ratio


# ---------------------------------------------------------------- the loss of the words

def padded(x: torch.Tensor, length: int) -> torch.Tensor:
    return torch.cat([x, torch.ones(len(x), length - x.shape[1]).to(x)], 1) if x.dtype != torch.bool else torch.cat(
        [x, torch.zeros(len(x), length - x.shape[1]).bool()], 1)


def golden(aggregation: str, length: int = 3, max_tokens: int = 4):
    pi, old, ref, mask = (padded(x, length) for x in (PI, OLD, REF, MASK))
    return hygrpo.text_loss(pi.log(), old.log(), k3_kl(pi.log(), ref.log()), ADVANTAGE, mask, clip_low=.2,
                            clip_high=.28, beta=.04, aggregation=aggregation, max_tokens=max_tokens)


@pytest.mark.parametrize("aggregation, length, value",
                         [("grpo", 3, .111978), ("bnpo", 3, -.115690), ("dr_grpo", 3, -.072306),
                          ("dr_grpo", 4, -.072306)])
def test_text_loss_golden_numbers(aggregation, length, value):
    loss, metrics = golden(aggregation, length)
    assert loss.item() == pytest.approx(value, abs=1e-6)
    # Of the ratios 1, .8, 2 (A = 1) and 1, 1.5 (A = -1) only 2 is held: where the clip is active, not |r - 1| > eps.
    assert metrics["text_clip_low"] == 0 and metrics["text_clip_high"].item() == pytest.approx(.2)
    assert metrics["text_ratio"].item() == pytest.approx(1.26)
    assert metrics["text_ratio_std"].item() == pytest.approx(.43635, abs=1e-5)


def test_the_clip_is_active_only_where_it_takes_the_gradient_away():
    ratio, advantage = torch.tensor([1.5, .5, 1.5, .5, 5]), torch.tensor([1.0, 1, -1, -1, 0])
    log_ratio = ratio.log().requires_grad_()
    surrogate, active = hygrpo.clipped(log_ratio, advantage, .2, .28)
    assert active.tolist() == [True, False, False, True, False]
    torch.testing.assert_close(surrogate, torch.tensor([1.28, .5, -1.5, -.8, 0]))
    surrogate.sum().backward()
    torch.testing.assert_close(log_ratio.grad, torch.tensor([0, .5, -1.5, 0, 0]))


@pytest.mark.parametrize("aggregation", ["grpo", "bnpo", "dr_grpo"])
def test_text_loss_ignores_padding(aggregation):
    assert golden(aggregation, 3)[0].item() == pytest.approx(golden(aggregation, 9)[0].item(), abs=1e-12)


def test_nothing_that_stands_in_the_padding_reaches_the_loss_or_a_gradient():
    behind = lambda x: torch.where(MASK, x, torch.nan)
    leaves = [behind(PI.log()).requires_grad_(), behind(REF.log()).requires_grad_()]
    loss, metrics = hygrpo.text_loss(leaves[0], behind(OLD.log()), k3_kl(*leaves), ADVANTAGE, MASK, clip_low=.2,
                                     clip_high=.28, beta=.04)
    assert loss.item() == pytest.approx(.111978, abs=1e-6) and all(torch.isfinite(m) for m in metrics.values())
    assert torch.isfinite(torch.autograd.grad(loss, leaves[0])[0][MASK]).all()


def test_an_answer_without_a_token_counts_as_nothing():
    per_token, mask = torch.ones(2, 3), torch.tensor([[True, True, False], [False, False, False]])
    assert hygrpo.aggregate(per_token, mask, "grpo") == .5
    assert hygrpo.aggregate(per_token, mask & False, "grpo") == hygrpo.aggregate(per_token, mask & False, "bnpo") == 0


def test_the_end_token_is_trained_even_where_it_is_the_padding_token():
    log_prob = torch.zeros(1, 3, requires_grad=True)  # word, end, padding: the mask goes by length
    loss, _ = hygrpo.text_loss(log_prob, torch.zeros(1, 3), torch.zeros(1, 3), torch.ones(1),
                               torch.tensor([[True, True, False]]), clip_low=.2, clip_high=.2, beta=0.0)
    loss.backward()
    torch.testing.assert_close(log_prob.grad, torch.tensor([[-.5, -.5, 0]]))


# ---------------------------------------------------------------- advantages

@pytest.mark.parametrize("normalize, baseline, expected", [
    ("none", "mean", [-2, -1, 0, 3]), ("none", "leave_one_out", [-8 / 3, -4 / 3, 0, 4]),
    ("std", "mean", [-.92578, -.46289, 0, 1.38867]), ("std", "leave_one_out", [-1.23437, -.61719, 0, 1.85156]),
    ("batch", "mean", [-1.06904, -.53452, 0, 1.60357]), ("batch", "leave_one_out", [-1.06904, -.53452, 0, 1.60357])])
def test_advantages_of_every_kind_golden_numbers(normalize, baseline, expected):
    got = hygrpo.group_advantage(torch.tensor([[1.0, 2, 3, 6]]), torch.ones(1, 4).bool(), normalize, baseline)
    torch.testing.assert_close(got, torch.tensor([expected], dtype=torch.float32), atol=1e-5, rtol=0)


def test_leave_one_out_compares_with_the_mean_of_the_others():
    got = hygrpo.group_advantage(torch.tensor([[1.0, 2, 6, 99]]), torch.tensor([[True, True, True, False]]), "none")
    torch.testing.assert_close(got, torch.tensor([[1 - 4.0, 2 - 3.5, 6 - 1.5, 0]]))


@pytest.mark.parametrize("normalize", ["std", "none"])
@pytest.mark.parametrize("baseline", ["leave_one_out", "mean"])
def test_what_is_not_valid_is_as_if_it_were_not_there(normalize, baseline):
    reward, valid = randn(6, 7), randn(6, 7, seed=1) < .5
    got = hygrpo.group_advantage(reward.masked_fill(~valid, torch.nan), valid, normalize, baseline)
    for g, r, v in zip(got, reward, valid):
        alone = hygrpo.group_advantage(r[v][None], torch.ones(1, v.sum()).bool(), normalize, baseline)
        torch.testing.assert_close(g[v], alone[0])
        assert (g[~v] == 0).all()


@pytest.mark.parametrize("normalize", ["std", "batch", "none"])
@pytest.mark.parametrize("baseline", ["leave_one_out", "mean"])
def test_groups_that_say_nothing_have_no_advantage_and_change_none(normalize, baseline):
    nan = torch.nan
    reward = torch.tensor([[1.0, 2, 3], [.3, .3, .3], [nan, 5, nan], [nan, nan, nan], [1e3 + 1e-4, 1e3, 1e3],
                           [-1e3 + 1e-4, -1e3, -1e3]])
    got = hygrpo.group_advantage(reward, ~reward.isnan(), normalize, baseline)
    assert torch.isfinite(got).all() and (got[1:] == 0).all()
    assert (hygrpo.group_advantage(reward[1:], ~reward[1:].isnan(), normalize, baseline) == 0).all()
    alone = hygrpo.group_advantage(reward[:1], torch.ones(1, 3).bool(), normalize, baseline)
    torch.testing.assert_close(got[:1], alone)


@pytest.mark.parametrize("normalize", ["std", "batch", "none"])
@pytest.mark.parametrize("baseline", ["leave_one_out", "mean"])
def test_advantages_follow_the_order_of_a_group_and_forget_the_level_of_its_rewards(normalize, baseline):
    reward, valid = randn(5, 6), randn(5, 6, seed=1) < .8
    got = hygrpo.group_advantage(reward, valid, normalize, baseline)
    order = torch.tensor([3, 0, 5, 1, 4, 2])
    turned = hygrpo.group_advantage(reward[:, order], valid[:, order], normalize, baseline)
    torch.testing.assert_close(turned, got[:, order], atol=1e-5, rtol=1e-4)
    raised = hygrpo.group_advantage(reward + 1e3, valid, normalize, baseline)
    torch.testing.assert_close(raised, got, atol=1e-3, rtol=1e-3)
    scaled = hygrpo.group_advantage(100 * reward, valid, normalize, baseline)
    torch.testing.assert_close(scaled, 100 * got if normalize == "none" else got, atol=1e-3, rtol=1e-3)


def test_batch_normalisation_has_unit_root_mean_square_over_the_groups_with_spread():
    reward = torch.cat([randn(16, 8) * 37, torch.ones(4, 8, dtype=torch.float64)])
    got = hygrpo.group_advantage(reward, torch.ones(20, 8).bool(), "batch")
    assert got[:16].square().mean().sqrt().item() == pytest.approx(1, abs=1e-5)


def test_nested_advantages_with_one_pose_are_the_papers():
    text, pose, has_pose = randn(5, 6).float(), randn(5, 6, 1, seed=1).float(), randn(5, 6, seed=2) < .5
    F, Delta = hygrpo.advantages({"t": text}, {"p": pose}, has_pose, {"t": 1.0, "p": 1.0}, baseline="mean")
    for b in range(5):
        row, valid = pose[b, :, 0], has_pose[b]
        paper = torch.zeros(6)
        if valid.sum() > 1:
            paper[valid] = (row[valid] - row[valid].mean()) / (row[valid].std() + 1e-4)
        torch.testing.assert_close(Delta[b, :, 0], paper, atol=1e-5, rtol=1e-5)
        words = (text[b] - text[b].mean()) / (text[b].std() + 1e-4)
        torch.testing.assert_close(F[b], words + paper, atol=1e-5, rtol=1e-5)


def test_nested_advantages_with_equal_poses_are_those_with_one():
    pose, has_pose, how = randn(5, 6, 1), randn(5, 6, seed=2) < .5, {"normalize": "none", "baseline": "mean"}
    one = hygrpo.advantages({}, {"p": pose}, has_pose, {"p": 1.0}, **how)
    four = hygrpo.advantages({}, {"p": pose.expand(5, 6, 4)}, has_pose, {"p": 1.0}, **how)
    torch.testing.assert_close(four[0], one[0])
    torch.testing.assert_close(four[1], one[1].expand(5, 6, 4))


def test_nested_advantages_with_several_poses_by_hand():
    """Two answers with two poses each and one without: a pose against the other three, an answer against the other."""
    pose = torch.tensor([[[1.0, 2], [3, 6], [99, torch.nan]]])
    F, Delta = hygrpo.advantages({"t": torch.tensor([[1.0, 0, 0]])}, {"p": pose}, torch.tensor([[True, True, False]]),
                                 {"t": 10.0, "p": 2.0}, normalize="none")
    torch.testing.assert_close(Delta, 2 * torch.tensor([[[1 - 11 / 3, 2 - 10 / 3], [3 - 3.0, 6 - 2.0], [0, 0]]]))
    torch.testing.assert_close(F, torch.tensor([[10 * 1 + 2 * (1.5 - 4.5), 10 * -.5 + 2 * (4.5 - 1.5), 10 * -.5]]))


@pytest.mark.parametrize("gamma, factor", [(0.0, 1.0), (1.0, 0.25), (2.0, 0.0625)])
def test_a_group_that_has_nearly_all_of_a_reward_learns_little_of_it(gamma, factor):
    """Three of four poses have it: what the group lacks is a quarter, by whose power the advantage is multiplied."""
    pose, yes = torch.tensor([[[1.0, 1, 1, 0]]]), torch.ones(1, 1).bool()
    plain, focal = (hygrpo.advantages({}, {"p": pose, "q": pose}, yes, {"p": 1.0, "q": 10.0}, focal=how)
                    for how in (None, {"p": gamma}))
    torch.testing.assert_close(focal[1], plain[1] * (factor + 10) / 11)  # and q is as it was
    torch.testing.assert_close(focal[0], plain[0])


def test_what_a_group_lacks_is_counted_joint_by_joint_and_of_valid_poses():
    part = torch.tensor([[1.0, 0, torch.nan], [1, 1, torch.nan], [0, 1, 1], [1, 1, torch.nan]]).reshape(1, 1, 4, 3)
    pose, has_pose = torch.ones(1, 2, 4), torch.tensor([[True, False]])
    parts = torch.cat([part, torch.zeros_like(part)], 1)  # (1, 2, 4, 3): the second answer holds no pose
    plain, focal = (hygrpo.advantages({}, {"p": pose}, has_pose, {"p": 1.0}, {"p": parts}, focal=how)[1]
                    for how in (None, {"p": 1.0}))
    torch.testing.assert_close(focal, plain * torch.tensor([.25, .25, 0]))
    assert (plain[0, 0, :, :2] != 0).all() and (focal[0, 1] == 0).all()


def test_a_reward_above_one_is_never_turned_round():
    pose = torch.tensor([[[3.0, 1, 2, 2]]])
    assert (hygrpo.advantages({}, {"p": pose}, torch.ones(1, 1).bool(), {"p": 1.0}, focal={"p": 1.0})[1] == 0).all()


def test_a_pose_without_a_reward_takes_its_answer_out_of_the_comparison_of_answers():
    pose = torch.tensor([[[1.0, 3], [5, torch.nan], [4, 6]]])
    yes, how = torch.ones(1, 3).bool(), {"normalize": "none", "baseline": "mean"}
    F, Delta = hygrpo.advantages({}, {"p": pose}, yes, {"p": 1.0}, **how)
    torch.testing.assert_close(F, torch.tensor([[-1.5, 0, 1.5]]))
    torch.testing.assert_close(Delta, torch.tensor([[[-2.8, -.8], [1.2, 0], [.2, 2.2]]]))


def test_each_reward_is_compared_before_it_is_added():
    """In another unit a reward weighs the same: a sum that is normalised afterwards would hear the loud one only."""
    quiet, loud, pose = randn(4, 5), randn(4, 5, seed=1), randn(4, 5, 3, seed=2)
    weights, yes = {"quiet": 1.0, "loud": .5, "pose": 2.0}, torch.ones(4, 5).bool()
    before = hygrpo.advantages({"quiet": quiet, "loud": loud}, {"pose": pose}, yes, weights)
    after = hygrpo.advantages({"quiet": quiet, "loud": 1e3 * loud}, {"pose": 1e3 * pose}, yes, weights)
    for got, expected in zip(after, before):
        torch.testing.assert_close(got, expected, atol=2e-3, rtol=2e-3)


def test_rewards_that_a_task_does_not_have_leave_no_trace():
    reward = torch.tensor([[1.0, 2], [torch.nan, torch.nan]])
    F, Delta = hygrpo.advantages({"t": reward}, {"p": reward[..., None]}, torch.ones(2, 2).bool(), {"t": 1.0, "p": 1.0})
    assert (F[1] == 0).all() and (Delta[1] == 0).all() and (F[0] != 0).all()


# ---------------------------------------------------------------- densities

def gaussian(kind: str, mean: torch.Tensor, log_sigma: torch.Tensor, factor: torch.Tensor):
    """mean, log_sigma: (..., D). factor: (..., D, D), 3 columns for lowrank, what is below the diagonal for full."""
    if kind == "diag":
        return Independent(Normal(mean, log_sigma.exp()), 1)
    if kind == "lowrank":
        return LowRankMultivariateNormal(mean, factor[..., :3], (2 * log_sigma).exp())
    return MultivariateNormal(mean, scale_tril=torch.diag_embed(log_sigma.exp()) + .2 * factor.tril(-1))


def some_gaussian(kind: str, seed: int, batch: tuple[int, ...] = (4,), D: int = 12):
    log_sigma, factor = .4 * randn(*batch, D, seed=seed + 1), randn(*batch, D, D, seed=seed + 2)
    return gaussian(kind, randn(*batch, D, seed=seed), log_sigma, factor)


def covariance(pose) -> torch.Tensor:
    return torch.diag_embed(pose.variance) if isinstance(pose, Independent) else pose.covariance_matrix


@pytest.mark.parametrize("kind", KINDS)
def test_log_prob_terms_are_conditional_densities_that_add_up_to_the_whole(kind):
    pose, sample = some_gaussian(kind, 0), randn(5, 4, 12, seed=9)
    terms = hygrpo.gaussian_log_prob_terms(pose, sample)
    torch.testing.assert_close(terms.sum(-1), pose.log_prob(sample))
    for n in (1, 5, 12):  # the first n terms are the density of the first n numbers
        first = MultivariateNormal(pose.mean[:, :n], covariance(pose)[:, :n, :n])
        torch.testing.assert_close(terms[..., :n].sum(-1), first.log_prob(sample[..., :n]))


@pytest.mark.parametrize("kind", KINDS)
def test_pose_kl_and_entropy_are_the_closed_forms(kind):
    """Against torch.distributions' dense Gaussian and against the formula written out; of the answers with a pose."""
    pose, ref = some_gaussian(kind, 0), some_gaussian(kind, 3)
    sample, has_pose = randn(4, 2, 12, seed=6), torch.tensor([True, False, True, True])
    terms = hygrpo.gaussian_log_prob_terms(pose, sample.movedim(1, 0)).movedim(0, 1)
    loss, metrics = hygrpo.pose_loss(pose, terms, ref, sample, torch.zeros(4, 2), has_pose, clip_low=.2, clip_high=.2,
                                     beta=.5)
    dense = [MultivariateNormal(p.mean, covariance(p)) for p in (pose, ref)]
    kl = kl_divergence(*dense)
    S, R, apart = covariance(pose), covariance(ref), ref.mean - pose.mean
    trace = torch.linalg.solve(R, S).diagonal(dim1=-2, dim2=-1).sum(-1)
    distance = (apart * torch.linalg.solve(R, apart[..., None])[..., 0]).sum(-1)
    torch.testing.assert_close(kl, .5 * (trace + distance - 12 + torch.logdet(R) - torch.logdet(S)))
    torch.testing.assert_close(metrics["pose_kl"], kl[has_pose].mean())
    torch.testing.assert_close(metrics["pose_entropy"], dense[0].entropy()[has_pose].mean() / 12)
    torch.testing.assert_close(loss, .5 * kl[has_pose].mean() / 12)


def test_categorical_kl_is_exact():
    a, b = (randn(3, 7, seed=s).log_softmax(-1) for s in (0, 1))
    torch.testing.assert_close(hygrpo.categorical_kl(a, b), kl_divergence(Categorical(logits=a), Categorical(logits=b)))


def test_k3_has_the_value_of_the_kl_but_not_its_gradient():
    """N(mu = .3, .8^2) against N(0, 1), the expectation as a sum over a fine grid. The exact gradient is mu; that
    through k3 is mu / .8^2, the gradient of the KL the other way round."""
    x = torch.linspace(-9, 9, 20_001, dtype=torch.float64)
    mu = torch.tensor(.3, dtype=torch.float64, requires_grad=True)
    pi, ref = Normal(mu, .8), Normal(0.0, 1.0)
    k3 = (pi.log_prob(x).exp().detach() * k3_kl(pi.log_prob(x), ref.log_prob(x))).sum() * 18 / 20_000
    for kl, gradient in ((k3, .46875), (kl_divergence(pi, ref), .300)):
        assert kl.item() == pytest.approx(.08814, abs=2e-5)
        assert torch.autograd.grad(kl, mu)[0].item() == pytest.approx(gradient, abs=1e-5)


def test_share_of_clipped_samples_in_144_dimensions():
    """All means shifted by delta sigma, eps = 0.2: the joint ratio clips nearly everything, the mean ratio nothing."""
    sample = randn(20_000, 144)
    for delta, joint, per_joint in ((.02, .40, 0), (.05, .74, .10), (.10, .89, .41)):
        old, new = (Independent(Normal(torch.full((144,), m, dtype=torch.float64), 1.0), 1) for m in (0.0, delta))
        terms = [hygrpo.gaussian_log_prob_terms(p, sample) for p in (new, old)]
        outside = {kind: ((hygrpo.pose_log_ratio(*terms, kind).exp() - 1).abs() > .2).double().mean().item()
                   for kind in RATIOS}
        assert outside["joint"] == pytest.approx(joint, abs=.015)
        assert outside["per_joint"] == pytest.approx(per_joint, abs=.015)
        assert outside["mean"] == 0


def test_log_ratios_are_clamped():
    terms = torch.full((1, 144), 5.0)
    for kind in RATIOS:
        assert hygrpo.pose_log_ratio(terms, -terms, kind).abs().max() <= hygrpo.LOG_RATIO_LIMIT
    loss, _ = hygrpo.text_loss(torch.zeros(1, 1), torch.full((1, 1), -1e3), torch.zeros(1, 1), -torch.ones(1),
                               torch.ones(1, 1).bool(), clip_low=.2, clip_high=.2, beta=0.0)
    assert loss.item() == pytest.approx(math.exp(hygrpo.LOG_RATIO_LIMIT))


# ---------------------------------------------------------------- the whole loss

def rollout(B=3, G=4, K=5, T=6, D=12, W=9):
    length = torch.randint(1, T + 1, (B, G, 1), generator=torch.Generator().manual_seed(0))
    return SimpleNamespace(
        logits=randn(B, G, T, W), ref_logits=randn(B, G, T, W, seed=1), old_logits=randn(B, G, T, W, seed=2),
        tokens=randn(B, G, T, W, seed=3).argmax(-1), token_mask=torch.arange(T) < length,
        pose=randn(B, G, K, D, seed=4), has_pose=randn(B, G, seed=5) < .5, mean=randn(B, G, D, seed=6),
        log_sigma=.3 * randn(B, G, D, seed=7), factor=randn(B, G, D, D, seed=8), ref_mean=randn(B, G, D, seed=9),
        F=randn(B, G, seed=10), Delta=randn(B, G, K, seed=11))


def scores(r, logits, *parameters, kind="diag"):
    log_softmax = logits.log_softmax(-1)
    return SimpleNamespace(log_prob=log_softmax.gather(-1, r.tokens[..., None]).squeeze(-1), log_softmax=log_softmax,
                           pose=gaussian(kind, *parameters))


def full_loss(r, rows=slice(None), pose_ratio="per_joint", shift=0.0, kind="diag", **how):
    """The loss of some prompts of a rollout, its metrics, and its gradients by logits, mean, log sigma and factor.

    shift: how far the policy that sampled stands from the one that is scored, 0 on the first inner step.
    """
    r = SimpleNamespace(**{k: v[rows] for k, v in vars(r).items()})
    leaves = [x.clone().requires_grad_() for x in (r.logits, r.mean, r.log_sigma, r.factor)]
    new = scores(r, *leaves, kind=kind)
    old = scores(r, r.logits + shift * r.old_logits, r.mean + shift, r.log_sigma, r.factor, kind=kind)
    reference = scores(r, r.ref_logits, r.ref_mean, 0 * r.log_sigma, r.factor, kind=kind)
    value, metrics = hygrpo.loss(new, *hygrpo.detached(old, r.pose), reference, r, r.F, r.Delta, clip_low=.2,
                                 clip_high=.28, beta_text=.03, beta_pose=.07, pose_ratio=pose_ratio, **how)
    return value, metrics, torch.autograd.grad(value, leaves, materialize_grads=True)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("pose_ratio", RATIOS)
def test_first_inner_step_is_the_plain_policy_gradient(pose_ratio, kind):
    r = rollout()
    _, metrics, grads = full_loss(r, pose_ratio=pose_ratio, kind=kind)
    assert not any(metric.requires_grad for metric in metrics.values())
    for half in ("text", "pose"):  # exactly
        assert metrics[f"{half}_ratio"] == 1
        assert metrics[f"{half}_ratio_std"] == metrics[f"{half}_clip_low"] == metrics[f"{half}_clip_high"] == 0
    leaves = [x.clone().requires_grad_() for x in (r.logits, r.mean, r.log_sigma, r.factor)]
    new = scores(r, *leaves, kind=kind)
    reference = scores(r, r.ref_logits, r.ref_mean, 0 * r.log_sigma, r.factor, kind=kind)
    kl = kl_divergence(Categorical(logits=new.log_softmax), Categorical(logits=reference.log_softmax))
    per_token = (r.F[..., None] * new.log_prob - .03 * kl) * r.token_mask
    text = (per_token.sum(-1) / r.token_mask.sum(-1)).mean()
    density = new.pose.log_prob(r.pose.movedim(2, 0)).movedim(0, 2)  # (B, G, K)
    pose = (r.Delta * density).mean(-1) - .07 * kl_divergence(new.pose, reference.pose)
    objective = text + pose[r.has_pose].sum() / r.has_pose.sum() / 12
    for got, expected in zip(grads, torch.autograd.grad(-objective, leaves, materialize_grads=True)):
        torch.testing.assert_close(got, expected)


@pytest.mark.parametrize("pose_ratio, aggregation", [("joint", "dr_grpo"), ("per_joint", "grpo"), ("mean", "bnpo")])
def test_later_inner_steps_are_equation_6_number_by_number(pose_ratio, aggregation):
    """The loss and the diagnostics of both halves, off the policy that sampled, in plain loops."""
    r = rollout()
    value, metrics, _ = full_loss(r, pose_ratio=pose_ratio, shift=.3, aggregation=aggregation, max_tokens=7)
    log_softmax, old, ref = (x.log_softmax(-1) for x in (r.logits, r.logits + .3 * r.old_logits, r.ref_logits))
    pose, old_pose = (Normal(r.mean + shift, r.log_sigma.exp()) for shift in (0, .3))
    ref_pose = Normal(r.ref_mean, torch.ones_like(r.mean))
    J, seen, entropy, kls = 0.0, {"text": [], "pose": []}, [], []

    def surrogate(half: str, ratio: float, advantage: float) -> float:
        clip = min(max(ratio, .8), 1.28)
        seen[half].append((ratio, advantage < 0 and ratio < .8, advantage > 0 and ratio > 1.28))
        return min(ratio * advantage, clip * advantage)

    V, whole, joints = r.has_pose.sum().item(), [range(12)], [range(6), range(6, 12)]
    for b in range(3):
        for g in range(4):
            n = r.token_mask[b, g].sum().item()
            weight = {"grpo": 1 / n / 12, "bnpo": 1 / r.token_mask.sum().item(), "dr_grpo": 1 / 7 / 12}[aggregation]
            for t in range(n):
                word = r.tokens[b, g, t]
                p, q = log_softmax[b, g, t].exp(), ref[b, g, t].exp()
                ratio = (log_softmax[b, g, t, word] - old[b, g, t, word]).exp().item()
                kls.append((p * (p / q).log()).sum().item())
                J += weight * (surrogate("text", ratio, r.F[b, g].item()) - .03 * kls[-1])
                entropy.append(-(p * p.log()).sum().item())
            if r.has_pose[b, g]:
                J -= .07 * kl_divergence(pose, ref_pose)[b, g].sum().item() / 12 / V
                for k in range(5):
                    apart = (pose.log_prob(r.pose[:, :, k]) - old_pose.log_prob(r.pose[:, :, k]))[b, g].tolist()
                    for group in joints if pose_ratio == "per_joint" else whole:
                        total = sum(apart[d] for d in group) / (12 if pose_ratio == "mean" else 1)
                        weight = 1 if pose_ratio == "mean" else 1 / 12
                        J += weight * surrogate("pose", math.exp(total), r.Delta[b, g, k].item()) / 5 / V
    assert value.item() == pytest.approx(-J)
    for half, rows in seen.items():
        ratio, low, high = torch.tensor(rows, dtype=torch.float64).T
        assert metrics[f"{half}_ratio"].item() == pytest.approx(ratio.mean().item())
        assert metrics[f"{half}_ratio_std"].item() == pytest.approx(ratio.std(correction=0).item())
        assert metrics[f"{half}_clip_low"].item() == pytest.approx(low.mean().item())
        assert metrics[f"{half}_clip_high"].item() == pytest.approx(high.mean().item())
        if (half, pose_ratio) != ("pose", "mean"):  # which hardly ever clips
            assert low.any() and high.any() and low.sum() != high.sum()
    assert metrics["text_kl"].item() == pytest.approx(sum(kls) / len(kls))
    assert metrics["text_entropy"].item() == pytest.approx(sum(entropy) / len(entropy))
    assert metrics["valid"].item() == pytest.approx(V / 12)


def test_what_later_steps_compare_with_is_a_constant_of_the_same_pass():
    r = rollout()
    new = scores(r, *(x.requires_grad_() for x in (r.logits, r.mean, r.log_sigma, r.factor)))
    log_prob, terms = hygrpo.detached(new, r.pose)
    assert not log_prob.requires_grad and not terms.requires_grad
    assert torch.equal(log_prob, new.log_prob) and terms.shape == r.pose.shape
    torch.testing.assert_close(terms[:, :, 3], new.pose.base_dist.log_prob(r.pose[:, :, 3]).detach())


def test_the_loss_is_its_halves_by_their_weight_and_shares():
    value, metrics, _ = full_loss(rollout(), shift=.05, pose_weight=.5, text_share=.3, pose_share=.2)
    assert value.item() == pytest.approx((.3 * metrics["loss_text"] + .5 * .2 * metrics["loss_pose"]).item())


@pytest.mark.parametrize("pose_ratio", RATIOS)
def test_loss_does_not_depend_on_order(pose_ratio):
    """Of the prompts, of a group's answers, of an answer's poses."""
    r = rollout()
    value = full_loss(r, pose_ratio=pose_ratio, shift=.05)[0].item()
    assert full_loss(r, torch.tensor([2, 0, 1]), pose_ratio, .05)[0].item() == pytest.approx(value)
    answers, poses = torch.tensor([3, 1, 0, 2]), torch.tensor([4, 2, 0, 1, 3])
    turned = SimpleNamespace(**{name: x[:, answers] for name, x in vars(r).items()})
    assert full_loss(turned, pose_ratio=pose_ratio, shift=.05)[0].item() == pytest.approx(value)
    r.pose, r.Delta = r.pose[:, :, poses], r.Delta[:, :, poses]
    assert full_loss(r, pose_ratio=pose_ratio, shift=.05)[0].item() == pytest.approx(value)


@pytest.mark.parametrize("pose_ratio", RATIOS)
def test_loss_does_not_depend_on_how_a_batch_is_split(pose_ratio):
    """The words' halves weigh as many prompts as they have, the poses' as many poses: V differs from part to part."""
    r = rollout(B=5)
    whole, metrics, grads = full_loss(r, pose_ratio=pose_ratio, shift=.05)
    parts = [full_loss(r, rows, pose_ratio, .05) for rows in (slice(0, 2), slice(2, 5))]
    V = [r.has_pose[rows].sum().item() for rows in (slice(0, 2), slice(2, 5))]
    assert V[0] * 3 != V[1] * 2
    for name, weights in (("loss_text", (2, 3)), ("loss_pose", V)):
        got = sum(w * p[1][name].item() for w, p in zip(weights, parts)) / sum(weights)
        assert metrics[name].item() == pytest.approx(got)
    for i, weights in ((0, (2, 3)), (1, V)):
        got = torch.cat([w * p[2][i] for w, p in zip(weights, parts)]) / sum(weights)
        torch.testing.assert_close(grads[i], got)


def test_padding_and_poses_that_were_not_given_leave_no_trace():
    """Whatever stands behind the end of an answer, or in the pose of an answer without <POSE>."""
    r, other = rollout(), rollout()
    hidden = ~other.token_mask[..., None]
    other.logits, other.ref_logits, other.old_logits = (
        torch.where(hidden, 5 * randn(*x.shape, seed=20 + i), x)
        for i, x in enumerate((r.logits, r.ref_logits, r.old_logits)))
    other.tokens = torch.where(other.token_mask, other.tokens, 0)
    other.pose, other.mean, other.Delta = (torch.where(r.has_pose.view(3, 4, *[1] * (x.dim() - 2)), x, 3 * x + 1)
                                           for x in (r.pose, r.mean, r.Delta))
    for one, two in zip(full_loss(r, shift=.1), full_loss(other, shift=.1)):
        torch.testing.assert_close(one, two)


def test_an_answer_without_a_pose_gets_no_pose_gradient_and_none_at_all_gives_zero():
    r = rollout()
    _, _, grads = full_loss(r)
    assert (grads[1][~r.has_pose] == 0).all() and (grads[1][r.has_pose] != 0).any()
    r.has_pose[:] = False
    value, metrics, grads = full_loss(r)
    assert metrics["loss_pose"] == 0 and torch.isfinite(value) and (grads[1] == 0).all() and (grads[0] != 0).any()
    assert metrics["valid"] == 0 and metrics["pose_kl"].isnan()


def test_the_parts_of_a_batch_add_up_by_dr_grpo_whose_answers_are_cut_at_their_own_longest():
    """As `sample` gives them: T is the longest answer of the part, and the divisor must not be."""
    r = rollout(B=5)
    r.token_mask[:2, :, 3:] = False  # the first part's answers are shorter
    how = {"shift": .05, "aggregation": "dr_grpo", "max_tokens": 8}
    whole, parts = full_loss(r, **how)[1]["loss_text"].item(), []
    for rows, T in ((slice(0, 2), 3), (slice(2, 5), 6)):
        part = SimpleNamespace(**{name: x[rows] for name, x in vars(r).items()})
        for name in ("logits", "ref_logits", "old_logits", "tokens", "token_mask"):
            setattr(part, name, getattr(part, name)[:, :, :T])
        parts.append(full_loss(part, **how)[1]["loss_text"].item())
    assert whole == pytest.approx((2 * parts[0] + 3 * parts[1]) / 5)


def test_groups_of_one_and_the_same_answer_have_nothing_to_compare():
    """Whatever F says, which compares the luck of their poses; what stands in the padding is no difference."""
    r = rollout()
    assert full_loss(r)[1]["text_flat_groups"] == 0
    r.tokens[:2], r.token_mask[:2] = r.tokens[:2, :1].clone(), r.token_mask[:2, :1].clone()
    r.token_mask[:2, :, -1], r.tokens[:2, :, -1] = False, torch.arange(4)
    assert full_loss(r)[1]["text_flat_groups"].item() == pytest.approx(2 / 3)
    r.token_mask[1, 0, 1:] = False  # the same words, but one answer ends before the others
    r.token_mask[1, 1:, :3] = True
    assert full_loss(r)[1]["text_flat_groups"].item() == pytest.approx(1 / 3)


def test_groups_without_spread_are_counted_by_prompt():
    r = rollout()
    r.F[0], r.F[1, 1:] = 0, 0
    r.Delta[:2], r.Delta[2, 1:] = 0, 0
    metrics = full_loss(r)[1]
    assert metrics["text_flat_groups"].item() == pytest.approx(1 / 3)
    assert metrics["pose_flat_groups"].item() == pytest.approx(2 / 3)


# ---------------------------------------------------------------- a bandit with a closed form

def bandit(N: int, G: int, K: int, pose_ratio: str = "per_joint", **how):
    """One token of 3 words w, with a reward c_w, then K poses from N(mu_w, s_w^2) in 6 dimensions, with reward -|p|^2:

        E R = sum_w pi_w (c_w - |mu_w|^2 - 6 s_w^2)
    Returns the gradients of HyGRPO's objective by logits (N, 3), mu (N, 18) and log s (N, 3), one row for each of N
    groups drawn anew, and the exact gradients of E R.
    """
    torch.manual_seed(0)
    logits, mu, log_s = torch.tensor([.2, -.3, .5]).double(), randn(3, 6), torch.tensor([-.5, -.2, .1]).double()
    words = torch.tensor([1.0, -2, 3]).double()
    leaves = [x.clone().requires_grad_() for x in (logits, mu, log_s)]
    reward = words - leaves[1].square().sum(-1) - 6 * (2 * leaves[2]).exp()
    exact = torch.autograd.grad((leaves[0].softmax(0) * reward).sum(), leaves)
    tokens = torch.multinomial(logits.softmax(0), N * G, replacement=True).view(N, G, 1)
    w = tokens[..., 0]  # (N, G)
    sample = mu[w][:, :, None] + log_s[w].exp()[..., None, None] * torch.randn(N, G, K, 6, dtype=torch.float64)
    r = SimpleNamespace(tokens=tokens, token_mask=torch.ones(N, G, 1).bool(), pose=sample,
                        has_pose=torch.ones(N, G).bool())
    F, Delta = hygrpo.advantages({"w": words[w]}, {"p": -sample.square().sum(-1)}, r.has_pose, {"w": 1.0, "p": 1.0},
                                 normalize="none", **how)
    # A copy of the parameters for each group gives N independent gradients, and so their spread.
    leaves = [x.expand(N, *x.shape).clone().requires_grad_() for x in (logits, mu, log_s)]
    log_softmax = leaves[0].log_softmax(-1)[:, None, None].expand(N, G, 1, 3)
    sigma = leaves[2].exp().gather(1, w)[..., None].expand(N, G, 6)
    new = SimpleNamespace(log_softmax=log_softmax, log_prob=log_softmax.gather(-1, tokens[..., None]).squeeze(-1),
                          pose=Independent(Normal(leaves[1].gather(1, tokens.expand(N, G, 6)), sigma), 1))
    value, _ = hygrpo.loss(new, *hygrpo.detached(new, sample), new, r, F.double(), Delta.double(), clip_low=.2,
                           clip_high=.2, beta_text=0, beta_pose=0, pose_ratio=pose_ratio)
    grads = torch.autograd.grad(-value, leaves)
    scale = (N, 6 * N, 6 * N)  # the loss is a mean over groups, and its pose terms are divided by D = 6
    return [s * g.flatten(1) for s, g in zip(scale, grads)], [e.flatten() for e in exact]


def off_by(draws: torch.Tensor, expected) -> torch.Tensor:
    """How many standard errors the mean of draws (N, ...) lies from what is expected."""
    return (draws.mean(0) - expected).abs() / (draws.std(0) / math.sqrt(len(draws)))


@pytest.mark.parametrize("pose_ratio, K", [("joint", 1), ("per_joint", 3), ("mean", 3)])
def test_the_mean_gradient_of_a_bandit_is_the_exact_one(pose_ratio, K):
    for got, expected in zip(*bandit(8000, 4, K, pose_ratio)):
        assert (off_by(got, expected) < 4).all()
        assert (off_by(got, 0) > 10).any()  # the test sees the gradient well above the noise


@pytest.mark.parametrize("G", [2, 4, 8])
def test_the_mean_of_all_as_a_baseline_shrinks_the_gradient_and_leave_one_out_does_not(G):
    """By (n - 1) / n, n = G members of a group: .5, .75, .875."""
    for baseline, scale in (("leave_one_out", 1), ("mean", (G - 1) / G)):
        for got, expected in zip(*bandit(30_000, G, 1, baseline=baseline)):
            along = got @ expected / expected.square().sum()  # (N,), the gradient in units of the exact one
            assert off_by(along, scale) < 4
            assert baseline == "leave_one_out" or off_by(along, 1) > 4


# ---------------------------------------------------------------- the tiny policy

@pytest.fixture(scope="module")
def policy() -> PosePolicy:
    torch.manual_seed(0)
    return PosePolicy(*build_tiny(CORPUS)).eval()


@pytest.mark.parametrize("kind", KINDS)
def test_the_ratio_of_the_first_step_is_exactly_one_at_whatever_temperature_was_sampled(policy, kind):
    """`old` is taken from the same pass as `new`: the ratio cannot show that scoring is at another temperature."""
    torch.manual_seed(1)
    policy.pose_head = PoseHead(policy.pose_projector[1].out_features, kind)
    prompt = policy.encode(EXAMPLES)
    r = policy.sample(prompt, 3, 2, max_tokens=8, temperature=.6, seeds=range(4))
    r = r._replace(has_pose=torch.ones_like(r.has_pose))  # every answer has a Gaussian, if a meaningless one
    new = policy.log_prob(prompt, r.tokens, r.token_mask)
    _, metrics = hygrpo.loss(new, *hygrpo.detached(new, r.pose), new, r, randn(4, 3), randn(4, 3, 2), clip_low=.2,
                             clip_high=.2, beta_text=.1, beta_pose=.1)
    for half in ("text", "pose"):
        assert metrics[f"{half}_ratio"] == 1 and metrics[f"{half}_ratio_std"] == 0


def test_words_are_scored_with_the_odds_they_were_drawn_with(policy):
    """The mean of -log pi of what was drawn is the entropy of pi, sampled at temperature 1 and at no other."""
    prompt = policy.encode(EXAMPLES)
    for temperature, fits in ((.6, False), (1.0, True)):
        r = policy.sample(prompt, 200, 1, max_tokens=1, temperature=temperature, seeds=range(4))
        with torch.no_grad():
            new = policy.log_prob(prompt, r.tokens, r.token_mask)
        surprise = (-new.log_prob - Categorical(logits=new.log_softmax).entropy()).flatten()
        assert (off_by(surprise, 0) < 4) == fits


@pytest.mark.parametrize("call", [
    lambda: hygrpo.group_advantage(torch.zeros(1, 2), torch.ones(1, 2).bool(), normalize="max"),
    lambda: hygrpo.group_advantage(torch.zeros(1, 2), torch.ones(1, 2).bool(), baseline="median"),
    lambda: hygrpo.pose_log_ratio(torch.zeros(1, 144), torch.zeros(1, 144), "sum"),
    lambda: hygrpo.aggregate(torch.zeros(1, 2), torch.ones(1, 2), "sum")])
def test_an_unknown_mode_is_named(call):
    with pytest.raises(ValueError, match="must be"):
        call()


def test_a_joint_is_compared_by_its_own_part_of_a_reward():
    """Each joint as if it were a pose of its own; a reward without parts counts for all; NaN: the joint decides nothing."""
    whole, pose, part = randn(3, 4, 5), randn(3, 4, 5, seed=1), randn(3, 4, 5, 24, seed=2)
    part[1, ..., 7], has_pose = torch.nan, randn(3, 4, seed=3) < .8
    weights = {"whole": .5, "parted": 2.0}
    F, Delta = hygrpo.advantages({}, {"whole": whole, "parted": pose}, has_pose, weights, {"parted": part})
    plain = hygrpo.advantages({}, {"whole": whole, "parted": pose}, has_pose, weights)
    torch.testing.assert_close(F, plain[0])
    assert Delta.shape == (3, 4, 5, 24) and plain[1].shape == (3, 4, 5)
    for joint in range(24):
        alone = {"whole": whole, "parted": part[..., joint]}
        torch.testing.assert_close(Delta[..., joint], hygrpo.advantages({}, alone, has_pose, weights)[1])
    torch.testing.assert_close(Delta[1, ..., 7], hygrpo.advantages({}, {"whole": whole}, has_pose, weights)[1][1])


def test_equal_advantages_of_all_joints_are_that_of_the_pose_and_each_moves_its_own_numbers():
    r = rollout()
    one = full_loss(r, shift=.05)
    r.Delta = r.Delta[..., None].repeat(1, 1, 1, 2)  # D = 12: two joints
    for got, expected in zip(full_loss(r, shift=.05)[2], one[2]):
        torch.testing.assert_close(got, expected)
    r.Delta[..., 1] = 0
    other = full_loss(r, shift=.05)[2][1]
    r.Delta[..., 0] *= 3
    changed = (full_loss(r, shift=.05)[2][1] - other).abs().amax((0, 1))  # (12,), of the means' gradient
    assert (changed[:6] > 1e-6).all() and (changed[6:] < 1e-12).all()


# ---------------------------------------------------------------- the pathwise gradient

@pytest.mark.parametrize("kind", KINDS)
def test_samples_drawn_again_are_where_they_were_and_move_with_mean_and_spread(kind):
    """As `rsample` has it: the gradient of sum_i c_i p_i by mean, sigmas and factor, for the same z."""
    leaves = [x.requires_grad_() for x in (randn(4, 12), .4 * randn(4, 12, seed=1), randn(4, 12, 12, seed=2))]
    pose, z, c = gaussian(kind, *leaves), randn(5, 4, 12, seed=3), randn(5, 4, 12, seed=4)
    drawn = pose.mean + (pose.stddev * z if kind == "diag" else (pose.scale_tril @ z[..., None])[..., 0])
    moved = hygrpo.moved(pose, drawn.detach())
    torch.testing.assert_close(hygrpo.standardised(pose, drawn), z)
    torch.testing.assert_close(moved, torch.zeros_like(moved))
    for got, expected in zip(*(torch.autograd.grad((c * x).sum(), leaves, retain_graph=True, materialize_grads=True)
                               for x in (moved, drawn))):
        torch.testing.assert_close(got, expected)
        assert kind == "diag" or (got != 0).any()


def both_gradients(kind: str, N: int = 20_000, K: int = 8):
    """Of R(p) = -|p - c|^2 / 2 the mean reward has the gradient c - mu by mu and, where Sigma is diagonal, -s^2 by log s.

    Returns gradients of the poses' objective, by the score function and pathwise, one row for each of N groups of K
    poses, by mean (N, 6), log sigma (N, 6), and the exact ones of mu and log s."""
    torch.manual_seed(0)
    mean, log_s, c, yes = randn(6), .3 * randn(6, seed=1), randn(6, seed=2), torch.ones(N, 1).bool()
    leaves = [x.expand(N, 1, 6).clone().requires_grad_() for x in (mean, log_s)]
    pose = Independent(Normal(leaves[0], leaves[1].exp()), 1)
    sample = pose.sample((K,)).movedim(0, -2)  # (N, 1, K, 6)
    reward = -(sample - c).square().sum(-1) / 2
    if kind == "pathwise":
        Delta, slope = torch.zeros(N, 1, K), c - sample
    else:
        Delta, slope = hygrpo.advantages({}, {"p": reward}, yes, {"p": 1.0}, normalize="none")[1].double(), None
    old = hygrpo.gaussian_log_prob_terms(pose, sample.movedim(-2, 0)).movedim(0, -2).detach()
    value, _ = hygrpo.pose_loss(pose, old, pose, sample, Delta, yes, clip_low=.2, clip_high=.2, beta=0.0, slope=slope)
    grads = torch.autograd.grad(-value, leaves)  # divided by D = 6 and by V = N
    return [6 * N * g[:, 0] for g in grads], [c - mean, -(2 * log_s).exp()], value


def test_the_pathwise_gradient_is_the_exact_one_and_that_of_the_score_function_with_less_noise():
    found = {kind: both_gradients(kind) for kind in ("score", "pathwise")}
    for kind, (grads, exact, _) in found.items():
        for got, expected in zip(grads, exact):
            assert (off_by(got, expected) < 4).all() and (off_by(got, 0) > 10).any(), kind
    assert abs(found["pathwise"][2].item()) < 1e-12  # a slope adds to the gradient and nothing to the value
    for one, other in zip(found["pathwise"][0], found["score"][0]):
        assert one.std(0).mean() < other.std(0).mean() / 2


def test_slopes_weigh_poses_as_the_rest_of_their_half_does():
    """An answer without a pose gets none, the parts of a batch add up, and a group without any is counted as flat."""
    r = rollout(B=5)
    r.slope, r.Delta = randn(5, 4, 5, 12, seed=12), 0 * r.Delta
    r.slope[0] = 0

    def run(rows):
        part = SimpleNamespace(**{name: x[rows] for name, x in vars(r).items()})
        return full_loss(part, slope=part.slope)
    whole, metrics, grads = run(slice(None))
    assert metrics["pose_flat_groups"].item() == pytest.approx(1 / 5)
    assert (grads[1][~r.has_pose] == 0).all() and (grads[2][1:][r.has_pose[1:]] != 0).all()
    parts, V = [run(rows) for rows in (slice(0, 2), slice(2, 5))], [r.has_pose[:2].sum(), r.has_pose[2:].sum()]
    for i in (1, 2):
        torch.testing.assert_close(grads[i], torch.cat([v * p[2][i] for v, p in zip(V, parts)]) / sum(V))


def test_a_sum_of_rewards_is_compared_as_one_reward():
    """GRPO: F of all an answer has, zero for poses it does not give; a joint by its parts, or the whole where none."""
    text, other = randn(3, 4).float(), randn(3, 4, 5, seed=1).float()
    part, has_pose = randn(3, 4, 5, 24, seed=2).float(), randn(3, 4, seed=3) < .8
    other[2] = torch.nan  # of another task
    weights = {"t": 2.0, "a": .5, "b": 3.0}
    poses = {"a": other, "b": part.mean(-1)}
    F, Delta = summed.advantages({"t": text, "u": text * torch.nan}, poses, has_pose, weights | {"u": 1.0}, {"b": part})
    known = other.nan_to_num(0)
    total = 2 * text + has_pose * (.5 * known + 3 * poses["b"]).mean(-1)
    torch.testing.assert_close(F, hygrpo.group_advantage(total, torch.ones_like(has_pose)))
    joint = {"sum": .5 * known + 3 * part[..., 7]}
    torch.testing.assert_close(Delta[..., 7], hygrpo.advantages({}, joint, has_pose, {"sum": 1.0})[1])
    whole = summed.advantages({"t": text}, poses, has_pose, weights)[1]
    joint = {"sum": .5 * known + 3 * poses["b"]}
    torch.testing.assert_close(whole, hygrpo.advantages({}, joint, has_pose, {"sum": 1.0})[1])
