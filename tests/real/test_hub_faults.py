"""What a hub says, over HTTP as huggingface_hub asks it, and what becomes of it: one sentence, and no false cause."""

import json
import os
import re
import subprocess
import sys
import threading
import time
from functools import cache
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import transformers

from real.hub_faults import TORCHVISION
from test_families import save_checkpoint

COMMIT = "a" * 40
# What the hub answers to every question about a model: status, X-Error-Code, X-Error-Message.
ANSWERS = {
    "org/gated": (401, "GatedRepo", "Access to model org/gated is restricted. Please log in."),
    "org/private": (404, "RepoNotFound", "Repository not found"),
    "org/token": (401, None, "Invalid credentials in Authorization header"),
    "org/forbidden": (403, None, "Your token lacks the right to read"),
    "org/disabled": (403, None, "Access to this resource is disabled."),
    "org/limited": (429, None, "We had to rate limit your IP"),
    "org/broken": (500, None, "Internal Error - We're working hard to fix this as soon as possible!"),
    "org/revision": (404, "RevisionNotFound", "Invalid rev id: main")}
SAYS = {
    "org/gated": "accepted its terms (401, Access to model org/gated is restricted. Please log in.); accept them at "
                 "https://huggingface.co/org/gated and log in",
    "org/private": "shows you no such model (404, Repository not found); look at the spelling or, if the model is priv",
    "org/token": "the hub answered: 401, Invalid credentials in Authorization header; log in anew with `hf auth login`",
    "org/forbidden": "the hub answered: 403, Your token lacks the right to read; see on the model's page who may",
    "org/disabled": "the hub answered: 403, Access to this resource is disabled.;",
    "org/limited": "the hub answered: 429, We had to rate limit your IP; wait, then call the same command again",
    "org/broken": "the hub answered: 500, Internal Error - We're working hard",
    "org/revision": "the hub answered: 404, Invalid rev id: main; see on the model's page what it holds",
    "org/slow": "the hub did not answer in time; call the same command again",
    "org/cut": "the download broke off (peer closed connection without sending complete message body",
    "org/full": "the disk is full, where models of the hub are kept",
    "org/newer": f"transformers {transformers.__version__} do not know its architecture, llava_next_year; if",
    "org/typeless": "its config.json names no model_type; give a model in the layout of transformers",
    "org/gguf": "it holds no config.json; give a model in the layout of transformers, which GGUF files",
    "org/pickle": "it holds no *.safetensors, and weights in other formats, which may run code, are not read; convert",
    "org/lfs": "a file of its weights is cut or damaged (Error while deserializing header: header too large); fetch or",
    "org/code": "it brings Python code of its own, which is never run here",
    "org/wordless": "it holds no tokenizer.json; if it holds a tokenizer.model, pip install sentencepiece",
    "org/blind": "no image processor (preprocessor_config.json or processor_config.json)",
    "org/bits": "a package that it needs is not installed: Using `bitsandbytes` 4-bit quantization requires bitsandbyt",
    "no/such/folder": "no such folder, nor a name that a model on the hub can have (OWNER/NAME)",
    "org/offline": "not among the models kept on this machine; HF_HUB_OFFLINE or TRANSFORMERS_OFFLINE forbids",
    "org/unreachable": "the hub cannot be reached ([Errno 111] Connection refused); give a folder"}
# Each name is loaded as train_sft.py does. The clock does not wait between two tries of huggingface_hub.
CLIENT = """
import json, sys, time, warnings
import transformers
from huggingface_hub import constants
from real.hub import load_vlm
transformers.utils.logging.set_verbosity_error()
warnings.simplefilter("ignore")
time.sleep, said, kept = lambda seconds: None, {}, constants.HF_HUB_CACHE
for name in json.loads(sys.argv[1]):
    constants.HF_HUB_CACHE = sys.argv[2] if name == "org/full" else kept
    constants.HF_HUB_OFFLINE = name == "org/offline"
    if name == "org/unreachable":
        constants.ENDPOINT = "http://127.0.0.1:9"
        constants.HUGGINGFACE_CO_URL_TEMPLATE = "http://127.0.0.1:9/{repo_id}/resolve/{revision}/{filename}"
    try:
        load_vlm(name)
    except ValueError as error:
        said[name] = str(error)
json.dump(said, open(sys.argv[3], "w"))
"""


@cache
def checkpoint_files(folder):
    """The repositories that the hub does have: name -> file -> bytes."""
    whole = {file.name: file.read_bytes() for file in Path(folder).iterdir()}
    config = json.loads(whole["config.json"])

    def with_config(**changes):
        merged = {key: value for key, value in (config | changes).items() if value is not None}
        return whole | {"config.json": json.dumps(merged).encode()}

    def without(*parts):
        return {name: data for name, data in whole.items() if not any(part in name for part in parts)}
    pointer = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 545552\n"
    return {
        "org/whole": whole, "org/slow": whole, "org/cut": whole, "org/full": whole, "org/newer": with_config(model_type="llava_next_year"),
        "org/typeless": with_config(model_type=None), "org/gguf": {"model.gguf": b"GGUF", "README.md": b""},
        "org/pickle": without("safetensors") | {"pytorch_model.bin": b"\x80\x02"},
        "org/lfs": whole | {"model.safetensors": pointer}, "org/wordless": without("tokenizer"),
        "org/code": with_config(model_type="own", auto_map={"AutoConfig": "own.Config"}) | {"own.py": b"print(1)"},
        "org/blind": without("processor"), "org/bits": with_config(quantization_config={
            "quant_method": "bitsandbytes", "load_in_4bit": True})}


class Hub(BaseHTTPRequestHandler):
    """The questions that huggingface_hub asks for a model, answered as huggingface.co does."""
    protocol_version = "HTTP/1.1"
    files: dict

    def log_message(self, *_):
        pass

    def do_HEAD(self):
        self.answer()

    def do_GET(self):
        self.answer()

    def send(self, status, data=b"", cut=False, **headers):
        self.send_response(status)
        for key, value in ({"Content-Length": str(len(data))} | headers).items():
            self.send_header(key.replace("_", "-"), value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(data[:len(data) // 2] if cut else data)
        self.close_connection = self.close_connection or cut

    def fault(self, status, code, message):
        self.send(status, X_Error_Message=message, **({"X_Error_Code": code} if code else {}))

    def answer(self):
        path = self.path.split("?")[0]
        parts = path.removeprefix("/api/models").strip("/").split("/")
        name = "/".join(parts[:2])
        if name == "org/slow":
            time.sleep(2.5)
        if name in ANSWERS or name not in self.files:
            return self.fault(*ANSWERS.get(name, (404, "RepoNotFound", "Repository not found")))
        files = self.files[name]
        if not path.startswith("/api/"):
            file = "/".join(parts[4:])
            if file not in files:
                return self.fault(404, "EntryNotFound", "Entry not found")
            return self.send(200, files[file], name == "org/cut" and file == "model.safetensors", X_Repo_Commit=COMMIT,
                             ETag=f'"{name.replace("/", "-")}-{file}"')
        if parts[2:3] == ["tree"] and len(parts) > 4:
            return self.fault(404, "EntryNotFound", "no such folder")
        listed = [{"type": "file", "oid": "b" * 40, "size": len(data), "path": file} for file, data in files.items()]
        about = {"id": name, "sha": COMMIT, "private": False, "tags": [], "siblings": [
            {"rfilename": file} for file in files]}
        self.send(200, json.dumps({"tree": listed, "commits": [{"id": COMMIT, "title": "", "message": "", "authors": [],
                                                                "date": "2026-01-01T00:00:00.000Z"}],
                                   "discussions": {"discussions": [], "count": 0, "start": 0}}.get(
            parts[2] if len(parts) > 2 else "", about)).encode(), Content_Type="application/json")


@pytest.fixture(scope="module")
def said(tmp_path_factory):
    """name -> the sentence with which its loading ended, from one process that asks the hub of this test."""
    place = tmp_path_factory.mktemp("hub")
    Hub.files = checkpoint_files(save_checkpoint("llava 1.5", place / "llava"))
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    (small := place / "small").mkdir()
    mounted = subprocess.run(["unshare", "-rm", "mount", "-t", "tmpfs", "tmpfs", small], capture_output=True)
    names = [name for name in ["org/whole", *SAYS] if name != "org/full" or mounted.returncode == 0]
    command = [sys.executable, "-c", CLIENT, json.dumps(names), str(small), str(place / "said.json")]
    if "org/full" in names:
        mount = f'mount -t tmpfs -o size=300k tmpfs {small} && exec "$0" "$@"'
        command = ["unshare", "-rm", "sh", "-c", mount, *command]
    environment = {key: value for key, value in os.environ.items() if not key.startswith("HF_")} | {
        "HF_ENDPOINT": f"http://127.0.0.1:{server.server_port}", "HF_HOME": str(place / "home"),
        "HF_HUB_DOWNLOAD_TIMEOUT": "1", "HF_HUB_ETAG_TIMEOUT": "1", "PYTHONPATH": str(Path(__file__).parents[2])}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    server.shutdown()
    server.server_close()
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads((place / "said.json").read_text())


@pytest.mark.parametrize("name", SAYS)
def test_what_the_hub_said_is_what_the_user_reads(name, said):
    if name == "org/full" and name not in said:
        pytest.skip("no small file system can be mounted here")
    assert said[name].startswith(f"{name}: ") and "\n" not in said[name]
    assert SAYS[name] in said[name]


def test_a_whole_model_is_loaded_from_that_hub(said):
    assert "org/whole" not in said


def test_torchvision_is_the_one_of_the_pinned_torch():
    """Each release of torch 2.N has one of torchvision, 0.(N + 15), whose patches follow."""
    root = Path(__file__).parents[2]
    minor, patch = re.search(r"^torch==2\.(\d+)\.(\d+)$", (root / "requirements.txt").read_text(), re.M).groups()
    own = f"torchvision==0.{int(minor) + 15}.{patch}"
    for text in (TORCHVISION, (root / "docs/going_real.md").read_text()):
        assert set(re.findall(r"torchvision==[\d.]+", text)) == {own}
