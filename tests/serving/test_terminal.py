"""`deepseek-v3 chat`: the same engine in the terminal, line by line."""

import io

import torch

from deepseek_v3.commands.chat import ChatOptions, Dialogue, talk
from deepseek_v3.data.chat import ChatTemplate, encode_rendering
from deepseek_v3.engine.generate import generate


def say(dialogue, *lines):
    """What the terminal shows of these lines: answers, and the figures beside them."""
    out, log = io.StringIO(), io.StringIO()
    talk(dialogue, io.StringIO("".join(line + "\n" for line in lines)), out, log)
    return out.getvalue(), log.getvalue().splitlines()[1:]


def answer(model, tokenizer, messages, count):
    """The greedy answer to a dialogue."""
    tokens, _ = encode_rendering(tokenizer, ChatTemplate.find(tokenizer).render_prompt(messages))
    stream = tokenizer.stream()
    told = generate(model, tokens, max_new_tokens=count, stop_tokens=tokenizer.stop_ids)
    return "".join(map(stream.push, told)) + stream.finish()


def test_a_dialogue_is_answered_behind_its_template_and_goes_on_until_a_new_one(model, tokenizer):
    dialogue = Dialogue(model, tokenizer, ChatOptions("", system="be brief", temperature=0, max_new_tokens=11))
    long = "the quick brown fox jumps " * 9
    out, figures = say(dialogue, long, "", "wörld 🙂", "/new", long)
    messages = [{"role": "system", "content": "be brief"}, {"role": "user", "content": long.strip()}]
    first = answer(model, tokenizer, messages, 11)
    messages += [{"role": "assistant", "content": first}, {"role": "user", "content": "wörld 🙂"}]
    second = answer(model, tokenizer, messages, 11)
    assert out == f"> {first}\n> > {second}\n> > {first}\n> \n"
    assert len(figures) == 3
    assert dialogue.engine.metrics().shared_tokens > 0  # what has been said is not read again
    assert dialogue.messages == [*messages[:2], {"role": "assistant", "content": first}]


def test_an_answer_that_is_interrupted_stays_as_far_as_it_was_shown(model, tokenizer):
    class Hasty(io.StringIO):
        def write(self, text):
            super().write(text)
            if len(self.getvalue()) > 9:
                raise KeyboardInterrupt
            return len(text)

    dialogue, out = Dialogue(model, tokenizer, ChatOptions("", temperature=0, max_new_tokens=90)), Hasty()
    dialogue.answer("the quick", out)
    whole = answer(model, tokenizer, [{"role": "user", "content": "the quick"}], 90)
    assert whole.startswith(out.getvalue())
    assert dialogue.messages[-1] == {"role": "assistant", "content": out.getvalue()}
    assert len(out.getvalue()) < len(whole)
    assert not dialogue.engine.sequences


def test_what_cannot_be_answered_is_said_and_forgotten(model, tokenizer):
    dialogue = Dialogue(model, tokenizer, ChatOptions("", temperature=0, max_new_tokens=5))
    out, (said, _) = say(dialogue, "fox " * 300, "the")
    assert said == "the dialogue fills the context of 256 tokens; /new begins another"
    assert out == f"> \n> {answer(model, tokenizer, [{'role': 'user', 'content': 'the'}], 5)}\n> \n"
    before = model.lm_head.weight.detach().clone()
    try:
        with torch.no_grad():
            model.lm_head.weight[7] = float("nan")
        said = say(Dialogue(model, tokenizer, ChatOptions("", temperature=0)), "the")[1][0]
    finally:
        with torch.no_grad():
            model.lm_head.weight.copy_(before)
    assert said.startswith("the logits behind token 3 are nan")
