"""A HuggingFace model taken apart into named parts."""
