"""Dialogues: the template's exact bytes, what is learned of them, and refusals with file and line."""

import pytest

from deepseek_v3.data.chat import ChatTemplate
from deepseek_v3.data.documents import DataError
from deepseek_v3.post_training.dialogues import (
    encode_dialogues,
    encode_prompt,
    hold_out,
    make_messages,
    read_dialogues,
)
from deepseek_v3.post_training.wording import Wording

BOS, EOS = "<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>"


def write(tmp_path, *lines: str):
    path = tmp_path / "dialogues.jsonl"
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def encode(tokenizer, path, most=200):
    return encode_dialogues(ChatTemplate.find(tokenizer), tokenizer, read_dialogues(path), most)


def test_200_dialogues_are_the_templates_bytes_and_answers_with_their_ends_are_learned(tmp_path, tokenizer):
    lines = []
    for i in range(100):
        lines.append(f'{{"prompt": "question {i} é", "completion": "answer {i} \\ud83d\\ude00"}}')
        lines.append(
            f'{{"messages": [{{"role": "system", "content": "s{i}"}}, {{"role": "user", "content": "a"}}, '
            f'{{"role": "assistant", "content": "b{i}"}}, {{"role": "user", "content": "c"}}, '
            f'{{"role": "assistant", "content": "d"}}]}}'
        )
    found = encode(tokenizer, write(tmp_path, *lines))
    assert len(found) == 200
    for i in range(100):
        short, long = found[2 * i : 2 * i + 2]
        assert tokenizer.decode(short.tokens, skip_special=False) == (
            f"{BOS}<｜User｜>question {i} é<｜Assistant｜>answer {i} \U0001f600{EOS}"
        )
        assert tokenizer.decode(long.tokens, skip_special=False) == (
            f"{BOS}s{i}<｜User｜>a<｜Assistant｜>b{i}{EOS}<｜User｜>c<｜Assistant｜>d{EOS}"
        )
        for dialogue, learned in ((short, f"answer {i} \U0001f600{EOS}"), (long, f"b{i}{EOS}d{EOS}")):
            kept = [token for token, answer in zip(dialogue.tokens, dialogue.answers) if answer]
            assert tokenizer.decode(kept, skip_special=False) == learned


def test_a_question_is_the_beginning_of_its_dialogue(tokenizer):
    template = ChatTemplate.find(tokenizer)
    rows = iter([("here", make_messages("2 0 1", "0 1 2"))])
    (dialogue,) = encode_dialogues(template, tokenizer, rows, 99)
    prompt = encode_prompt(template, tokenizer, "2 0 1")
    assert dialogue.tokens[: len(prompt)] == prompt
    assert dialogue.answers.index(True) == len(prompt)


def test_control_tokens_in_a_question_stay_text(tmp_path, tokenizer):
    (dialogue,) = encode(tokenizer, write(tmp_path, '{"prompt": "<｜Assistant｜>x", "completion": "y"}'))
    assert dialogue.tokens.count(tokenizer.token_id("<｜Assistant｜>")) == 1


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("not json", "not a line of JSON"),
        ("[1, 2]", "a dialogue is an object"),
        ("{}", "prompt must be a text"),
        ('{"prompt": "a"}', "completion must be a text"),
        ('{"prompt": 3, "completion": "b"}', "prompt must be a text"),
        ('{"messages": "a"}', "messages must be a list"),
        ('{"messages": []}', "no messages"),
        ('{"messages": [3]}', "message 0"),
        ('{"messages": [{"role": "king", "content": "a"}]}', "role"),
        ('{"messages": [{"role": "user", "content": 3}]}', "content"),
        ('{"messages": [{"role": "user", "content": "a"}]}', "no answer of an assistant"),
        ('{"prompt": "a", "completion": "' + "b" * 200 + '"}', "tokens, and a row has 60"),
        ("[" * 5000, "not a line of JSON"),
    ],
)
def test_what_is_no_dialogue_is_refused_with_file_and_line(tmp_path, tokenizer, line, says):
    path = write(tmp_path, '{"prompt": "a", "completion": "b"}', "", line)
    with pytest.raises(DataError) as refused:
        encode(tokenizer, path, most=60)
    assert str(refused.value).startswith(f"{path}:3: ")
    assert says in str(refused.value)


def test_a_file_that_is_no_text_or_empty_is_refused(tmp_path, tokenizer):
    path = tmp_path / "d.jsonl"
    path.write_bytes(b"\xff\xfe{}\n")
    with pytest.raises(DataError, match=r"d\.jsonl:1: not a line of JSON"):
        encode(tokenizer, path)
    path.write_bytes(b"\n\n")
    with pytest.raises(DataError, match="holds no dialogue"):
        encode(tokenizer, path)


def test_a_rule_sees_control_tokens_that_an_answer_holds(tokenizer):
    answer = [*tokenizer.encode("97"), tokenizer.token_id("<think>"), *tokenizer.encode("5")]
    assert Wording(tokenizer).read(answer) == "97<think>5"


def test_copies_of_a_dialogue_stand_on_one_side(tmp_path, tokenizer):
    lines = [f'{{"prompt": "{i % 60}", "completion": "b"}}' for i in range(120)]
    learned, held_out = hold_out(encode(tokenizer, write(tmp_path, *lines)), 0.3)
    assert len(learned) + len(held_out) == 120
    assert 4 < len(held_out) < 80
    assert not {tuple(d.tokens) for d in learned} & {tuple(d.tokens) for d in held_out}
