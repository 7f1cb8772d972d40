"""How people put it: small tables, not a grammar, of what they write and what it says in the words of captions.py.

    plain("He's sitting down on a chair, both hands up") = "sitting , hands above head"
    clauses("Kneeling, but the left knee is not bent") = [("kneeling", ""), ("the left knee is", "bent")]
So "put your hands up" is read like "both hands are above the head", and what is denied is not read as said.
Read next: ../captions.py, which reads with these.
"""

import re
from collections.abc import Iterator

_SMALL = "the|a|an|is|are|am|be|both|their|his|her|its|your|my|our|person|they|someone|this|to|he|she|it|you|i|we"
_END = r"(?= [.,;:!?]| (?:and|while|with|then|but|or)\b|$)"  # of what is said of a limb
_SIDE, _ARM, _HINGE = r"((?:left |right )?)", r"((?:left |right )?)(?:hand|arm)(s?)", r"(\S* ?(?:elbow|arm|knee|leg)s?)"
_UP = r"(?: (?:up|high|overhead|raised|in air|(?:above|over) head))"
_LIFT, _BEND = "(?:rais(?:e|es|ing)|lift(?:s|ing)?)", "ben(?:d|ds|ding)"
_OUT = "(?: (?:out|outstretched|stretched|extended))"

# Words as they are once the small ones are left out, and the words of the table of statements; in this order.
EVERYDAY = tuple((re.compile(rf"\b{pattern}"), said) for pattern, said in (
    (r"(?:do(?:es|ing)? )?(?:hand|head)stand\b|stand(?:s|ing)? on (?:head|hands)\b", "upside down"),
    (r"stand(?:s|ing)?(?: up| upright| still| straight)*\b", "standing"),
    (r"(?:squat|crouch)(?:s|es|ting|ing)?(?: down)?\b", "squatting"),
    (r"(?:sits?|sitting|seated|take seat)(?: down)?"
     r"(?: (?:on|in) (?:chair|armchair|bench|stool|sofa|seat|floor|ground))?\b", "sitting"),
    (r"(?:kneel(?:s|ing)?|(?:get|go|drop)(?:s|es)?(?: down)? on knees)(?: down)?\b", "kneeling"),
    (r"kneeling on one knee\b", "on one knee"),  # on which is not said
    (r"(?:lies?|lying|laying)(?: down)?(?: flat)?\b", "lying"), (r"lying on (?:stomach|front)\b", "lying on belly"),
    (r"lean(?:s|ing)?\b", "leaning"), (r"(forward|backward)s\b", r"\1"), (rf"{_BEND} forward\b", "leaning forward"),
    (rf"{_BEND} (?:over|down)\b", "bent over"), (r"torso\b", "upper body"),
    (r"twist(?:s|ing)?(?: upper body| body| waist)? (left|right)\b", r"twisting \1"),
    (r"looks?\b", "looking"), (r"turn(?:s|ing)? head (left|right)\b", r"head turned \1"),
    (r"tilt(?:s|ing)? head (left|right|back)\b", r"head tilted \1"), (r"(?:bow|lower)s? head\b", "head bowed"),
    (rf"{_BEND} (?:slightly {_HINGE}|{_HINGE} slightly)\b", r"\1\2 slightly bent"),
    (rf"{_BEND} {_HINGE}\b", r"\1 bent"), (rf"straighten(?:s|ing)? {_HINGE}\b", r"\1 straight"),
    (r"cross(?:es|ing)? (legs|feet)\b", r"\1 crossed"),
    (rf"(?:cross(?:es|ing)? arms|arms crossed)(?: (?:in front of|over) (?:chest|body))?{_END}", "arms across body"),
    (r"(?:spread(?:s|ing)? arms|arms (?:wide|spread))(?: out| wide| apart)*\b", "arms spread"),
    (rf"(?:spread(?:s|ing)? legs|(?:legs|feet) (?:wide|spread))(?: out| wide| apart)*{_END}", "feet wide apart"),
    (rf"{_LIFT} (?:up )?(left|right) (?:foot|leg)(?: up| in air| off (?:ground|floor))*{_END}", r"\1 foot lifted"),
    (rf"(left|right) (?:foot|leg)(?: up| in air)+{_END}", r"\1 foot lifted"),
    (rf"(?:{_LIFT} (?:up )?{_SIDE}knee(s?)(?: up| high)*|{_SIDE}knee(s?)(?: up| high)+){_END}", r"\1\3knee\2\4 raised"),
    (rf"(?:{_LIFT} (?:up )?{_ARM}{_UP}*|{_ARM}{_UP}+){_END}", r"\1\3hand\2\4 above head"),
    (rf"(?:{_LIFT} )?{_ARM}(?: raised)?(?: up)?(?: at)? (shoulder|head) (?:height|level)\b", r"\1hand\2 at \3 height"),
    (rf"{_ARM}{_OUT}* in front(?: of)?(?: body| chest| them| me| him)?{_END}", r"\1hand\2 in front of body"),
    (rf"(?:{_LIFT} arms{_OUT}*|arms{_OUT}+)(?: (?:either |each )?sides?)?{_END}", "arms out sides"),
    (rf"(?:{_LIFT} (left|right) arm{_OUT}*|(left|right) arm{_OUT}+)(?: side)?{_END}", r"\1\2 arm out side"),
    (r"behind back\b", "behind body"),
    (r"(?:put|bring|place|hold|keep|rest|have|has)(?:s|ing)? (?:up )?"
     r"(?=(?:left |right )?(?:hand|arm|elbow|knee|leg|thigh|head|back|foot|feet|upper))", "")))


def plain(text: str) -> str:
    """Lower case without the small words, so that 'right hand above head' is read like the whole clause, and everyday
    words made those of the table."""
    text = " ".join(re.findall(rf"\b(?!(?:{_SMALL})\b)[a-z]+|[.,;:!?]", spelled_out(text)))
    for pattern, said in EVERYDAY:
        text = pattern.sub(said, text)
    return text


def swap_sides(text: str) -> str:
    """The text with left and right exchanged: what it says of the mirrored pose. A right angle stays one."""
    other = {case(word): case(twin) for word, twin in (("left", "right"), ("right", "left"))
             for case in (str.lower, str.title, str.upper)}
    return re.sub(r"\b(?!right[ -]angle)(left|right)(?=\b|wards?\b|most\b|hand)", lambda match: other.get(
        match[0], match[0]), text, flags=re.IGNORECASE)


# ---------------------------------------------------------------- denials

DENIAL = r"\b(?:not|never|no|without|neither|nor|nobody|none)\b"
_NEW = r"\b(?:the|his|her|their|its|your|both|left|right|is|are|has|he|she|they|it|hands|arms|legs|knees|feet|head)\b"
# What is denied ends with its clause: at a mark, at a word of contrast, where another limb is spoken of. "Not kneeling,
# sitting or lying" denies all three; of "not A and B" nobody can tell whether it denies B, so that B is not read.
_LIST = re.compile(rf",(?= (?!{_NEW})(?:(?!\b(?:but|while|and|with)\b)[^.;:!?]){{0,120}}?\bn?or\b)")
_CLAUSE = re.compile(rf"[.,;:!?]|\b(?:but|while|whereas|though|although|instead)\b|\b(?:and|with)\b(?= {_NEW})")


def spelled_out(text: str) -> str:
    """Lower case, with short forms written out: 'isn't' is 'is not', 'he's' is 'he is'."""
    text = text.lower().replace("’", "'").replace("cannot", "can not")
    text = re.sub(r"\b(is|are|was|do|does|did|has|have|wo|ca|should|must)n'?t\b", r"\1 not", text)
    text = re.sub(r"\b(he|she|it|they|person|someone|who|there|you|i|we)'(?:s|re|m)\b", r"\1 is", text)
    text = re.sub(r"\bneither (hand|arm|elbow|leg|knee|thigh)\b", r"neither \1s", text)
    text = text.replace("neither foot", "no feet").replace("not with ", "without ")
    return re.sub(r"\bnot (?:only|just)\b", "", text)


def clauses(text: str) -> Iterator[tuple[str, str]]:
    """The clauses of a text, each cut where its denial stands: what is said before, and what is denied; "" for none."""
    for clause in _CLAUSE.split(_LIST.sub(" or", spelled_out(text))):
        before, *denied = re.split(DENIAL, clause)
        if denied or before.strip():
            yield before.strip(), re.split(r"\band\b", " ".join(denied))[0].strip()
