"""Names that are looked for in `lensbridge` itself."""

from lensbridge.elsewhere.hinted import Instead, Table, entries

_LOAD: Instead = [("lensbridge.load(name)", "opens a model")]
_COMPAT: Instead = [
    *_LOAD,
    (
        "import lensbridge.compat.transformer_lens as transformer_lens",
        "has TransformerLens's names",
    ),
]
_SAES: Instead = [("import lensbridge.compat.sae_lens as sae_lens", "has SAELens's names")]
_EDITS: Instead = [
    (
        "model.run_with_interventions(input, lensbridge.interventions.Zero(('mlp_out', 1)))",
        "runs with an edit",
    ),
    ("lensbridge.interventions", "has the kinds of edit"),
]
_READ: Instead = [
    ("model = lensbridge.load(name)", "opens a model"),
    ("logits, cache = model.run_with_cache(input)", "runs it and keeps its activations"),
]


def _of_model(call: str) -> Instead:
    return [("model = lensbridge.load(name)", "opens a model"), (call, "is a method of it")]


def _of_room(code: str, does: str) -> Instead:
    return [(code, does)]


TOP: Table = {
    # opening a model
    **entries(
        (
            *("from_pretrained", "load_model", "open", "open_model", "wrap", "from_hf", "Model"),
            *("LanguageModel", "NNsight", "StandardizedTransformer", "IntervenableModel"),
            *("AutoModel", "AutoModelForCausalLM", "pipeline", "Bridge", "LensBridge", "Lens"),
        ),
        _LOAD,
    ),
    "AutoTokenizer": [("lensbridge.load(name).tokenizer", "is the tokenizer of the model")],
    "HookedModel": [("from lensbridge.hooked_model import HookedModel", "imports it")],
    **entries(
        (
            *("HookedTransformer", "HookedTransformerConfig", "HookedEncoder"),
            *("HookedEncoderDecoder", "HookedRootModule", "HookPoint", "TransformerBridge"),
            *("utils", "transformer_lens"),
        ),
        _COMPAT,
    ),
    **entries(("SAE", "HookedSAETransformer", "SAETransformerBridge", "sae_lens"), _SAES),
    # reading and editing
    **entries(
        (
            *("trace", "Trace", "TraceDict", "get_activations", "activations", "read"),
            *("record", "run", "CollectIntervention", "collect"),
        ),
        _READ,
    ),
    **{
        name: _of_model(f"model.{call}")
        for name, call in {
            "run_with_cache": "run_with_cache(input)",
            "run_with_hooks": "run_with_hooks(input, fwd_hooks=[('blocks.1.hook_mlp_out', fn)])",
            "add_hook": "add_hook('blocks.1.hook_mlp_out', fn)",
            "generate": "generate(input)",
            "to_tokens": "to_tokens(input)",
            "to_str_tokens": "to_str_tokens(input)",
            "tokenize": "to_tokens(input)",
            "intervene": "intervene([])",
            "hook_names": "hook_names",
            "blocks": "blocks[0]",
            "cfg": "cfg",
            "config": "cfg",
            "tokenizer": "tokenizer",
        }.items()
    },
    **entries(
        (
            *("ablate", "ablation", "zero_ablate", "mean_ablate", "intervene_on", "edit"),
            *("IntervenableConfig", "RepresentationConfig", "VanillaIntervention", "intervention"),
        ),
        _EDITS,
    ),
    # analyses
    **entries(
        (
            *("steer", "steering", "add_vector", "SteeringVector", "ActivationAddition"),
            *("train_steering_vector", "ControlVector", "ControlModel", "repeng"),
        ),
        _of_room(
            "lensbridge.interventions.steering_vector(model, texts, others, ('resid_post', 1))",
            "makes a steering vector, which model.run_with_interventions and generate take",
        ),
    ),
    **entries(
        ("patch", "activation_patching", "activation_patch", "act_patch", "interchange"),
        [
            ("lensbridge.patching", "has the functions that patch activations"),
            ("model.sweep", "patches any cells"),
        ],
    ),
    **entries(
        ("attribute", "attribution", "attribution_patching", "atp", "eap"),
        _of_room("lensbridge.causal.attribution_patch", "approximates patching by gradients"),
    ),
    **entries(
        ("lens", "LogitLens"),
        _of_room("lensbridge.analysis.logit_lens(model, input)", "reads the stream as tokens"),
    ),
    **entries(
        ("tuned_lens", "TunedLens"),
        [
            ("lensbridge.analysis.fit_tuned_lens(model, texts)", "fits a tuned lens"),
            ("lensbridge.analysis.TunedLens.load", "reads one of the package tuned-lens"),
        ],
    ),
    **entries(
        ("LeaceEraser", "LeaceFitter", "leace", "erase", "concept_erasure", "scrub"),
        _of_room(
            "lensbridge.interventions.fit_erasure(model, texts + others, [0, 1])",
            "erases a concept at every layer",
        ),
    ),
    **entries(
        ("rome", "ROME", "memit", "MEMIT", "edit_weights", "abliterate", "edited"),
        [
            ("model.edited({'blocks.1.mlp.W_out': 0.0})", "edits weights for the time of a block"),
            ("lensbridge.editing", "has ROME, MEMIT and abliteration"),
        ],
    ),
    "dla": _of_room("lensbridge.analysis.direct_logit_attribution", "attributes logits to parts"),
    **entries(
        ("probe", "probes", "Probe", "LinearProbe", "train_probe"),
        _of_room("lensbridge.analysis.fit_probe", "fits linear probes"),
    ),
    **entries(
        ("heatmap", "imshow", "line", "show", "attention_patterns", "circuitsvis", "draw"),
        [
            ("lensbridge.plot", "draws numbers"),
            ("lensbridge.viz", "has all pictures"),
        ],
    ),
    "diff": _of_room("lensbridge.compare", "compares a model with its fine-tune"),
}
"""What to write for names of TransformerLens, nnsight, nnterp, pyvene, baukit, SAELens and
transformers, and for the first word that comes to mind."""
