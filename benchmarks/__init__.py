"""What lensbridge costs, beside bare HuggingFace and TransformerLens: `python -m benchmarks`."""
