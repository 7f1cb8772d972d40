"""The field's protocols: metrics against hand-computed cases and independent code, and each from end to end."""

import json
import math
import sys

import numpy as np
import pytest
import torch
from torch.distributions import Independent, MultivariateNormal, Normal

import evaluate
import metrics
from body import axis_angle_to_matrix, body_vertices, load_body
from data import corpus, make_split
from model import PosePolicy
from poses import sample_poses
from rewards import Retriever
from test_formats import FORMATS, write
from tiny import build_tiny

BODY = load_body()
TRUE = sample_poses(6, np.random.default_rng(0))
BETAS = torch.from_numpy(np.random.default_rng(1).standard_normal((6, 10))).float()


def jolted(rotmats: torch.Tensor, amount: float, seed: int = 0) -> torch.Tensor:
    noise = torch.randn(*rotmats.shape[:-1], generator=torch.Generator().manual_seed(seed))
    return rotmats @ axis_angle_to_matrix(amount * noise)


OUT = {"mean": jolted(TRUE, .2), "samples": jolted(TRUE[:, None].expand(-1, 25, -1, -1, -1), .3, 1)}


def procrustes(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """x moved onto y by the similarity of least squares, by Kabsch's and Horn's formulas, one point set at a time."""
    x0, y0 = x - x.mean(0), y - y.mean(0)
    u, s, vt = np.linalg.svd(y0.T @ x0)
    d = np.diag([1, 1, np.sign(np.linalg.det(u) * np.linalg.det(vt))])
    scale = np.trace(np.diag(s) @ d) / (x0 ** 2).sum()
    return scale * x0 @ (u @ d @ vt).T + y.mean(0)


def test_procrustes_is_that_of_others():
    rng = np.random.default_rng(3)
    x, y = rng.standard_normal((2, 20, 24, 3))
    ours = metrics.similarity_fit(torch.from_numpy(x), torch.from_numpy(y)).numpy()
    np.testing.assert_allclose(ours, [procrustes(a, b) for a, b in zip(x, y)], atol=1e-10)


def test_procrustes_is_that_of_scipy():
    spatial = pytest.importorskip("scipy.spatial")
    rng = np.random.default_rng(4)
    for x, y in rng.standard_normal((20, 2, 24, 3)):
        fit = metrics.similarity_fit(torch.from_numpy(x), torch.from_numpy(y)).numpy()
        _, _, disparity = spatial.procrustes(y, x)  # the squared distance, y of unit size; it may reflect
        if np.linalg.det(np.linalg.svd(x.T @ y)[0] @ np.linalg.svd(x.T @ y)[2]) > 0:
            assert ((fit - y) ** 2).sum() / ((y - y.mean(0)) ** 2).sum() == pytest.approx(disparity)


def test_24_joints_by_hand():
    got = metrics.errors_24(OUT, TRUE, BETAS, BODY)
    for i in range(6):
        (vertices, joints), (true_vertices, true_joints) = (
            [x[0].numpy() for x in body_vertices(BODY, rotmats[i:i + 1], BETAS[i:i + 1])] for rotmats in (OUT["mean"], TRUE))
        by_hand = np.mean([math.dist(a - joints[0], b - true_joints[0]) for a, b in zip(joints, true_joints)])
        assert got["mpjpe"][i] == pytest.approx(1000 * by_hand, rel=1e-4)
        assert got["pve"][i] == pytest.approx(1000 * np.mean([math.dist(a, b) for a, b in zip(vertices, true_vertices)]),
                                              rel=1e-4)
        fit = procrustes(joints.astype(float), true_joints.astype(float))
        assert got["pa_mpjpe"][i] == pytest.approx(1000 * np.linalg.norm(fit - true_joints, axis=1).mean(), rel=1e-3)
    perfect = metrics.errors_24({"mean": TRUE, "samples": TRUE[:, None]}, TRUE, BETAS, BODY)
    assert all(value.max() < .05 for value in perfect.values())


def test_14_joints_are_picked_and_rooted_as_3dpw_is():
    """A regressor that takes one vertex for each joint: the errors are distances of those vertices."""
    V = len(BODY.v_template)
    places = np.random.default_rng(5).choice(V, 17, replace=False)
    regressor = torch.zeros(17, V)
    regressor[range(17), places] = 1
    got = metrics.errors_14(OUT, TRUE, BETAS, BODY, regressor)
    vertices, true_vertices = (body_vertices(BODY, rotmats, BETAS)[0].numpy() for rotmats in (OUT["mean"], TRUE))
    for i in range(6):
        a, b = (v[i][places] - v[i][places[0]] for v in (vertices, true_vertices))
        picked = [6, 5, 4, 1, 2, 3, 16, 15, 14, 11, 12, 13, 8, 10]
        assert got["mpjpe"][i] == pytest.approx(1000 * np.linalg.norm(a[picked] - b[picked], axis=1).mean(), rel=1e-4)
    with pytest.raises(ValueError, match="regressor must be .17, "):
        metrics.errors_14(OUT, TRUE, BETAS, BODY, torch.zeros(17, 6890))


def test_best_of_n_is_the_least_of_the_first_n():
    got = metrics.best_of(OUT, TRUE, BETAS, BODY)
    each = torch.stack([metrics.errors_24({"mean": OUT["samples"][:, k], "samples": TRUE[:, None]}, TRUE, BETAS, BODY)[
        "mpjpe"] for k in range(25)], 1)
    for n in (1, 5, 10, 25):
        torch.testing.assert_close(got[f"best_of_{n}"], each[:, :n].amin(1), rtol=1e-3, atol=.01)
        torch.testing.assert_close(got[f"mean_of_{n}"], each[:, :n].mean(1), rtol=1e-3, atol=.01)


def test_recall_in_pools_by_counting():
    rng = np.random.default_rng(6)
    texts, poses = (torch.nn.functional.normalize(torch.from_numpy(rng.standard_normal((12, 3))).float(), dim=-1)
                    for _ in range(2))
    got = metrics.retrieval(texts, poses, seed=7, pool=4, repeats=3)
    rng, hits = np.random.default_rng(7), {"t2p": [], "p2t": []}
    for _ in range(3):
        order = rng.permutation(12)
        for start in (0, 4, 8):
            rows = order[start:start + 4]
            for i in rows:
                own = float(texts[i] @ poses[i])
                hits["t2p"].append(sum(float(texts[i] @ poses[j]) > own for j in rows))
                hits["p2t"].append(sum(float(texts[j] @ poses[i]) > own for j in rows))
    for way in hits:
        assert got[f"pools_{way}_r1"] == pytest.approx(np.mean([rank < 1 for rank in hits[way]]))
        assert got[f"pools_{way}_r5"] == 1
    assert [got[f"r_precision_{k}"] for k in (1, 2, 3)] == pytest.approx(
        [np.mean([rank < k for rank in hits["t2p"]]) for k in (1, 2, 3)])
    assert got["full_mrecall"] == pytest.approx(np.mean([got[f"full_{way}_r{k}"] for way in hits for k in (1, 5, 10)]))


@pytest.mark.parametrize("share, degrees, value", [  # of tables
    (.5, 2, 1.386294), (.9, 2, 4.605170), (.95, 1, 3.841459), (.9, 10, 15.987179), (.5, 100, 99.334129)])
def test_quantiles_of_chi_square(share, degrees, value):
    assert metrics.chi_square_quantile(share, degrees) == pytest.approx(value, rel=1e-6)


@pytest.mark.parametrize("kind", ["diag", "full"])
def test_a_gaussian_that_tells_the_truth_is_found_calibrated_and_one_that_boasts_is_not(kind):
    torch.manual_seed(0)
    N, D = 4000, 6
    mean, L = torch.randn(N, D), torch.tril(torch.randn(D, D)) + 2 * torch.eye(D)
    if kind == "diag":
        L = torch.diag(torch.rand(D) + .5)
    true = mean + torch.randn(N, D) @ L.T
    make = lambda factor: (Independent(Normal(mean, factor * L.diagonal().expand(N, D)), 1) if kind == "diag" else
                           MultivariateNormal(mean, scale_tril=factor * L.expand(N, D, D)))
    honest, boasting = metrics.calibration(make(1.0), true), metrics.calibration(make(.5), true)
    for share in (50, 90):
        error = (share / 100 * (1 - share / 100) / N) ** .5
        assert honest[f"inside_{share}"].mean().item() == pytest.approx(share / 100, abs=4 * error)
        assert boasting[f"inside_{share}"].mean() < share / 100 - .2
    assert honest["nll"].mean() < boasting["nll"].mean()
    np.testing.assert_allclose(np.histogram(honest["pit"].numpy(), 10, (0, 1))[0] / honest["pit"].numel(), .1, atol=.01)


def test_the_bootstrap_covers_the_mean_as_often_as_it_says():
    rng = np.random.default_rng(8)
    draws = rng.exponential(size=(300, 80))
    low, high = np.array([metrics.bootstrap(row, i, 300) for i, row in enumerate(draws)]).T
    assert .88 < ((low < 1) & (1 < high)).mean() < .98
    assert metrics.bootstrap(np.ones(5)) == (1, 1) and metrics.bootstrap(draws[0]) == metrics.bootstrap(draws[0])


# ---------------------------------------------------------------- from end to end

@pytest.fixture(scope="module")
def policies(tmp_path_factory):
    """Two small random policies, a judge and a retrieval model that rewards, in a run's layout."""
    folder = tmp_path_factory.mktemp("run")
    rng = np.random.default_rng(0)
    split = make_split(sample_poses(8, rng), rng)
    for i, name in enumerate(("rft", "sft")):
        torch.manual_seed(i)
        policy = PosePolicy(*build_tiny(corpus(split, 30, np.random.default_rng(0)), hidden_size=32))
        torch.nn.init.normal_(policy.pose_head.mean.weight, std=.2)
        policy.save_pretrained(folder / name)
    for name in ("judge", "reward"):
        Retriever(policy.tokenizer.backend_tokenizer).save_pretrained(folder / name)
    return folder


def call(monkeypatch, policies, *arguments) -> None:
    monkeypatch.setattr(sys, "argv", ["evaluate.py", "--model", str(policies / "rft"), "--eval_poses", "12", "--device",
                                      "cpu", *map(str, arguments)])
    evaluate.main()


@pytest.mark.parametrize("protocol", ["smpl-24", "best-of-n", "calibration", "posescript"])
def test_a_protocol_on_the_built_in_world(protocol, policies, monkeypatch, tmp_path, capsys):
    more = ("--plot", tmp_path / "pit.png") if protocol == "calibration" else ()
    call(monkeypatch, policies, "--protocol", protocol, "--against", policies / "sft", "--json", tmp_path / "m.json", *more)
    printed, got = capsys.readouterr().out, json.loads((tmp_path / "m.json").read_text())
    assert f"{protocol}: {evaluate.PROTOCOLS[protocol][1]}" in printed and "N = 12, seed 0" in printed
    assert got["n"] == 12 and got["protocol"] == protocol
    for name, row in got.items():
        if isinstance(row, dict):
            assert list(row["each"]) == [str(i) for i in range(12)]
            assert row["mean"] == pytest.approx(np.mean(list(row["each"].values())))
            low, high = row["interval"]
            assert low <= row["mean"] <= high and f"{row['mean']:.3f}" in printed
            low, high = row["against"]["interval"]
            assert low - 1e-6 <= row["against"]["difference"] <= high + 1e-6 and 0 <= row["against"]["lower_in"] <= 1
    if more:
        assert more[1].stat().st_size > 5_000
    if protocol == "posescript":
        assert {"full_t2p_r5", "pools_p2t_r10", "true_full_t2p_r1", "shuffled_full_mrecall", "r_precision_3", "fid"} <= got.keys()


def test_a_policy_against_itself_is_no_better(policies, monkeypatch, tmp_path):
    call(monkeypatch, policies, "--protocol", "smpl-24", "--against", policies / "rft", "--json", tmp_path / "m.json")
    row = json.loads((tmp_path / "m.json").read_text())["mpjpe"]["against"]
    assert row["difference"] == 0 and row["interval"] == [0, 0] and row["lower_in"] == 0


@pytest.mark.parametrize("name, protocol", [("3dpw", "smpl-24"), ("3dpw", "3dpw-14"), ("rpe", "rpe"), ("spin", "smpl-24"),
                                            ("posescript", "posescript")])
def test_a_protocol_on_real_layouts(name, protocol, policies, monkeypatch, tmp_path, capsys):
    make, spec = FORMATS[name]
    write(tmp_path, make())
    monkeypatch.chdir(tmp_path)
    np.save("h36m.npy", np.random.default_rng(0).random((17, len(BODY.v_template))))
    call(monkeypatch, policies, "--protocol", protocol, "--data", spec, "--json", "m.json", "--regressor", "h36m.npy")
    got = json.loads((tmp_path / "m.json").read_text())
    assert got["data"] == [spec] and got["n"] >= 1 and spec in capsys.readouterr().out
    if name == "rpe":
        assert list(got["mpjpe"]["each"]) == ["000000", "000001"]  # by id, not by the image's name


@pytest.mark.parametrize("arguments, told", [
    (["--protocol", "banana"], "choose from smpl-24"), (["--protocol", "rpe"], "give --data rpe:"),
    (["--protocol", "3dpw-14"], "3dpw-14 needs J_regressor"), (["--protocol", "smpl-24", "--plot", "x.png"], "--plot draws"),
    (["--against", "x"], "need a --protocol"), (["--protocol", "smpl-24", "--against", "nowhere"], "holds no policy"),
    (["--protocol", "smpl-24", "--data", "llava:talk.json,img"], "")])
def test_what_cannot_be_done_is_said(arguments, told, policies, monkeypatch):
    with pytest.raises((ValueError, FileNotFoundError), match=told):
        call(monkeypatch, policies, *arguments)


def test_the_retrieval_model_that_rewards_may_not_judge(policies, monkeypatch, tmp_path):
    with pytest.raises(ValueError, match="gave the rewards"):
        call(monkeypatch, policies, "--protocol", "posescript", "--judge", policies / "reward")
    Retriever.from_pretrained(policies / "judge").save_pretrained(policies / "copy")
    Retriever.from_pretrained(policies / "reward").save_pretrained(policies / "judge")  # a copy under another name
    with pytest.raises(ValueError, match="gave the rewards"):
        call(monkeypatch, policies, "--protocol", "posescript")
    Retriever.from_pretrained(policies / "copy").save_pretrained(policies / "judge")
