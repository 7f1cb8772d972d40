"""Talk as it is met in lists of LLaVA's form, and whose captions those of BEDLAM-Script are."""

import json

import pytest
from PIL import Image

from real import formats
from test_formats import CLOSE, FAR, bedlam_script, write

ASK, ANSWER = {"from": "human", "value": "<image>\nWho?"}, {"from": "gpt", "value": "A man."}
MORE = [{"from": "human", "value": "Where?"}, {"from": "gpt", "value": "Here."}]
BOTH = (("Who?", "A man."), ("Where?", "Here."))


def read(folder, monkeypatch, content: str | bytes, name: str = "set.json") -> list:
    write(folder, {"img/a.png": Image.new("RGB", (64, 64)),
                   name: content if isinstance(content, bytes) else content.encode()})
    monkeypatch.chdir(folder)
    return formats.read_data([f"llava:{name},img"]).sources[0].rows


@pytest.mark.parametrize("said, turns", [
    ([ANSWER, ASK, ANSWER, *MORE], BOTH), ([ASK, ANSWER, *MORE, ASK], BOTH), ([ANSWER, ASK, ANSWER, ASK], BOTH[:1]),
    ([{"from": "system", "value": "Be kind."}, ASK, ANSWER, *MORE], BOTH),
    ([{"from": "system", "value": ""}, ANSWER, ASK, ANSWER], BOTH[:1]),
    ([{**ASK, "from": "user"}, {**ANSWER, "from": "assistant"}, {**MORE[0], "from": "Human"}, MORE[1]], BOTH),
    ([{"role": "user", "content": "<image>\nWho?"}, {"role": "assistant", "content": "A man."}], BOTH[:1]),
    ([ASK, ANSWER, {"from": "human", "value": None}], BOTH[:1])])
def test_questions_with_their_answers_are_kept_of_any_talk(said, turns, tmp_path, monkeypatch):
    row, = read(tmp_path, monkeypatch, json.dumps([{"id": 1, "image": "a.png", "conversations": said}]))
    assert row.turns == turns and row.image.name == "a.png"


@pytest.mark.parametrize("image, shown", [(None, False), ([], False), ([None], False), (["a.png"], True),
                                          ("a.png", True)])
def test_an_image_may_be_null_or_a_list(image, shown, tmp_path, monkeypatch):
    row, = read(tmp_path, monkeypatch, json.dumps([{"image": image, "conversations": MORE}]))
    assert (row.image is not None) == shown


def test_half_a_sign_is_a_fault_of_its_row(tmp_path, monkeypatch):
    half = [{"from": "human", "value": "Who \ud83d?"}, ANSWER]
    with pytest.raises(ValueError, match=r"set.json, row 1: half a sign is in 'Who .ud83d"):
        read(tmp_path, monkeypatch, json.dumps([{"conversations": said} for said in (MORE, half)]))


def test_an_image_of_too_long_a_name_is_a_fault_of_its_row(tmp_path, monkeypatch):
    with pytest.raises(ValueError, match="set.json, row 0: .*no image 'x{200}' in img"):  # as when it holds the picture
        read(tmp_path, monkeypatch, json.dumps([{"image": "x" * 9_000, "conversations": MORE}]))


RECORDS = [{"id": i, "conversations": [{"from": "human", "value": "One\u2028line?"}, ANSWER]} for i in range(3)]
LINES = "\n".join(json.dumps(record, ensure_ascii=False) for record in RECORDS)


@pytest.mark.parametrize("name, content", [
    ("set.json", b"\xef\xbb\xbf" + json.dumps(RECORDS).encode()), ("set.json", LINES), ("set.jsonl", LINES + "\n\n"),
    ("set.jsonl", LINES.replace("\n", "\r\n")), ("set.jsonl", b"\xef\xbb\xbf" + LINES.encode()),
    ("set.json", "\n".join(json.dumps(record, indent=1) for record in RECORDS)), ("set.jsonl", json.dumps(RECORDS))])
def test_json_may_have_a_mark_or_be_in_lines(name, content, tmp_path, monkeypatch):
    rows = read(tmp_path, monkeypatch, content, name)
    assert len(rows) == 3 and all(row.turns == (("One\u2028line?", "A man."),) for row in rows)


def test_one_line_of_json_lines_is_one_row(tmp_path, monkeypatch):
    assert len(read(tmp_path, monkeypatch, json.dumps(RECORDS[0]), "set.jsonl")) == 1


def test_what_follows_json_that_is_not_in_lines_is_a_fault(tmp_path, monkeypatch):
    for content in ("[] []", "[1] {", json.dumps(RECORDS) + "\n" + json.dumps(RECORDS[0])):
        with pytest.raises(ValueError, match="set.json is not valid JSON"):
            read(tmp_path, monkeypatch, content)


def test_captions_follow_the_people_whom_poseembroider_chose(tmp_path, monkeypatch):
    """By image, then by place in it: all of them, or the most different as *_fsN says."""
    monkeypatch.chdir(tmp_path)
    write(tmp_path, bedlam_script())
    rows = formats.read_data(["bedlam-script:be,img"]).sources[0].rows
    assert [str(row.image) for row in rows] == [f"img/training/{name}" for name in (CLOSE, FAR)]
    assert [row.frame for row in rows] == [(180, 200), (260, 200)]
    assert all(row.box == pytest.approx((x, 84, 127.8), abs=.1) for row, x in zip(rows, (84, 104)))
    assert {answer for _, answer in rows[1].turns} == {"The left arm is up."} and len(rows[0].turns) == 9
    files = bedlam_script()
    del files["be/farther_sample_training_3_try.pt"], files["be/bedlam_training_3caps_fs2_try.pkl"]
    files["be/bedlam_training_3caps_try.pkl"] = {i: [f"Person {i}."] * 3 for i in range(3)}
    write(tmp_path / "all", files)
    monkeypatch.chdir(tmp_path / "all")
    rows = formats.read_data(["bedlam-script:be,img/training"]).sources[0].rows  # or the folder of the split itself
    assert [(str(row.image), row.turns[0][1]) for row in rows] == [
        (f"img/training/{name}", f"Person {i}.") for i, name in enumerate((CLOSE, FAR, FAR))]
    write(tmp_path / "all", {"be/bedlam_training_3caps_fs2_try.pkl": {}})
    with pytest.raises(ValueError, match="must hold one file bedlam_training_3caps.*found 2"):
        formats.read_data(["bedlam-script:be,img"])
