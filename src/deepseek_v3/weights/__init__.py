"""Released checkpoints: read, write, inspect, convert, and refuse what is broken."""
