"""Where TransformerLens has its MLPs."""
