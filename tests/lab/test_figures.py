"""Numbers and pictures of finished runs in assets/, and their tables in the pages."""

import json

import pytest

from lab import figures, pictures, seeds
from lab.table import ROWS


def numbers(number: float) -> dict:
    """A stage of metrics.json in which every row has this number."""
    made = {}
    for _, keys in ROWS:
        if len(keys) == 1:
            made[keys[0]] = number
        else:
            made.setdefault(keys[0], {})[keys[1]] = number
    return made


@pytest.fixture
def project(tmp_path, monkeypatch):
    """Pages with old tables, and runs of two seeds, two of motion capture and a long one."""
    heads = "\n".join(f"\n{head}\n| --- | --- |\n{rows}\nBehind it.\n" for head, rows in (
        (f"| | {' | '.join(seeds.COLUMNS)} |", "| questions: accuracy | 9 |\n"),
        ("| | motion capture: blind | SFT | RFT |", "| a | 9 |\n"), ("| | ten times as long: SFT | RFT |", "")))
    (tmp_path / "docs").mkdir()
    (tmp_path / "assets").mkdir()
    (tmp_path / "README.md").write_text(heads.partition("\nBehind it.")[0] + "\nBehind it.\n")
    (tmp_path / "docs" / "results.md").write_text(heads)
    for name, height in (("runs_0", 0.1), ("runs_1", 0.3), ("mocap_0", 0.5), ("mocap_1", 0.5), ("long", 0.7)):
        stages = {stage: numbers(height + more) for stage, more in (("floors", 0), ("sft", 0.1), ("rft", 0.2))}
        if name == "long":
            for picture in figures.DRAWN:
                (tmp_path / name / f"{picture}.png").parent.mkdir(exist_ok=True)
                (tmp_path / name / f"{picture}.png").write_bytes(b"drawn")
        (tmp_path / name).mkdir(exist_ok=True)
        (tmp_path / name / "metrics.json").write_text(json.dumps(stages | {"seed": int(name.endswith("_1"))}))
        (tmp_path / name / "continued.json").write_text(json.dumps({"continued": numbers(height), "steps": 5}))
    monkeypatch.setattr(figures, "ROOT", tmp_path)
    monkeypatch.setattr(pictures, "draw", lambda folder, out: (out / "method.png").write_text(folder.name))
    return tmp_path


def call(monkeypatch, root, *more):
    monkeypatch.setattr("sys.argv", ["figures.py", "--runs", f"{root}/runs_0", f"{root}/runs_1", *more])
    figures.main()


def test_tables_numbers_and_pictures_are_those_of_the_runs_and_other_words_stay(project, monkeypatch):
    call(monkeypatch, project, "--mocap", f"{project}/mocap_0", f"{project}/mocap_1", "--long", f"{project}/long")
    readme, results = (project / "README.md").read_text(), (project / "docs" / "results.md").read_text()
    row = "| questions: accuracy | 0.200 ± 0.141 | 0.300 ± 0.141 | 0.200 ± 0.141 | 0.400 ± 0.141 |"
    assert row in readme and "answers of the right form" not in readme and readme.endswith("\nBehind it.\n")
    assert results.count("\nBehind it.\n") == 3 and "| 9 |" not in results
    assert "| | motion capture: blind | SFT | SFT continued | RFT |\n" in results
    assert "| questions: accuracy | 0.500 ± 0.000 | 0.600 ± 0.000 | 0.500 ± 0.000 | 0.700 ± 0.000 |" in results
    assert "| | ten times as long: blind | SFT | RFT |" in results and "| | ten times as long: SFT" not in results
    assert "| answers of the right form | 0.700 | 0.800 | 0.900 |" in results
    assert (project / "assets" / "method.png").read_text() == "runs_0"
    assert (project / "assets" / "curves_long.png").read_bytes() == b"drawn"
    assert json.loads((project / "assets" / "metrics.json").read_text())["seed"] == 0
    call(monkeypatch, project)
    assert (project / "docs" / "results.md").read_text() == results  # runs that are not named stay as they were


def test_what_is_missing_is_said_before_anything_is_written(project, monkeypatch):
    with pytest.raises(FileNotFoundError, match="nowhere holds no finished run"):
        call(monkeypatch, project, "--long", f"{project}/nowhere")
    with pytest.raises(FileNotFoundError, match="nowhere holds no metrics.json"):
        call(monkeypatch, project, "--mocap", f"{project}/nowhere")
    with pytest.raises(ValueError, match="their seeds are 0, 0"):
        call(monkeypatch, project, "--mocap", f"{project}/mocap_0", f"{project}/mocap_0")
    (project / "long" / "curves.png").unlink()
    with pytest.raises(FileNotFoundError, match=r"long holds no finished run \(no curves.png\)"):
        call(monkeypatch, project, "--long", f"{project}/long")
    assert list((project / "assets").iterdir()) == []
    with pytest.raises(ValueError, match="should hold one table that begins with"):
        figures.put("a page", "| a ", "| a |\n| --- |")
