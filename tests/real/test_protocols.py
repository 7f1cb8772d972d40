"""The field's protocols: metrics against hand-computed cases and independent code, and each from end to end."""

import json
import math
import sys

import numpy as np
import pytest
import torch
from torch.distributions import Independent, MultivariateNormal, Normal

import evaluate
from engine.saving import load_policy, save_policy
from real import formats
from lab import metrics
from real import protocols
from body import axis_angle_to_matrix
from real.smpl import body_vertices, load_body
from builtin.splits import make_split
from builtin.tiny import corpus
from model import PosePolicy
from builtin.poses import sample_poses
from builtin.retriever import Retriever
from test_formats import CAMERA, FORMATS, posescript, rpe, threedpw, write
from builtin.tiny import build_tiny

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
    transform = pytest.importorskip("scipy.spatial.transform")
    rng, mirrors = np.random.default_rng(4), 0
    for x, y in rng.standard_normal((40, 2, 24, 3)):
        x0, y0 = x - x.mean(0), y - y.mean(0)
        turned = transform.Rotation.align_vectors(y0, x0)[0].apply(x0)  # never a reflection
        best = (turned * y0).sum() / (x0 ** 2).sum() * turned + y.mean(0)
        fit = metrics.similarity_fit(torch.from_numpy(x), torch.from_numpy(y)).numpy()
        np.testing.assert_allclose(fit, best, atol=1e-10)
        mirrors += np.linalg.det(x0.T @ y0) < 0
    assert 5 < mirrors < 35  # with and without the reflection that must not be


def test_24_joints_by_hand():
    got = metrics.errors_24(OUT, TRUE, BETAS, BODY)
    for i in range(6):
        (vertices, joints), (true_vertices, true_joints) = (
            [x[0].numpy() for x in body_vertices(BODY, rotmats[i:i + 1], BETAS[i:i + 1])]
            for rotmats in (OUT["mean"], TRUE))
        by_hand = np.mean([math.dist(a - joints[0], b - true_joints[0]) for a, b in zip(joints, true_joints)])
        assert got["mpjpe_mean"][i] == pytest.approx(1000 * by_hand, rel=1e-4)
        apart = [math.dist(a, b) for a, b in zip(vertices, true_vertices)]
        assert got["pve_mean"][i] == pytest.approx(1000 * np.mean(apart), rel=1e-4)
        fit = procrustes(joints.astype(float), true_joints.astype(float))
        assert got["pa_mpjpe_mean"][i] == pytest.approx(1000 * np.linalg.norm(fit - true_joints, axis=1).mean(), rel=1e-3)
    perfect = metrics.errors_24({"mean": TRUE, "samples": TRUE[:, None]}, TRUE, BETAS, BODY)
    assert all(value.max() < .05 for value in perfect.values())


def test_14_joints_are_picked_and_rooted_as_3dpw_is():
    """A regressor that takes one vertex for each joint: the errors are distances of those vertices."""
    V = len(BODY.v_template)
    places = np.random.default_rng(5).choice(V, 17, replace=False)
    regressor = torch.zeros(17, V)
    regressor[range(17), places] = 1
    got = protocols.errors_14(OUT, TRUE, BETAS, BODY, regressor)
    vertices, true_vertices = (body_vertices(BODY, rotmats, BETAS)[0].numpy() for rotmats in (OUT["mean"], TRUE))
    for i in range(6):
        a, b = (v[i][places] - v[i][places[0]] for v in (vertices, true_vertices))
        picked = [6, 5, 4, 1, 2, 3, 16, 15, 14, 11, 12, 13, 8, 10]
        assert got["mpjpe_mean"][i] == pytest.approx(1000 * np.linalg.norm(a[picked] - b[picked], axis=1).mean(), rel=1e-4)
    with pytest.raises(ValueError, match="regressor must be .17, "):
        protocols.errors_14(OUT, TRUE, BETAS, BODY, torch.zeros(17, 6890))


def test_best_of_n_is_the_least_of_the_first_n():
    got = metrics.best_of(OUT, TRUE, BETAS, BODY)
    each = torch.stack([metrics.errors_24({"mean": OUT["samples"][:, k], "samples": TRUE[:, None]}, TRUE, BETAS, BODY)[
        "mpjpe_mean"] for k in range(25)], 1)
    for n in (1, 5, 10, 25):
        torch.testing.assert_close(got[f"best_of_{n}"], each[:, :n].amin(1), rtol=1e-3, atol=.01)
        torch.testing.assert_close(got[f"mean_of_{n}"], each[:, :n].mean(1), rtol=1e-3, atol=.01)


def test_recall_in_pools_by_counting():
    rng = np.random.default_rng(6)
    texts, poses = (torch.nn.functional.normalize(torch.from_numpy(rng.standard_normal((12, 3))).float(), dim=-1)
                    for _ in range(2))
    each, got = protocols.retrieval(texts, poses, seed=7, pool=4, repeats=3)
    rng, hits = np.random.default_rng([7, 80]), {"t2p": [], "p2t": []}
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
    full = {name: value.mean().item() for name, value in each.items()}
    six = [full[f"full_{way}_r{k}"] for way in hits for k in (1, 5, 10)]
    assert full["full_mrecall"] == pytest.approx(np.mean(six))
    assert {name: full[f"full_{name}"] for name in metrics.recall(texts, poses)} == pytest.approx(
        metrics.recall(texts, poses))


def test_one_pose_for_all_sentences_finds_none_of_them():
    texts = torch.nn.functional.normalize(torch.randn(64, 8, generator=torch.Generator().manual_seed(0)), dim=-1)
    each, whole = protocols.retrieval(texts, texts[:1].expand(64, -1))
    assert each["full_t2p_r1"].mean() == pytest.approx(1 / 64) and each["full_t2p_r20"].mean() == pytest.approx(20 / 64)
    assert [whole[f"r_precision_{k}"] for k in (1, 2, 3)] == pytest.approx([1 / 32, 2 / 32, 3 / 32])


def test_hits_by_hand():
    """Row 1's own is second, column 0's own shares the first place with another."""
    similarity = torch.tensor([[.9, .1, .2], [.9, .5, .3], [.0, .1, .7]])
    got = metrics.hits(similarity, (1, 2))
    assert got["t2p_r1"].tolist() == [1, 0, 1] and got["t2p_r2"].tolist() == [1, 1, 1]
    assert got["p2t_r1"].tolist() == [.5, 1, 1] and got["p2t_r2"].tolist() == [1, 1, 1]


def test_two_policies_are_compared_in_pairs():
    got = metrics.compare(np.array([1.0, 2, 3, 10]), np.array([2.0, 3, 4, 10]))
    assert got["difference"] == -.75 and got["lower_in"] == .75 and got["higher_in"] == 0
    assert -1 <= got["interval"][0] < -.75 < got["interval"][1] <= 0  # far narrower than of unpaired values


@pytest.mark.parametrize("share, D, quantile", [  # of chi-square tables
    (50, 2, 1.386294), (90, 2, 4.605170), (90, 10, 15.987179), (50, 100, 99.334129)])
def test_a_region_ends_where_the_tables_of_chi_square_say(share, D, quantile):
    true = torch.zeros(2, D)
    true[:, 0] = 3 * (quantile * torch.tensor([1 - 1e-4, 1 + 1e-4])).sqrt()
    got = protocols.calibration(Independent(Normal(torch.zeros(2, D), torch.full((2, D), 3.0)), 1), true)
    assert got[f"inside_{share}"].tolist() == [1, 0]
    nats = .5 * quantile / D + np.log(3 * np.sqrt(2 * np.pi))
    np.testing.assert_allclose(got["nll"], nats, rtol=1e-4)


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
    honest, boasting = protocols.calibration(make(1.0), true), protocols.calibration(make(.5), true)
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
        save_policy(policy, folder / name)
    for name in ("judge", "reward"):
        Retriever(policy.tokenizer.backend_tokenizer).save_pretrained(folder / name)
    return folder


def call(monkeypatch, policies, *arguments) -> None:
    monkeypatch.setattr(sys, "argv", ["protocols.py", "--model", str(policies / "rft"), "--eval_poses", "12", "--device",
                                      "cpu", *map(str, arguments)])
    protocols.main()


@pytest.mark.parametrize("protocol", ["smpl-24", "best-of-n", "calibration", "posescript"])
def test_a_protocol_on_the_built_in_world(protocol, policies, monkeypatch, tmp_path, capsys):
    more = ("--plot", tmp_path / "pit.png") if protocol == "calibration" else ()
    call(monkeypatch, policies, "--protocol", protocol, "--against", policies / "sft", "--json", tmp_path / "m.json",
         *more)
    printed, got = capsys.readouterr().out, json.loads((tmp_path / "m.json").read_text())
    assert f"{protocol}: {protocols.PROTOCOLS[protocol][1]}" in printed and "N = 12, seed 0" in printed
    assert got["n"] == 12 and got["protocol"] == protocol
    for name, row in got.items():
        if isinstance(row, dict) and name != "against_whole":
            assert list(row["each"]) == [str(i) for i in range(12)]
            assert row["mean"] == pytest.approx(np.mean(list(row["each"].values())))
            low, high = row["interval"]
            assert low <= row["mean"] <= high and f"{row['mean']:.3f}" in printed
            low, high = row["against"]["interval"]
            assert low - 1e-6 <= row["against"]["difference"] <= high + 1e-6 and 0 <= row["against"]["lower_in"] <= 1
    if more:
        assert more[1].stat().st_size > 5_000
    if protocol == "posescript":
        names = {"pools_p2t_r10", "true_full_t2p_r1", "shuffled_full_mrecall", "r_precision_3", "fid"}
        assert names <= got.keys() and names <= got["against_whole"].keys() and "interval" in got["full_t2p_r5"]


def test_a_policy_against_itself_is_no_better(policies, monkeypatch, tmp_path):
    call(monkeypatch, policies, "--protocol", "smpl-24", "--against", policies / "rft", "--json", tmp_path / "m.json")
    row = json.loads((tmp_path / "m.json").read_text())["mpjpe_mean"]["against"]
    assert row["difference"] == 0 and row["interval"] == [0, 0] and row["lower_in"] == 0


@pytest.mark.parametrize("name, protocol", [("3dpw", "smpl-24"), ("3dpw", "3dpw-14"), ("rpe", "rpe"),
                                            ("spin", "smpl-24"), ("posescript", "posescript")])
def test_a_protocol_on_real_layouts(name, protocol, policies, monkeypatch, tmp_path, capsys):
    make, spec = FORMATS[name]
    write(tmp_path, make())
    monkeypatch.chdir(tmp_path)
    np.save("h36m.npy", np.random.default_rng(0).random((17, len(BODY.v_template))))
    call(monkeypatch, policies, "--protocol", protocol, "--data", spec, "--json", "m.json", "--regressor", "h36m.npy")
    got = json.loads((tmp_path / "m.json").read_text())
    assert got["data"] == [spec] and got["n"] >= 1 and spec in capsys.readouterr().out
    if name == "rpe":
        assert list(got["mpjpe_mean"]["each"]) == ["000000", "000001"]  # by id, not by the image's name
        assert list(got["predictions"]) == ["000000", "000001"]
        said = torch.tensor(got["predictions"]["000001"]).view(1, 72).numpy()
        back = formats._rotmats(said, 180.0)  # a loader of such files finds the pose that was measured
        true = formats._rotmats(CAMERA[None], 180.0)
        error = metrics.errors_24({"mean": back, "samples": back[:, None]}, true, torch.ones(1, 10), BODY)["mpjpe_mean"]
        assert error.item() == pytest.approx(got["mpjpe_mean"]["each"]["000001"], rel=1e-3)


@pytest.mark.parametrize("arguments, told", [
    (["--protocol", "banana"], "choose from smpl-24"), (["--protocol", "rpe"], "give --data rpe:"),
    (["--protocol", "3dpw-14"], "3dpw-14 needs J_regressor"),
    (["--protocol", "smpl-24", "--plot", "x.png"], "--plot draws"),
    (["--protocol", "smpl-24", "--poses", "mocap", "--data", "3dpw:DIR"], "--poses and --data .*: give one"),
    ([], "choose from smpl-24"), (["--protocol", "smpl-24", "--against", "nowhere"], "holds no policy"),
    (["--protocol", "smpl-24", "--data", "llava:talk.json,img"], "img is not a folder"),
    (["--protocol", "smpl-24", "--eval_poses", "0"], "must be 1 or more")])
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
    Retriever.from_pretrained(policies / "reward").save_pretrained(tmp_path / "elsewhere")  # far from the run
    with pytest.raises(ValueError, match="gave the rewards"):
        call(monkeypatch, policies, "--protocol", "posescript", "--judge", tmp_path / "elsewhere")


def on_files(monkeypatch, policies, folder, files: dict, *arguments) -> dict:
    write(folder, files)
    monkeypatch.chdir(folder)
    call(monkeypatch, policies, *arguments, "--json", "m.json")
    return json.loads((folder / "m.json").read_text())


@pytest.mark.parametrize("said", [1, 0])
def test_captions_that_say_nothing_measurable_stay_in_the_pool(said, policies, monkeypatch, tmp_path, capsys):
    files = posescript()
    files["ps/test_ids_100k.json"] = [7, 8]
    files["ps/posescript_auto_100k.json"] = {"8": "Somebody is there."}
    files["ps/posescript_human_6293.json"] = {"7": "The left hand is above the head." if said else "Nobody is there."}
    got = on_files(monkeypatch, policies, tmp_path, files, "--protocol", "posescript", "--data", "posescript:ps,AMASS")
    assert got["n"] == 2 == got["full_t2p_r1"]["n"]  # both captions are asked for and searched
    assert got["statements"]["n"] == 1 if said else "statements" not in got
    assert (" of 1" in capsys.readouterr().out) == bool(said) and "NaN" not in (tmp_path / "m.json").read_text()


def test_a_picture_at_fault_is_left_out_only_when_asked(policies, monkeypatch, tmp_path, capsys):
    files = threedpw() | {"imageFiles/walk_00/image_00000.jpg": b"no picture"}
    with pytest.raises(ValueError, match="cannot be used as an image"):
        on_files(monkeypatch, policies, tmp_path, files, "--protocol", "smpl-24", "--data", "3dpw:.")
    got = on_files(monkeypatch, policies, tmp_path, files, "--protocol", "smpl-24", "--data", "3dpw:.", "--skip_bad")
    assert got["n"] == 1 and list(got["mpjpe_mean"]["each"])[0].endswith("frame 1")
    assert "left out 1 when drawn" in capsys.readouterr().out
    files |= {"imageFiles/walk_00/image_00001.jpg": b"no picture"}
    with pytest.raises(ValueError, match="--data 3dpw:.: every row was left out"):
        on_files(monkeypatch, policies, tmp_path, files, "--protocol", "smpl-24", "--data", "3dpw:.", "--skip_bad")


def test_ids_must_be_unique(policies, monkeypatch, tmp_path):
    files = rpe()
    files["refine.json"][1]["id"] = files["refine.json"][0]["id"]
    with pytest.raises(ValueError, match="two rows have the id 000000"):
        on_files(monkeypatch, policies, tmp_path, files, "--protocol", "rpe", "--data", "rpe:refine.json,img")


def test_a_regressor_that_is_not_finite_is_refused(policies, monkeypatch, tmp_path):
    np.save(tmp_path / "h36m.npy", np.full((17, len(BODY.v_template)), np.nan))
    with pytest.raises(ValueError, match="h36m.npy.*NaN"):
        call(monkeypatch, policies, "--protocol", "3dpw-14", "--regressor", tmp_path / "h36m.npy")


def test_a_regressor_of_another_body_is_refused_before_anything_is_sampled(policies, monkeypatch, tmp_path):
    np.save(tmp_path / "h36m.npy", np.zeros((17, 6890)))
    monkeypatch.setattr(PosePolicy, "sample", lambda *_: pytest.fail("it was sampled"))
    with pytest.raises(ValueError, match=r"regressor must be \(17, .*found \(17, 6890\)"):
        call(monkeypatch, policies, "--protocol", "3dpw-14", "--regressor", tmp_path / "h36m.npy")


def test_nor_may_it_judge_in_evaluate(policies, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["evaluate.py", "--model", str(policies / "rft"), "--judge", str(policies / "reward")])
    with pytest.raises(ValueError, match="gave the rewards"):
        evaluate.main()


def test_part_of_the_rows_is_spread_over_all_of_them(policies, monkeypatch, tmp_path, capsys):
    make, spec = FORMATS["amass"]  # 3 frames
    write(tmp_path, make())
    monkeypatch.chdir(tmp_path)
    config = protocols.ProtocolConfig(data=[spec], eval_poses=2)
    policy = load_policy(policies / "rft")
    (ids, examples), = protocols.protocol_examples(config, policy, "text2pose")
    assert [name[-1] for name in ids] == ["0", "2"] and len(examples) == 2
    config.eval_poses = None
    (ids, _), = protocols.protocol_examples(config, policy, "text2pose")
    assert len(ids) == 3 and "2 of 3 text2pose rows" in capsys.readouterr().out


def test_chunks_change_neither_the_examples_nor_their_number(policies, monkeypatch, tmp_path):
    def ask(chunk: int) -> dict:
        monkeypatch.setattr(protocols, "CHUNK", chunk)
        call(monkeypatch, policies, "--protocol", "calibration", "--json", tmp_path / "m.json")  # no chance in it
        return json.loads((tmp_path / "m.json").read_text())["nll"]["each"]
    assert ask(5) == pytest.approx(ask(100), rel=1e-4)


def test_answers_without_a_pose_are_counted(policies, monkeypatch, tmp_path):
    truth = protocols.respond

    def mute(*args, **how):
        out = truth(*args, **how)
        return out | {"answers": ["I see nobody."] * 3 + ["It is <POSE>."] * 9}
    monkeypatch.setattr(protocols, "respond", mute)
    call(monkeypatch, policies, "--protocol", "smpl-24", "--json", tmp_path / "m.json")
    assert json.loads((tmp_path / "m.json").read_text())["no_pose"]["mean"] == pytest.approx(3 / 12)
