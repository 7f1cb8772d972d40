"""body.html: whole, small and without a network; its words and statements; in a real Chromium where there is one."""

import base64
import re
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch

from body import JOINT, axis_angle_to_matrix
from lab.body_page import TURNED, bodies_figure, write_page
from lab.prediction_files import check_statements
from real.smpl import load_body

needs_plotly = pytest.mark.skipif(not find_spec("plotly"), reason="body.html needs plotly")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
WORDS = "Standing <b>, the right knee is sharply bent & $x$"


@pytest.fixture(scope="module")
def poses():
    poses = torch.eye(3).repeat(3, 24, 1, 1)  # the mean pose and two samples
    poses[1, JOINT["right_knee"]] = axis_angle_to_matrix(torch.tensor([2.4, 0, 0]))
    return poses


@pytest.fixture(scope="module")
def page(poses, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("page") / "body.html"
    assert write_page(path, load_body(), WORDS, np.full((8, 8, 3), 99, np.uint8), "{answer}", check_statements(
        WORDS, poses), poses)
    return path


def test_without_plotly_there_is_no_page(poses, monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "plotly", None)
    assert not write_page(tmp_path / "body.html", load_body(), WORDS, None, "", {}, poses)
    assert not list(tmp_path.iterdir())


@needs_plotly
def test_bodies_stand_in_their_frame_and_share_their_faces():
    body = load_body()
    vertices = torch.stack([body.v_template, body.v_template + torch.tensor([0.0, 0.5, 0.0])]).numpy()
    figure = bodies_figure(vertices, body.faces, np.linspace(0, 7, len(body.v_template)))
    mesh, frames, scene = figure.data[0], figure.frames, figure.layout.scene
    assert (np.abs(frames[1].data[0].z.astype(float) - mesh.z - 500) <= 1).all()  # z is up, millimetres
    assert 1600 < mesh.z.max() < 1900 and mesh.z.min() == 0 and mesh.cmax == 7
    assert [frame.name for frame in frames] == ["mean", "1"]
    assert all(frame.data[0].i is None and frame.data[0].intensity is None for frame in frames)
    assert scene.zaxis.range[1] > mesh.z.max() + 500  # room for all bodies, so that none changes its size


@needs_plotly
def test_the_page_holds_all_it_needs_and_its_words_as_they_are(page, poses):
    text = page.read_text()
    assert "Standing &lt;b&gt;, the right knee is sharply bent &amp; $x$" in text and "{answer}" in text
    assert re.findall(r'class="(\w+)" data-holds="(\d+)">([\w: ]+)<', text) == [
        ("holds", "111", "the person is standing: 2 of 2 samples"),
        ("fails", "010", "the right knee is sharply bent: 1 of 2 samples")]
    assert not re.search(r"<(script|link|img|iframe)[^>]+(src|href)=\"(?!data:)", text) and "@import" not in text
    assert base64.b64decode(re.search(r'src="data:image/png;base64,([^"]+)', text)[1]).startswith(b"\x89PNG")
    several = torch.eye(3).repeat(TURNED + 9, 24, 1, 1)
    assert write_page(page.with_name("many.html"), load_body(), "", None, "", {}, several)
    grown = page.with_name("many.html").stat().st_size - page.stat().st_size
    assert grown < 9 * (TURNED - 2) * len(load_body().v_template)  # 8 bytes a vertex: 16 bits in base64, three times
    assert f'"label":"{TURNED}"' in page.with_name("many.html").read_text()
    assert f'"label":"{TURNED + 1}"' not in page.with_name("many.html").read_text()


@needs_plotly
@pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium to open the page in")
def test_a_browser_without_a_network_draws_the_page(page, tmp_path):
    done = subprocess.run(
        [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--enable-unsafe-swiftshader", "--disable-quic",
         "--no-first-run", "--disable-background-networking", "--disable-component-update", "--disable-sync",
         "--host-resolver-rules=MAP * ~NOTFOUND", f"--user-data-dir={tmp_path / 'profile'}", "--dump-dom",
         "--virtual-time-budget=5000", page.as_uri()], capture_output=True, text=True, timeout=120)
    drawn = re.sub(r"<script.*?</script>", "", done.stdout, flags=re.DOTALL)  # what the script has made of the page
    assert 'class="slider-label"' in drawn and "<canvas" in drawn
    assert "WebGL is not supported" not in drawn
