"""Models in GGUF, the format of llama.cpp: read by transformers, without what takes it so long."""

from lensbridge.loading.gguf.converting import converted
from lensbridge.loading.gguf.naming import named_by, present_in
from lensbridge.loading.gguf.opening import from_gguf, gguf_config, gguf_tokenizer

__all__ = ["converted", "from_gguf", "gguf_config", "gguf_tokenizer", "named_by", "present_in"]
