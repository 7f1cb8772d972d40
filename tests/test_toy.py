"""toy.py: HyGRPO learns what one can see, and each half of the action learns from its own advantage."""

import pytest
import torch

import toy


@pytest.fixture(scope="module")
def runs():
    return {variant: toy.train(toy.ToyConfig(steps=50), variant)[2]
            for variant in ("HyGRPO", "F alone", "Delta alone", "F for both")}


def last(rows, name):
    return sum(row[name] for row in rows[-10:]) / 10


def test_both_rewards_rise(runs):
    rows = runs["HyGRPO"]
    assert rows[0]["words"] < 0.4 and last(rows, "words") > 0.7
    assert rows[0]["distance"] > 1.0 and last(rows, "distance") < 0.1


def test_words_learn_from_F_and_points_from_Delta(runs):
    assert last(runs["F alone"], "words") > 0.7 and last(runs["F alone"], "distance") > 1.0
    assert last(runs["Delta alone"], "words") < 0.4 and last(runs["Delta alone"], "distance") < 0.1


def test_points_learn_more_slowly_from_the_advantage_of_their_answer(runs):
    """F says the same of all K points of an answer; Delta says which of them are near."""
    at = lambda variant: runs[variant][24]["distance"]
    assert at("F for both") > 1.5 * at("HyGRPO")


def test_same_seed_same_numbers():
    rows = [toy.train(toy.ToyConfig(steps=3, seed=seed))[2] for seed in (1, 1, 2)]
    assert rows[0] == rows[1] != rows[2]


def test_rewards_by_hand():
    prompt = torch.tensor([[-0.5, 0.5]])  # left, up
    rollout = toy.SimpleNamespace(tokens=torch.tensor([[[0, 3], [0, 2], [3, 0]]]),
                                  pose=torch.tensor([[[[-0.5, 0.5]], [[2.5, 4.5]], [[-0.5, 0.0]]]]))
    words, points = toy.score(prompt, rollout)
    assert words["words"].tolist() == [[1.0, 0.5, 0.0]]
    assert points["nearness"].tolist() == [[[0.0], [-5.0], [-0.5]]]


def test_the_command_prints_and_draws(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["toy.py", "--steps", "3"])
    toy.main()
    assert (tmp_path / "toy.png").stat().st_size > 10_000
    assert "HyGRPO" in capsys.readouterr().out
