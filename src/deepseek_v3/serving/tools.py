"""Calls of tools in DeepSeek's form, read out of what the model wrote.

    <｜tool▁calls▁begin｜><｜tool▁call▁begin｜>NAME<｜tool▁sep｜>{"city": "Rome"}<｜tool▁call▁end｜><｜tool▁calls▁end｜>

An older form has `function` for NAME, then NAME on a line of its own and the arguments fenced as JSON. What has neither
form is no call, and stays the text that it is.
"""

import re
from typing import Any
from uuid import uuid4

from deepseek_v3.engine.stop import StopGate

CALLS_BEGIN, CALL_BEGIN = "<｜tool▁calls▁begin｜>", "<｜tool▁call▁begin｜>"
CALL = re.compile(  # behind its beginning
    r"(?:function<｜tool▁sep｜>(?P<old>[^\n<]{1,512})\n```json\n(?P<fenced>.*?)\n```"
    r"|(?P<name>[^\n<]{1,512})<｜tool▁sep｜>(?P<bare>\s*\{.*?))<｜tool▁call▁end｜>",
    re.DOTALL,
)


class CallReader:
    """Let text through up to where calls begin; then keep it, and read them at the end.

    Attributes:
        calls: as OpenAI's objects, once it is finished.
    """

    def __init__(self) -> None:
        self.gate, self.whole = StopGate((CALLS_BEGIN,)), ""
        self.calls: list[dict[str, Any]] = []

    def push(self, text: str) -> str:
        """Return what of all text so far is for the reader."""
        self.whole += text
        return self.gate.push(text)

    def finish(self) -> str:
        """Return what is left for the reader: all of it where it was no call after all."""
        if not self.gate.stopped:
            return self.gate.finish()
        kept = self.whole[self.whole.index(CALLS_BEGIN) :]
        found = [CALL.match(part) for part in kept.split(CALL_BEGIN)[1:]]
        self.calls = [describe_call(call) for call in found if call]
        return "" if self.calls else kept


def describe_call(found: re.Match[str]) -> dict[str, Any]:
    """A call as OpenAI's object; its arguments are the model's own words, not checked."""
    function = {"name": (found["old"] or found["name"]).strip(), "arguments": found["fenced"] or found["bare"] or ""}
    return {"id": f"call_{uuid4().hex[:24]}", "type": "function", "function": function}
