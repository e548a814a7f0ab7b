"""The engine: the only decoding path, from a request to its tokens."""
