"""`generate`: HuggingFace's own generation with hooks, interventions and a cache."""
