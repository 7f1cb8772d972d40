import re
from itertools import islice

import numpy as np
import pytest
import torch

import captions
from body import JOINT, axis_angle_to_matrix, mirror
from builtin.denials import said, signed
from builtin.questions import draw_question
from builtin.sentences import describe
from captions import MIRRORED_STATEMENT, STATEMENTS, S, parse, pose_holds, swap_sides

PHRASE = {phrase: i for i, s in enumerate(STATEMENTS) for phrase in s.phrases}
MIRRORED = (*MIRRORED_STATEMENT, *(S + i for i in MIRRORED_STATEMENT))  # denials too


def pose(**degrees):
    """Rotation matrices (24, 3, 3) from axis-angles in degrees by joint name, the others at rest."""
    axis_angle = torch.zeros(24, 3)
    for name, values in degrees.items():
        axis_angle[JOINT[name]] = torch.deg2rad(torch.tensor(values, dtype=torch.float32))
    return axis_angle_to_matrix(axis_angle)


DOWN = {"left_shoulder": (0, 0, -80), "right_shoulder": (0, 0, 80)}
LEGS_FORWARD = {"left_hip": (-90, 0, 0), "right_hip": (-90, 0, 0)}
KNEES_BENT = {"left_knee": (90, 0, 0), "right_knee": (90, 0, 0)}
STAND, T_POSE = pose(**DOWN), pose()
DEEP_KNEES = {"left_knee": (130, 0, 0), "right_knee": (130, 0, 0)}
CROSS_LEGGED = pose(**DOWN, **DEEP_KNEES, left_hip=(-70, 60, 0), right_hip=(-70, -60, 0))
POSES = {
    "the person is standing": [STAND, T_POSE],
    "the person is sitting": [pose(**DOWN, **LEGS_FORWARD, **KNEES_BENT), pose(**DOWN, **LEGS_FORWARD), CROSS_LEGGED],
    "the person is squatting": [pose(**DOWN, pelvis=(40, 0, 0), left_hip=(-130, 0, 0), right_hip=(-130, 0, 0),
                                     **DEEP_KNEES)],
    "the person is kneeling": [pose(**DOWN, **KNEES_BENT), pose(**DOWN, left_hip=(-60, 0, 0), right_hip=(-60, 0, 0),
                                                                left_knee=(150, 0, 0), right_knee=(150, 0, 0))],
    "the person is kneeling on the left knee": [
        pose(**DOWN, left_knee=(90, 0, 0), right_hip=(-90, 0, 0), right_knee=(90, 0, 0))],
    "the person is lying on their back": [pose(**DOWN, pelvis=(-90, 0, 0)), pose(pelvis=(-90, 0, 0), **LEGS_FORWARD)],
    "the person is lying on their belly": [pose(**DOWN, pelvis=(90, 0, 0))],
    "the person is lying on their left side": [pose(**DOWN, pelvis=(0, 0, -90))],
    "the person is upside down": [pose(pelvis=(180, 0, 0)), pose(pelvis=(0, 0, 180))],
}
# Pose; what is true of it; what is not.
LIMBS = [
    (pose(left_shoulder=(0, 0, 70), right_shoulder=(0, 0, 80)),
     "left hand above the head, right arm hanging down, left hand higher than the right hand, both arms straight",
     "right hand above the head, left hand low, right hand higher than the left hand"),
    (T_POSE, "both arms out to the sides, both hands at shoulder height, hands far apart, both knees straight",
     "hands together, arms reaching forward, left elbow bent"),
    (pose(left_shoulder=(0, -90, 0), right_shoulder=(0, 90, 0)), "both arms reaching forward", "hands behind the body"),
    (pose(left_shoulder=(0, 20, -80), left_elbow=(0, 40, 0)), "left hand behind the body", "right arm reaching back"),
    (pose(left_shoulder=(0, -115, 0)), "left arm across the body", "right arm across the body, left arm out to side"),
    (pose(left_collar=(0, 0, 30), left_shoulder=(0, 0, -120), left_elbow=(0, -30, 0)),  # hanging past the hip
     "left elbow slightly bent", "hands on the hips"),
    (pose(**DOWN, left_elbow=(0, -80, 0)), "left elbow bent, right elbow straight, left hand at belly height",
     "left elbow slightly bent, left elbow sharply bent, right hand at belly height"),
    (pose(**DOWN, left_elbow=(0, -130, 0)), "left arm folded", "left elbow bent, right arm folded"),
    (pose(left_shoulder=(0, 0, -60), left_elbow=(0, -10, -75)), "left hand on the left hip", "right hand on the hip"),
    (pose(left_shoulder=(0, -60, -20), left_elbow=(0, -140, 0)), "left hand near the head", "right hand near the head"),
    (pose(**DOWN, left_hip=(-20, 0, 0)), "left foot in front of right foot", "right foot in front of left foot"),
    (pose(**DOWN, left_hip=(-90, 0, 0), left_knee=(90, 0, 0)), "left thigh raised, left foot lifted, left knee bent",
     "right thigh raised, right foot lifted, left leg stretched back, sitting, left leg out to the side"),
    (pose(**DOWN, left_hip=(-50, 0, 0)), "left leg forward", "left leg behind the body, right leg forward"),
    (pose(**DOWN, left_hip=(30, 0, 0)), "left leg stretched back", "right leg stretched back, left leg forward"),
    (pose(**DOWN, left_hip=(0, 0, 40)), "left leg out to the side, feet far apart", "right leg out to the side"),
    (pose(**DOWN, left_hip=(0, 0, -20), right_hip=(0, 0, 20)), "legs crossed", "feet far apart"),
    (pose(**DOWN, pelvis=(30, 0, 0)), "leaning forward", "leaning back, leaning slightly forward, back upright"),
    (pose(**DOWN, spine1=(25, 0, 0)), "leaning slightly forward", "leaning forward"),
    (pose(**DOWN, pelvis=(-20, 0, 0)), "leaning back", "leaning forward"),
    (pose(**DOWN, spine1=(50, 0, 0), spine2=(50, 0, 0)), "bent over, standing", "leaning to the left, back upright"),
    (pose(**DOWN, spine1=(0, 0, -20)), "leaning to the left", "leaning to the right"),
    (pose(**DOWN, spine1=(0, 30, 0)), "upper body twisted to the left", "twisting to the right, looking to the left"),
    (pose(**DOWN, head=(0, 40, 0)), "looking to the left", "looking to the right, upper body twisted to the left"),
    (pose(**DOWN, head=(0, 0, -20)), "head tilted to the left", "head tilted to the right"),
    (pose(**DOWN, head=(30, 0, 0)), "looking down", "looking up"),
    (pose(**DOWN, head=(-30, 0, 0)), "looking up", "looking down"),
    (pose(pelvis=(90, 0, 0), left_hip=(-90, 0, 0), right_hip=(-90, 0, 0), spine1=(65, 0, 0), left_shoulder=(0, 0, 90)),
     "bent over, left hand on the floor", "right hand on the floor"),
    (pose(**LEGS_FORWARD, **KNEES_BENT, left_shoulder=(0, -50, -80), left_elbow=(0, -10, 0)),
     "sitting, left hand near the left knee", "left thigh raised, right hand near the right knee"),
]
ALL_POSES = torch.stack([p for poses in POSES.values() for p in poses] + [p for p, _, _ in LIMBS])
ALL_POSES = torch.cat([ALL_POSES, mirror(ALL_POSES)])


@pytest.fixture(scope="module")
def many():
    """Poses (N, 24, 3, 3): random ones around the hand-made ones, and random ones turned every way."""
    torch.manual_seed(0)
    near = ALL_POSES.repeat(20, 1, 1, 1)
    near = near @ axis_angle_to_matrix(0.15 * torch.randn(len(near), 24, 3))
    spread = torch.linspace(0.3, 0.7, 1000)[:, None, None]
    free = axis_angle_to_matrix(spread * torch.randn(1000, 24, 3))
    free[500:, 0] = axis_angle_to_matrix(2 * torch.randn(500, 3))
    return torch.cat([near, free])


@pytest.fixture(scope="module")
def rows(many):
    return pose_holds(many).numpy()


def test_postures_hold_alone():
    postures = [i for i, s in enumerate(STATEMENTS) if s.topic == "posture"]
    for phrase, poses in POSES.items():
        for rotmats in poses:
            assert [i for i in postures if pose_holds(rotmats)[i]] == [PHRASE[phrase]], phrase
            swapped = PHRASE[swap_sides(phrase)]
            assert [i for i in postures if pose_holds(mirror(rotmats))[i]] == [swapped], phrase


@pytest.mark.parametrize("rotmats, true, false", LIMBS, ids=[true for _, true, _ in LIMBS])
def test_limbs(rotmats, true, false):
    assert len(parse(true)) >= len(true.split(",")) and len(parse(false)) >= len(false.split(","))
    assert [STATEMENTS[i].key for i in parse(true) if not pose_holds(rotmats)[i]] == []
    assert [STATEMENTS[i].key for i in parse(false) if pose_holds(rotmats)[i]] == []


def test_lying_and_hanging_arms():
    overhead = {"left_shoulder": (0, 0, 70), "right_shoulder": (0, 0, -70)}
    lying = pose_holds(pose(pelvis=(-90, 0, 0), **overhead))
    assert lying[list(parse("lying on their back, both hands above the head"))].all()
    assert pose_holds(pose(pelvis=(90, 0, 0), **DOWN))[list(parse("lying on their belly, both hands low"))].all()


def test_table():
    assert 50 <= len(STATEMENTS) <= 90 and len(captions.TABLE) >= 30
    assert len({s.key for s in STATEMENTS}) == len(STATEMENTS) and len(set(captions.MEASURES)) == len(captions.MEASURES)
    for i, s in enumerate(STATEMENTS):
        assert s.low < s.high and parse(s.key) == (i,)
        for phrase in s.phrases:
            assert parse(phrase) == (i,) and re.fullmatch("the .* (is|are) .*", phrase), phrase
        for phrase in s.both:
            assert set(parse(phrase)) == {i, MIRRORED_STATEMENT[i]} and MIRRORED_STATEMENT[i] != i, phrase


def test_mirror(many, rows):
    assert (pose_holds(mirror(many))[:, list(MIRRORED_STATEMENT)].numpy() == rows).all()
    for s, twin in zip(STATEMENTS, MIRRORED_STATEMENT):
        assert tuple(map(swap_sides, s.phrases)) == STATEMENTS[twin].phrases
        assert swap_sides(s.measure) == STATEMENTS[twin].measure
    assert rows.any(0).all(), [s.key for s, seen in zip(STATEMENTS, rows.any(0)) if not seen]


def test_heading_does_not_count(many, rows):
    turned = many.double()
    turned[:, 0] = axis_angle_to_matrix(torch.tensor([0.0, 2.1, 0.0], dtype=torch.float64)) @ turned[:, 0]
    assert (pose_holds(turned) == pose_holds(many.double())).all()


def test_one_statement_of_a_measure_and_two_of_any_pose(rows):
    assert rows.sum(1).min() >= 2
    for measure in captions.MEASURES:
        same = [i for i, s in enumerate(STATEMENTS) if s.measure == measure]
        assert rows[:, same].sum(1).max() <= 1, measure
    postures = [i for i, s in enumerate(STATEMENTS) if s.topic == "posture"]
    assert rows[:, postures].sum(1).max() == 1


def test_batch_shapes(many):
    assert pose_holds(many[:6].view(2, 3, 24, 3, 3)).shape == (2, 3, len(STATEMENTS))
    assert (pose_holds(many[:6].view(2, 3, 24, 3, 3)).view(6, -1) == pose_holds(many[:6])).all()
    assert (pose_holds(many[0]) == pose_holds(many)[0]).all()


def test_describe_says_what_holds_and_is_read_back(rows):
    rng, words, counts = np.random.default_rng(0), set(), []
    for row in np.concatenate([rows, rows]):
        text, made = describe(row, rng)
        assert row[list(made)].all() and 2 <= len(made) <= 6 and len(set(made)) == len(made)
        assert len({STATEMENTS[i].topic for i in made}) == len(made), text
        assert set(parse(text)) == set(made) == set(parse(text.upper())), text
        assert {MIRRORED_STATEMENT[i] for i in made} == set(parse(swap_sides(text))), text
        assert 1 <= text.count(".") <= 3 and text[0].isupper() and text.endswith(".") and "  " not in text
        words |= set(re.findall("[a-z]+", text.lower()))
        counts.append(len(text.split()))
    assert len(words) <= 250 and max(counts) <= 65 and 12 < np.median(counts) < 40


def test_describe_is_repeatable_and_needs_a_pose(rows):
    assert describe(rows[0], np.random.default_rng(3)) == describe(rows[0], np.random.default_rng(3))
    assert len({describe(rows[0], np.random.default_rng(seed))[0] for seed in range(30)}) > 20
    with pytest.raises(ValueError, match="finite"):
        describe(pose_holds(torch.full((24, 3, 3), torch.nan)).numpy(), np.random.default_rng(0))


def test_parse_what_people_type():
    typed = "Kneeling on the left knee, right hand above the head; hands on hips!"
    assert [STATEMENTS[i].key for i in parse(typed)] == [
        "the person is kneeling on the left knee", "the right hand is above the head",
        "the left hand is on the left hip", "the right hand is on the right hip"]
    assert [STATEMENTS[i].key for i in parse("She is sitting with her left knee bent, looking left")] == [
        "the person is sitting", "the left knee is bent", "the head is turned to the left"]
    assert parse("") == parse("purple ideas sleep") == ()
    assert parse("left arm straight. Left arm straight") == (PHRASE["the left arm is straight"],)


@pytest.mark.parametrize("text, says", [
    ("The person is not kneeling.", ["not the person is kneeling"]),
    ("The left knee isn't bent.", ["not the left knee is bent"]),
    ("Standing without leaning back", ["the person is standing", "not the person is leaning back"]),
    ("neither hand is above the head",
     ["not the left hand is above the head", "not the right hand is above the head"]),
    ("The person is neither standing nor sitting.", ["not the person is standing", "not the person is sitting"]),
    ("never kneeling, the back upright", ["not the person is kneeling", "the back is upright"]),
    ("He is not kneeling, sitting or squatting", [f"not the person is {x}" for x in ("kneeling", "sitting", "squatting")]),
    ("No hands on the hips; sitting", ["not the left hand is on the left hip", "not the right hand is on the right hip",
                                       "the person is sitting"]),
    ("The left arm is not bent and the right arm is straight",
     ["not the left elbow is bent", "the right elbow is straight"]),
    ("They aren't sitting but kneeling", ["not the person is sitting", "the person is kneeling"]),
    ("not sitting and kneeling", ["not the person is sitting"]),  # whether it kneels nobody can tell
    ("not only kneeling but also looking up", ["the person is kneeling", "the person is looking up"]),
    ("No, it is not in front.", []), ("kneeling, not on the left knee", ["the person is kneeling"])])
def test_what_is_denied_is_not_said(text, says):
    """A denial counts in its clause, and what it denies is known as such."""
    found = [("not " if i >= S else "") + STATEMENTS[i % S].key for i in parse(text)]
    assert found == says


def test_a_denial_holds_where_neither_the_statement_nor_a_kind_of_it_does(many, rows):
    held = signed(torch.from_numpy(rows).double())
    assert held.unique().tolist() == [0, 1]  # of the kinds of one, at most one holds
    assert torch.equal(held[:, :S].bool(), torch.from_numpy(rows)) and not (held[:, :S] * held[:, S:]).any()
    torch.testing.assert_close(signed(torch.from_numpy(rows).double().mean(0)), held.mean(0))
    kneeling, left = PHRASE["the person is kneeling"], PHRASE["the person is kneeling on the left knee"]
    assert rows[:, left].any() and not held[rows[:, left], S + kneeling].any()
    bent, sharply = PHRASE["the left elbow is bent"], PHRASE["the left elbow is sharply bent"]
    assert not held[rows[:, sharply], S + bent].any() and held[rows[:, bent], S + sharply].all()
    for i in range(S):
        assert parse(said(i)) == (i,) and parse(said(S + i)) == (S + i,) and " not " in said(S + i)


@pytest.mark.parametrize("typed, meant", [
    ("sit down on a chair and put both hands up", "sitting, both hands above the head"), ("he's kneeling", "kneeling"),
    ("bring your left arm up", "left hand above the head"), ("both hands up", "hands above the head"),
    ("squat", "squatting"), ("Stand up straight, arms out to the sides", "standing, both arms out to the sides"),
    ("lie down on your stomach", "lying on their belly"), ("bend your left knee slightly", "left knee slightly bent"),
    ("Kneel down and look to the left", "kneeling, looking to the left"), ("do a handstand", "upside down"),
    ("put your right hand on your hip", "right hand on the right hip"), ("legs spread", "feet wide apart"),
    ("raise your right arm to shoulder height", "right hand at shoulder height"), ("knees up", "both knees raised"),
    ("lift the left foot off the ground", "left foot lifted"), ("hands behind your back", "both hands behind the body"),
    ("don't bend your arms", "the left arm is not bent, the right arm is not bent"), ("kneel on one knee", "")])
def test_everyday_words_are_read_as_those_of_the_table(typed, meant):
    assert set(parse(typed)) == set(parse(meant)) and (parse(typed) or not meant)
    assert {MIRRORED[i] for i in parse(typed)} == set(parse(swap_sides(typed)))


def test_questions(rows):
    rng, answers = np.random.default_rng(0), {}
    for row in islice(rows, 0, None, 2):
        for question, answer in (draw_question(row, rng) for _ in range(5)):
            answers.setdefault(question, set()).add(answer)
            said = parse(answer)
            assert row[list(said)].all() and len(said) <= 1 and re.fullmatch(r"[A-Z].*\.", answer), answer
            assert answer[:3] != "No," or not said
    assert len(answers) == 13 and [a for a in answers.values() if len(a) < 2] == []
    # The same question about the same pose: the same answer.
    row, seen = rows[7], {}
    for question, answer in (draw_question(row, rng) for _ in range(300)):
        assert seen.setdefault(question, answer) == answer
    assert len(seen) == len(answers)
    row = pose_holds(POSES["the person is kneeling on the left knee"][0]).numpy()
    asked = dict(draw_question(row, rng) for _ in range(300))
    posture = asked["Is the person standing, sitting, squatting, kneeling or lying?"]
    assert posture == "The person is kneeling on the left knee."
    assert asked["Which foot is in front?"] == "The right foot is in front of the left foot."
    assert asked["How bent is the left elbow?"] == "The left elbow is straight."
    assert asked["Is the left hand in front of the body?"] == "No, it is not in front."
