"""Hostile input: whatever a file holds or a user types, the outcome is a sound result or one sentence that names the
file. Nothing in a file is executed, nothing hangs, and what looks like a special token stays text.

About 2,900 cases in all, drawn by hypothesis with a fixed seed: the numbers handed to `cases` below.
"""

import io
import json
import pickle
import shutil
import struct
import time
import zlib
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import transformers
from PIL import Image
from hypothesis import HealthCheck, given, settings, strategies as st
from safetensors.torch import load_file, save

import body
import captions
import data
import predict
import rewards
from builtin.retriever import Retriever
from builtin.tiny import build_tiny
from engine.checkpoint import check_folder
from engine.saving import load_policy, save_policy
from lab import prediction_files
from model import PosePolicy
from real import photos, smpl
from real.amass import read_amass
from real.prompts import PLACEHOLDER

transformers.utils.logging.set_verbosity_error()
transformers.utils.logging.disable_progress_bar()


def cases(count: int):
    return settings(max_examples=count, derandomize=True, deadline=None, database=None,
                    suppress_health_check=list(HealthCheck))


def sound_or_one_sentence(read, path: Path):
    """What `read` makes of a path, or None where it refuses it as it should."""
    try:
        return read(path)
    except (ValueError, FileNotFoundError) as error:
        assert str(path) in str(error) and "\n" not in str(error)


def broken(whole: bytes):
    """A strategy: the bytes of a file cut short, with bits flipped (half of the time near its start), or noise."""
    def flip(places):
        data = bytearray(whole)
        for place, bit in places:
            data[place] ^= 1 << bit
        return bytes(data)
    place = st.integers(0, min(len(whole), 400) - 1) | st.integers(0, len(whole) - 1)
    return (st.integers(0, len(whole) - 1).map(lambda n: whole[:n])
            | st.lists(st.tuples(place, st.integers(0, 7)), min_size=1, max_size=6).map(flip) | st.binary(max_size=200))


def npz(**arrays) -> bytes:
    file = io.BytesIO()
    np.savez(file, **arrays)
    return file.getvalue()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("hostile")


JSON = st.recursive(st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5)
                    | st.sampled_from([0, 1, 3, -1, 10 ** 6, 10 ** 9, 10 ** 12, 1e300]),
                    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
                    max_leaves=5)


# ---------------------------------------------------------------- motion capture, body models, settings of a run

def is_poses(rotmats: torch.Tensor) -> bool:
    return rotmats.shape[1:] == (24, 3, 3) and len(rotmats) > 0 and torch.allclose(
        rotmats @ rotmats.mT, torch.eye(3).expand_as(rotmats), atol=2e-3)


@cases(350)
@given(broken(npz(poses=np.random.default_rng(0).normal(0, .5, (3, 156)).astype(np.float32),
                  mocap_framerate=np.array(60.0))))
def test_broken_motion_capture(folder, content):
    (folder / "motion.npz").write_bytes(content)
    rotmats = sound_or_one_sentence(read_amass, folder / "motion.npz")
    assert rotmats is None or is_poses(rotmats)


ODD = st.sampled_from([0, .1, 1e2, 1e4, 1e20, 1e39, -1e300, np.inf, np.nan])
RATES = (st.just(60.0) | st.floats() | st.integers() | st.text(max_size=3) | st.binary(max_size=3)
         | st.lists(st.floats(), max_size=3))


@cases(250)
@given(st.sampled_from([(2, 156), (3, 165), (1, 156), (0, 156), (156,), (), (2, 66), (2, 2, 156)]),
       st.sampled_from(["f2", "f4", "f8", "g", ">f4", "i8", "c16", "U5", "?", "O", "M8[s]"]), ODD, RATES)
@pytest.mark.filterwarnings("ignore:(invalid value|overflow) encountered")
def test_motion_capture_of_any_shape_type_and_value(folder, shape, dtype, value, rate):
    poses = np.zeros(shape)
    poses.flat[:1] = value
    try:
        poses = poses.astype(dtype)
        content = npz(poses=poses, mocap_framerate=rate)
    except (ValueError, OverflowError, UnicodeEncodeError):  # numpy cannot even write such a file
        return
    (folder / "motion.npz").write_bytes(content)
    rotmats = sound_or_one_sentence(read_amass, folder / "motion.npz")
    assert rotmats is None or is_poses(rotmats)
    if len(shape) == 2 and shape[0] and shape[1] > 66 and poses.dtype.kind == "f" and abs(value) < 1e3 and rate == 60:
        assert rotmats is not None


def small_body() -> dict[str, np.ndarray]:
    rng, V = np.random.default_rng(0), 12
    return dict(v_template=rng.random((V, 3)), shapedirs=rng.random((V, 3, 10)), posedirs=np.zeros((V, 3, 207)),
                J_regressor=np.full((24, V), 1 / V), weights=np.full((V, 24), 1 / 24), f=np.arange(12).reshape(4, 3),
                kintree_table=np.array([body.PARENTS, range(24)]))


def read_body(path: Path) -> torch.Tensor:
    model = smpl._read_body.__wrapped__(str(path))  # without its cache: the name is the same at each call
    vertices = smpl.body_vertices(model, torch.eye(3).repeat(1, 24, 1, 1), torch.zeros(1, 10))[0]
    assert vertices.shape[1] == len(model.v_template) and len(vertices[0, model.faces_tensor]) == len(model.faces)
    return vertices


@cases(200)
@given(broken(npz(**{name: array.astype(np.float32) for name, array in small_body().items()})))
def test_broken_body_models(folder, content):
    (folder / "body.npz").write_bytes(content)
    vertices = sound_or_one_sentence(read_body, folder / "body.npz")
    assert vertices is None or vertices.isfinite().all()


@cases(150)
@given(st.sampled_from(sorted(small_body())), st.sampled_from(["f4", "f8", "i4", "u1", "U5", "O", "?"]),
       st.sampled_from([-1, 0, 5, 1e4, 1e39, np.inf, np.nan]), st.sampled_from(["all", "one", "cut", "turned", "flat"]))
@pytest.mark.filterwarnings("ignore:(invalid value|overflow) encountered")
def test_body_models_with_one_array_of_another_kind(folder, name, dtype, value, how):
    arrays = small_body()
    array = arrays[name].copy().astype(np.float64)
    array.flat[slice(None) if how == "all" else -1] = value
    array = {"cut": array[:-1], "turned": array.T, "flat": array.flatten()[0]}.get(how, array)
    (folder / "body.npz").write_bytes(npz(**arrays | {name: np.asarray(array).astype(dtype)}))
    vertices = sound_or_one_sentence(read_body, folder / "body.npz")
    assert vertices is None or vertices.isfinite().all()


@cases(200)
@given(broken(json.dumps({"seed": 0, "covariance": "diag"}).encode()) | JSON.map(lambda x: json.dumps(x).encode())
       | st.just(b"[" * 100_000))
def test_broken_settings_of_a_run(folder, content):
    (folder / "sft_config.json").write_bytes(content)
    try:
        check_folder(folder, "sft_config.json", {"seed": 0})
    except ValueError as error:
        assert str(folder) in str(error) and "--out" in str(error) and "\n" not in str(error)
    else:
        assert json.loads(content)["seed"] == 0


def test_a_file_in_the_place_of_a_run(folder):
    (folder / "file").write_text("")
    with pytest.raises(ValueError, match="--out"):
        check_folder(folder / "file", "sft_config.json", {})


# ---------------------------------------------------------------- checkpoints

@pytest.fixture(scope="module")
def checkpoints(folder):
    """A folder with an untrained `policy` and an untrained `retriever`, both whole."""
    torch.manual_seed(0)
    policy = PosePolicy(*build_tiny(["The left knee is bent.", captions.POSE_ANSWER] * 20, hidden_size=16, layers=1))
    save_policy(policy, folder / "whole" / "policy")
    Retriever(policy.tokenizer.backend_tokenizer).save_pretrained(folder / "whole" / "retriever")
    return folder / "whole"


@pytest.fixture(scope="module")
def policy(checkpoints):
    return load_policy(checkpoints / "policy")


@pytest.fixture(scope="module")
def retriever(checkpoints):
    return Retriever.from_pretrained(checkpoints / "retriever")


def copy_of(whole: Path, **files: bytes) -> Path:
    """A copy of a checkpoint in which some files have another content (dots in a name written __)."""
    copy = whole.parent.parent / f"copy_of_{whole.name}"
    shutil.rmtree(copy, ignore_errors=True)
    copy.mkdir()
    for name in {path.name for path in whole.iterdir()} | {name.replace("__", ".") for name in files}:
        if (content := files.get(name.replace(".", "__"))) is None:
            (copy / name).symlink_to(whole / name)
        else:
            (copy / name).write_bytes(content)
    return copy


def asked(prompt: str, image=None):
    return SimpleNamespace(prompt=prompt, image=image)


def read_policy(path: Path) -> PosePolicy:
    policy = load_policy(path)
    assert all(parameter.isfinite().all() for parameter in policy.parameters())
    ids = policy.encode([asked("The left knee is bent.")]).ids
    assert policy.vlm.get_input_embeddings()(ids).isfinite().all()  # no id without a row
    return policy


def read_retriever(path: Path) -> Retriever:
    retriever = Retriever.from_pretrained(path)
    assert all(parameter.isfinite().all() for parameter in retriever.parameters())
    assert retriever.encode_text(["The left knee is bent."]).shape == (1, retriever.config["dim"])
    return retriever


FILES = {"policy": ("pose.json", "pose.safetensors", "model.safetensors", "config.json", "tokenizer.json",
                    "tokenizer_config.json", "processor_config.json", "chat_template.jinja"),
         "retriever": ("config.json", "tokenizer.json", "model.safetensors")}
READ = {"policy": read_policy, "retriever": read_retriever}


@pytest.mark.parametrize("kind, name", [(kind, name) for kind, names in FILES.items() for name in names])
def test_broken_files_of_a_checkpoint(checkpoints, kind, name):
    @cases(20 if kind == "policy" else 50)
    @given(broken((checkpoints / kind / name).read_bytes()))
    def check(content):
        sound_or_one_sentence(READ[kind], copy_of(checkpoints / kind, **{name.replace(".", "__"): content}))
    check()


@pytest.mark.parametrize("kind", FILES)
def test_a_checkpoint_without_one_of_its_files(checkpoints, kind):
    for name in FILES[kind]:
        if name not in ("tokenizer_config.json", "chat_template.jinja"):  # read from other files too
            copy = copy_of(checkpoints / kind)
            (copy / name).unlink()
            with pytest.raises((ValueError, FileNotFoundError), match="copy_of"):
                READ[kind](copy)
    READ[kind](copy_of(checkpoints / kind))


@cases(50)
@given(st.fixed_dictionaries({}, optional={
    "covariance": st.sampled_from(["diag", "full"]) | JSON, "sigma_floor": st.floats() | JSON,
    "pose_encoder": st.fixed_dictionaries({}, optional={
        "channels": st.lists(st.integers(-1, 200) | st.just(10 ** 9), max_size=4) | JSON, "tokens": JSON,
        "width": JSON}) | JSON}))
def test_policies_with_odd_settings(checkpoints, odd):
    whole = json.loads((checkpoints / "policy" / "pose.json").read_text())
    sound_or_one_sentence(read_policy, copy_of(checkpoints / "policy", pose__json=json.dumps(whole | odd).encode()))


def test_sizes_that_no_memory_holds_are_refused_before_anything_is_made(checkpoints):
    for odd in ({"width": 10 ** 6}, {"tokens": 10 ** 6}, {"channels": [24, 48, 10 ** 5]}):
        config = {"covariance": "diag", "sigma_floor": .02, "pose_encoder": odd}
        with pytest.raises(ValueError, match="at most 4096"):
            read_policy(copy_of(checkpoints / "policy", pose__json=json.dumps(config).encode()))
    whole = json.loads((checkpoints / "retriever" / "config.json").read_text())
    for odd in ({"max_tokens": 10 ** 9}, {"width": 10 ** 6}, {"dim": 10 ** 9}, {"layers": 10 ** 9}):
        with pytest.raises(ValueError, match="does not fit config.json|not the weights"):
            read_retriever(copy_of(checkpoints / "retriever", config__json=json.dumps(whole | odd).encode()))


@cases(100)
@given(st.dictionaries(st.sampled_from(["width", "layers", "dim", "max_tokens", "other"]), JSON, min_size=1))
@pytest.mark.filterwarnings("ignore:Initializing zero-element tensors")
def test_retrievers_with_odd_settings(checkpoints, odd):
    whole = json.loads((checkpoints / "retriever" / "config.json").read_text())
    config = json.dumps(whole | odd).encode()
    sound_or_one_sentence(read_retriever, copy_of(checkpoints / "retriever", config__json=config))


@pytest.mark.parametrize("kind, name", [("policy", "pose"), ("policy", "model"), ("retriever", "model")])
@pytest.mark.parametrize("value", [torch.nan, -torch.inf, None])
def test_weights_that_are_not_finite_or_not_there(checkpoints, kind, name, value):
    tensors = load_file(checkpoints / kind / f"{name}.safetensors")
    if value is None:
        tensors.pop(list(tensors)[-1])
    else:
        tensors[list(tensors)[-1]].view(-1)[-1] = value
    content = save(tensors, {"format": "pt"})
    with pytest.raises(ValueError, match="copy_of"):
        READ[kind](copy_of(checkpoints / kind, **{f"{name}__safetensors": content}))


class Mine:
    """Pickled, it writes a file when it is read."""
    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return Path.write_text, (self.path, "executed")


def test_no_pickle_is_executed(checkpoints, folder):
    mark = folder / "mark"
    torch.save({"weight": Mine(mark)}, folder / "mine.bin")
    for content in (pickle.dumps(Mine(mark)), (folder / "mine.bin").read_bytes()):
        pickle.loads(pickle.dumps(Mine(mark)))
        assert mark.exists(), "the pickle must be a live one"
        mark.unlink()
        beside = copy_of(checkpoints / "policy", pytorch_model__bin=content, training_args__bin=content)
        assert isinstance(read_policy(beside), PosePolicy)
        (beside / "model.safetensors").unlink()  # and instead
        with pytest.raises(ValueError, match="copy_of"):
            read_policy(beside)
        for kind, names in FILES.items():
            for name in names:
                sound_or_one_sentence(READ[kind], copy_of(checkpoints / kind, **{name.replace(".", "__"): content}))
        for read, path in ((read_amass, "motion.npz"), (read_body, "body.npz"), (photos.read_image, "photo.png")):
            (folder / path).write_bytes(content)
            assert sound_or_one_sentence(read, folder / path) is None
    honest = copy_of(checkpoints / "policy")  # weights alone, but pickled: not read either
    torch.save(load_file(honest / "model.safetensors"), honest / "pytorch_model.bin")
    (honest / "model.safetensors").unlink()
    with pytest.raises(ValueError, match="copy_of"):
        read_policy(honest)
    objects = np.array([Mine(mark)], dtype=object)
    np.savez(folder / "motion.npz", poses=objects)
    np.savez(folder / "body.npz", **small_body() | {"f": objects})
    for read, path in ((read_amass, "motion.npz"), (read_body, "body.npz")):
        assert sound_or_one_sentence(read, folder / path) is None
    assert not mark.exists()


@pytest.mark.parametrize("model_type", ["llava", "unheard_of"])
def test_no_code_beside_a_checkpoint_is_run(checkpoints, folder, model_type, monkeypatch):
    mark = folder / "mark"
    code = f"open({str(mark)!r}, 'w')\nclass Mine: pass\n".encode()
    files = {}
    for name in ("config.json", "tokenizer_config.json", "processor_config.json"):
        config = json.loads((checkpoints / "policy" / name).read_text())
        config |= {"trust_remote_code": True, "auto_map": {key: "mine.Mine" for key in (
            "AutoConfig", "AutoModelForImageTextToText", "AutoProcessor", "AutoTokenizer", "AutoImageProcessor")}}
        files[name.replace(".", "__")] = json.dumps(config | {"model_type": model_type}).encode()
    questions = []
    monkeypatch.setattr("builtins.input", lambda *words: questions.append(words) or "yes")
    sound_or_one_sentence(read_policy, copy_of(checkpoints / "policy", mine__py=code, **files))
    assert not mark.exists() and not questions  # on the terminal


@pytest.mark.parametrize("floor", [-.02, np.nan, np.inf, 1e300, "0.02", None])
def test_a_floor_of_sigma_that_is_none_is_refused(checkpoints, floor):
    config = json.loads((checkpoints / "policy" / "pose.json").read_text()) | {"sigma_floor": floor}
    with pytest.raises(ValueError, match="copy_of_policy"):
        read_policy(copy_of(checkpoints / "policy", pose__json=json.dumps(config).encode()))


def test_a_tokenizer_without_an_end_is_refused(checkpoints):
    config = json.loads((checkpoints / "policy" / "tokenizer_config.json").read_text())
    del config["eos_token"], config["pad_token"]
    with pytest.raises(ValueError, match="copy_of_policy"):
        read_policy(copy_of(checkpoints / "policy", tokenizer_config__json=json.dumps(config).encode()))


@pytest.mark.parametrize("template", [
    "", "USER: ASSISTANT:", "{% for m in messages %}{{ m.content[-1].text }}{% endfor %}", "{{ 1 / 0 }}",
    "{{ ''.__class__.__mro__[1].__subclasses__() }}", "{% for m in messages %}{% for part in m.content %}"
    "{% if part.type == 'image' %}<image>{% endif %}{% endfor %}{% endfor %}"])
def test_a_chat_template_that_loses_prompt_or_image_is_refused(checkpoints, template):
    with pytest.raises(ValueError, match="copy_of_policy"):
        read_policy(copy_of(checkpoints / "policy", chat_template__jinja=template.encode()))


# ---------------------------------------------------------------- images

def picture(form: str, mode: str = "RGB", size=(40, 30)) -> bytes:
    pixels = np.random.default_rng(0).integers(0, 255, (*size[::-1], 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).convert(mode).save(file, form)
    return file.getvalue()


def is_picture(pixels) -> bool:
    return pixels.shape == (64, 64, 3) and pixels.dtype == np.uint8


@cases(400)
@given(st.sampled_from([picture(form) for form in photos.FORMATS]).flatmap(broken))
def test_broken_images(folder, content):
    (folder / "photo.png").write_bytes(content)
    pixels = sound_or_one_sentence(photos.read_image, folder / "photo.png")
    assert pixels is None or is_picture(pixels)


def png(width: int, height: int) -> bytes:
    """A PNG that promises so many pixels, with true checksums, and holds hardly any."""
    chunk = lambda kind, data: struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)) + chunk(
        b"IDAT", zlib.compress(bytes(50))) + chunk(b"IEND", b"")


@pytest.mark.parametrize("content, reason", [
    (png(0, 0), "identify"), (png(0, 9), "identify"), (png(8_000, 8_000), "too many"), (png(50_000, 50_000), "bomb"),
    (png(2 ** 31 - 1, 2 ** 31 - 1), "bomb"), (png(100, 100), "truncated"),
    (b"GIF89a" + struct.pack("<HHBBB", 65535, 65535, 0, 0, 0) + b",\0\0\0\0\xff\xff\xff\xff\0\2\2L\1\0;", "bomb"),
    (b"P6 9 9 255\n" + bytes(243), "identify"), (b"not a picture", "identify"),
    (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n", "identify")])  # a program
def test_images_that_promise_what_they_do_not_hold(folder, content, reason):
    path = folder / "photo.png"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=reason) as error:
        photos.read_image(path)
    assert str(path) in str(error.value)


@pytest.mark.parametrize("form, mode", [("GIF", "P"), ("GIF", "L"), ("WEBP", "RGB"), ("WEBP", "RGBA"), ("BMP", "L"),
    ("BMP", "1"), ("TIFF", "CMYK"), ("TIFF", "LAB"), ("TIFF", "YCbCr"), ("JPEG", "CMYK"), ("PNG", "P"), ("PNG", "LA")])
def test_images_of_every_format_look_the_same(folder, form, mode):
    (folder / "photo").write_bytes(picture(form, mode, (64, 64)))
    pixels = photos.read_image(folder / "photo").astype(float)
    assert is_picture(pixels.astype(np.uint8)) and abs(pixels.mean() - 127) < 20


@pytest.mark.parametrize("dtype", [np.uint16, np.int32, np.float32])
def test_images_of_more_than_8_bits_are_refused_and_not_cut_at_255(folder, dtype):
    Image.fromarray(np.full((64, 64), 300, dtype)).save(folder / "photo.tif")
    with pytest.raises(ValueError, match="8 bits"):
        photos.read_image(folder / "photo.tif")


def test_a_folder_is_no_image(folder):
    assert sound_or_one_sentence(photos.read_image, folder) is None


# ---------------------------------------------------------------- words

SPECIAL = ["<POSE>", "<image>", "<pose_feature>", "</s>", "<s>", "<pad>"]
TEXT = st.text(max_size=60) | st.lists(st.sampled_from([
    *SPECIAL, PLACEHOLDER, "<", ">", "<im", "age>", "POSE>", " ", "{}", "{0.__class__}", "{{ messages }}", "USER: ", "膝",
    "ركبة", "колено", "\0", "\x1b[2J", "\u202e", "\r\n", "e\u0301", "🧎🏽‍♀️", "a\u0300" * 9, captions.POSE_ANSWER]),
    max_size=9).map("".join)
PIXELS = np.zeros((64, 64, 3), np.uint8)


@cases(300)
@given(TEXT, st.booleans())
def test_special_tokens_that_are_typed_stay_text(policy, prompt, with_image):
    """The ids of special tokens stand where the frame alone has them; the rest is the prompt, to the byte."""
    image = PIXELS if with_image else None
    encoded, plain = policy.encode([asked(prompt, image)]).ids[0], policy.encode([asked("", image)]).ids[0]
    assert set(SPECIAL) == set(policy.tokenizer.all_special_tokens)
    special = torch.tensor(policy.tokenizer.convert_tokens_to_ids(SPECIAL))
    kept = [ids[torch.isin(ids, special)].tolist() for ids in (encoded, plain)]
    assert kept[0] == kept[1]
    for token in SPECIAL:
        prompt = prompt.replace(token, f"{token[0]} {token[1:]}")
    frame = policy.chat_frames[with_image].replace("<image>", "")
    assert policy.tokenizer.decode(encoded[~torch.isin(encoded, special)]) == frame.replace(PLACEHOLDER, prompt)


@cases(200)
@given(TEXT, st.booleans())
def test_any_words_become_a_prompt_that_holds_them(words, with_image):
    image = PIXELS if with_image else None
    if not words.split() and image is None:
        with pytest.raises(ValueError, match="describe a pose"):
            predict.make_prompt(words, image)
        return
    prompt = predict.make_prompt(words, image)
    assert " ".join(words.split())[1:] in prompt and prompt.strip()


@cases(250)
@given(TEXT | st.lists(st.sampled_from([*(s.key for s in captions.STATEMENTS), " ", ", ", ". ", "not "])).map("".join))
def test_any_text_is_parsed_and_rewarded(text):
    made = captions.parse(text)
    assert len(set(made)) == len(made) and set(made) <= set(range(2 * captions.S))
    assert {rewards.has_form(task, text) for task in data.TASKS} <= {0.0, 1.0}
    assert captions.POSE_ANSWER not in rewards.words_of(text) or captions.POSE_ANSWER in text.replace(
        captions.POSE_ANSWER, "")


@cases(100)
@given(TEXT.map(lambda text: text * 200))
def test_a_retriever_places_any_text_on_its_sphere(retriever, text):
    vectors = retriever.encode_text([text, "bent"])
    torch.testing.assert_close(vectors.norm(dim=-1), torch.ones(2))


@pytest.mark.parametrize("piece", [
    "a", "the ", "the left ", "the person is kneeling on the ", ". ", ", ", "not ", ", or ", " ", "<", "(", "\n", "膝", "<POSE>",
    captions.POSE_ANSWER, ". The SMPL pose of this person is "])
def test_long_texts_take_no_longer_than_their_length(piece):
    def seconds(length):
        text, started = (piece * length)[:length], time.process_time()
        captions.parse(text)
        for task in data.TASKS:
            rewards.has_form(task, text)
        rewards.words_of(text)
        predict.make_prompt("x" + text, None)
        return time.process_time() - started

    # Eight times the length is eight times the work, where its square would be 64. A busy machine gets three tries.
    assert any(seconds(100_000) < 24 * seconds(12_500) + 0.1 for _ in range(3))


def test_a_prompt_longer_than_the_policy_reads_is_refused(policy):
    with pytest.raises(ValueError, match=r"has \d+ tokens.* at most 1968: make it shorter"):
        predict.predict(policy, "very " * 10_000 + "bent", None, 1)
    one = len(policy.encode([asked("")]).ids[0])
    longest = "!" * (1968 - one)  # a token each
    assert len(policy.encode([asked(longest)]).ids[0]) == 1968
    prediction = predict.predict(policy, longest, None, 1)
    assert prediction.rotmats.isfinite().all()
    with pytest.raises(ValueError, match="has 1969 tokens"):
        predict.predict(policy, longest + "!", None, 1)


def test_any_words_can_be_drawn(folder, monkeypatch):
    monkeypatch.setattr(prediction_files, "SIZE", 32)
    words = "".join(map(chr, range(32))) + "\x7f\x9b\u202e \ufffd $\\frac{ ركبة 膝 " + "x" * 3_000
    prediction_files.draw(folder / "picture.png", smpl.load_body(), words, PIXELS, words, [f"+ {words}"] * 40,
                 torch.eye(3).repeat(3, 24, 1, 1))
    with Image.open(folder / "picture.png") as picture:
        assert picture.size == (1600, 900)
