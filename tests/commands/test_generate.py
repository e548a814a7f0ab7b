"""The command `generate`: text in, text out as it comes, figures on the side."""

import io

import pytest
import torch

from deepseek_v3.commands.generate import GenerateOptions, read_prompt_text, run_generate, stream_text
from deepseek_v3.config import ModelConfig
from deepseek_v3.engine.generate import generate
from deepseek_v3.model.transformer import DeepseekV3


class Letters:
    """A tokenizer of the 26 letters, whose token 26 opens and whose token 27 closes a text."""

    bos_id, eos_id, stop_ids = 26, 27, (27,)

    def encode(self, text):
        return [ord(c) - ord("a") for c in text]

    def stream(self):
        return self

    def push(self, token):
        return chr(token + ord("a")) if token < 26 else ""

    def finish(self):
        return ""


@pytest.fixture
def model():
    torch.manual_seed(3)
    return DeepseekV3(ModelConfig.preset("demo").replace(vocab_size=29, hidden_size=40, initializer_range=0.1))


def test_it_streams_the_continuation_and_then_says_how_fast(model):
    options = GenerateOptions(run="", max_new_tokens=19, temperature=0, speculative=1)
    out, log = io.StringIO(), io.StringIO()
    stream_text(model, Letters(), "hello", options, out, log)
    want = generate(model, [26, *Letters().encode("hello")], max_new_tokens=19, stop_tokens=[27])
    assert out.getvalue() == "hello" + "".join(Letters().push(t) for t in want) + "\n"
    assert "6 + " in log.getvalue()
    assert "tokens/s" in log.getvalue()
    assert "drafts accepted" in log.getvalue()


def test_a_character_is_not_cut_by_the_number_of_tokens(model):
    """The bytes of a character that have come when the limit is reached are left out, not shown as a replacement."""

    class Cut(Letters):
        def finish(self):
            return "\ufffd"

    options, out = GenerateOptions(run="", max_new_tokens=3, temperature=0), io.StringIO()
    stream_text(model, Cut(), "hello", options, out, io.StringIO())
    assert "\ufffd" not in out.getvalue()


def test_a_stop_text_ends_it_and_is_not_shown(model):
    out = io.StringIO()
    stream_text(model, Letters(), "a", GenerateOptions(run="", max_new_tokens=19, temperature=0), out, io.StringIO())
    whole = out.getvalue().rstrip("\n")
    stop, out = whole[7:10], io.StringIO()
    options = GenerateOptions(run="", max_new_tokens=19, temperature=0, stop=("zzz", stop))
    stream_text(model, Letters(), "a", options, out, io.StringIO())
    assert out.getvalue() == whole[: whole.index(stop)] + "\n"


def test_the_prompt_may_come_from_a_file(tmp_path):
    path = tmp_path / "prompt.txt"
    path.write_text("héllo", encoding="utf-8")
    assert read_prompt_text(GenerateOptions(run="", prompt_file=str(path))) == "héllo"
    with pytest.raises(ValueError, match="not both"):
        read_prompt_text(GenerateOptions(run="", prompt="x", prompt_file=str(path)))
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(ValueError, match="not UTF-8"):
        read_prompt_text(GenerateOptions(run="", prompt_file=str(path)))
    with pytest.raises(OSError, match="missing"):
        read_prompt_text(GenerateOptions(run="", prompt_file=str(tmp_path / "missing")))


def test_the_command_loads_prints_and_refuses(model, monkeypatch, capsys):
    monkeypatch.setattr("deepseek_v3.model_io.load", lambda run, **options: (model, Letters()))
    run_generate(GenerateOptions(run="x", prompt="abc", max_new_tokens=5, temperature=0, dtype="bfloat16"))
    captured = capsys.readouterr()
    assert captured.out.startswith("abc")
    assert "tokens/s" in captured.err
    for wrong in ({"max_new_tokens": -1}, {"top_p": 0.0}, {"temperature": -1.0}, {"speculative": -1}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            run_generate(GenerateOptions(run="x", prompt="abc", **wrong))
    assert not capsys.readouterr().out  # an option that cannot work is said before the prompt is shown
    with pytest.raises(ValueError, match="--dtype int8"):
        run_generate(GenerateOptions(run="x", dtype="int8"))
    monkeypatch.setattr("deepseek_v3.model_io.load", lambda run, **options: (model, None))
    with pytest.raises(ValueError, match=r"no tokenizer\.json"):
        run_generate(GenerateOptions(run="x"))
