"""Numbers that hold: rotations near 0 and 180 degrees, degenerate 6D, Gaussians at the bounds of sigma, ratios and
rewards out of all proportion; and gradients against finite differences, in float64 (`gradcheck`)."""

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.autograd import gradcheck
from torch.distributions import Independent, LowRankMultivariateNormal, MultivariateNormal, Normal, kl_divergence

import body as bd
import captions
from lab import metrics
import hygrpo
import rewards
import train_sft
from model import PoseHead, Scores, draw_poses

EPS = {torch.float32: 2 ** -23, torch.float64: 2 ** -52}
DTYPES, KINDS = list(EPS), ("diag", "lowrank", "full")
AXES = torch.cat([torch.eye(3), -torch.eye(3), torch.tensor([[1, 1e-9, 0], [0, 1, -1e-5], [1, 1, 1], [-1, -1, 1e-3]]),
                  torch.randn(200, 3, generator=torch.Generator().manual_seed(0))]).double()
AXES = AXES / AXES.norm(dim=-1, keepdim=True)  # (210, 3)


def randn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def exact(axis_angle: torch.Tensor) -> torch.Tensor:
    """Rotation matrices, by way of the quaternion in numpy's longest floats, rounded to float64 (torch's matrix_exp is
    2e-11 off at an angle of 1/32)."""
    vector = axis_angle.double().numpy().astype(np.longdouble)
    angle = np.sqrt((vector ** 2).sum(-1))
    w = np.cos(angle / 2)
    half_sinc = np.where(angle > 0, np.sin(angle / 2) / np.where(angle > 0, angle, 1), .5)
    x, y, z = np.moveaxis(vector * half_sinc[..., None], -1, 0)
    rows = [1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y), 2 * (x * y + w * z),
            1 - 2 * (x * x + z * z), 2 * (y * z - w * x), 2 * (x * z - w * y), 2 * (y * z + w * x),
            1 - 2 * (x * x + y * y)]
    return torch.from_numpy(np.stack(rows, -1).astype(np.float64)).unflatten(-1, (3, 3))


def joint_reward(joints: torch.Tensor, truth: torch.Tensor) -> torch.Tensor:
    return rewards.joint_reward(SimpleNamespace(joints=joints, true_joints=truth))


# ---------------------------------------------------------------- rotations

@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("angle", [0, 1e-12, 1e-8, 1e-6, 9.99e-5, 1.001e-4, 1e-3, 1, *(
    math.pi - away for away in (1e-2, 1e-3, 1e-4, 1e-6, 1e-7, 1e-8, 0)), 6.28])
def test_rotations_to_a_few_roundings_and_finite_gradients(dtype, angle):
    """1e-4 is where `axis_angle_to_matrix` leaves its Taylor series."""
    axis_angle = (AXES * angle).to(dtype).requires_grad_()
    true = exact(axis_angle.detach())
    matrix = bd.axis_angle_to_matrix(axis_angle)
    tight = 30 * EPS[dtype]
    assert (matrix.double() - true).abs().max() < tight
    known = true.to(dtype).requires_grad_()
    back = bd.matrix_to_axis_angle(known)
    short = min(angle, 2 * math.pi - angle)  # the way round that is at most half a turn
    assert (back.double().norm(dim=-1) - short).abs().max() < tight
    assert (exact(back.detach()) - true).abs().max() < tight
    again = bd.rot6d_to_matrix(bd.matrix_to_rot6d(known))
    assert (again.double() - true).abs().max() < tight
    if 0 < angle < 3.1:  # at half a turn either sign of the axis will do
        assert (back.double() - AXES * angle).abs().max() < tight
    for output, leaf, most in ((matrix, axis_angle, 10), (back, known, 10), (again, known, 10)):
        gradient, = torch.autograd.grad(output.sum(), leaf)
        assert gradient.isfinite().all() and gradient.abs().max() < most


@settings(max_examples=300, derandomize=True, deadline=None, database=None)
@given(st.lists(st.floats(-7, 7), min_size=3, max_size=3), st.sampled_from(DTYPES),
       st.sampled_from([1, 1e-3, 1e-6, 1e-9]))
def test_any_axis_angle_survives_both_ways_round(axis_angle, dtype, scale):
    axis_angle = torch.tensor(axis_angle, dtype=dtype) * scale
    true, tight = exact(axis_angle), 60 * EPS[dtype]
    matrix = bd.axis_angle_to_matrix(axis_angle)
    assert (matrix.double() - true).abs().max() < tight
    assert (exact(bd.matrix_to_axis_angle(matrix)) - true).abs().max() < tight
    assert (bd.rot6d_to_matrix(bd.matrix_to_rot6d(matrix)).double() - true).abs().max() < tight


@settings(max_examples=300, derandomize=True, deadline=None, database=None)
@given(st.lists(st.floats(-1e3, 1e3, allow_subnormal=False) | st.sampled_from([0.0, 1.0, 1e-20, 1e-8, 1e15]),
                min_size=6, max_size=6), st.sampled_from(DTYPES))
def test_any_6d_gives_a_finite_matrix_and_a_rotation_where_it_is_not_degenerate(rot6d, dtype):
    rot6d = torch.tensor(rot6d, dtype=dtype).requires_grad_()
    matrix = bd.rot6d_to_matrix(rot6d)
    gradient, = torch.autograd.grad(matrix.sum(), rot6d)
    assert matrix.isfinite().all() and gradient.isfinite().all() and matrix.abs().max() < 1 + 1e-3
    first, second = rot6d.detach().double().view(2, 3)
    sine = torch.linalg.cross(first, second).norm() / (first.norm() * second.norm()).clamp_min(1e-300)
    if min(first.norm(), second.norm() * sine) > 1e-6 and sine > 1e-2:
        assert (matrix.mT @ matrix - torch.eye(3)).abs().max() < 1e3 * EPS[dtype]
        assert torch.det(matrix.detach()) > .99
        assert (matrix.detach().double()[:, 0] - first / first.norm()).abs().max() < 1e-6


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("rot6d", [[0] * 6, [1, 0, 0, 2, 0, 0], [1, 2, 3, -1, -2, -3], [0, 0, 0, 0, 1, 0],
    [1, 0, 0, 0, 0, 0], [1e-30, 0, 0, 0, 1e-30, 0], [1e25, 0, 0, 0, 1e30, 0], [1, 0, 0, 1, 1e-7, 0]])
def test_a_degenerate_6d_leaves_kinematics_rewards_and_words_finite(dtype, rot6d):
    """Such a matrix may be no rotation, but it is finite, and so is all that is made of it."""
    rot6d = torch.tensor(rot6d, dtype=dtype).repeat(24, 1).requires_grad_()
    rotmats = bd.rot6d_to_matrix(rot6d)
    joints, rotations = bd.forward_kinematics(rotmats)
    truth = bd.forward_kinematics(torch.eye(3, dtype=dtype).repeat(24, 1, 1))[0]
    reward = joint_reward(joints, truth)
    gradient, = torch.autograd.grad(reward + rotations[-1].sum(), rot6d)
    upright = bd.remove_heading(rotmats.detach())
    for tensor in (rotmats, joints, reward, gradient, upright, bd.matrix_to_axis_angle(rotmats)):
        assert tensor.isfinite().all()
    assert captions.pose_holds(upright).dtype == torch.bool


def test_matrices_that_are_no_rotations_have_a_finite_axis_angle():
    for matrix in (torch.zeros(3, 3), -torch.eye(3), torch.ones(3, 3), 1e20 * torch.eye(3), 1e-30 * torch.ones(3, 3)):
        assert bd.matrix_to_axis_angle(matrix).isfinite().all()


@pytest.mark.parametrize("function, start", [
    (bd.axis_angle_to_matrix, randn(5, 3)), (bd.axis_angle_to_matrix, 1e-3 * randn(5, 3)),
    (bd.axis_angle_to_matrix, torch.zeros(1, 3).double()), (bd.axis_angle_to_matrix, 3e-5 * randn(5, 3)),
    (bd.axis_angle_to_matrix, AXES[:9] * (math.pi - 1e-4)), (bd.rot6d_to_matrix, randn(5, 6)),
    (bd.rot6d_to_matrix, 30 * randn(5, 6)), (bd.matrix_to_axis_angle, exact(AXES[10:30] * 2.9)),
    (bd.matrix_to_axis_angle, exact(AXES[:20])), (bd.matrix_to_axis_angle, exact(1e-3 * AXES[:9])),
    (bd.forward_kinematics, exact(randn(2, 24, 3))), (bd.remove_heading, exact(randn(2, 24, 3)))])
def test_gradients_of_the_body_are_the_finite_differences(function, start):
    assert gradcheck(function, start.clone().requires_grad_(), fast_mode=start.numel() > 100)


def test_a_perfect_pose_and_one_nearly_so():
    joints = bd.forward_kinematics(torch.eye(3).repeat(24, 1, 1))[0]
    for dtype in DTYPES:
        moved = joints.to(dtype).clone().requires_grad_()
        reward = joint_reward(moved, joints.to(dtype))
        assert reward.item() == pytest.approx(1000)  # a millimetre over all joints is near enough
        gradient, = torch.autograd.grad(reward, moved)
        assert gradient.isfinite().all()
    assert gradcheck(joint_reward, (randn(2, 24, 3).requires_grad_(), randn(2, 24, 3, seed=1)))


@pytest.mark.parametrize("dtype", DTYPES)
def test_similarity_fit_of_degenerate_joints(dtype):
    y = randn(24, 3).to(dtype)
    line = torch.linspace(-1, 1, 24, dtype=dtype)[:, None] * torch.tensor([1, 2, -1], dtype=dtype)
    plane = y * torch.tensor([1, 1, 0], dtype=dtype)
    center = y.mean(0)
    for point in (torch.zeros(24, 3, dtype=dtype), torch.full((24, 3), 3.0, dtype=dtype)):  # to the centre
        assert (metrics.similarity_fit(point, y) - center).abs().max() < 1e-5
        assert (metrics.similarity_fit(y, point) - point).abs().max() < 1e-5
    for x in (line, plane, y, 1e-4 * y, 1e4 * y):  # each is its own best fit, turned and moved or not
        turned = x @ exact(torch.tensor([.3, -2, 1])).to(dtype) + 5
        scale = x.abs().max()
        assert (metrics.similarity_fit(turned, x) - x).abs().max() < 200 * EPS[dtype] * (scale + 5)
    assert metrics.pa_mpjpe(line, y).isfinite() and metrics.pa_mpjpe(y, line).isfinite()


# ---------------------------------------------------------------- the Gaussian head

def head_at(kind: str, hidden: float, bias: float, correlation: float) -> tuple[PoseHead, torch.Tensor]:
    torch.manual_seed(0)
    head = PoseHead(16, kind, sigma_floor=.02)
    unit = .02 + np.logaddexp(0, bias) if kind == "full" else 1  # sigma
    with torch.no_grad():
        head.sigma.bias.fill_(bias)
        if head.correlation is not None:
            head.correlation.bias.normal_(0, correlation / unit)  # a full factor's rows are in units of their sigma
    return head, (hidden * torch.randn(3, 16)).requires_grad_()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("hidden, bias, correlation", [(0, -1.5, 0), (1e-20, -1.5, 0), (1e4, -1.5, 0), (1e15, -1.5, 0),
    (1, -1e4, 0), (1, -1e4, 3e-3), (1, -20, 3e-3), (1, 1e4, 0), (1, 1e4, 100), (1, 20, 1)])
def test_the_gaussian_is_finite_at_the_bounds_of_sigma(kind, hidden, bias, correlation):
    head, hidden = head_at(kind, hidden, bias, correlation)
    pose, reference = head(hidden), PoseHead(16, kind)(torch.randn(3, 16))
    if bias < -10 and correlation == 0:
        assert pose.stddev.min().item() == pytest.approx(.02, rel=1e-2)
    assert (pose.stddev >= .02 * (1 - 1e-5)).all()
    sample = draw_poses(pose, randn(*pose.batch_shape, 4, 144).to(pose.mean)).movedim(-2, 0).detach()
    for sample in (sample, 3 + sample, torch.full_like(sample, 1e3)):
        terms = hygrpo.gaussian_log_prob_terms(pose, sample)  # (4, 3, 144)
        assert terms.isfinite().all()
        for values in (terms.sum(), (kl_divergence(pose, reference) + kl_divergence(reference, pose)).sum()):
            assert values.isfinite()
            gradients = torch.autograd.grad(values, [hidden, *head.parameters()], retain_graph=True)
            assert all(gradient.isfinite().all() for gradient in gradients)
    kl = kl_divergence(pose, pose)
    assert kl.abs().max() < 1e-2 and pose.entropy().isfinite().all()
    assert (kl_divergence(pose, reference) > -1e-2).all()


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_of_the_head_are_the_finite_differences(kind, monkeypatch):
    """The head works in float32 whatever it is given; here its cast is lifted, and nothing else."""
    monkeypatch.setattr(torch.Tensor, "float", torch.Tensor.double)
    head, hidden = head_at(kind, 1.0, -1.5, .01)
    head, hidden, sample = head.double(), randn(2, 16), .5 * randn(2, 144, seed=1)
    torch.nn.init.normal_(head.sigma.weight, std=.3)
    names, weights = zip(*head.named_parameters())

    def terms(hidden, *weights):
        pose = torch.func.functional_call(head, dict(zip(names, weights)), (hidden,))
        return hygrpo.gaussian_log_prob_terms(pose, sample)

    assert terms(hidden, *weights).dtype == torch.float64
    inputs = [tensor.detach().clone().requires_grad_() for tensor in (hidden, *weights)]
    assert gradcheck(terms, inputs, fast_mode=True)


# D = 6, batch 2: mean, log sigma, factor
def gaussian(kind: str, mean, log_sigma, factor):
    if kind == "diag":
        return Independent(Normal(mean, log_sigma.exp()), 1)
    if kind == "lowrank":
        return LowRankMultivariateNormal(mean, factor[..., :2], (2 * log_sigma).exp())
    return MultivariateNormal(mean, scale_tril=torch.diag_embed(log_sigma.exp()) + .2 * factor.tril(-1))


def leaves(*shapes: tuple[int, ...]) -> list[torch.Tensor]:
    return [(.5 * randn(*shape, seed=seed)).requires_grad_() for seed, shape in enumerate(shapes)]


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_of_densities_and_divergences_are_the_finite_differences(kind):
    parameters = leaves((2, 6), (2, 6), (2, 6, 6), (3, 2, 6))
    assert gradcheck(lambda mean, sigma, factor, sample: hygrpo.gaussian_log_prob_terms(
        gaussian(kind, mean, sigma, factor), sample), parameters)
    other = gaussian(kind, *(1 + .3 * x.detach() for x in parameters[:3]))
    for pair in (lambda p: (p, other), lambda p: (other, p)):
        assert gradcheck(lambda *p: kl_divergence(*pair(gaussian(kind, *p))), parameters[:3])


def test_gradients_of_the_categorical_kl_are_the_finite_differences():
    logits = leaves((2, 3, 7), (2, 3, 7))
    assert gradcheck(lambda a, b: hygrpo.categorical_kl(a.log_softmax(-1), b.log_softmax(-1)), logits)


def test_the_categorical_kl_at_the_edge_of_the_simplex():
    for dtype in DTYPES:
        sure = torch.tensor([[80.0, 0, -80], [0, 0, 0], [1e4, 0, -1e4]], dtype=dtype).requires_grad_()
        a, b = sure.log_softmax(-1), sure.flip(-1).log_softmax(-1)
        kl = hygrpo.categorical_kl(a, b)
        gradient, = torch.autograd.grad(kl.sum(), sure)
        assert kl.tolist() == pytest.approx([160, 0, 2e4]) and gradient.isfinite().all()


# ---------------------------------------------------------------- the losses

B, G, K, T, W, D = 2, 3, 2, 4, 5, 12


def hygrpo_loss(kind: str, pose_ratio: str, aggregation: str, logits, mean, log_sigma, factor, shift: float = .1,
                F=None, Delta=None, **how):
    """The whole loss, `shift` away from the policy that sampled."""
    made = torch.arange(T).expand(B, G, T) < torch.tensor([[4, 2, 1], [3, 4, 4]])[..., None]
    tokens = randn(B, G, T, W, seed=20).argmax(-1)
    def scores(logits, *parameters):
        log_softmax = logits.log_softmax(-1)
        return Scores(log_softmax.gather(-1, tokens[..., None])[..., 0], log_softmax, gaussian(kind, *parameters))
    rollout = SimpleNamespace(tokens=tokens, token_mask=made, has_pose=torch.tensor([[1, 0, 1], [1, 1, 1]]).bool(),
                              pose=randn(B, G, K, D, seed=21).to(mean.dtype))
    still = [x.detach().to(mean.dtype) for x in leaves(*SHAPES)]
    old = scores(still[0] + shift * randn(B, G, T, W, seed=22).to(mean.dtype), still[1] + .3 * shift, *still[2:])
    reference = scores(.5 * still[0], .5 * still[1], .5 * still[2], still[3])
    F = randn(B, G, seed=23).to(mean.dtype) if F is None else F
    Delta = randn(B, G, K, seed=24).to(mean.dtype) if Delta is None else Delta
    return hygrpo.loss(scores(logits, mean, log_sigma, factor), *hygrpo.detached(old, rollout.pose), reference, rollout,
                       F, Delta, **dict(clip_low=.2, clip_high=.28, beta_text=.3, beta_pose=.2, pose_ratio=pose_ratio,
                                        aggregation=aggregation) | how)


SHAPES = (B, G, T, W), (B, G, D), (B, G, D), (B, G, D, D)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("pose_ratio, aggregation", [("joint", "dr_grpo"), ("per_joint", "grpo"), ("mean", "bnpo")])
def test_gradients_of_the_loss_are_the_finite_differences(kind, pose_ratio, aggregation):
    loss = lambda *parameters: hygrpo_loss(kind, pose_ratio, aggregation, *parameters, pose_weight=1.7)[0]
    assert gradcheck(loss, leaves(*SHAPES), fast_mode=True)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("pose_ratio", ["joint", "per_joint", "mean"])
@pytest.mark.parametrize("shift, advantage", [(1e3, 1), (1e6, -1), (1e3, 1e6), (0, 1e6), (0, 0), (1e-7, -1e3)])
def test_the_loss_is_finite_however_far_the_policies_are_apart(dtype, kind, pose_ratio, shift, advantage):
    parameters = [x.detach().to(dtype).requires_grad_() for x in leaves(*SHAPES)]
    F, Delta = (torch.full(shape, float(advantage), dtype=dtype) for shape in ((B, G), (B, G, K)))
    loss, metrics = hygrpo_loss(kind, pose_ratio, "grpo", *parameters, shift=shift, F=F, Delta=Delta)
    assert loss.isfinite() and all(value.isfinite() for value in metrics.values())
    assert all(gradient.isfinite().all() for gradient in torch.autograd.grad(loss, parameters, materialize_grads=True))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("normalize", ["std", "batch", "none"])
@pytest.mark.parametrize("reward", [[1e-12, 2e-12, 0, 0], [1e6, 1e6 + 1, 1e6, 1e6], [1e15, -1e15, 0, 1], [1e3] * 4,
                                    [math.nan] * 4, [1e3, math.nan, 0, math.nan], [0, 0, 0, 1e-30]])
def test_advantages_of_extreme_rewards_are_finite(dtype, normalize, reward):
    reward = torch.tensor([reward, [0, 1, 2, 3]], dtype=dtype)
    advantage = hygrpo.group_advantage(reward, ~reward.isnan(), normalize)
    assert advantage.isfinite().all() and (advantage[reward.isnan()] == 0).all()
    assert (advantage.sum(-1).abs() <= 1e-4 * advantage.abs().amax(-1)).all()
    assert (advantage[1].diff() > 0).all() or reward[0].nan_to_num().abs().max() > 1e10  # another group drowns it


class FakePolicy(SimpleNamespace):
    """A policy whose log-probabilities and Gaussian are given, for `sft_loss`."""
    pose_id, device = 3, torch.device("cpu")
    tokens = torch.tensor([[[1, 3, 2]], [[1, 2, 0]], [[3, 2, 0]]])  # the second holds no pose

    def encode(self, examples): ...

    def tokenize_answers(self, examples):
        return self.tokens, torch.tensor([[[1, 1, 1]], [[1, 1, 0]], [[1, 1, 0]]]).bool()

    def log_prob(self, prompt, tokens, mask):
        return Scores(self.given, None, self.pose)


def sft_loss(log_prob, mean, log_sigma, image=None):
    examples = [SimpleNamespace(rotmats=pose.float(), image=image) for pose in exact(randn(3, 24, 3, seed=5))]
    pose = Independent(Normal(mean, log_sigma.exp()), 1)
    return train_sft.sft_loss(FakePolicy(given=log_prob, pose=pose), examples)[0]


def test_the_gradient_of_the_beta_nll_weighs_a_number_by_its_variance_and_not_the_variance_by_the_number():
    """In log pi and mu it is the gradient of the value; in sigma, that of the value with the weight held still, so
    sigma^2 times the gradient of the plain negative log-likelihood: sigma - (p - mu)^2 / sigma."""
    log_prob, mean, log_sigma = leaves((3, 1, 3), (3, 1, 144), (3, 1, 144))
    assert gradcheck(lambda l, m: sft_loss(l, m, log_sigma.detach(), "an image"), (log_prob, mean))  # joints' error too
    gradient, = torch.autograd.grad(sft_loss(log_prob, mean, log_sigma), log_sigma)
    true = bd.matrix_to_rot6d(exact(randn(3, 24, 3, seed=5)).float()).flatten(1)[:, None].double()
    variance = (2 * log_sigma).exp()  # d/d log sigma of the weighed term: sigma^2 - (p - mu)^2
    expected = train_sft.POSE_WEIGHT * (variance - (true - mean) ** 2) / 144 / 2
    expected[1] = 0
    torch.testing.assert_close(gradient, expected)


def test_an_image_adds_the_error_of_the_joints_of_the_mean_pose():
    """Mean distance of a joint in metres over the two examples that hold a pose; a sentence adds nothing."""
    log_prob, mean, log_sigma = (x.detach() for x in leaves((3, 1, 3), (3, 1, 144), (3, 1, 144)))
    added = sft_loss(log_prob, mean, log_sigma, "an image") - sft_loss(log_prob, mean, log_sigma)
    poses = bd.rot6d_to_matrix(mean[[0, 2], 0].unflatten(-1, (24, 6))), exact(randn(3, 24, 3, seed=5))[[0, 2]]
    joints, true = (bd.forward_kinematics(x)[0] for x in poses)
    assert added.item() == pytest.approx(train_sft.JOINT_WEIGHT * (joints - true).norm(dim=-1).mean().item(), rel=1e-5)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("log_sigma", [math.log(.02), 0, 9])
def test_the_sft_loss_is_finite_at_the_bounds_of_sigma_and_far_from_the_truth(dtype, log_sigma):
    parameters = [torch.full((3, 1, 3), -50.0, dtype=dtype), torch.full((3, 1, 144), 1e3, dtype=dtype),
                  torch.full((3, 1, 144), log_sigma, dtype=dtype)]
    for image in (None, "an image"):
        loss = sft_loss(*(parameter.requires_grad_() for parameter in parameters), image)
        assert loss.isfinite() and all(g.isfinite().all() for g in torch.autograd.grad(loss, parameters))
