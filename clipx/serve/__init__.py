"""A search page and an HTTP API over embeddings: `clipx serve`."""
