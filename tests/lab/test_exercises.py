"""The exercises on the toy: every flag is run with several seeds, and the page holds what came out."""

import json
import re
from pathlib import Path
from types import SimpleNamespace

import pytest

import toy
from lab import exercises

ROOT = Path(__file__).parent.parent.parent


def test_the_command_measures_every_flag_with_five_seeds(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["exercises.py", "--steps", "2", "--json", str(tmp_path / "made.json")])
    exercises.main()
    made = json.loads((tmp_path / "made.json").read_text())
    assert made.keys() == exercises.FLAGS.keys() and all(len(runs) == 5 for runs in made.values())
    assert exercises.table(made) in capsys.readouterr().out
    assert made[""][0] != made[""][1]  # other seeds
    assert all(numbers["likelier word"] == 0.5 for numbers in made["--no_words"])  # as before training
    assert all(numbers["KL points"] == 0.0 for numbers in made["--no_poses"])
    assert any(numbers["clipped"] > 0 for numbers in made["--epochs 8 --ratio joint"])
    assert all(numbers["clipped"] == 0 for numbers in made[""])


def test_the_page_holds_what_was_measured_and_names_every_flag():
    page, made = (ROOT / "docs/exercises.md").read_text(), json.loads((ROOT / "assets/exercises.json").read_text())
    assert exercises.table(made) in page, "docs/exercises.md should hold\n" + exercises.table(made)
    assert all(page.count(f"`python toy.py {flags}`") >= 2 for flags in exercises.FLAGS if flags)


def test_what_no_flag_changes_is_as_toy_py_has_it(monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["toy.py", "--help"])
    with pytest.raises(SystemExit):
        toy.main()
    told = dict(re.findall(r"--(\w+)[^()]*(?:\([^d][^()]*\)[^()]*)*\(default: (\S+)\)", capsys.readouterr().out))
    assert {name: told[name] for name in exercises.DEFAULTS} == {name: str(x) for name, x in exercises.DEFAULTS.items()}


def test_clipped_is_a_mean_over_all_steps_and_the_rest_over_the_last_tenth():
    flags = exercises.DEFAULTS | exercises.FLAGS["--epochs 8 --ratio joint"]
    _, _, rows = toy.train(SimpleNamespace(**flags, steps=20, seed=0))
    made = exercises.measure(exercises.FLAGS["--epochs 8 --ratio joint"], 0, 20)
    mean = lambda name, rows: sum(row[name].item() for row in rows) / len(rows)
    assert made["clipped"] == pytest.approx(mean("clipped", rows)) != pytest.approx(mean("clipped", rows[-2:]))
    assert made["sigma"] == pytest.approx(mean("sigma", rows[-2:])) != pytest.approx(mean("sigma", rows))


def test_spread_is_over_seeds():
    runs = [dict.fromkeys(exercises.SHOWN, x) for x in (1.0, 3.0)]
    assert exercises.table({"--beta 0": runs}).splitlines()[2].startswith("| `python toy.py --beta 0` | 2.00 ± 1.41 |")
    with pytest.raises(KeyError):
        exercises.table({"": [{}, {}]})
