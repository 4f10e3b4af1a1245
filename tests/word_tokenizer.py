"""A tokenizer whose tokens are whole words."""

from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast


def words(*vocabulary: str) -> PreTrainedTokenizerFast:
    """Whole words, and no decoder, as in toy models."""
    ids = {word: i for i, word in enumerate(("<unk>", *vocabulary))}
    backend = Tokenizer(models.WordLevel(ids, "<unk>"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="<unk>")
