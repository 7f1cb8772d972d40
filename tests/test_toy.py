"""toy.py: HyGRPO learns what one can see, each half of the action from its own advantage, and its flags break it."""

import ast
import sys
from argparse import Namespace
from pathlib import Path

import pytest
import torch

import toy

FLAGS = {"steps": 60, "poses": 16, "seed": 0, "beta": 0.1, "epochs": 1, "ratio": "mean", "no_words": False,
         "no_poses": False}


def train(**changed):
    return toy.train(Namespace(**FLAGS | changed))


def last(rows, name, count=10):
    return sum(row[name].item() for row in rows[-count:]) / count


@pytest.fixture(scope="module")
def rows():
    return train()[2]


def test_both_rewards_rise(rows):
    assert rows[0]["words fit"] < 0.8 and last(rows, "words fit") > 0.95
    assert rows[0]["distance"] > 1.2 and last(rows, "distance") < 0.3


def test_before_training_all_is_as_likely_and_nothing_has_moved(rows):
    assert rows[0]["entropy"].item() == pytest.approx(torch.tensor(2.0).log().item())
    assert rows[0]["KL words"] == 0 and rows[0]["KL points"] == 0


def test_with_one_epoch_no_ratio_is_clipped_with_eight_some_are(rows):
    assert all(row["clipped"] == 0 for row in rows)
    assert last(train(steps=10, epochs=8, ratio="joint")[2], "clipped") > 0.02


def test_words_learn_from_F_and_points_from_Delta(rows):
    words, points = train(no_poses=True)[2], train(no_words=True)[2]
    assert last(words, "words fit") > 0.95 and last(words, "distance") > 3 * last(rows, "distance")
    assert last(points, "words fit") < 0.8 and last(points, "distance") < 0.4
    assert last(points, "KL words") == 0


def test_without_KL_it_collapses():
    """Asked for either side it names one only, and sigma falls to its floor."""
    sides = torch.tensor([4, 5])
    for beta, collapses in ((0.1, False), (0.0, True)):
        _, after, rows = train(beta=beta, steps=150)
        left = after.log_prob(sides, torch.zeros(2, 1, 1, dtype=torch.long)).log_prob.exp().flatten()
        spread = torch.minimum(left, 1 - left)  # how often the rarer side is named
        assert (spread < 0.1).all() if collapses else (spread > 0.2).all(), left
        assert (last(rows, "sigma") < 0.07) == collapses


def test_the_policy_is_of_five_hundred_numbers_and_the_file_imports_nothing_of_ours_but_hygrpo():
    assert sum(p.numel() for p in toy.Policy().parameters()) == 500
    tree = ast.parse(Path(toy.__file__).read_text())
    imported = {name.split(".")[0] for node in ast.walk(tree) for name in (
        [alias.name for alias in node.names] if isinstance(node, ast.Import) else
        [node.module] if isinstance(node, ast.ImportFrom) else [])}
    root = Path(toy.__file__).parent
    assert [name for name in imported if (root / f"{name}.py").exists() or (root / name).is_dir()] == ["hygrpo"]
    assert len(Path(toy.__file__).read_text().splitlines()) <= 120


def test_same_seed_same_numbers():
    numbers = [[x.item() for row in train(steps=3, seed=seed)[2] for x in row.values()] for seed in (1, 1, 2)]
    assert numbers[0] == numbers[1] != numbers[2]


def test_rewards_by_hand():
    prompt = torch.tensor([0, 3, 5])  # left down, right up, either up
    rollout = toy.SimpleNamespace(tokens=torch.tensor([[[0], [1]]]).expand(3, 2, 1),
                                  pose=torch.tensor([-1.0, 1.0]).expand(3, 2, 1, 2))
    words, points = toy.score(prompt, rollout)
    assert words["fits"].tolist() == [[1, 0], [0, 1], [1, 1]]
    assert points["near"][..., 0].tolist() == [[-2.0, pytest.approx(-8 ** 0.5)], [0, -2], [0, -2]]


def test_the_command_prints_and_draws(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["toy.py", "--steps", "3"])
    toy.main()
    assert (tmp_path / "toy.png").stat().st_size > 10_000
    printed = capsys.readouterr().out
    assert all(name in printed for name in ("words fit", "distance", "entropy", "sigma", "KL"))


@pytest.mark.parametrize("arguments", [("--steps", "0"), ("--poses", "0"), ("--epochs", "-1"), ("--beta", "-0.1"),
                                       ("--beta", "nan"), ("--seed", "-1"), ("--ratio", "all"), ("--bta", "0")])
def test_flags_that_cannot_be_end_in_a_sentence(tmp_path, monkeypatch, capsys, arguments):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["toy.py", *arguments])
    with pytest.raises(SystemExit) as end:
        toy.main()
    assert end.value.code == 2 and arguments[0] in capsys.readouterr().err and not list(tmp_path.iterdir())
