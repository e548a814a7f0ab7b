"""What an engine is doing and has done, in numbers; each says what it counts."""

from dataclasses import dataclass, field


def state(says: str) -> int:
    """A number of the moment."""
    return field(default=0, metadata={"says": says, "total": False})


def total(says: str) -> int:
    """A number that only grows."""
    return field(default=0, metadata={"says": says, "total": True})


@dataclass
class Metrics:
    """An engine's state now, and what it has done since it was made."""

    running: int = state("sequences that are being read and written")
    waiting: int = state("sequences in the queue")
    blocks: int = state("cache blocks")
    blocks_free: int = state("cache blocks that nobody holds")
    blocks_findable: int = state("of the free blocks, those that hold the beginning of a known text")
    preemptions: int = total("sequences whose blocks were taken away for others")
    steps: int = total("steps of the engine")
    prompt_tokens: int = total("tokens that were read, of prompts and of texts that had to be read again")
    shared_tokens: int = total("tokens of prompts that were found in the cache instead")
    new_tokens: int = total("tokens written")
    drafted: int = total("tokens that MTP modules proposed, and that were judged")
    accepted: int = total("of these, tokens that became text")
