"""HTTP around the engine: OpenAI's protocol, a page, metrics."""
