"""circuit-tracer, on a small HookedTransformer with random transcoders."""

import tempfile
from typing import Any

import torch
from circuit_tracer import ReplacementModel, attribute
from circuit_tracer.transcoder import SingleLayerTranscoder, TranscoderSet
from transformer_lens import HookedTransformerConfig
from transformers import PreTrainedTokenizerFast

from benchmarks.comparison.probes import Outcome

IDS = torch.tensor([1, 7, 9, 4, 12])


def _tokenizer() -> Any:
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel

    words = {f"w{index}": index for index in range(61)}
    inner = Tokenizer(WordLevel(words, unk_token="w0"))
    made = PreTrainedTokenizerFast(
        tokenizer_object=inner, bos_token="w1", eos_token="w2", pad_token="w0", unk_token="w0"
    )
    folder = tempfile.mkdtemp()  # it is read again, with other options, from where it came
    made.save_pretrained(folder)
    return PreTrainedTokenizerFast.from_pretrained(folder)


def _model() -> Any:
    torch.manual_seed(0)
    config = HookedTransformerConfig(
        n_layers=2, d_model=24, n_ctx=40, d_head=6, n_heads=4, d_mlp=20, d_vocab=61,
        act_fn="gelu", normalization_type="LN", device="cpu", seed=0, model_name="tiny",
    )  # fmt: skip
    transcoders = {}
    for layer in range(2):
        one = SingleLayerTranscoder(
            24, 30, torch.nn.functional.relu, layer, device=torch.device("cpu"), dtype=torch.float32
        )
        for parameter in one.parameters():
            torch.nn.init.normal_(parameter, std=0.3)
        transcoders[layer] = one
    chosen = TranscoderSet(transcoders, "hook_resid_mid", "hook_mlp_out")
    return ReplacementModel.from_config(config, chosen, tokenizer=_tokenizer())


def _graph() -> Any:
    with torch.enable_grad():
        return attribute(IDS, _model(), max_n_logits=3, verbose=False).adjacency_matrix


def _feature() -> Any:
    logits, _ = _model().feature_intervention(IDS, [(0, 2, 3, 1.0)])
    return logits


PROBES = {
    "attribution_graph": _graph,
    "sae": lambda: Outcome("caveat", "transcoders of MLPs") if _feature() is not None else None,
}
