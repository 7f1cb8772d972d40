"""docs/tour.ipynb: it is docs/tour.py cell by cell, what it shows comes from one whole run, and its cells do what they
say. The cells are run here in small, without Jupyter; where nbclient is installed, the notebook itself is run too."""

import base64
import json
import os
import re
import sys
from collections import namedtuple
from contextlib import redirect_stdout
from io import BytesIO, StringIO
from pathlib import Path

import pytest
import torch
from matplotlib import pyplot
from PIL import Image

from model import PosePolicy

DOCS = Path(__file__).parent.parent.parent / "docs"
SCRIPT = (DOCS / "tour.py").read_text()
NOTEBOOK = json.loads((DOCS / "tour.ipynb").read_bytes())
SIZES = "PICTURES, ENCODER_STEPS, RETRIEVER_STEPS, SFT_STEPS, RFT_STEPS = "
LETTERS = {"B": 3, "G": 4, "K": 16, "D": 144, "joints": 24}

Output = namedtuple("Output", "text pictures")  # what a cell printed, and how many pictures it showed


def cells() -> list[tuple[str, str]]:
    """The kind and the text of each cell of the script: a cell begins at a line `# %%`."""
    found = []
    for part in re.split(r"^# %%", SCRIPT, flags=re.MULTILINE)[1:]:
        kind, _, text = part.partition("\n")
        if kind.strip() == "[markdown]":
            found.append(("markdown", re.sub(r"^# ?", "", text.strip("\n"), flags=re.MULTILINE)))
        else:
            found.append(("code", text.strip("\n")))
    return found


CODE = [text for kind, text in cells() if kind == "code"]


def outputs(notebook: dict) -> list[Output]:
    made = []
    for cell in notebook["cells"]:
        if cell["cell_type"] == "code":
            kinds = [output["output_type"] for output in cell["outputs"]]
            assert set(kinds) <= {"stream", "display_data"}, "an error, or a value that nobody asked for"
            assert all(output["name"] == "stdout" for output in cell["outputs"] if "name" in output)
            text = "".join("".join(output["text"]) for output in cell["outputs"] if "text" in output)
            made.append(Output(text, kinds.count("display_data")))
    return made


@pytest.fixture(scope="module")
def tour():
    """The code cells run in this process, with few steps: what each of them put out, and the names they left. So that a
    policy which has learned nothing gives poses and comes to an end, <POSE> and the end token are made likely."""
    logits, made, names = PosePolicy._logits, [], {"__name__": "__main__"}

    def ends_soon(self, hidden):
        likely = torch.zeros(len(self.tokenizer))
        likely[[self.pose_id, self.tokenizer.eos_token_id]] = torch.tensor([9.0, 7.5])
        return logits(self, hidden) + likely

    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(DOCS)
        patch.setattr(sys, "path", list(sys.path))
        patch.setattr(PosePolicy, "_logits", ends_soon)
        patch.setattr(pyplot, "show", lambda: None)
        pyplot.switch_backend("agg")
        for text in CODE:
            text = re.sub(f"^{SIZES}.*", SIZES + "24, 2, 2, 2, 2", text, flags=re.MULTILINE)
            with redirect_stdout(StringIO()) as printed:
                exec(compile(text, "docs/tour.py", "exec"), names)
            made.append(Output(printed.getvalue(), len(pyplot.get_fignums())))
            pyplot.close("all")
    return made, names


def test_the_notebook_is_the_script_cell_by_cell():
    assert [(cell["cell_type"], "".join(cell["source"])) for cell in NOTEBOOK["cells"]] == cells()


def test_the_script_is_short_and_narrow():
    assert len(SCRIPT.splitlines()) <= 350 and max(map(len, SCRIPT.splitlines())) <= 120


def test_where_the_code_is_not_the_first_cell_says_so(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FileNotFoundError, match="get the code as the cell above says"):
        exec(CODE[0], {})


def test_jupytext_makes_the_same_cells_of_the_script():
    jupytext = pytest.importorskip("jupytext", reason="needs jupytext, an optional package of requirements.txt")
    assert [(cell.cell_type, cell.source) for cell in jupytext.read(DOCS / "tour.py").cells] == cells()


def test_what_the_notebook_shows_comes_from_one_whole_run_and_is_small():
    counts = [cell["execution_count"] for cell in NOTEBOOK["cells"] if cell["cell_type"] == "code"]
    assert counts == list(range(1, len(CODE) + 1))
    assert (DOCS / "tour.ipynb").stat().st_size < 700_000
    for cell in NOTEBOOK["cells"]:
        for output in cell.get("outputs", ()):
            if "image/png" in output.get("data", ()):
                picture = Image.open(BytesIO(base64.b64decode(output["data"]["image/png"])))
                assert min(picture.size) > 100 and len(picture.convert("RGB").getcolors(1 << 20)) > 50


def test_a_small_run_prints_and_shows_in_the_same_cells_as_the_notebook(tour):
    here, there = tour[0], outputs(NOTEBOOK)
    assert [(bool(o.text), o.pictures) for o in here] == [(bool(o.text), o.pictures) for o in there]
    assert sum(o.pictures for o in there) >= 5


@pytest.mark.parametrize("where", ["here", "in the notebook"])
def test_shapes_are_printed_with_their_letters(tour, where):
    text = "".join(o.text for o in (tour[0] if where == "here" else outputs(NOTEBOOK)))
    found, T = re.findall(r"\(([A-Z].*?)\)(?:;.*)? = \(([\d, ]+)\)", text), set()
    for letters, sizes in found:
        shape = dict(zip(letters.partition(";")[0].split(", "), map(int, sizes.strip(",").split(",")), strict=True))
        assert all(shape[letter] == size for letter, size in LETTERS.items() if letter in shape), (letters, sizes)
        T |= {shape["T"]} if "T" in shape else set()
    assert len(T) == 1 and {letter for letters, _ in found for letter in letters} >= {"B", "G", "K", "T", "D"}


@pytest.mark.parametrize("where", ["here", "in the notebook"])
def test_what_the_sentences_say_is_seen(tour, where):
    text = "".join(o.text for o in (tour[0] if where == "here" else outputs(NOTEBOOK)))
    assert "all ratios are 1: True" in text and "loss 0.000 = of words 0.000 + of poses 0.000" in text
    reward, by_hand = re.search(r"joint of prompt 1.*: ([\d.]+); by hand: ([\d.]+)", text).groups()
    assert reward == by_hand and float(reward) > 0
    advantages, by_hand = re.search(r"A\(description\).*: +(\[.*\])\nby hand: +(\[.*\])", text).groups()
    assert [float(x) for x in advantages[1:-1].split()] == [float(x) for x in by_hand[1:-1].split()]


def test_the_policy_learns_and_its_reference_does_not(tour):
    names = tour[1]
    for p, q in zip(names["policy"].parameters(), names["sft"].parameters(), strict=True):
        assert torch.equal(p, q) != p.requires_grad and not q.requires_grad
    assert len(names["rows"]) == 2
    assert all(value.isfinite() for row in names["rows"] for value in row.values())


def test_in_the_notebook_rewards_rise():
    text = outputs(NOTEBOOK)[-1].text
    before, after = ({name: float(x) for name, x in re.findall(r"(joint|format) +([\d.]+)", line)}
                     for line in text.splitlines() if line.startswith(("before", "after")))
    assert after["joint"] > 1.1 * before["joint"] and after["format"] > before["format"]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # Jupyter leaves sockets and loops to the garbage collector
def test_the_notebook_runs_from_top_to_bottom():
    needed = "needs nbclient, nbformat and ipykernel, optional packages of requirements.txt"
    nbclient, nbformat = (pytest.importorskip(name, reason=needed) for name in ("nbclient", "nbformat"))
    pytest.importorskip("ipykernel", reason=needed)
    notebook, before = nbformat.read(DOCS / "tour.ipynb", as_version=4), os.times()
    nbclient.NotebookClient(notebook, timeout=600, resources={"metadata": {"path": str(DOCS)}}).execute()
    after = os.times()
    assert after.children_user + after.children_system - before.children_user - before.children_system < 2 * 120
    here, there = outputs(notebook), outputs(NOTEBOOK)
    assert [(bool(o.text), o.pictures) for o in here] == [(bool(o.text), o.pictures) for o in there]
    words = lambda text: re.sub(r"-?\d+\.\d+|\d+ mm", "#", text)  # of another processor's rounding
    assert words(here[2].text) == words(there[2].text)
