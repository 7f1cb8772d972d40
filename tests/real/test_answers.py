"""Answers as tokens of small tokenizers of each kind: what true answers earn, and how they follow a prompt."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import LlavaProcessor, PreTrainedTokenizerFast

import captions
from builtin.tiny import CHAT_TEMPLATE, PoseEncoder, build_tiny, corpus
from data import TASKS, make_example
from engine.true_answers import check_true_answers
from evaluate import questions
from lab.metrics import right_form
from model import PosePolicy
from real.answers import as_read, read_answer
from rewards import Context, correct_reward, description_reward, format_reward, words_of
from test_families import world

# As LLaVA's, SmolVLM's and Qwen's templates write a turn of each side; tiny's own knows no answers.
LLAVA = ("{% for message in messages %}{{ message.role.upper() + ': ' }}{% for part in message.content %}"
         "{% if part.type == 'image' %}<image>\n{% else %}{{ part.text + ' ' }}{% endif %}{% endfor %}{% endfor %}"
         "{% if add_generation_prompt %}ASSISTANT:{% endif %}")
SMOLVLM = ("{% for message in messages %}{{ message.role | capitalize }}{% if message.content[0].type == 'image' %}:"
           "{% else %}: {% endif %}{% for part in message.content %}{% if part.type == 'image' %}<image>{% else %}"
           "{{ part.text }}{% endif %}{% endfor %}</s>\n{% endfor %}{% if add_generation_prompt %}Assistant:"
           "{% endif %}")
QWEN = ("{% for message in messages %}<s>{{ message.role }}\n{% for part in message.content %}"
        "{% if part.type == 'image' %}<image>{% else %}{{ part.text }}{% endif %}{% endfor %}</s>\n{% endfor %}"
        "{% if add_generation_prompt %}"
        "<s>assistant\n{% endif %}")
TEMPLATES = {"llava": LLAVA, "smolvlm": SMOLVLM, "qwen": QWEN, "tiny": CHAT_TEMPLATE}
SPECIAL = ["<pad>", "<s>", "</s>", "<image>", "<unk>"]


def sentencepiece_of_llama():
    """LLaVA-1.5's: a space is put before each piece of text, also behind <POSE>, and none is taken away again."""
    made = Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True))
    made.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    made.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(),
                                      decoders.Strip(" ", 1, 0)])
    return made, trainers.BpeTrainer


def metaspace():
    made = Tokenizer(models.Unigram())
    made.pre_tokenizer, made.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
    return made, lambda **options: trainers.UnigramTrainer(unk_token="<unk>", **options)


def byte_level():
    made = Tokenizer(models.BPE())
    made.pre_tokenizer, made.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    return made, lambda **options: trainers.BpeTrainer(initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), **options)


def word_piece():
    """BERT's, which knows no capitals."""
    made = Tokenizer(models.WordPiece(unk_token="<unk>"))
    made.normalizer, made.pre_tokenizer = normalizers.BertNormalizer(), pre_tokenizers.BertPreTokenizer()
    made.decoder = decoders.WordPiece()
    return made, trainers.WordPieceTrainer


def whole_words(known):
    """A vocabulary of whole words: what it lacks is <unk>."""
    made = Tokenizer(models.WordLevel(unk_token="<unk>"))
    made.pre_tokenizer, made.decoder = pre_tokenizers.BertPreTokenizer(), decoders.WordPiece()
    made.train_from_iterator(known, trainers.WordLevelTrainer(special_tokens=SPECIAL, show_progress=False))
    return made


KINDS = {kind.__name__: kind for kind in (sentencepiece_of_llama, metaspace, byte_level, word_piece)}


def policy_with(tokenizer, template):
    vlm, processor, _ = build_tiny(["a"], hidden_size=16, layers=1)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", bos_token="<s>", eos_token="</s>", unk_token="<unk>",
        clean_up_tokenization_spaces=False, extra_special_tokens={"image_token": "<image>"}, chat_template=template)
    vlm.resize_token_embeddings(len(fast), mean_resizing=False)
    return PosePolicy(vlm, LlavaProcessor(processor.image_processor, fast, 32, "default", num_additional_image_tokens=1,
                                          chat_template=template), PoseEncoder()).eval()


def texts():
    drawn = corpus(world()[0], 100, np.random.default_rng(0))
    return drawn + ["USER: ASSISTANT:", "User: Assistant:", "user\nassistant"]


@pytest.fixture(scope="module", params=[(kind, template) for kind in KINDS for template in TEMPLATES], ids="-".join)
def policy(request):
    kind, template = request.param
    tokenizer, trainer = KINDS[kind]()
    # <POSE> is no word of any checkpoint's vocabulary: the policy adds it.
    tokenizer.train_from_iterator([text.replace("<POSE>", "it") for text in texts()], trainer(
        vocab_size=600, special_tokens=SPECIAL, show_progress=False))
    return policy_with(tokenizer, TEMPLATES[template])


@pytest.fixture(scope="module")
def examples():
    rng = np.random.default_rng(3)
    return {task: [make_example(world()[0], task, i, rng) for i in range(12)] for task in TASKS}


def sampled(policy, examples):
    """What `sample` makes of a policy that gives the true answers: the tokens are those that SFT teaches."""
    tokens, mask = policy.tokenize_answers(examples)
    place = iter(range(tokens.shape[-1]))
    policy._logits = lambda hidden: 100.0 * torch.nn.functional.one_hot(
        tokens[:, :, next(place)], len(policy.tokenizer)).expand(*hidden.shape[:2], -1).float()
    rollout = policy.sample(policy.encode(examples), 2, 1, max_tokens=tokens.shape[-1])
    del policy._logits
    assert torch.equal(rollout.tokens[:, :1][mask], tokens[mask])
    return rollout.answers


@pytest.mark.parametrize("task", TASKS)
def test_true_answers_are_rewarded_whatever_the_tokenizer(policy, examples, task):
    true = examples[task]
    context = Context(as_read(policy, true), sampled(policy, true), torch.eye(3).expand(12, 2, 1, 24, 3, 3), None,
                      torch.zeros(len(captions.STATEMENTS)))
    assert format_reward(context) == [[1.0, 1.0]] * 12
    if task == "vqa":
        assert correct_reward(context) == [[1.0, 1.0]] * 12
    if task == "image2text":
        whole = Context(true, [[e.answer] for e in true], *(getattr(context, name) for name in (
            "rotmats", "retriever", "base_rates")))
        assert [row[0] for row in description_reward(context)] == [row[0] for row in description_reward(whole)]
        for e, read in zip(true, context.examples):
            assert captions.POSE_TOKEN not in words_of(read.answer)
            assert captions.parse(words_of(read.answer)) == captions.parse(e.caption)


def test_other_answers_are_not_rewarded(policy):
    """What a tokenizer takes away is no licence: a sentence that is not the one still earns nothing."""
    for answer in ("The SMPL pose of this person is.", "The SMPL pose is <POSE>.", "Is <POSE>. The SMPL pose of this",
                   "The SMPL pose of this person is <POSE>"):
        wrong = SimpleNamespace(answer=answer)
        tokens, mask = policy.tokenize_answers([wrong])
        read = read_answer(policy, tokens[0, 0][mask[0, 0]][:-1])
        assert right_form([SimpleNamespace(task="text2pose")], [read])["format_rate"] == [0.0], read


def test_prompt_and_answer_are_tokens_as_the_template_joins_them(policy, examples):
    """All ids of the template's own two turns, up to the end of the answer."""
    knows_answers = policy.answer_frame.before != ""
    assert knows_answers == (policy.processor.chat_template != CHAT_TEMPLATE)
    for e in examples["text2pose"][:3] if knows_answers else ():
        turns = [{"role": role, "content": [{"type": "text", "text": text}]} for role, text in (
            ("user", e.prompt), ("assistant", e.answer))]
        own = policy.processor.apply_chat_template(turns, tokenize=True, return_dict=True)["input_ids"][0]
        tokens, mask = policy.tokenize_answers([e])
        ours = policy.encode([e]).ids[0].tolist() + tokens[0, 0][mask[0, 0]][:-1].tolist()
        assert ours == torch.as_tensor(own).flatten().tolist()[:len(ours)]


def test_evaluation_counts_true_answers_as_right(policy, monkeypatch):
    split = world()[0]

    def sample(prompt, group_size, poses, temperature, seeds):
        asked = asking.pop(0)
        return SimpleNamespace(answers=sampled(policy, asked), mean=torch.eye(3)[:, :2].mT.reshape(1, 1, 6).repeat(
            len(asked), 1, 24), pose=torch.eye(3)[:, :2].mT.reshape(1, 1, 1, 6).repeat(len(asked), 1, 1, 24))
    asking, encode = [], policy.encode
    monkeypatch.setattr(policy, "encode", lambda examples: asking.append(examples) or encode(examples))
    own = PosePolicy.sample
    monkeypatch.setattr(policy, "sample", lambda prompt, *args, **options: own(policy, prompt, *args, **options)
                        if len(args) == 2 and args[0] == 2 else sample(prompt, *args, **options))
    numbers, _ = questions(policy, split, 4, 0)
    assert numbers["vqa_accuracy"] == 1.0


def test_a_tokenizer_of_each_kind_passes_the_check_before_training(policy):
    check_true_answers(policy, world()[0])


@pytest.mark.parametrize("lacks, fault", [
    (["."], "which has not the form of an answer"), (["knee", "knees"], "which says something else")])
def test_a_tokenizer_that_loses_what_is_said_is_refused_before_training(lacks, fault):
    known = [text.replace("<POSE>", "it") for text in texts()]
    words = [word for text in known for word in text.replace(".", " . ").replace(",", " , ").split()]
    tokenizer = whole_words([word for word in words if word.lower() not in lacks])
    with pytest.raises(ValueError, match="its tokenizer leaves of the true answer") as error:
        check_true_answers(policy_with(tokenizer, LLAVA), world()[0])
    assert fault in str(error.value) and "\n" not in str(error.value)
