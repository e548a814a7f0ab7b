"""What an engine is doing and has done, in numbers."""

from dataclasses import dataclass


@dataclass
class Metrics:
    """An engine's state now, and what it has done since it was made.

    Attributes:
        blocks_findable: of the free blocks, those that hold a beginning which a prompt may share.
        prompt_tokens: read, of prompts and of texts that had to be read again.
        shared_tokens: found in the cache instead.
        drafted: drafts that were judged; `accepted` of them became text.
    """

    running: int = 0
    waiting: int = 0
    preemptions: int = 0
    blocks: int = 0
    blocks_free: int = 0
    blocks_findable: int = 0
    steps: int = 0
    prompt_tokens: int = 0
    shared_tokens: int = 0
    new_tokens: int = 0
    drafted: int = 0
    accepted: int = 0
