"""Documents in, batches out: sources, tokenizers, token cache, rows and the loader."""
