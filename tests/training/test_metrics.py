"""A log survives what happens to logs: full disks, cut lines, hands."""

import errno
import json

from deepseek_v3.training.metrics import MetricsLog, read_metrics
from deepseek_v3.training.report import write_report

ROW = {"loss": 2.0, "bits_per_byte": 1.0, "tokens": 5, "tokens_per_s": 7.0, "max_vio": 0.1}
BROKEN = ['{"kind": "step", "st', "[1]", "3", "null", '{"kind": 3, "step": 1}', '{"kind": "step", "step": 2}']
BROKEN += ['{"kind": "sample", "step": 1, "prompt": 3, "text": null}', '{"kind": "heldout", "step": "x"}', "[" * 9999]


def test_broken_lines_are_left_out_and_the_report_is_written(tmp_path):
    good = json.dumps({"kind": "step", "step": 1, **ROW})
    (tmp_path / "metrics.jsonl").write_bytes("\n".join([*BROKEN, good, *BROKEN]).encode() + b"\n\xff\xfe\n")
    assert [row["step"] for row in read_metrics(tmp_path / "metrics.jsonl")] == [1]
    assert write_report(tmp_path).is_file()
    log = MetricsLog(tmp_path / "metrics.jsonl", resume_at=1)
    log.close()
    assert (tmp_path / "metrics.jsonl").read_text() == good + "\n"


def test_a_line_that_cannot_be_written_is_missed_and_told_and_the_next_one_is_whole(tmp_path, monkeypatch):
    log = MetricsLog(tmp_path / "metrics.jsonl")
    stream, calls = log._stream, []

    class Full:
        def write(self, data):
            calls.append(bytes(data))
            if len(calls) == 2:
                stream.write(bytes(data)[:5])
                raise OSError(errno.ENOSPC, "No space left on device")
            return stream.write(data)

        def close(self):
            stream.close()

    log._stream = Full()
    for step in (1, 2, 3):
        log.write("step", step=step, **ROW)
    assert "no space left" in log.close()
    assert [row["step"] for row in read_metrics(tmp_path / "metrics.jsonl")] == [1, 3]
