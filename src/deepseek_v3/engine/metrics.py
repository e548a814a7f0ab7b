"""What an engine is doing and has done, in numbers; each says what it counts."""

from dataclasses import dataclass, field


def number(says: str, *, total: bool = False) -> int:
    """A number of the moment, or a total that only grows."""
    return field(default=0, metadata={"says": says, "total": total})


@dataclass
class Metrics:
    """An engine's state now, and what it has done since it was made."""

    running: int = number("sequences that are being read and written")
    waiting: int = number("sequences in the queue")
    blocks: int = number("cache blocks")
    blocks_free: int = number("cache blocks that nobody holds")
    blocks_findable: int = number("of the free blocks, those that hold the beginning of a known text")
    preemptions: int = number("sequences whose blocks were taken away for others", total=True)
    steps: int = number("steps of the engine", total=True)
    prompt_tokens: int = number("tokens that were read, of prompts and of texts that had to be read again", total=True)
    shared_tokens: int = number("tokens of prompts that were found in the cache instead", total=True)
    new_tokens: int = number("tokens written", total=True)
    drafted: int = number("tokens that MTP modules proposed, and that were judged", total=True)
    accepted: int = number("of these, tokens that became text", total=True)
