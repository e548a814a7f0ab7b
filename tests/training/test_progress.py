"""What a person reads while the model learns fits 80 columns, and no share is above the whole."""

import io
from types import SimpleNamespace

import pytest

from deepseek_v3.config import ModelConfig
from deepseek_v3.training.progress import LiveBar, PlainLines, describe_row
from deepseek_v3.training.results import describe_step

ROW = {"loss": 10.345, "mtp_loss": 10.456, "bits_per_byte": 10.234, "tokens_per_s": 123_456.0}
ROW |= {"share_of_peak": 1.0, "left_s": 5000.0}


def test_the_figures_of_a_step_and_the_time_left_fit_80_columns():
    from rich.console import Console

    out = io.StringIO()
    bar = LiveBar()
    console = Console(file=out, width=80, force_terminal=True, color_system=None)
    for part in (bar.bar, bar.figures):
        part.live.console = console
    bar.console = console
    bar.start(0, 2000)
    bar.update(1234, 2000, ROW)
    bar.finish()
    shown = out.getvalue()
    assert "83 min left" in shown
    assert "100% of peak" in shown
    assert len(describe_row(ROW)) <= 80


def test_a_log_has_the_time_left_too():
    out = io.StringIO()
    PlainLines(out).update(7, 7, ROW)
    assert out.getvalue().endswith("100% of peak  83 min left\n")


@pytest.mark.parametrize(("peak", "known"), [(1e30, True), (1.0, False), (0.0, False)])
def test_no_share_of_the_peak_is_above_the_whole(peak, known):
    clock = SimpleNamespace(tokens_per_second=lambda: 1000.0, seconds_per_step=lambda: 1.0)
    result = SimpleNamespace(loss=1.0, mtp_losses=[], bits_per_byte=1.0, further={})
    options, arithmetic = SimpleNamespace(seq_len=13, steps=5), SimpleNamespace(peak=peak)
    row = describe_step(result, clock, arithmetic, ModelConfig.preset("nano"), options, 3)
    assert (row["share_of_peak"] is not None) == known
