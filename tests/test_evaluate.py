"""Metrics against hand-computed cases and independent implementations."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

import captions
import evaluate
from body import axis_angle_to_matrix, forward_kinematics, remove_heading
from builtin.poses import sample_poses
from builtin.retriever import Retriever
from builtin.tiny import build_tiny
from builtin.splits import make_split
from builtin.tiny import corpus
from lab import floors, metrics
from lab.table import ROWS, table
from model import PosePolicy
from real.smpl import body_vertices, load_body

JOINTS = forward_kinematics(sample_poses(20, np.random.default_rng(0)))[0].double()


def test_mpjpe_by_hand():
    moved = JOINTS.clone()
    moved[:, 5] += torch.tensor([.03, .04, 0])  # one joint of 24 by 50 mm
    torch.testing.assert_close(metrics.mpjpe(moved + 7, JOINTS), torch.full((20,), 50 / 24, dtype=torch.float64))


def test_pa_mpjpe_undoes_similarities_but_not_mirrors():
    turn = axis_angle_to_matrix(torch.tensor([[.5, -1.2, 2.0]], dtype=torch.float64))
    similar = 1.7 * JOINTS @ turn.mT + torch.tensor([.3, -.2, 5])
    assert metrics.pa_mpjpe(similar, JOINTS).max() < 1e-6
    assert metrics.pa_mpjpe(similar * torch.tensor([-1.0, 1, 1]), JOINTS).mean() > 20


def test_pa_mpjpe_is_taken_at_the_least_squares_fit():
    """No small turn, scale or shift away from the fit brings the points nearer in the squared sense."""
    x, y = (j - j.mean(-2, keepdim=True) for j in (JOINTS.roll(1, 0), JOINTS))
    fit = metrics.similarity_fit(x, y)
    best = (fit - y).square().sum((-1, -2))
    g = torch.Generator().manual_seed(0)
    for _ in range(20):
        turn = axis_angle_to_matrix(.05 * torch.randn(20, 3, generator=g, dtype=torch.float64))
        other = (1 + .05 * torch.randn(20, 1, 1, generator=g)) * fit @ turn + .01 * torch.randn(20, 1, 3, generator=g)
        assert ((other - y).square().sum((-1, -2)) >= best).all()


def test_recall_by_hand():
    texts = torch.eye(30)
    poses = texts.roll(1, 0)  # text i is nearest to pose i + 1; its own pose is one of 29 equals
    perfect, wrong = metrics.recall(texts, texts), metrics.recall(texts, poses)
    assert all(value == 1 for value in perfect.values())
    assert wrong["t2p_r1"] == 0 and wrong["p2t_r1"] == 0
    a = torch.tensor([[1.0, 0], [0, 1], [.6, .8]])
    b = torch.tensor([[.8, .6], [1.0, 0], [0, 1]])
    # Cosines of text 0: .8, 1, 0 (own: rank 1); text 1: .6, 0, 1 (own: rank 2); text 2: .96, .6, .8 (own: rank 1).
    assert metrics.recall(a, b)["t2p_r1"] == 0 and metrics.recall(a, b)["t2p_r5"] == 1


def test_a_pose_that_is_not_finite_is_not_found():
    similarity = torch.eye(6)
    similarity[:, 2] = torch.nan  # of pose 2 with every text
    found = metrics.hits(similarity, (1, 5))
    assert [found[f"t2p_r{k}"][2].item() for k in (1, 5)] == [found[f"p2t_r{k}"][2].item() for k in (1, 5)] == [0, 0]
    assert found["t2p_r1"].sum() == found["p2t_r1"].sum() == 5
    assert np.isnan(metrics.frechet_distance(similarity, torch.eye(6)))


def test_frechet_interval_is_as_wide_as_the_distance_varies():
    g = torch.Generator().manual_seed(0)
    draws = [(torch.randn(500, 3, generator=g), 2 * torch.randn(500, 3, generator=g)) for _ in range(60)]
    low, high = np.array([metrics.frechet_interval(*draw) for draw in draws]).T
    spread = np.std([metrics.frechet_distance(*draw) for draw in draws])
    assert (high - low).mean() == pytest.approx(2 * 1.96 * spread, rel=.2)
    assert ((low < 3) & (3 < high)).mean() > .85  # the true distance


class OnApple(torch.Tensor):
    """A tensor that, as on Apple's GPUs, cannot be float64 before it is moved to the CPU."""
    @classmethod
    def __torch_function__(cls, function, types, args=(), kwargs=None):
        made = super().__torch_function__(function, types, args, kwargs or {})
        if function is torch.Tensor.cpu:
            return made.as_subclass(torch.Tensor)
        if torch.is_tensor(made) and made.dtype == torch.float64:
            raise TypeError("Cannot convert a MPS Tensor to float64 dtype")
        return made


def test_measures_in_float64_are_taken_on_the_cpu():
    rng, g = np.random.default_rng(0), torch.Generator().manual_seed(0)
    split, x, y = make_split(sample_poses(9, rng), rng, images=False), *torch.randn(2, 30, 4, generator=g)
    examples = metrics.eval_examples(split, "text2pose", 9)
    for measure in (lambda there: metrics.frechet_interval(there(x), there(y)),
                    lambda there: metrics.statements_held(examples, there(split.rotmats[:, None])),
                    lambda there: floors.ridge(there(x), there(y), there(x[:5])).numpy(force=True)):
        here, there = (np.stack(measure(place)) for place in (lambda x: x, lambda x: x.as_subclass(OnApple)))
        np.testing.assert_array_equal(here, there)


def test_own_statements_beside_those_of_others():
    """By the definition: pairs of a caption and a pose, one by one."""
    rng = np.random.default_rng(3)
    split = make_split(sample_poses(9, rng), rng, images=False)
    examples = metrics.eval_examples(split, "text2pose", 9)
    examples[4].statements = ()  # says nothing that can be measured
    denied = list(captions.parse("left elbow slightly bent, left elbow bent, left elbow sharply bent"))
    examples[5].statements = captions.parse("The left elbow is not bent.")
    poses = sample_poses(18, rng).view(9, 2, 24, 3, 3)
    own, others = metrics.statements_held(examples, poses)
    def share(i, j):
        holds = captions.pose_holds(poses[j])
        if i == 5:
            return (~holds[:, denied].any(1)).double().mean().item()
        return holds[:, list(examples[i].statements)].double().mean().item()

    kept = [i for i in range(9) if i != 4]
    np.testing.assert_allclose(own, [share(i, i) for i in kept])
    np.testing.assert_allclose(others, [np.mean([share(j, i) for j in kept if j != i]) for i in kept])


def test_who_does_not_look_earns_nothing_by_descriptions():
    rng = np.random.default_rng(4)
    examples = metrics.eval_examples(make_split(sample_poses(60, rng), rng), "image2text", 60)
    score = lambda answers: metrics.description_scores(examples, answers)["informed"]
    everything = ". ".join(s.key for s in captions.STATEMENTS)
    for blind in ("The person is standing.", "", everything, "The left knee is bent. The hands are together."):
        assert score([blind] * 60).mean() == pytest.approx(0, abs=1e-12)
    assert (metrics.description_scores(examples, [""] * 60)["statements_held"] == 0).all()
    truth = [e.answer for e in examples]
    assert score(truth).mean() == pytest.approx(1) and abs(score(truth[1:] + truth[:1]).mean()) < .2
    half = [a if i % 2 else "The person is standing." for i, a in enumerate(truth)]
    assert .3 < score(half).mean() < .7
    assert (score([f"{a} {everything}" for a in truth]) < .25).all()  # a list of guesses besides does not pay


def test_floors_look_at_nothing_but_the_training_poses():
    rng = np.random.default_rng(5)
    train, split = (make_split(sample_poses(n, rng), rng) for n in (80, 20))
    vlm, processor, encoder = build_tiny(corpus(train, 20, rng))
    policy, judge = PosePolicy(vlm, processor, encoder), Retriever(processor.tokenizer.backend_tokenizer).eval()
    got = floors.floors(policy, train, split, judge, load_body(), 20)
    examples = metrics.eval_examples(split, "text2pose", 20)
    held = [metrics.statements_held(examples, pose.expand(20, 1, -1, -1, -1))[0].mean() for pose in train.rotmats]
    assert np.mean(held) < got["text2pose"]["statements_sampled"] <= max(held)
    assert got["text2pose"]["judge_r5"] == pytest.approx(5 / 20) and got["fid_true"] > 0
    assert got["description"]["statements_held"] == split.holds[:, train.holds.mean(0).argmax()].mean()
    assert got["probe"].keys() == got["image2pose"].keys() and got["image2pose"]["mpjpe_mean"] > 150
    train.images = None
    assert "probe" not in floors.floors(policy, train, split, judge, load_body(), 20)


def test_the_linear_probe_is_a_penalised_least_squares_fit():
    g = torch.Generator().manual_seed(0)
    x, y = torch.randn(50, 4, generator=g) + 3, torch.randn(50, 2, generator=g)
    centred = (x - x.mean(0)).double()
    penalty = floors.RIDGE * (centred.T @ centred).diagonal().mean()
    rows = torch.cat([centred, penalty.sqrt() * torch.eye(4)])
    weight = torch.linalg.lstsq(rows, torch.cat([(y - y.mean(0)).double(), torch.zeros(4, 2)])).solution
    torch.testing.assert_close(floors.ridge(x, y, x[:5]), (y.mean(0) + centred[:5] @ weight).float())
    torch.testing.assert_close(floors.ridge(x[:1], y[:1], x[:5]), y[:1].expand(5, -1).float())


def test_frechet_distance_of_known_gaussians():
    g = torch.Generator().manual_seed(0)
    a = torch.randn(200_000, 3, generator=g, dtype=torch.float64)
    b = torch.randn(200_000, 3, generator=g, dtype=torch.float64) * 2 + torch.tensor([1.0, 0, 0])
    assert metrics.frechet_distance(a, a) == pytest.approx(0, abs=1e-6)
    assert metrics.frechet_distance(a, b) == pytest.approx(1 + 3, rel=.02)  # |shift|^2 + 3 (2 - 1)^2


def test_commonest_answer():
    examples = [SimpleNamespace(prompt=p, answer=a) for p, a in
                [("q", "x"), ("q", "x"), ("q", "y"), ("r", "z"), ("r", "w")]]
    assert metrics.commonest_answer_accuracy(examples) == pytest.approx(3 / 5)


def test_each_number_is_of_the_poses_and_the_words_that_it_names(monkeypatch):
    """The mean pose is true where an image is asked of, else a stranger's; all samples are strangers', the first one with
    another heading; one question of four is answered wrongly, and every image in a wrong form."""
    rng = np.random.default_rng(1)
    split = make_split(sample_poses(12, rng), rng)
    judge = Retriever(build_tiny(corpus(split, 20, rng))[1].tokenizer.backend_tokenizer).eval()
    others, asked, was = remove_heading(sample_poses(12 * 17, rng)).view(12, 17, 24, 3, 3), {}, []
    body = load_body()

    def known(policy, examples, samples, seed=0, greedy=False):
        true = torch.stack([e.rotmats for e in examples])
        asked[examples[0].task] = samples, greedy
        drawn = others[:, 1:samples + 1].repeat(len(true) // 12, 1, 1, 1, 1)
        drawn[:, 0, 0] = axis_angle_to_matrix(torch.tensor([0, 1.1, 0])) @ drawn[:, 0, 0]
        truths = [e.answer for e in examples]
        words = ["Nothing" if e.task == "image2pose" or (e.task == "vqa" and i % 4 == 0) else e.answer
                 for i, e in enumerate(examples)]
        mean = others[:, 0] if examples[0].task == "text2pose" else true
        return {"answers": words, "truths": truths, "mean": mean, "samples": drawn}
    monkeypatch.setattr(evaluate, "respond", known)
    policy = SimpleNamespace(eval=lambda: was.append("eval"), device=torch.device("cpu"))
    with torch.no_grad():
        got = evaluate.evaluate(policy, split, judge, body, 12)
        examples = metrics.eval_examples(split, "text2pose", 12)
        texts, truth = judge.encode_text([e.caption for e in examples]), judge.encode_pose(split.rotmats)
        judged = judge.encode_pose(others[:, 1])
    text, image, drawn = got["text2pose"], got["image2pose"], others[:, 1:9]
    own, strangers = metrics.statements_held(examples, drawn)
    shuffled = metrics.statements_held(examples, split.rotmats.roll(1, 0)[:, None])[0]
    assert text["statements_mean"] == pytest.approx(metrics.statements_held(examples, others[:, :1])[0].mean())
    assert text["statements_sampled"] == pytest.approx(own.mean()) and own.mean() < 1
    assert text["own_minus_others"] == pytest.approx((own - strangers).mean())
    assert text["statements_shuffled"] == pytest.approx(shuffled.mean())
    assert text["judge"] == pytest.approx(metrics.recall(texts, judged))
    assert text["judge_ceiling"] == pytest.approx(metrics.recall(texts, truth))
    assert text["judge_floor"] == pytest.approx(metrics.recall(texts, judged.roll(1, 0)))
    assert text["fid"] == pytest.approx(metrics.frechet_distance(judged, truth), rel=1e-3)
    joints = forward_kinematics(drawn)[0]
    apart = [(joints[n, a] - joints[n, b]).norm(dim=-1).mean() for n in range(12) for a in range(8) for b in range(a)]
    assert text["diversity_mm"] == pytest.approx(1000 * np.mean(apart), rel=1e-3)
    out = known(None, metrics.eval_examples(split, "image2pose", 12), 16)
    true = body_vertices(body, out["mean"], split.betas)[1]
    each = [body_vertices(body, out["samples"][:, k], split.betas)[1] for k in range(16)]
    for name, measure in (("mpjpe_sampled", metrics.mpjpe), ("pa_mpjpe_sampled", metrics.pa_mpjpe)):
        errors = torch.stack([measure(joints, true) for joints in each])  # (16, 12)
        assert image[name] == pytest.approx(errors.mean().item(), rel=1e-4) and errors.std() > 10
    assert image["mpjpe_mean"] == pytest.approx(0, abs=1e-3)
    assert got["vqa_accuracy"] == .75 and got["format_rate"] == pytest.approx((1 + 0 + 1 + .75) / 4)
    assert asked == {"text2pose": (8, False), "image2pose": (16, False), "image2text": (1, False), "vqa": (1, True)}
    assert was == ["eval"]


@pytest.mark.parametrize("greedy", (False, True))
def test_answers_do_not_depend_on_how_many_are_given_at_once(greedy, monkeypatch):
    torch.manual_seed(0)
    rng = np.random.default_rng(0)
    split = make_split(sample_poses(5, rng), rng, images=False)
    policy = PosePolicy(*build_tiny(corpus(split, 30, rng), hidden_size=32, layers=1)).eval()
    policy.vlm.get_output_embeddings().register_forward_hook(  # <POSE> half of the time
        lambda module, inputs, logits: logits.index_fill(-1, torch.tensor([policy.pose_id]), 4.0))
    examples, found = metrics.eval_examples(split, "text2pose", 5), []
    for chunk in (100, 2):
        monkeypatch.setattr(metrics, "CHUNK", chunk)
        found.append(metrics.respond(policy, examples, 2, 3, greedy))
    whole, parts = found
    assert whole["answers"] == parts["answers"] and len(set(whole["answers"])) == (1 if greedy else 5)
    torch.testing.assert_close(whole["samples"], parts["samples"], atol=1e-4, rtol=1e-4)


def test_the_bootstrap_interval_is_that_of_a_mean_of_many():
    values = np.random.default_rng(0).normal(3, 2, 400)
    low, high = metrics.bootstrap(values)
    error = 1.96 * values.std() / 20
    assert low == pytest.approx(values.mean() - error, abs=.1 * error)
    assert high == pytest.approx(values.mean() + error, abs=.1 * error)


def test_who_answers_with_the_truth_has_full_marks(monkeypatch):
    """True words and true poses: each statement holds, each error is zero, each sample is the same."""
    rng = np.random.default_rng(1)
    split = make_split(sample_poses(12, rng), rng)
    judge = Retriever(build_tiny(corpus(split, 20, rng))[1].tokenizer.backend_tokenizer).eval()
    said = []

    def truth(policy, examples, samples, seed=0, greedy=False):
        said.extend(len(e.statements) for e in examples if e.task == "image2text")
        rotmats = torch.stack([e.rotmats for e in examples])
        words = [e.answer for e in examples]
        return {"answers": words, "truths": words, "mean": rotmats,
                "samples": rotmats[:, None].expand(-1, samples, -1, -1, -1)}
    monkeypatch.setattr(evaluate, "respond", truth)
    policy = SimpleNamespace(eval=lambda: None, device=torch.device("cpu"))
    with torch.no_grad():
        got = evaluate.evaluate(policy, split, judge, load_body(), 12)
    text, image = got["text2pose"], got["image2pose"]
    assert text["statements_sampled"] == text["statements_mean"] == 1 > text["statements_shuffled"]
    assert text["judge"] == text["judge_ceiling"] and text["diversity_mm"] == pytest.approx(0, abs=1e-3)
    assert max(image[name] for name in ("mpjpe_mean", "mpjpe_sampled", "pa_mpjpe_mean", "pve_mean")) < .1
    assert got["description"] == pytest.approx({"statements_held": 1, "statements_made": np.mean(said), "informed": 1})
    assert {keys[-1] for _, keys in ROWS} <= got["intervals"].keys()
    assert all(low <= high for low, high in got["intervals"].values())
    blind = floors.floors(policy, make_split(sample_poses(30, rng), rng, images=False), split, judge, load_body(), 12)
    lines = table({"blind": blind, "SFT": got}).splitlines()
    assert sum("-" in line.split() for line in lines) == 3  # FID, diversity and form have no blind guess
    assert got["vqa_accuracy"] == got["format_rate"] == 1 and got["n"] == 12
