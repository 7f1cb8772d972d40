"""predict.py: its files agree with each other and with the policy, and mistakes end in one sentence."""

import io
import os
import sys
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.distributions import Independent

import captions
import data
import predict
from body import JOINT, axis_angle_to_matrix, matrix_to_rot6d, remove_heading, rot6d_to_matrix
from builtin.tiny import build_tiny
from engine import runtime
from engine.saving import load_policy, save_policy
from lab import prediction_files
from model import PosePolicy, draw_poses
from real.smpl import body_vertices, load_body

SENTENCE = "The left knee is bent and the right hand is above the head."
FILES = (*["body.html"] * bool(find_spec("plotly")), "body.obj", "picture.png", "pose.npz")


@pytest.fixture(scope="module")
def make(tmp_path_factory):
    """A function that saves an untrained policy with the given covariance and returns its folder."""
    def saved(covariance: str) -> Path:
        folder = tmp_path_factory.getbasetemp() / f"policy_{covariance}"
        if not folder.exists():
            torch.manual_seed(0)
            policy = PosePolicy(*build_tiny([SENTENCE, captions.POSE_ANSWER] * 30), covariance)
            for parameter in policy.pose_head.parameters():  # or every sigma would be the same
                torch.nn.init.normal_(parameter, std=.05)
            save_policy(policy, folder)
        return folder
    return saved


@pytest.fixture(autouse=True)
def answers_with_a_pose(monkeypatch):
    """An untrained policy hardly ever says <POSE>: its first token is made that, unless the prompt ends in "?"."""
    sample, encode_prompt = PosePolicy.sample, PosePolicy.encode

    def encode(self, examples):
        self.asked = examples[0].prompt
        return encode_prompt(self, examples)

    def forced(self, prompt, *args, **kwargs):
        rollout = sample(self, prompt, *args, **{**kwargs, "max_tokens": 5})
        rollout.tokens[rollout.tokens == self.pose_id] = self.tokenizer.pad_token_id
        rollout.has_pose[:] = not self.asked.endswith("Which hand is higher?")
        if rollout.has_pose.all():
            rollout.tokens[..., 0] = self.pose_id
        answers = [[self.tokenizer.decode(row) for row in group] for group in rollout.tokens]
        return rollout._replace(answers=answers)

    monkeypatch.setattr(PosePolicy, "encode", encode)
    monkeypatch.setattr(PosePolicy, "sample", forced)
    monkeypatch.setattr(prediction_files, "SIZE", 48)  # small pictures: these tests look at no pixel of a body


def call(monkeypatch, *arguments) -> None:
    monkeypatch.setattr(sys, "argv", ["predict.py", *map(str, arguments)])
    predict.main()


def stop(monkeypatch, capsys, *arguments) -> str:
    """What a call that fails says, as `runtime.run` ends it: in one line."""
    monkeypatch.setattr(sys, "argv", ["predict.py", *map(str, arguments)])
    with pytest.raises(SystemExit) as error:
        runtime.run(predict.main)
    message = str(error.value)
    assert message.startswith("predict.py: ") and "\n" not in message
    return message


def read_obj(path: Path) -> tuple[np.ndarray, np.ndarray]:
    rows = [line.split() for line in path.read_text().splitlines()]
    assert {row[0] for row in rows} == {"v", "f"} and {len(row) for row in rows} == {4}
    return (np.array([row[1:] for row in rows if row[0] == "v"], float),
            np.array([row[1:] for row in rows if row[0] == "f"], int))


@pytest.mark.parametrize("covariance", ["diag", "lowrank", "full"])
def test_files_agree_with_each_other_and_with_the_policy(make, monkeypatch, tmp_path, covariance):
    call(monkeypatch, SENTENCE, "--model", make(covariance), "--out", tmp_path, "--samples", 5, "--seed", 3)
    assert sorted(path.name for path in tmp_path.iterdir()) == list(FILES)
    with Image.open(tmp_path / "picture.png") as picture:
        assert picture.size == (1600, 900)
    pose = dict(np.load(tmp_path / "pose.npz"))
    order = pose.pop("rot6d_order").tolist()
    pose = {name: torch.from_numpy(array) for name, array in pose.items()}
    assert {name: tuple(array.shape) for name, array in pose.items()} == {
        "axis_angle": (24, 3), "rot6d": (24, 6), "betas": (10,), "mean": (144,), "covariance": (144, 144),
        "samples": (5, 24, 3)}
    assert all(array.dtype == torch.float32 for array in pose.values())
    rotmats = axis_angle_to_matrix(pose["axis_angle"])
    torch.testing.assert_close(matrix_to_rot6d(rotmats), pose["rot6d"], atol=1e-5, rtol=0)
    torch.testing.assert_close(rot6d_to_matrix(pose["mean"].view(24, 6)), rotmats, atol=1e-5, rtol=0)
    entries = torch.stack([rotmats[:, int(row), int(column)] for _, row, column in order], -1)
    torch.testing.assert_close(entries, pose["rot6d"], atol=1e-5, rtol=0)
    vertices, faces = read_obj(tmp_path / "body.obj")
    body = load_body()
    posed = body_vertices(body, rotmats[None], pose["betas"][None])[0][0].numpy()
    assert np.abs(vertices - posed).max() < 1e-4
    assert faces.min() == 1 and faces.max() == len(vertices)
    assert (faces - 1 == body.faces).all()
    # The Gaussian is the head's: its density, from mean and covariance, is what `log_prob` gives for any pose.
    assert torch.allclose(pose["covariance"], pose["covariance"].T, atol=1e-7)
    assert torch.linalg.eigvalsh(pose["covariance"].double()).min() > 0
    policy = load_policy(make(covariance))
    example = data.Example("text2pose", data.INSTRUCTIONS["text2pose"][0].format(SENTENCE), "<POSE>", None, None,
                           torch.zeros(10), "", ())
    tokens, mask = policy.tokenize_answers([example])
    with torch.no_grad():
        head = policy.log_prob(policy.encode([example]), tokens, mask).pose
    assert isinstance(head, Independent) == (covariance == "diag")
    points = pose["mean"] + .2 * torch.randn(4, 144, generator=torch.Generator().manual_seed(0))
    gaussian = torch.distributions.MultivariateNormal(pose["mean"].double(), pose["covariance"].double())
    density = head.log_prob(points[:, None, None])[:, 0, 0]
    torch.testing.assert_close(gaussian.log_prob(points.double()).float(), density, atol=.02, rtol=1e-4)


def test_six_numbers_in_the_order_of_others(tmp_path):
    """What the file that writes them says of pytorch3d, and of SPIN and HMR2."""
    rotmats = axis_angle_to_matrix(torch.randn(2, 24, 3, generator=torch.Generator().manual_seed(0)))
    prediction_files.write_pose(tmp_path, load_body(), torch.zeros(144), torch.eye(144), rotmats)
    rot6d = torch.from_numpy(np.load(tmp_path / "pose.npz")["rot6d"])
    a, b = rot6d.split(3, -1)  # as pytorch3d.transforms.rotation_6d_to_matrix
    first = torch.nn.functional.normalize(a, dim=-1)
    second = torch.nn.functional.normalize(b - (first * b).sum(-1, keepdim=True) * first, dim=-1)
    theirs = torch.stack((first, second, torch.linalg.cross(first, second)), -2)
    torch.testing.assert_close(theirs.mT, rotmats[0], atol=1e-5, rtol=0)
    x = rot6d.reshape(24, 2, 3).swapaxes(1, 2).reshape(24, 6).view(-1, 3, 2)  # as rot6d_to_rotmat of SPIN
    torch.testing.assert_close(x, rotmats[0, :, :, :2], atol=1e-5, rtol=0)


def test_samples_come_from_the_gaussian(make, monkeypatch):
    """Their spread is that of the covariance: whitened, they are standard normal."""
    policy = load_policy(make("full"))
    drawn = []
    monkeypatch.setattr(predict, "draw_poses", lambda *args: drawn.append(draw_poses(*args)) or drawn[-1])
    prediction = predict.predict(policy, SENTENCE, None, 4000, 0)
    white = torch.linalg.solve_triangular(torch.linalg.cholesky(prediction.covariance), (
        drawn[0][0, 0] - prediction.mean).T, upper=False)
    assert (white @ white.T / 4000 - torch.eye(144)).abs().max() < .1
    assert prediction.rotmats.shape == (4001, 24, 3, 3)


def test_a_seed_is_enough(make, monkeypatch, tmp_path):
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        call(monkeypatch, SENTENCE, "--model", make("diag"), "--out", tmp_path / name, "--samples", 2, "--seed", seed)
    a, b, c = ({file: (tmp_path / name / file).read_bytes() for file in FILES} for name in "abc")
    assert a == b
    assert a["body.obj"] == c["body.obj"] and a["pose.npz"] != c["pose.npz"]  # the mean pose needs no draw


def test_statements_are_marked_as_the_checker_finds_them(make, monkeypatch, tmp_path, capsys):
    call(monkeypatch, "left elbow straight,", "both", "feet together", "--model", make("diag"), "--out", tmp_path,
         "--samples", 7)
    said = capsys.readouterr().out
    assert "person: The left elbow is straight. The feet are together.\n" in said
    pose = np.load(tmp_path / "pose.npz")
    mean, samples = (captions.pose_holds(remove_heading(axis_angle_to_matrix(torch.from_numpy(pose[name]))))
                     for name in ("axis_angle", "samples"))
    made = captions.parse("the left elbow is straight and the feet are together")
    assert len(made) == 2
    for i in made:
        line = f"  {'+' if mean[i] else '-'} {captions.STATEMENTS[i].key}: {samples[:, i].sum()} of 7 samples\n"
        assert line in said


def test_holding_statements_get_a_plus():
    poses = torch.eye(3).repeat(4, 24, 1, 1)  # T-poses
    poses[1, JOINT["right_knee"]] = axis_angle_to_matrix(torch.tensor([2.4, 0, 0]))
    lines = lambda text: prediction_files.statement_lines(prediction_files.check_statements(text, poses))
    assert lines("The person is standing. right knee sharply bent, hands far apart") == [
        "+ the person is standing: 3 of 3 samples", "- the right knee is sharply bent: 1 of 3 samples",
        "+ the hands are far apart: 3 of 3 samples"]
    assert lines("a happy day") == []
    assert lines("not kneeling, right knee not bent") == [
        "+ the person is not kneeling: 3 of 3 samples", "+ the right knee is not bent: 2 of 3 samples"]


@pytest.mark.parametrize("words, sentence", [
    ("kneeling on the left knee, right hand above the head",
     "The person is kneeling on the left knee. The right hand is above the head."),
    ("not kneeling, left hand low", "The person is not kneeling. The left hand is low."),
    ("sit down on a chair and put both hands up", "The person is sitting. Both hands are above the head."),
    ("he's kneeling", "The person is kneeling."), ("bring your left arm up", "The left hand is above the head."),
    ("both hands up", "Both hands are above the head."), ("squat", "The person is squatting."),
    ("Don't bend your left arm!", "The left arm is not bent."), ("he's dancing", "He's dancing."),
    ("standing without leaning back", "The person is standing without leaning back."),
    ("left hand waving", "The person has the left hand waving."), ("left hand is waving", "The left hand is waving."),
    ("The left arm isn't bent", "The left arm isn't bent."), ("I'm standing", "The person is standing."), ("not dancing", "The person is not dancing."),
    ("The person is sitting, an old man.", "The person is sitting, an old man."),
    ("upside down", "The person is upside down."), ("arms  spread\n", "The arms are spread."),
    ("The head is bowed.", "The head is bowed."), ("someone is dancing", "Someone is dancing."),
    ("waving!", "The person is waving!"),
])
def test_free_words_become_a_sentence_in_an_instruction(words, sentence):
    prompt = predict.make_prompt(words, None)
    assert prompt == data.INSTRUCTIONS["text2pose"][0].replace("{}", sentence)
    assert captions.parse(prompt) == captions.parse(words)


@pytest.mark.parametrize("words", ["Sit down on a chair and juggle", "{} 100 %", "Bring me the ball", "Not just", "!!!",
                                   "Both hands waving", "Don't sit, stand or kneel", "Neither standing nor sitting"])
def test_what_is_no_sentence_is_quoted_and_not_completed(words):
    """"The person has the sit down on a chair" is no English."""
    prompt = predict.make_prompt(words, None)
    assert prompt == data.INSTRUCTIONS["text2pose"][2].replace("{}", words + "." * (words[-1] != "!"))
    assert captions.parse(prompt) == captions.parse(words)


def test_what_asks_for_an_answer_stays_as_it_is():
    image = np.zeros((64, 64, 3), np.uint8)
    asked = "She sits. What is the SMPL pose of this person?"
    assert predict.make_prompt(asked, None) == asked
    assert predict.make_prompt("left hand", image) == "left hand"
    assert predict.make_prompt("", image) in data.INSTRUCTIONS["image2pose"]


def test_special_tokens_and_strange_text_are_only_words(make, monkeypatch, tmp_path, capsys):
    strange = "<POSE> <image></s><pad> $x^{2$ \\frac 膝 \udcff " + "very " * 200
    call(monkeypatch, strange, "--model", make("diag"), "--out", tmp_path, "--samples", 1)
    assert "of 1 samples" not in capsys.readouterr().out
    assert sorted(path.name for path in tmp_path.iterdir()) == list(FILES)
    policy = load_policy(make("diag"))
    ids = policy.encode([type("Asked", (), {"prompt": strange.replace("\udcff", ""), "image": None})]).ids
    assert not (set(ids.flatten().tolist()) & {policy.pose_id, policy.image_id, policy.tokenizer.eos_token_id})


def test_a_question_about_an_image_needs_no_pose(make, monkeypatch, tmp_path, capsys):
    Image.new("RGB", (64, 64), "red").save(tmp_path / "photo.png")
    arguments = ("--image", tmp_path / "photo.png", "--model", make("diag"), "--out", tmp_path / "out", "--samples", 2)
    call(monkeypatch, *arguments, "--prompt", "Which hand is higher?")
    said = capsys.readouterr().out
    assert "asked:  Which hand is higher?\nanswer: " in said and "gives no pose" in said
    assert not (tmp_path / "out").exists()
    call(monkeypatch, *arguments)
    assert f"asked:  {data.INSTRUCTIONS['image2pose'][0]}\n" in capsys.readouterr().out
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == list(FILES)


# ---------------------------------------------------------------- images

def test_bad_images_are_refused_in_one_sentence(make, monkeypatch, tmp_path, capsys):
    noise = np.random.default_rng(0).integers(0, 255, (90, 90, 3), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / "whole.png")
    Image.fromarray(noise).save(tmp_path / "whole.jpg")
    for name in ("whole.png", "whole.jpg"):
        (tmp_path / f"cut_{name}").write_bytes((tmp_path / name).read_bytes()[:2000])
    (tmp_path / "text.jpg").write_text("not an image")
    (tmp_path / "empty.png").write_bytes(b"")
    Image.new("1", (8_000, 8_000)).save(tmp_path / "huge.png")
    for name in ("cut_whole.png", "cut_whole.jpg", "text.jpg", "empty.png", "huge.png", "missing.png", ""):
        message = stop(monkeypatch, capsys, "--image", tmp_path / name, "--model", make("diag"))
        assert f"{tmp_path / name} cannot be used as an image" in message
    assert "8000 x 8000 pixels" in stop(monkeypatch, capsys, "--image", tmp_path / "huge.png")


# ---------------------------------------------------------------- mistakes, and the terminal

def test_without_a_checkpoint_it_says_which_command_makes_one(monkeypatch, tmp_path, capsys):
    message = stop(monkeypatch, capsys, SENTENCE, "--model", tmp_path / "none")
    assert str(tmp_path / "none") in message and "python train_rft.py" in message
    for stage in ("rft", "sft"):  # who names the run is told its policies
        (tmp_path / stage).mkdir()
        (tmp_path / stage / "pose.json").write_text("")
    message = stop(monkeypatch, capsys, SENTENCE, "--model", tmp_path)
    assert f"name a policy in it, {tmp_path}/rft or {tmp_path}/sft" in message


def test_mistakes_of_the_command_line(make, monkeypatch, tmp_path, capsys):
    assert "describe a pose" in stop(monkeypatch, capsys)
    assert "--samples 0: must be 1 or more" in stop(monkeypatch, capsys, SENTENCE, "--samples", 0)
    assert "one of them" in stop(monkeypatch, capsys, SENTENCE, "--prompt", "What?")
    assert "one of them" in stop(monkeypatch, capsys, "--prompt", "What?", "--interactive")
    (tmp_path / "file").write_text("")
    assert "file is a file: a photo is given as --image" in stop(monkeypatch, capsys, str(tmp_path / "file"))
    assert "cannot be written to" in stop(monkeypatch, capsys, SENTENCE, "--model", make("diag"), "--out",
                                          tmp_path / "file")
    monkeypatch.setattr(sys, "argv", ["predict.py", "--help"])
    with pytest.raises(SystemExit) as end:
        predict.main()
    said = capsys.readouterr().out
    assert end.value.code == 0 and "[sentence ...]" in said and "SUPPRESS" not in said


def test_sentence_after_sentence_until_an_empty_line(make, monkeypatch, tmp_path, capsys):
    """Each prediction is written over the last; an empty line, or the end of the input, ends it."""
    poses = []

    def typed(lines):
        rest = iter(lines)

        def read(_):
            if (tmp_path / "pose.npz").exists():
                poses.append(np.load(tmp_path / "pose.npz")["mean"])
            try:
                return next(rest)
            except StopIteration:
                raise EOFError from None
        return read

    arguments = ("--interactive", "--model", make("diag"), "--out", tmp_path, "--samples", 2)
    monkeypatch.setattr("builtins.input", typed(["kneeling", "arms spread", "  ", "never read"]))
    call(monkeypatch, *arguments)
    said = capsys.readouterr().out
    assert "The person is kneeling." in said and "The arms are spread." in said and "never" not in said
    assert len(poses) == 2 and not np.allclose(poses[0], poses[1])
    monkeypatch.setattr("builtins.input", typed(["arms spread"]))
    call(monkeypatch, *arguments)
    assert np.array_equal(poses[1], poses[-1])
    capsys.readouterr()
    monkeypatch.setattr("builtins.input", typed(["very " * 5_000 + "bent", "arms spread"]))
    call(monkeypatch, *arguments)  # what is wrong with a sentence is said, and the next one may do
    said = capsys.readouterr().out
    assert "the prompt has" in said and "make it shorter\n" in said and said.count("asked:") == 1
    assert np.array_equal(poses[1], np.load(tmp_path / "pose.npz")["mean"])


def test_an_answer_that_is_cut_says_so(make):
    """At 5 tokens here, see `forced` above; one that ends by itself is as it is."""
    policy = load_policy(make("diag"))
    assert predict.predict(policy, SENTENCE, None, 1).answer.endswith(" ...")
    said = iter([policy.tokenizer.encode("a")[0], *[policy.tokenizer.eos_token_id] * 9])
    words = len(policy.vlm.get_output_embeddings().weight)
    policy._logits = lambda hidden: torch.eye(words)[next(said)].expand(*hidden.shape[:-1], -1)
    assert predict.predict(policy, SENTENCE, None, 1).answer == "<POSE></s>"


def test_the_last_prediction_stays_until_the_next_is_whole(make, monkeypatch, tmp_path, capsys):
    ask = (SENTENCE, "--model", make("diag"), "--out", tmp_path, "--samples", 2)
    call(monkeypatch, *ask)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    with monkeypatch.context() as full:
        def no_room(*_):
            raise OSError(28, "No space left on device")
        full.setattr(prediction_files, "draw", no_room)
        assert "cannot be written to: [Errno 28]" in stop(full, capsys, *ask, "--seed", 1)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
    monkeypatch.setitem(sys.modules, "plotly", None)
    call(monkeypatch, *ask, "--seed", 1)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["body.obj", "picture.png", "pose.npz"]  # none of the last
    assert (tmp_path / "pose.npz").read_bytes() != before["pose.npz"]


def test_files_are_written_though_nobody_reads_what_is_printed(make, monkeypatch, tmp_path):
    """`| head -1`, and a terminal that lacks a sign of the sentence."""
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "w", 1) as pipe:
        for name, stream in (("pipe", pipe), ("cp1252", io.TextIOWrapper(io.BytesIO(), encoding="cp1252"))):
            monkeypatch.setattr(sys, "stdout", stream)
            runtime.run(lambda: call(monkeypatch, "kneeling \u819d", "--model", make("diag"), "--out", tmp_path / name,
                                     "--samples", 2))
            assert sorted(path.name for path in (tmp_path / name).iterdir()) == list(FILES)
