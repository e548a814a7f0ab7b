"""One file a sub-command: its options, which import no PyTorch, and its run function. Only `cli` knows them."""
