"""Tiny random models and tokenizers under names of the hub, for TransformerLens's own tests."""

import json
from pathlib import Path
from typing import Any

OLD = {"n_embd": 64, "n_head": 4, "n_positions": 1024, "n_ctx": 1024}
SIZES = {"hidden_size": 64, "num_attention_heads": 4, "num_hidden_layers": 2}
NEO = {"hidden_size": 64, "num_heads": 4, "attention_types": [[["global", "local"], 1]]}
GROUPED = {**SIZES, "num_key_value_heads": 2, "intermediate_size": 96}
T5 = {"d_model": 64, "num_layers": 2, "num_heads": 4, "d_kv": 16, "d_ff": 96, "n_positions": 512}
STAND_INS: dict[str, tuple[str, dict[str, Any]]] = {
    **dict.fromkeys(("gpt2", "gpt2-small"), ("GPT2LMHeadModel", {**OLD, "n_layer": 7})),
    **dict.fromkeys(("gpt2-medium", "solu-3l"), ("GPT2LMHeadModel", {**OLD, "n_layer": 3})),
    **dict.fromkeys(("solu-1l", "EleutherAI/gpt-j-6b"), ("GPT2LMHeadModel", {**OLD, "n_layer": 1})),
    "solu-2l": ("GPT2LMHeadModel", {**OLD, "n_layer": 2}),
    "attn-only-2l": ("GPT2LMHeadModel", {**OLD, "n_layer": 2}),
    "tiny-stories-1M": ("GPTNeoForCausalLM", {**NEO, "num_layers": 2}),
    **dict.fromkeys(
        ("pythia-14m", "EleutherAI/pythia-14m", "EleutherAI/pythia-70m"),
        ("GPTNeoXForCausalLM", {**SIZES, "num_hidden_layers": 6, "intermediate_size": 96}),
    ),
    "facebook/opt-125m": (
        "OPTForCausalLM",
        {**SIZES, "num_hidden_layers": 7, "ffn_dim": 96, "word_embed_proj_dim": 64},
    ),
    "Qwen/Qwen2-0.5B": ("Qwen2ForCausalLM", GROUPED),
    "bigscience/bloom-560m": ("BloomForCausalLM", {"hidden_size": 64, "n_layer": 2, "n_head": 4}),
    "bert-base-cased": ("BertForPreTraining", {**SIZES, "intermediate_size": 96}),
    "t5-small": ("T5ForConditionalGeneration", T5),
}
"""Names of the hub -> the class and the sizes of what stands there."""

END, PAD, CLS, SEP, MASK, CLOSE = "<|endoftext|>", "[PAD]", "[CLS]", "[SEP]", "[MASK]", "</s>"
SPECIAL = [END, PAD, CLS, SEP, MASK, CLOSE]
ROLES = {
    "BertForPreTraining": {
        "pad_token": PAD,
        "cls_token": CLS,
        "sep_token": SEP,
        "mask_token": MASK,
    },
    "T5ForConditionalGeneration": {"pad_token": PAD, "eos_token": CLOSE},
    "": {"bos_token": END, "eos_token": END},
}
"""Special tokens of BERT, of T5 and of all others."""

FRAMES = {
    "BertForPreTraining": {"single": f"{CLS} $A {SEP}", "pair": f"{CLS} $A {SEP} $B:1 {SEP}:1"},
    "T5ForConditionalGeneration": {"single": f"$A {CLOSE}"},
}
"""What stands around a text."""


def build_stand_ins(folder: Path, tests: Path) -> None:
    """Save a model and a tokenizer under each name."""
    import torch
    import transformers

    words = words_of(tests)
    for name, (kind, fields) in STAND_INS.items():
        torch.manual_seed(0)
        tokenizer = tokenizer_for(kind, words)
        ids = {f"{one}_token_id": SPECIAL.index(END) for one in ("bos", "eos", "pad")}
        ids.update({f"{role}_id": SPECIAL.index(one) for role, one in roles_of(kind).items()})
        if kind.startswith("T5"):
            ids["decoder_start_token_id"] = ids["pad_token_id"]
        cls = getattr(transformers, kind)
        model = cls(cls.config_class(vocab_size=len(tokenizer), **ids, **fields))
        model.save_pretrained(folder / name)
        tokenizer.save_pretrained(folder / name)
        if kind.startswith("Bert"):
            rename_class(folder / name / "config.json", "BertForMaskedLM")


def rename_class(config: Path, name: str) -> None:
    """Name a class in a config, as on the hub."""
    fields = json.loads(config.read_text())
    config.write_text(json.dumps({**fields, "architectures": [name]}))


def roles_of(kind: str) -> dict[str, str]:
    """The special tokens of a class of models."""
    return ROLES.get(kind, ROLES[""])


def words_of(tests: Path) -> str:
    """A byte-level BPE for which the words of the tests are single tokens, as JSON."""
    from tokenizers import ByteLevelBPETokenizer

    bpe = ByteLevelBPETokenizer()
    files = [str(one) for one in sorted(tests.rglob("*.py"))]
    bpe.train(files, 20_000, min_frequency=1, show_progress=False, special_tokens=SPECIAL)
    return str(bpe.to_str())


def tokenizer_for(kind: str, words: str) -> Any:
    """The tokenizer of a class of models."""
    from tokenizers import Tokenizer
    from tokenizers.processors import TemplateProcessing
    from transformers import PreTrainedTokenizerFast

    bpe = Tokenizer.from_str(words)
    if kind in FRAMES:
        known = [(one, number) for number, one in enumerate(SPECIAL)]
        bpe.post_processor = TemplateProcessing(**FRAMES[kind], special_tokens=known)
    roles = {"unk_token": END, **roles_of(kind)}
    return PreTrainedTokenizerFast(tokenizer_object=bpe, model_max_length=1024, **roles)
