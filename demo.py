"""A policy in a browser: a sentence or a photo in, the answer, a body to turn and the files out.

    pip install plotly gradio
    python demo.py [--runs DIR] [--port 7860]        # then open http://127.0.0.1:7860
It says and writes what predict.py does. The page is served to this computer alone and asks nothing of the network. Who
asks while another is answered waits; each gets files of their own, which are gone when demo.py ends.
Read next: docs/your_own_reward.md, to change what a policy learns.
"""

import functools
import html
import os
import traceback
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory, mkdtemp

from builtin.free_text import make_prompt
from engine.runtime import pick_device, run
from engine.saving import load_policy
from engine.settings import Port, read_settings
from predict import PredictConfig, respond
from real.photos import read_image
from real.smpl import load_body

EXAMPLES = ["kneeling on the left knee, right hand above the head", "sitting, both arms spread", "bent over"]
read_policy = functools.cache(load_policy)


@dataclass
class DemoConfig:
    runs: str = field(default=".", metadata={"help": "a run, or a folder of runs: their policies can be chosen"})
    body: str | None = field(default=None, metadata={"help": "SMPL: .pkl, .npz or a folder; default: built in"})
    port: Port = field(default=7860, metadata={"help": "where the page is served: http://127.0.0.1:PORT"})


def policies(runs: str) -> list[str]:
    """The folders of policies in a run or in a folder of runs, those of stage two first. FileNotFoundError for none."""
    found = [path.parent for depth in ("", "*/") for name in ("rft", "sft") for path in
             Path(runs).glob(f"{depth}{name}/pose.json")]
    if not found:
        raise FileNotFoundError(f"--runs {runs}: neither a run nor a folder of runs; python train_rft.py makes one")
    return [str(folder) for folder in sorted(found, key=lambda folder: (folder.name, folder))]


def answer(folder: str, words: str | None, photo: str | None, config: DemoConfig, out: str) -> tuple:
    """What the page shows: words, bodies (HTML), picture and files (paths). A fault is a sentence, and nothing else."""
    said = []
    try:
        if not (words or "").strip() and not photo:
            raise ValueError("Describe a pose, or give a photo.")
        policy = read_policy(folder).to(pick_device())
        image = read_image(photo, policy.image_size) if photo else None
        files = respond(policy, load_body(config.body), make_prompt(words or "", image), image,
                        PredictConfig(out=mkdtemp(dir=out)), said.append)
    except (ValueError, OSError) as error:
        return str(error).replace(photo or "\0", Path(photo or "").name), "", None, None
    except Exception:  # a fault of the program: its place is told in the terminal
        traceback.print_exc()
        return "This failed inside; the terminal in which demo.py runs says where.", "", None, None
    page = "".join(path.read_text(encoding="utf-8") for path in files if path.suffix == ".html")
    frame = f'<iframe title="bodies" style="width:100%; height:38rem; border:0" srcdoc="{html.escape(page)}"></iframe>'
    return "\n".join(said), page and frame, *((str(files[0]), [*map(str, files)]) if files else (None, None))


def make_page(config: DemoConfig, choices: list[str], out: str):
    """The page, of gradio."""
    import gradio as gr  # optional, and slow
    with gr.Blocks(title="Pose-RFT", analytics_enabled=False) as page:
        gr.Markdown("## Describe a pose, or show a photo\nThe built-in policy knows short English sentences and "
                    "rendered people: a photo, of one person who fills it, asks much of it.")
        with gr.Row():
            with gr.Column(scale=1):
                folder = gr.Dropdown(choices, label="policy")
                words = gr.Textbox(label="a pose in words, or a question about the photo")
                photo = gr.File(label="a photo of one person", height=150)
                button = gr.Button("Ask", variant="primary")
                gr.Examples(EXAMPLES, words)
                said, files = gr.Textbox(label="answer", lines=5), gr.File(label="files", interactive=False)
            with gr.Column(scale=2):
                bodies, picture = gr.HTML(), gr.Image(label="mean pose and samples", buttons=["download"])
        gr.on([button.click, words.submit], lambda *asked: answer(*asked, config, out), [folder, words, photo],
              [said, bodies, picture, files])
    return page


def main() -> None:
    config, = read_settings(__doc__, DemoConfig)
    if not find_spec("gradio"):
        raise ValueError("the page needs gradio: pip install plotly gradio")
    with TemporaryDirectory() as out:
        os.environ |= {"GRADIO_ANALYTICS_ENABLED": "False", "GRADIO_TEMP_DIR": out}
        page, _ = make_page(config, policies(config.runs), out), load_body(config.body)  # or it says what is missing
        print(f"Open http://127.0.0.1:{config.port} in a browser; Ctrl+C ends it.")
        page.launch(server_name="127.0.0.1", server_port=config.port, quiet=True, footer_links=[])


if __name__ == "__main__":
    run(main)
