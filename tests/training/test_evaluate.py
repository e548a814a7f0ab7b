"""Bits per byte, acceptance, and the n-gram that they are held against."""

import json
import math

import pytest
import torch

from deepseek_v3.data.tokenizer import Tokenizer
from deepseek_v3.training.evaluate import compressed_bits_per_byte, cut_evenly, measure_model
from deepseek_v3.training.metrics import NEEDED, MetricsLog, read_metrics
from deepseek_v3.training.ngram import ByteNgram
from deepseek_v3.training.report import write_report

TEXTS = ["the cat sat on the mat. " * 9, "a dog ate the log, größer. " * 5]


class Uniform(torch.nn.Module):
    """Knows nothing: the same probability for each of `size` tokens."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.size = size

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        return torch.zeros(*tokens.shape, self.size)


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.train(TEXTS, 290)


@pytest.mark.parametrize("seq_len", [2, 3, 7, 64, 1000])
def test_every_token_is_scored_once_whatever_the_window(tokenizer, seq_len):
    found = measure_model(Uniform(290), tokenizer, TEXTS, seq_len)
    tokens = sum(len(tokenizer.encode(text)) + 1 for text in TEXTS)  # each text's end is a token too
    n_bytes = sum(len(text.encode()) for text in TEXTS)
    assert found.n_bytes == n_bytes
    assert found.bits_per_byte == pytest.approx(tokens * math.log2(290) / n_bytes, rel=1e-5)
    assert found.mtp_acceptance is None


def test_windows_do_not_change_what_a_causal_model_is_worth_much(tokenizer, tiny_model):

    model = tiny_model(1, 290)
    whole = measure_model(model, tokenizer, TEXTS, 1000)
    windows = measure_model(model, tokenizer, TEXTS, 16)
    assert windows.bits_per_byte == pytest.approx(whole.bits_per_byte, rel=0.05)
    assert 0 <= whole.mtp_acceptance <= 1
    assert measure_model(model, tokenizer, TEXTS, 16, should_stop=lambda: True) is None


def test_long_texts_give_way_so_that_all_have_a_share():
    assert cut_evenly(["a" * 10, "b" * 100, "c" * 100], 70) == ["a" * 10, "b" * 30, "c" * 30]
    assert cut_evenly(["a", "b"], 1000) == ["a", "b"]


@pytest.mark.parametrize("order", [1, 2, 3, 5, 7])
def test_all_256_probabilities_of_an_ngram_add_up_to_one(order):
    model = ByteNgram(["abracadabra", "banana"], order)
    for context in ("abr", "x", "na", "", "cadabra"):
        known = [model.probabilities(context + c)[-1] for c in "abcdnr"]
        never = model.probabilities(context + "q")[-1]  # bytes that never occurred are all alike
        assert sum(known) + (256 - 6) * never == pytest.approx(1)


def test_one_discount_by_hand():
    """ "aab" at order 1: a twice, b once; the discount is n1 / (n1 + 2 n2) = 1/3, and 256 bytes share what it frees."""
    model = ByteNgram(["aab"], 1)
    freed = (1 / 3) * 2 / 3
    assert model.probabilities("a")[0] == pytest.approx((2 - 1 / 3) / 3 + freed / 256)
    assert model.probabilities("z")[0] == pytest.approx(freed / 256)


def test_longer_contexts_and_more_text_help_the_ngram():
    from pydoc_data.topics import topics

    texts = [topics[name] for name in sorted(topics)]
    bits = [ByteNgram(texts[:40], order).bits_per_byte(texts[40:44]) for order in (1, 2, 3, 5)]
    assert bits == sorted(bits, reverse=True)
    assert ByteNgram(texts[:7], 5).bits_per_byte(texts[40:44]) > bits[-1]


def test_an_ngram_of_nothing_is_refused():
    with pytest.raises(ValueError, match="no text"):
        ByteNgram([], 5)
    with pytest.raises(ValueError, match="order=8"):
        ByteNgram(TEXTS, 8)


def test_packers_are_measured_in_the_same_unit():
    found = compressed_bits_per_byte(["ab" * 5000])
    assert 0 < found["xz"] < found["gzip"] + 0.1 < 0.2


def test_the_report_is_one_file_that_holds_its_numbers_and_asks_no_network(tmp_path):
    log = MetricsLog(tmp_path / "metrics.jsonl")
    log.write("heldout", step=0, bits_per_byte=4.0, mtp_acceptance=0.1)
    for step in range(1, 900):
        row = {"loss": 5.0, "mtp_loss": 6.0, "bits_per_byte": 2.0, "lr": 1e-3, "grad_norm": 1.0, "tokens": step}
        log.write("step", step=step, **row, tokens_per_s=10.0, max_vio=0.5, loads=[[1.0, 0.5, 1.5]] * 2)
    log.write("sample", step=899, prompt="def ", text="</script><script>alert(1)</script> &")
    log.close()
    page = write_report(tmp_path, [("answer", "42", "as found")]).read_text(encoding="utf-8")
    data = json.loads(page.split('type="application/json">')[1].split("</script>")[0])
    assert data["samples"][0]["text"].startswith("</script>")
    assert data["facts"][-1] == ["answer", "42", "as found"]
    assert len(data["steps"]["step"]) <= 400
    assert [len(data["loads"]["layers"]), len(data["loads"]["layers"][0])] == [2, 3]
    assert page.count("<script") == 2
    assert "alert(1)</script>" not in page
    assert not any(word in page for word in ("http://cdn", "https://", "src=", "@import"))


def test_a_log_drops_what_a_resume_will_do_again_and_a_line_that_a_kill_cut(tmp_path):
    path = tmp_path / "metrics.jsonl"
    values = dict.fromkeys(NEEDED["step"], 0.5)  # a line without them is a broken one
    rows = [{**values, "kind": "step", "step": i} for i in range(1, 8)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows) + '{"kind": "st')
    assert len(read_metrics(path)) == 7
    log = MetricsLog(path, resume_at=5)
    log.write("step", **{**values, "step": 6})
    log.close()
    assert [row["step"] for row in read_metrics(path)] == [1, 2, 3, 4, 5, 6]
