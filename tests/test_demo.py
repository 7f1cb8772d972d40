"""demo.py: what its page is given, for each fault a sentence; the page itself where gradio is installed."""

import gc
import socket
import sys
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

import captions
import demo
from builtin.tiny import build_tiny
from engine import runtime
from engine.saving import save_policy
from lab import prediction_files
from model import PosePolicy

SENTENCE = "The left knee is bent and the right hand is above the head."
CONFIG = demo.DemoConfig()


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> Path:
    """A folder of runs whose policies have learned nothing, but to answer with <POSE>."""
    folder = tmp_path_factory.mktemp("runs")
    torch.manual_seed(0)
    vlm, processor, pose_encoder = build_tiny([SENTENCE, captions.POSE_ANSWER] * 30, hidden_size=32, layers=1)
    policy = PosePolicy(vlm, processor, pose_encoder)
    for name in ("runs_a/sft", "runs_a/rft", "runs_a/encoders"):
        save_policy(policy, folder / name)
    return folder


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    sample = PosePolicy.sample

    def forced(self, prompt, *args, **kwargs):
        rollout = sample(self, prompt, *args, **{**kwargs, "max_tokens": 3})
        rollout.tokens[..., 0], rollout.has_pose[:] = self.pose_id, True
        return rollout

    monkeypatch.setattr(PosePolicy, "sample", forced)
    monkeypatch.setattr(prediction_files, "SIZE", 32)


@pytest.fixture
def ask(runs, tmp_path):
    return lambda words, photo=None: demo.answer(str(runs / "runs_a/rft"), words, photo, CONFIG, str(tmp_path))


def stop(monkeypatch, *arguments) -> str:
    monkeypatch.setattr(sys, "argv", ["demo.py", *map(str, arguments)])
    with pytest.raises(SystemExit) as end:
        runtime.run(demo.main)
    assert "\n" not in end.value.code
    return end.value.code


def test_policies_are_found_in_a_run_and_in_a_folder_of_runs(runs):
    assert demo.policies(str(runs)) == [str(runs / "runs_a" / name) for name in ("rft", "sft")]
    assert demo.policies(str(runs / "runs_a")) == demo.policies(str(runs))


def test_a_sentence_and_a_photo_give_words_bodies_and_files(ask, tmp_path):
    Image.fromarray(np.full((90, 60, 3), 99, np.uint8)).save(tmp_path / "photo.jpg")
    folders = set()
    for words, photo in ((SENTENCE, None), ("", str(tmp_path / "photo.jpg")), (None, str(tmp_path / "photo.jpg"))):
        said, bodies, picture, files = ask(words, photo)
        assert said.startswith("asked:  ") and "\nanswer: " in said
        assert ("left knee is bent: " in said) == (photo is None)
        assert {Path(file).name for file in files} >= {"picture.png", "pose.npz", "body.obj"}
        assert picture == files[0] and all(Path(file).stat().st_size for file in files)
        if find_spec("plotly"):
            assert bodies.startswith("<iframe") and bodies.count("<") == 2 and "plotly" in bodies
        else:
            assert bodies == "" and "pip install plotly" in said
        folders.add(Path(picture).parent)
    assert len(folders) == 3  # whoever asks gets files of their own


def test_each_fault_is_a_sentence(ask, tmp_path, monkeypatch, capsys):
    for words in (None, "", " \n"):
        assert ask(words) == ("Describe a pose, or give a photo.", "", None, None)
    Image.new("1", (8_000, 8_000)).save(tmp_path / "huge.png")
    (tmp_path / "text.jpg").write_text("no image")
    assert ask("", str(tmp_path / "huge.png"))[0] == (
        "huge.png cannot be used as an image: 8000 x 8000 pixels are too many, make it smaller")
    for name in ("text.jpg", "missing.png"):
        assert ask("", str(tmp_path / name))[0].startswith(f"{name} cannot be used as an image: ")
    assert "make it shorter" in ask("very " * 5_000)[0]
    for words in ("左膝を曲げて立つ", "Стоит на левом колене", "\U0001f9d8 \udcff"):
        assert "No statement to check: these words say nothing that captions.py, which reads English" in ask(words)[0]
    assert "holds no policy" in demo.answer(str(tmp_path), SENTENCE, None, CONFIG, str(tmp_path))[0]
    monkeypatch.setattr(demo, "respond", lambda *_: 1 / 0)
    said = ask(SENTENCE)
    assert said[0].startswith("This failed") and said[1:] == ("", None, None)
    assert "Traceback" not in said[0] and "ZeroDivisionError" in capsys.readouterr().err


def test_what_is_missing_is_said_before_anything_is_loaded(monkeypatch, runs, tmp_path):
    with monkeypatch.context() as missing:
        missing.setitem(sys.modules, "gradio", None)
        assert "pip install plotly gradio" in stop(monkeypatch, "--runs", runs)
    for folder in (tmp_path, runs / "runs_a" / "rft"):  # the latter is a policy, and no run
        with pytest.raises(FileNotFoundError, match="neither a run nor a folder of runs; python train_rft.py"):
            demo.policies(str(folder))
    with monkeypatch.context() as quiet:
        quiet.setattr(demo, "find_spec", bool)  # as if gradio were there
        quiet.setattr(demo, "make_page", lambda *_: SimpleNamespace(launch=lambda **_: pytest.fail("it was served")))
        assert "nosuch.pkl: no such file" in stop(monkeypatch, "--runs", runs, "--body", "nosuch.pkl")
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        assert f"--port {port}: cannot be used (" in stop(monkeypatch, "--port", port)


@pytest.mark.filterwarnings("ignore")  # gradio leaves sockets and loops to the garbage collector
def test_the_page_is_served_and_answers(runs, tmp_path, monkeypatch):
    """As its page would, by way of gradio's own client; and nothing but this computer is called."""
    pytest.importorskip("gradio", reason="the page needs gradio")
    from gradio_client import Client
    monkeypatch.setenv("GRADIO_ANALYTICS_ENABLED", "False")
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path))
    called, connect = [], socket.socket.connect
    monkeypatch.setattr(socket.socket, "connect", lambda self, where: called.append(where) or connect(self, where))
    page = demo.make_page(CONFIG, demo.policies(str(runs)), str(tmp_path))
    _, address, _ = page.launch(prevent_thread_lock=True, quiet=True)
    try:
        client = Client(address, verbose=False)
        said, bodies, picture, files = client.predict(str(runs / "runs_a/rft"), SENTENCE, None, api_name="/lambda")
        fault = client.predict(str(runs / "runs_a/rft"), " ", None, api_name="/lambda")
    finally:
        page.close()
    assert "left knee is bent: " in said and bodies.startswith("<iframe") == bool(find_spec("plotly"))
    assert Path(picture).is_file() and len(files) >= 3
    assert fault[0] == "Describe a pose, or give a photo."
    assert called and {where[0] for where in called} == {"127.0.0.1"}
    del client
    gc.collect()  # here, where its warnings are expected
