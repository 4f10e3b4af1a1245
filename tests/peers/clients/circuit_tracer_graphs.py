"""A program for circuit-tracer, which knows nothing of lensbridge.

python circuit_tracer_graphs.py weights.pt results.pt
"""

import sys
from typing import Any

import huggingface_hub.constants
import torch
from torch import Tensor, nn

# circuit-tracer 0.5 imports this from huggingface_hub, which has dropped it
huggingface_hub.constants.HF_HUB_ENABLE_HF_TRANSFER = False

from circuit_tracer import attribute  # noqa: E402
from circuit_tracer.replacement_model import replacement_model_transformerlens as replaced  # noqa: E402
from circuit_tracer.transcoder import TranscoderSet  # noqa: E402
from circuit_tracer.transcoder.cross_layer_transcoder import CrossLayerTranscoder  # noqa: E402
from circuit_tracer.transcoder.single_layer_transcoder import SingleLayerTranscoder  # noqa: E402
from tokenizers import Tokenizer, models  # noqa: E402
from transformer_lens import HookedTransformerConfig  # noqa: E402
from transformers import PreTrainedTokenizerFast  # noqa: E402

FEATURES = 40
CPU, DTYPE = torch.device("cpu"), torch.float32
IDS = torch.tensor([0, 17, 8, 44, 9, 31, 23])
GENERATED = {"do_sample": False, "stop_at_eos": False, "verbose": False, "return_type": "tokens"}


def tokenizer() -> Any:
    """Words are numbers, and 0 is the special token that a text begins with."""
    words = models.WordLevel({str(one): one for one in range(61)}, unk_token="0")
    special = dict.fromkeys(("bos_token", "eos_token", "pad_token", "unk_token"), "0")
    return PreTrainedTokenizerFast(tokenizer_object=Tokenizer(words), **special)


def filled(module: nn.Module, seed: int) -> Any:
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for one in module.parameters():
            one.copy_(torch.randn(one.shape, generator=generator) / one.shape[-1] ** 0.5)
    return module


def transcoders(cfg: Any) -> dict[str, Any]:
    def of_layers(skip: bool, reads: str, writes: str) -> TranscoderSet:
        each = {
            layer: filled(
                SingleLayerTranscoder(
                    cfg.d_model, FEATURES, torch.relu, layer, skip, device=CPU, dtype=DTYPE
                ),
                layer,
            )
            for layer in range(cfg.n_layers)
        }
        return TranscoderSet(each, reads, writes)

    across = CrossLayerTranscoder(
        cfg.n_layers, FEATURES, cfg.d_model, lazy_decoder=False, device=CPU, dtype=DTYPE
    )
    return {
        "mlp": of_layers(False, "mlp.hook_in", "mlp.hook_out"),
        "skip": of_layers(True, "mlp.hook_in", "mlp.hook_out"),
        "norm": of_layers(False, "ln2.hook_normalized", "hook_mlp_out"),
        "across": filled(across, 5),
    }


def model_of(cfg: Any, weights: dict[str, Tensor], chosen: Any) -> Any:
    model = replaced.TransformerLensReplacementModel(cfg)
    model.load_state_dict(weights, strict=False)
    model.tokenizer = tokenizer()
    model._configure_replacement_model(chosen)
    return model


def graphs(model: Any) -> dict[str, Any]:
    found: dict[str, Any] = {}
    some = {"max_feature_nodes": 12, "max_n_logits": 3}
    for kind, options in {"whole": {}, "some": some, "offloaded": {"offload": "cpu"}}.items():
        graph = attribute(IDS, model, batch_size=5, **options)
        found[f"{kind}: edges"] = graph.adjacency_matrix
        found[f"{kind}: features"] = graph.active_features
        found[f"{kind}: activations"] = graph.activation_values
        found[f"{kind}: chosen"] = graph.selected_features
        found[f"{kind}: probabilities"] = graph.logit_probabilities
    return found


def interventions(model: Any) -> dict[str, Any]:
    last = model.cfg.n_layers - 1
    edits = [(0, 2, 3, 4.0), (last, slice(1, None), 7, -2.0)]
    ways: dict[str, dict[str, Any]] = {
        "frozen": {},
        "free": {"freeze_attention": False},
        "direct": {"constrained_layers": range(last + 1)},
        "first": {"constrained_layers": range(1), "apply_activation_function": False},
    }
    found: dict[str, Any] = {}
    for way, options in ways.items():
        logits, activations = model.feature_intervention(IDS, edits, **options)
        found.update({f"{way}: logits": logits, f"{way}: activations": activations})
    text, logits, activations = model.feature_intervention_generate(
        IDS[None], edits[1:], max_new_tokens=4, **GENERATED
    )
    return {**found, "generated": text, "its logits": logits, "its activations": activations}


def of_model(model: Any) -> dict[str, Any]:
    logits, activations = model.get_activations(IDS[None])
    found = {"logits": logits, "activations": activations}
    with model.zero_softcap():
        found["without soft cap"] = model(IDS[None])
    return {**found, **graphs(model), **interventions(model), "after": model(IDS[None])}


def results(weights: dict[str, Any]) -> dict[str, Any]:
    cfg = HookedTransformerConfig(**weights.pop("cfg"))
    return {
        f"{kind}, {name}": one.detach()
        for kind, chosen in transcoders(cfg).items()
        for name, one in of_model(model_of(cfg, weights, chosen)).items()
    }


if __name__ == "__main__":
    torch.set_num_threads(1)
    torch.save(results(torch.load(sys.argv[1])), sys.argv[2])
