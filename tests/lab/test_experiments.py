"""The table of claims: comparisons over seeds, and a quick run of real arms that is kept and used again."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

import rewards
from engine.start_from import notes_of
from engine.world import WorldConfig
from lab import claims_table, experiments
from train_rft import RFTConfig
from train_sft import SFTConfig


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """The folder of all quick runs of this file: what arms of a seed share is made once, by whichever comes first."""
    return str(tmp_path_factory.mktemp("experiments") / "runs")


def results(**arms):
    """Results that hold one measure, `form`, seed by seed."""
    return {name: [{"format_rate": x} for x in values] for name, values in arms.items()}


def test_better_holds_only_when_every_seed_agrees():
    made = results(a=[.5, .6, .7], b=[.4, .5, .6], c=[.4, .5, .71])
    c = claims_table.compare(made, "a", "b", "form", ">")
    assert c["holds"] and c["better_in"] == 3 and np.allclose(c["mean"], [.6, .5]) and np.allclose(c["std"], .1)
    c = claims_table.compare(made, "a", "c", "form", ">")
    assert not c["holds"] and c["better_in"] == 2


def test_alike_means_within_the_spread_of_the_seeds():
    made = results(a=[.5, .6, .7], b=[.55, .6, .68], c=[.8, .9, 1.])
    assert claims_table.compare(made, "a", "b", "form", "~")["holds"]
    assert not claims_table.compare(made, "a", "c", "form", "~")["holds"]


def test_of_errors_less_is_better():
    made = {name: [{"image2pose": {"mpjpe_mean": x}} for x in values] for name, values in
            {"a": [90., 91.], "b": [95., 96.]}.items()}
    assert claims_table.compare(made, "a", "b", "MPJPE, mm", ">")["holds"]
    assert not claims_table.compare(made, "b", "a", "MPJPE, mm", ">")["holds"]


def test_every_arm_and_measure_that_a_claim_names_exists():
    for text, comparisons in experiments.CLAIMS.values():
        assert text
        for arm, other, measure, relation in comparisons:
            assert {arm, other} <= set(experiments.ARMS) and measure in experiments.MEASURES and relation in ">~"


@pytest.mark.parametrize("arm", [arm for arm, (_, changes) in experiments.ARMS.items() if isinstance(changes, dict)])
def test_every_arm_has_plain_advantages_and_the_weights_that_go_with_them_but_for_what_it_changes(arm):
    changes = experiments.ARMS[arm][1]
    config = RFTConfig(**experiments.arm_settings(changes))
    weights = rewards.weights(config.reward_weights, config.without)
    changed = dict(weight.split("=") for weight in changes.get("reward_weights", []))
    changed |= {changes["without"]: 0} if "without" in changes else {}
    assert config.focal_gamma == 0
    for name, weight in (rewards.weights() | {"joint": 2.0, "statements": 3.5}).items():
        assert weights[name] == float(changed.get(name, weight))
    assert all(getattr(config, name) == value for name, value in changes.items() if name != "reward_weights")


def test_a_quick_run_makes_table_json_and_figure_and_is_kept(short_answers, runs, tmp_path, monkeypatch, capsys):
    arguments = ["experiments.py", "--quick", "--seeds", "0", "--claims", "2", "3", "7", "--out", runs, "--json",
                 str(tmp_path / "claims.json"), "--figure", str(tmp_path / "claims.png")]
    monkeypatch.setattr("sys.argv", arguments)
    experiments.main()
    first = capsys.readouterr().out
    assert first.count("| ✓ |") + first.count("| ✗ |") == sum(len(experiments.CLAIMS[n][1]) for n in (2, 3, 7))
    assert all(f"(`--claims {number}`)" in first for number in (2, 3, 7))
    made = json.loads((tmp_path / "claims.json").read_text())
    assert made["seeds"] == [0] and {"sft", "sft continued", "no pose encoder, hygrpo"} <= set(made["arms"])
    sft, words = made["arms"]["sft"], made["arms"]["GRPO on words"]
    assert sft["seconds"][0] < words["seconds"][0]
    assert made["arms"]["sft continued"]["steps"] == [9] and made["arms"]["sft continued"]["prompts"] == [9 * 48]
    assert made["arms"]["hygrpo"]["steps"] == [4] and 4 <= made["arms"]["hygrpo"]["prompts"][0] <= 4 * 48
    assert "hygrpo, 25 steps" in made["arms"] and "Every arm of claim 7" in first
    assert sft["MPJPE, mm"] != made["arms"]["no pose encoder"]["MPJPE, mm"]
    assert (tmp_path / "claims.png").stat().st_size > 10_000
    def fail(*args, **kwargs):
        raise AssertionError("a finished arm was run again")
    monkeypatch.setattr(experiments, "train_rft", fail)
    monkeypatch.setattr(experiments, "train_sft", fail)
    experiments.main()
    assert capsys.readouterr().out == first


def test_poses_as_words_are_tried_and_kept_like_all_arms(short_answers, runs, tmp_path, monkeypatch, capsys):
    """In its quick form a few comparisons of claim 13, and what coding alone costs."""
    few = [("sft", "discrete", "form", ">"), ("hygrpo", "discrete, GRPO, equal time", "form", ">")]
    monkeypatch.setattr(experiments, "CLAIMS", {13: (experiments.CLAIMS[13][0], few)})
    start, changes = experiments.ARMS["discrete, GRPO"]
    for arm in ("discrete, GRPO", "discrete, GRPO, equal time"):
        monkeypatch.setitem(experiments.ARMS, arm, (start, changes | {"pose_prompts": 4, "pose_answers": 2}))
    monkeypatch.setattr("sys.argv", ["experiments.py", "--quick", "--seeds", "0", "--out", runs, "--json",
                                     str(tmp_path / "claims.json")])
    experiments.main()
    first, made = capsys.readouterr().out, json.loads((tmp_path / "claims.json").read_text())
    found, = made["quantisation"]
    assert 0 < found["MPJPE, mm"] < 200 and 0.3 < found["statements"] <= 1
    assert f"code words and back: MPJPE, mm {found['MPJPE, mm']:.3f} ± 0.000" in first
    assert made["arms"]["discrete"]["steps"] == [0]
    assert 1 <= made["arms"]["discrete, GRPO, equal time"]["steps"][0] <= 8
    assert made["arms"]["discrete"]["statements"] == [0]  # nothing was learned, and 16 words spell no pose
    assert set(json.loads((Path(runs) / "seed_0" / "discrete.json").read_text())) > {"quantisation", "text2pose"}
    monkeypatch.setattr(experiments, "train_rft", None)
    monkeypatch.setattr(experiments, "train_sft", None)
    experiments.main()
    assert capsys.readouterr().out == first


def test_a_claim_has_a_row_for_each_of_its_comparisons_and_says_how_many_hold():
    made = {7: [{"arm": "a", "other": "b", "measure": "form", "relation": ">", "holds": holds, "mean": [.5, .25],
                 "std": [0, .1], "better_in": 3, "seeds": 3} for holds in (True, False)]}
    table = claims_table.table(made)
    assert "1 of 2 comparisons hold (`--claims 7`)." in table
    assert "| form | *a* 0.500 ± 0.000 | better than | *b* 0.250 ± 0.100 | in 3 of 3 seeds | ✓ |" in table
    assert table.count("| form |") == 2 and "| ✗ |" in table
    line = claims_table.summary(made).splitlines()[2]
    assert line.startswith("| 7. (the control") and line.endswith(
        "| form: *a*, *b* | 0.500 ± 0.000 against 0.250 ± 0.100 | in part: 1 of 2 |")


def test_the_long_runs_are_drawn_and_the_furthest_fall_is_told(short_answers, runs, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["experiments.py", "--quick", "--seeds", "0", "--out", runs, "--stability",
                                     str(tmp_path / "s.png"), "--json", str(tmp_path / "s.json")])
    drawn, finish = [], experiments.finish
    monkeypatch.setattr(experiments, "finish", lambda figure, path: drawn.append(figure) or finish(figure, path))
    experiments.main()
    for axis in drawn[0].axes:  # nothing is cut off
        assert all(axis.get_ylim()[0] == 0 <= y <= axis.get_ylim()[1] for line in axis.lines for y in line.get_ydata())
    made = json.loads((tmp_path / "s.json").read_text())
    assert made.keys() == experiments.LONG.keys() and (tmp_path / "s.png").stat().st_size > 10_000
    for run in made.values():
        held = [share for _, share in run["curves"]["val_statements_sampled"]]
        assert [step for step, _ in run["curves"]["val_statements_sampled"]] == [0, 4, 8]
        assert run["lost"] == max(0, held[0] - held[1], held[0] - held[2], held[1] - held[2])
    assert made["hygrpo"]["curves"]["pose_kl"] != made["no KL, no floor"]["curves"]["pose_kl"]
    assert "8 steps" in capsys.readouterr().out


def test_arms_from_finished_sft_policies_are_those_of_policies_made_here(short_answers, tmp_path, monkeypatch, capsys):
    """In its quick form a few comparisons of claims 11 and 12, with every measure beside each arm; then the same from a
    run of train_rft.py whose folders are those that the first call has made."""
    few, said = {11: [("hygrpo, pathwise, equal time", "hygrpo", "form", ">")],
                 12: [("rewards summed", "hygrpo", "form", "~")]}, {}
    monkeypatch.setattr(experiments, "BESIDE", {12: ["rewards summed"]})
    for name, more in (("one", []), ("two", ["--claims", "11", "--start_from", str(tmp_path / "run")])):
        monkeypatch.setattr(experiments, "CLAIMS", {n: (experiments.CLAIMS[n][0], few[n]) for n in few})
        monkeypatch.setattr("sys.argv", ["experiments.py", "--quick", "--seeds", "0", "--out", str(tmp_path / name),
                                         "--json", str(tmp_path / f"{name}.json"), *more])
        experiments.main()
        said[name], made = capsys.readouterr().out, tmp_path / "one" / "seed_0"
        for source, own in {"encoders": "encoders", "start, gaussian": "sft", "reward": "reward", "judge": "judge"}.items():
            shutil.copytree(made / source, tmp_path / "run" / own, dirs_exist_ok=True)
        world = WorldConfig(train_poses=64, eval_poses=16)
        settings = notes_of(world, SFTConfig(encoder_steps=4, sft_steps=6))["sft_config.json"]
        (tmp_path / "run" / "sft_config.json").write_text(json.dumps(settings))
        few[11] = [("hygrpo", "hygrpo", "form", "~")]
    one, two = (json.loads((tmp_path / f"{name}.json").read_text()) for name in ("one", "two"))
    assert one["arms"].keys() == {"hygrpo, pathwise, equal time", "hygrpo", "rewards summed"}
    assert one["arms"]["hygrpo"] | {"seconds": 0} == two["arms"]["hygrpo"] | {"seconds": 0}
    assert one["arms"]["rewards summed"]["MPJPE, mm"] != one["arms"]["hygrpo"]["MPJPE, mm"]
    assert 1 <= one["arms"]["hygrpo, pathwise, equal time"]["steps"][0] <= 8 and one["arms"]["hygrpo"]["steps"] == [4]
    found, = one["agreement"]
    assert found["language model"]["format"]["statements"] == found["language model"]["statements"]["format"]
    assert said["one"].count("Every arm of claim") == 2 and "on the pose head:" in said["one"]
    assert "| *rewards summed* | 4 ± 0 |" in said["one"] and "on the pose head:" not in said["two"]
    (tmp_path / "run" / "sft_config.json").write_text(json.dumps(settings | {"sft_steps": 7, "seed": 1}))
    with pytest.raises(ValueError, match="made with seed 1, not 0; sft_steps 7, not 6"):
        experiments.main()
    (tmp_path / "run" / "sft_config.json").unlink()
    with pytest.raises(ValueError, match="sft_config.json is not there; name a run"):
        experiments.main()


def test_a_run_is_named_for_each_seed(monkeypatch, tmp_path):
    monkeypatch.setattr("sys.argv", ["experiments.py", "--out", str(tmp_path), "--start_from", "a"])
    with pytest.raises(ValueError, match="one run for each of the 3 seeds"):
        experiments.main()


def test_an_unknown_claim_is_refused(monkeypatch):
    monkeypatch.setattr("sys.argv", ["experiments.py", "--claims", "99"])
    with pytest.raises(ValueError, match="choose from 1, 2"):
        experiments.main()
