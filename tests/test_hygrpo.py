"""HyGRPO's mathematics: golden numbers, torch.distributions, closed forms and invariances."""

import math
from types import SimpleNamespace

import pytest
import torch
from torch.distributions import Independent, LowRankMultivariateNormal, MultivariateNormal, Normal

import hygrpo

PI = torch.tensor([[.5, .4, .2], [.3, .6, .9]], dtype=torch.float64)
OLD = torch.tensor([[.5, .5, .1], [.3, .4, .9]], dtype=torch.float64)
REF = torch.tensor([[.4, .4, .2], [.3, .5, .9]], dtype=torch.float64)
ADVANTAGE = torch.tensor([1.0, -1.0], dtype=torch.float64)
MASK = torch.tensor([[1, 1, 1], [1, 1, 0]]).bool()


def padded(x: torch.Tensor, length: int) -> torch.Tensor:
    return torch.cat([x, torch.ones(len(x), length - x.shape[1]).to(x)], 1) if x.dtype != torch.bool else torch.cat(
        [x, torch.zeros(len(x), length - x.shape[1]).bool()], 1)


def golden(aggregation: str, length: int = 3):
    pi, old, ref, mask = (padded(x, length) for x in (PI, OLD, REF, MASK))
    return hygrpo.text_loss(pi.log(), old.log(), hygrpo.k3_kl(pi.log(), ref.log()), ADVANTAGE, mask, clip_low=.2,
                            clip_high=.28, beta=.04, aggregation=aggregation)


@pytest.mark.parametrize("aggregation, length, value", [("grpo", 3, .111978), ("bnpo", 3, -.115690), ("dr_grpo", 4, -.072306)])
def test_text_loss_golden_numbers(aggregation, length, value):
    loss, metrics = golden(aggregation, length)
    assert loss.item() == pytest.approx(value, abs=1e-6)
    # Of the ratios 1, .8, 2 (A = 1) and 1, 1.5 (A = -1) only 2 is held: where the clip is active, not |r - 1| > eps.
    assert metrics["text_clip_low"] == 0 and metrics["text_clip_high"].item() == pytest.approx(.2)
    assert metrics["text_ratio"].item() == pytest.approx(1.26) and metrics["text_ratio_std"].item() == pytest.approx(.43635, abs=1e-5)


def test_the_clip_is_active_only_where_it_takes_the_gradient_away():
    ratio, advantage = torch.tensor([1.5, .5, 1.5, .5]), torch.tensor([1.0, 1, -1, -1])
    surrogate, active = hygrpo.clipped(ratio.log(), advantage, .2, .28)
    assert active.tolist() == [True, False, False, True]
    torch.testing.assert_close(surrogate, torch.tensor([1.28, .5, -1.5, -.8]))


@pytest.mark.parametrize("aggregation", ["grpo", "bnpo"])
def test_text_loss_ignores_padding(aggregation):
    assert golden(aggregation, 3)[0].item() == pytest.approx(golden(aggregation, 9)[0].item(), abs=1e-12)


def test_the_end_token_is_trained_even_where_it_is_the_padding_token():
    log_prob = torch.zeros(1, 3, requires_grad=True)  # word, end, padding: the mask goes by length
    loss, _ = hygrpo.text_loss(log_prob, torch.zeros(1, 3), torch.zeros(1, 3), torch.ones(1),
                               torch.tensor([[True, True, False]]), clip_low=.2, clip_high=.2, beta=0.0)
    loss.backward()
    assert log_prob.grad[0, 1] < 0 and log_prob.grad[0, 2] == 0


def test_standardised_advantages_golden_numbers():
    reward, valid = torch.tensor([[1.0, 2, 3, 6]]), torch.ones(1, 4).bool()
    got = hygrpo.group_advantage(reward, valid, "std", "mean")
    torch.testing.assert_close(got, torch.tensor([[-.92578, -.46289, 0, 1.38867]]), atol=1e-5, rtol=0)


def test_leave_one_out_compares_with_the_mean_of_the_others():
    got = hygrpo.group_advantage(torch.tensor([[1.0, 2, 6, 99]]), torch.tensor([[True, True, True, False]]), "none")
    torch.testing.assert_close(got, torch.tensor([[1 - 4.0, 2 - 3.5, 6 - 1.5, 0]]))


@pytest.mark.parametrize("normalize", ["std", "batch", "none"])
@pytest.mark.parametrize("baseline", ["leave_one_out", "mean"])
def test_groups_that_say_nothing_have_no_advantage(normalize, baseline):
    reward = torch.tensor([[.3, .3, .3], [1.0, 2, 3], [torch.nan, 5, torch.nan], [torch.nan] * 3])
    got = hygrpo.group_advantage(reward, ~reward.isnan(), normalize, baseline)
    assert torch.isfinite(got).all()
    assert (got[[0, 2, 3]] == 0).all() and (got[1] != 0).any()


def test_batch_normalisation_has_unit_root_mean_square():
    reward = torch.randn(16, 8, generator=torch.Generator().manual_seed(0)) * 37
    got = hygrpo.group_advantage(reward, torch.ones(16, 8).bool(), "batch")
    assert got.square().mean().sqrt().item() == pytest.approx(1, abs=1e-5)


def test_nested_advantages_with_one_pose_are_the_papers():
    g = torch.Generator().manual_seed(0)
    text, pose = torch.randn(5, 6, generator=g), torch.randn(5, 6, 1, generator=g)
    has_pose = torch.rand(5, 6, generator=g) < .7
    F, Delta = hygrpo.advantages({"t": text}, {"p": pose}, has_pose, {"t": 1.0, "p": 1.0}, normalize="std", baseline="mean")
    for b in range(5):
        row, valid = pose[b, :, 0], has_pose[b]
        paper = torch.zeros(6)
        if valid.sum() > 1:
            paper[valid] = (row[valid] - row[valid].mean()) / (row[valid].std() + 1e-4)
        torch.testing.assert_close(Delta[b, :, 0], paper, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(F[b], (text[b] - text[b].mean()) / (text[b].std() + 1e-4) + paper, atol=1e-5, rtol=1e-5)


def test_rewards_that_a_task_does_not_have_leave_no_trace():
    reward = torch.tensor([[1.0, 2], [torch.nan, torch.nan]])
    F, Delta = hygrpo.advantages({"t": reward}, {"p": reward[..., None]}, torch.ones(2, 2).bool(), {"t": 1.0, "p": 1.0})
    assert (F[1] == 0).all() and (Delta[1] == 0).all() and (F[0] != 0).all()


def gaussians(D: int, batch: tuple[int, ...], seed: int):
    g = torch.Generator().manual_seed(seed)
    mean = torch.randn(*batch, D, generator=g, dtype=torch.float64)
    sigma = .1 + torch.rand(*batch, D, generator=g, dtype=torch.float64)
    factor = torch.randn(*batch, D, 3, generator=g, dtype=torch.float64)
    tril = torch.diag_embed(sigma) + .1 * torch.randn(*batch, D, D, generator=g, dtype=torch.float64).tril(-1)
    return {"diag": Independent(Normal(mean, sigma), 1), "lowrank": LowRankMultivariateNormal(mean, factor, sigma ** 2),
            "full": MultivariateNormal(mean, scale_tril=tril)}


@pytest.mark.parametrize("kind", ["diag", "lowrank", "full"])
def test_log_prob_terms_add_up_to_the_log_density(kind):
    pose = gaussians(12, (4,), 0)[kind]
    sample = torch.randn(5, 4, 12, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(hygrpo.gaussian_log_prob_terms(pose, sample).sum(-1), pose.log_prob(sample))


def test_categorical_kl_is_exact():
    a, b = (torch.randn(3, 7, dtype=torch.float64).log_softmax(-1) for _ in range(2))
    expected = torch.distributions.kl_divergence(torch.distributions.Categorical(logits=a), torch.distributions.Categorical(logits=b))
    torch.testing.assert_close(hygrpo.categorical_kl(a, b), expected)


def rollout(B=3, G=4, K=5, T=6, D=12, W=9, seed=0):
    g = torch.Generator().manual_seed(seed)
    rand = lambda *shape: torch.randn(*shape, generator=g, dtype=torch.float64)
    logits, ref_logits = rand(B, G, T, W), rand(B, G, T, W)
    tokens = torch.randint(W, (B, G, T), generator=g)
    length = torch.randint(1, T + 1, (B, G, 1), generator=g)
    return SimpleNamespace(
        logits=logits, ref_logits=ref_logits, tokens=tokens, token_mask=torch.arange(T) < length, pose=rand(B, G, K, D),
        has_pose=torch.rand(B, G, generator=g) < .7, mean=rand(B, G, D), log_sigma=.3 * rand(B, G, D),
        ref_mean=rand(B, G, D), F=rand(B, G), Delta=rand(B, G, K))


def scores(r, logits, mean, log_sigma):
    log_softmax = logits.log_softmax(-1)
    return SimpleNamespace(log_prob=log_softmax.gather(-1, r.tokens[..., None]).squeeze(-1), log_softmax=log_softmax,
                           pose=Independent(Normal(mean, log_sigma.exp()), 1))


def full_loss(r, rows=slice(None), pose_ratio="per_joint", shift=0.0):
    """The loss of some prompts of a rollout, and its gradients with respect to logits, mean and log sigma."""
    r = SimpleNamespace(**{k: v[rows] for k, v in vars(r).items()})
    leaves = [x.clone().requires_grad_() for x in (r.logits, r.mean, r.log_sigma)]
    new = scores(r, *leaves)
    old = scores(r, r.logits, r.mean + shift, r.log_sigma)
    terms = hygrpo.gaussian_log_prob_terms(old.pose, r.pose.movedim(2, 0)).movedim(0, 2)
    reference = scores(r, r.ref_logits, r.ref_mean, 0 * r.log_sigma)
    value, metrics = hygrpo.loss(new, old.log_prob, terms, reference, r, r.F, r.Delta, clip_low=.2, clip_high=.28,
                                 beta_text=.03, beta_pose=.07, pose_ratio=pose_ratio)
    return value, metrics, torch.autograd.grad(value, leaves)


@pytest.mark.parametrize("pose_ratio", ["joint", "per_joint", "mean"])
def test_first_inner_step_is_the_plain_policy_gradient(pose_ratio):
    r = rollout()
    _, metrics, grads = full_loss(r, pose_ratio=pose_ratio)
    assert metrics["text_ratio"] == 1 and metrics["pose_ratio"] == 1  # exactly
    leaves = [x.clone().requires_grad_() for x in (r.logits, r.mean, r.log_sigma)]
    new = scores(r, *leaves)
    reference = scores(r, r.ref_logits, r.ref_mean, 0 * r.log_sigma)
    kl = hygrpo.categorical_kl(new.log_softmax, reference.log_softmax)
    per_token = (r.F[..., None] * new.log_prob - .03 * kl) * r.token_mask
    text = (per_token.sum(-1) / r.token_mask.sum(-1)).mean()
    density = new.pose.log_prob(r.pose.movedim(2, 0)).movedim(0, 2)  # (B, G, K)
    pose = (r.Delta * density).mean(-1) - .07 * torch.distributions.kl_divergence(new.pose, reference.pose)
    objective = text + pose[r.has_pose].sum() / r.has_pose.sum() / 12
    for got, expected in zip(grads, torch.autograd.grad(-objective, leaves)):
        torch.testing.assert_close(got, expected)


@pytest.mark.parametrize("pose_ratio", ["joint", "per_joint", "mean"])
def test_loss_does_not_depend_on_order_or_on_how_a_batch_is_split(pose_ratio):
    r = rollout(B=6)
    r.has_pose[:] = torch.tensor([True, True, False, True])  # equal V in each part, so that parts weigh alike
    whole, _, grads = full_loss(r, pose_ratio=pose_ratio, shift=.05)
    parts = [full_loss(r, rows, pose_ratio, .05) for rows in (slice(0, 3), slice(3, 6))]
    assert whole.item() == pytest.approx(sum(p[0].item() for p in parts) / 2)
    torch.testing.assert_close(grads[1], torch.cat([p[2][1] for p in parts]) / 2)
    order = torch.randperm(6, generator=torch.Generator().manual_seed(2))
    assert full_loss(r, order, pose_ratio, .05)[0].item() == pytest.approx(whole.item())


def test_an_answer_without_a_pose_gets_no_pose_gradient_and_none_at_all_gives_zero():
    r = rollout()
    _, _, grads = full_loss(r)
    assert (grads[1][~r.has_pose] == 0).all() and (grads[1][r.has_pose] != 0).any()
    r.has_pose[:] = False
    value, metrics, grads = full_loss(r)
    assert metrics["loss_pose"] == 0 and torch.isfinite(value) and (grads[1] == 0).all() and (grads[0] != 0).any()


def test_share_of_clipped_samples_in_144_dimensions():
    """All means shifted by delta sigma, eps = 0.2: the joint ratio clips nearly everything, the mean ratio nothing."""
    g = torch.Generator().manual_seed(0)
    sample = torch.randn(20_000, 144, generator=g, dtype=torch.float64)
    for delta, joint, per_joint in ((.02, .40, 0), (.05, .74, .10), (.10, .89, .41)):
        old, new = (Independent(Normal(torch.full((144,), m, dtype=torch.float64), 1.0), 1) for m in (0.0, delta))
        terms = [hygrpo.gaussian_log_prob_terms(p, sample) for p in (new, old)]
        outside = {kind: ((hygrpo.pose_log_ratio(*terms, kind).exp() - 1).abs() > .2).double().mean().item()
                   for kind in ("joint", "per_joint", "mean")}
        assert outside["joint"] == pytest.approx(joint, abs=.015)
        assert outside["per_joint"] == pytest.approx(per_joint, abs=.015)
        assert outside["mean"] == 0


def test_log_ratios_are_clamped():
    terms = torch.full((1, 144), 5.0)
    for kind in ("joint", "per_joint", "mean"):
        assert hygrpo.pose_log_ratio(terms, -terms, kind).abs().max() <= hygrpo.LOG_RATIO_LIMIT


def test_bandit_gradient_agrees_with_its_closed_form():
    """One token of 3 words, then a pose N(mu[word], s^2) in 6 dimensions, reward -|p|^2: E R = sum_w pi_w (-|mu_w|^2 - 6 s^2).

    The mean of the estimator over many draws must agree with the exact gradient within its standard error.
    """
    torch.manual_seed(0)
    logits = torch.tensor([.2, -.3, .5], dtype=torch.float64)
    mu, s = torch.randn(3, 6, dtype=torch.float64), .7
    leaves = [logits.clone().requires_grad_(), mu.clone().requires_grad_()]
    exact = (leaves[0].softmax(0) * (-(leaves[1] ** 2).sum(-1) - 6 * s * s)).sum()
    exact = torch.autograd.grad(exact, leaves)
    N, G, K = 4000, 4, 3
    tokens = torch.multinomial(logits.softmax(0), N * G, replacement=True).view(N, G, 1)
    sample = mu[tokens[..., 0]][:, :, None] + s * torch.randn(N, G, K, 6, dtype=torch.float64)
    reward = -(sample ** 2).sum(-1).float()
    yes = torch.ones(N, G).bool()
    F, Delta = hygrpo.advantages({}, {"r": reward}, yes, {"r": 1.0}, normalize="none")
    # A copy of the parameters for each of the N prompts gives N independent gradients, and so their spread.
    leaves = [logits.expand(N, 3).clone().requires_grad_(), mu.expand(N, 3, 6).clone().requires_grad_()]
    log_softmax = leaves[0].log_softmax(-1)[:, None, None].expand(N, G, 1, 3)
    mean = leaves[1].gather(1, tokens.expand(N, G, 6))
    new = SimpleNamespace(log_softmax=log_softmax, log_prob=log_softmax.gather(-1, tokens[..., None]).squeeze(-1),
                          pose=Independent(Normal(mean, s), 1))
    terms = hygrpo.gaussian_log_prob_terms(new.pose, sample.movedim(2, 0)).detach().movedim(0, 2)
    value, _ = hygrpo.loss(new, new.log_prob.detach(), terms, new, SimpleNamespace(token_mask=yes[..., None], pose=sample,
                           has_pose=yes), F.double(), Delta.double(), clip_low=.2, clip_high=.2, beta_text=0, beta_pose=0)
    grads = torch.autograd.grad(-value, leaves)
    for grad, expected, scale in zip(grads, exact, (1, 6)):  # the pose terms are divided by D = 6
        per_prompt = grad * N * scale
        error = per_prompt.std(0) / math.sqrt(N)
        assert ((per_prompt.mean(0) - expected).abs() < 4.5 * error).all()


@pytest.mark.parametrize("call", [
    lambda: hygrpo.group_advantage(torch.zeros(1, 2), torch.ones(1, 2).bool(), normalize="max"),
    lambda: hygrpo.group_advantage(torch.zeros(1, 2), torch.ones(1, 2).bool(), baseline="median"),
    lambda: hygrpo.pose_log_ratio(torch.zeros(1, 144), torch.zeros(1, 144), "sum"),
    lambda: hygrpo.aggregate(torch.zeros(1, 2), torch.ones(1, 2), "sum")])
def test_an_unknown_mode_is_named(call):
    with pytest.raises(ValueError, match="must be"):
        call()
