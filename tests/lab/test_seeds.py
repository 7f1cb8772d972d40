"""Several seeds in one table: what is collected, and what is missing is named."""

import json

import pytest

from engine.log import print_results
from lab.table import ROWS
from lab import seeds
from train_rft import RFTConfig


def result(x: float, **more) -> dict:
    """Numbers in evaluate's layout, all of them x."""
    made = {}
    for _, keys in ROWS:
        (made.setdefault(keys[0], {}) if len(keys) == 2 else made)[keys[-1]] = x
    return made | more


def write(folder, seed: int, sft: float, continued: float, rft: float) -> str:
    folder.mkdir()
    blind = result(.1, text2pose={"statements_sampled": .1})  # of this task the floors have one row
    (folder / "metrics.json").write_text(json.dumps(
        {"floors": blind, "sft": result(sft), "rft": result(rft), "seed": seed}))
    (folder / "continued.json").write_text(json.dumps({"continued": result(continued), "steps": 7}))
    return str(folder)


def test_mean_and_spread_over_seeds_and_in_how_many_rft_is_better(tmp_path, monkeypatch, capsys):
    runs = [write(tmp_path / "a", 0, .2, .3, .4), write(tmp_path / "b", 1, .4, .5, .45)]
    monkeypatch.setattr("sys.argv", ["seeds.py", "--runs", *runs, "--json", str(tmp_path / "s.json")])
    seeds.main()
    printed, made = capsys.readouterr().out, json.loads((tmp_path / "s.json").read_text())
    assert "| questions: accuracy | 0.100 ± 0.000 | 0.300 ± 0.141 | 0.400 ± 0.141 | 0.425 ± 0.035 |" in printed
    assert "| text to pose: R@5 under the judge | - | 0.300 ± 0.141 |" in printed
    assert "RFT better than SFT continued in 1 of 2 seeds: statements held, sampled pose" in printed
    assert "RFT better than SFT continued in 1 of 2 seeds: MPJPE of sampled poses, mm" in printed  # less is better
    assert made["seeds"] == [0, 1] and made["steps_continued"] == [7, 7]


def test_a_missing_control_and_a_seed_given_twice_are_named(tmp_path, monkeypatch):
    run = write(tmp_path / "a", 0, .2, .3, .4)
    monkeypatch.setattr("sys.argv", ["seeds.py", "--runs", run, run])
    with pytest.raises(ValueError, match="their seeds are 0, 0"):
        seeds.main()
    metrics, whole = tmp_path / "a" / "metrics.json", (tmp_path / "a" / "metrics.json").read_text()
    for content in ("", "[]", "{}", json.dumps(result(.4, floors=result(.1)))):  # the last: of evaluate.py --json
        metrics.write_text(content)
        for read in (seeds.main, lambda: print_results(tmp_path / "a", RFTConfig())):
            with pytest.raises(ValueError, match="metrics.json is not what train_rft.py writes there: move it"):
                read()
    metrics.write_text(whole)
    (tmp_path / "a" / "continued.json").write_text("{")
    with pytest.raises(ValueError, match="a/continued.json cannot be read: python -m lab.continued_sft --run .*anew"):
        seeds.main()
    (tmp_path / "a" / "continued.json").unlink()
    with pytest.raises(FileNotFoundError, match="holds no continued.json; python -m lab.continued_sft --run"):
        seeds.main()
