"""body.html, which predict.py writes: the mean pose and samples of it as bodies one can turn, in any browser, offline.

    slider at "mean": the mean pose, at k: sample k;   colour of a vertex: sqrt(sum of its variances in x, y and z), cm
plotly draws it (an optional package: pip install plotly), and its script, 5 MB, is in the file. The faces stand in it
once for all bodies, and coordinates are whole millimetres, in 16 bits.
Read next: ../demo.py, which shows this page beside a field to type in.
"""

import base64
import html
import io
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from real.smpl import body_vertices

TURNED = 32  # samples on the slider
PAGE = """<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>{asked}</title><style>
body {{margin: 0; font: 16px/1.45 system-ui, sans-serif; display: flex; flex-wrap: wrap; color: #222}}
section {{flex: 1 1 17rem; padding: 1.2rem; box-sizing: border-box; overflow-wrap: anywhere}}
.plot {{flex: 4 1 20rem; min-width: 0; height: min(100vh, 50rem)}}
p {{margin: 0 0 .8rem}} b {{font-weight: 600}} img {{width: 8rem; image-rendering: pixelated}}
ul {{list-style: none; padding: 0}} li {{padding-left: 1.2em; text-indent: -1.2em}}
li::before {{display: inline-block; width: 1.2em; text-indent: 0}}
.holds {{color: #00684a}} .holds::before {{content: "+"}} .fails {{color: #b3400a}} .fails::before {{content: "-"}}
small {{color: #555}}
</style></head><body>
<section><p><b>asked</b><br>{asked}</p>{photo}<p><b>answered</b><br>{answer}</p>
<p><b>what the words say of the pose</b> (+ where it holds)</p><ul>{statements}</ul>
<p><small>Drag to turn the body, scroll to come nearer, and move the slider from the mean pose to samples of it. The
colour says how far a part varies among all {count} samples.</small></p></section>
<div class="plot">{plot}</div>
<script>
const lines = document.querySelectorAll("li[data-holds]");
document.getElementById("body").on("plotly_sliderchange", change => lines.forEach(line =>
    line.className = line.dataset.holds[change.slider.active] === "1" ? "holds" : "fails"));
</script></body></html>
"""


def bodies_figure(vertices: np.ndarray, faces: np.ndarray, spread: np.ndarray):
    """The plotly figure: body after body on a slider. vertices: (N, V, 3), metres, y up, the mean pose first. faces:
    (F, 3). spread: (V,), cm."""
    from plotly import graph_objects as go  # optional, and half a second

    points = np.stack([vertices[..., 0], -vertices[..., 2], vertices[..., 1]], -1)  # plotly's z is up, -y towards us
    points = (1000 * (points - points.min((0, 1)))).round().astype(np.int16)  # from 0: minus signs take twice the bytes
    names = ["mean", *map(str, range(1, len(points)))]
    coordinates = [dict(zip("xyz", body.T)) for body in points]
    mesh = go.Mesh3d(
        **coordinates[0], **dict(zip("ijk", faces.T)), intensity=spread.round(2), colorscale="Viridis", cmin=0,
        cmax=max(1.0, spread.max()), hovertemplate="%{intensity:.1f} cm<extra></extra>",
        colorbar={"title": "standard<br>deviation,<br>cm", "len": 0.6, "thickness": 14},
        lighting={"ambient": 0.55, "diffuse": 0.7, "specular": 0.05}, lightposition={"x": 2000, "y": -8000, "z": 6000})
    steps = [{"label": name, "method": "animate", "args": [[name], {
        "mode": "immediate", "frame": {"duration": 0, "redraw": True}, "transition": {"duration": 0}}]}
        for name in names]
    half = 0.52 * float(points.max())  # of a cube around all bodies, so that none is cut or changes its size
    axes = {axis + "axis": {"visible": False, "range": [most / 2 - half, most / 2 + half]}
            for axis, most in zip("xyz", points.max((0, 1)).tolist())}
    return go.Figure(mesh, frames=[go.Frame(name=name, data=[go.Mesh3d(**xyz)], traces=[0])
                                   for name, xyz in zip(names, coordinates)], layout={
        "scene": axes | {"aspectmode": "cube", "camera": {"eye": {"x": 0.35, "y": -1.45, "z": 0.2}}},
        "margin": {"l": 0, "r": 0, "t": 0, "b": 0}, "sliders": [{
            "steps": steps, "currentvalue": {"prefix": "pose: "}, "pad": {"l": 30, "r": 30, "t": 10, "b": 20}}]})


def write_page(path: Path, body, asked: str, image: np.ndarray | None, answer: str, checked: dict[str, Tensor],
               rotmats: Tensor) -> bool:
    """The page. checked: what the words say, and of which poses (1 + K,) it holds; rotmats: (1 + K, 24, 3, 3), the mean
    pose first. Returns False, and writes none, where plotly is missing."""
    vertices = body_vertices(body, rotmats, torch.zeros(len(rotmats), 10))[0]  # (1 + K, V, 3)
    spread = 100 * vertices[1:].var(0, correction=0).sum(-1).sqrt()  # (V,) cm
    try:
        figure = bodies_figure(vertices[:1 + TURNED].numpy(), body.faces, spread.numpy())
    except ImportError:
        return False
    plot = figure.to_html(full_html=False, include_plotlyjs=True, div_id="body", auto_play=False,
                          default_height="100%", config={"displaylogo": False, "responsive": True, "modeBarButtons": [
                              ["toImage", "pan3d", "orbitRotation", "tableRotation", "resetCameraDefault3d"]]})
    photo = ""
    if image is not None:
        Image.fromarray(image).save(png := io.BytesIO(), "PNG")
        photo = f'<p><img alt="the photo" src="data:image/png;base64,{base64.b64encode(png.getvalue()).decode()}"></p>'
    statements = [f'<li class="{"holds" if holds[0] else "fails"}" data-holds="{"".join(str(int(x)) for x in holds)}">'
                  f"{html.escape(name)}: {int(holds[1:].sum())} of {len(holds) - 1} samples</li>"
                  for name, holds in checked.items()]
    path.write_text(PAGE.format(
        asked=html.escape(asked), answer=html.escape(answer), photo=photo, plot=plot, count=len(rotmats) - 1,
        statements="".join(statements) or "<li>nothing that can be measured</li>"), encoding="utf-8")
    return True
