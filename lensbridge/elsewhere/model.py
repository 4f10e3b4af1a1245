"""Names that are looked for on a model."""

from lensbridge.elsewhere.hinted import Instead, Table, entries

OPENING = ("from_pretrained", "from_pretrained_no_processing", "from_hf", "load", "load_model")
"""How other libraries call a classmethod that opens a model."""

_READ: Instead = [
    ("logits, cache = model.run_with_cache(input)", "runs the model and keeps its activations"),
]
_READ_OR_EDIT: Instead = [
    *_READ,
    (
        "model.run_with_hooks(input, fwd_hooks=[('blocks.1.hook_resid_post', fn)])",
        "runs it with fn(activation, hook) at a point",
    ),
]
_LAYERS: Instead = [
    ("model.blocks[1]", "has the weights of a layer"),
    ("model.run_with_cache(input, ('resid_post', 1))", "reads its output"),
    ("model.hf_model", "has the native modules"),
]
_ABLATE: Instead = [
    (
        "model.run_with_interventions(input, lensbridge.interventions.Zero(('z', 1), heads=[0]))",
        "runs the model with a head set to zero (or with its mean: Mean)",
    ),
]
_STEER: Instead = [
    (
        "steer = lensbridge.interventions.steering_vector(model, texts, others, ('resid_post', 1))",
        "makes a vector",
    ),
    ("model.generate(input, interventions=[steer])", "generates with it"),
]
_PATCH: Instead = [
    (
        "lensbridge.patching.get_act_patch_resid_pre(model, tokens, cache, metric)",
        "patches every layer and position",
    ),
    ("model.sweep", "patches any cells"),
]
_OPEN: Instead = [("lensbridge.load(name)", "opens a model")]
_NOTHING: Instead = [
    ("model.run_with_cache(input, ('result', 1))", "reads such a point: nothing is to be set"),
]
_LENS: Instead = [("model.logit_lens(input)", "reads the stream of every layer as tokens")]
_PREDICT: Instead = [
    ("model(input).softmax(-1)[:, -1]", "has the probabilities of the next token"),
]


def _reads(point: str) -> Instead:
    return [(f"model.run_with_cache(input, {point!r})", "keeps them of every layer")]


def _size(name: str) -> Instead:
    return [(f"model.cfg.{name}", "is that size"), ("model.cfg.hf", "is HuggingFace's config")]


MODEL: Table = {
    **entries(OPENING, _OPEN),
    # sizes
    "config": [("model.cfg", "has the sizes"), ("model.cfg.hf", "is HuggingFace's config")],
    "hf_config": [("model.cfg.hf", "is HuggingFace's config")],
    **{
        name: _size(ours)
        for name, ours in {
            "num_layers": "n_layers",
            "num_hidden_layers": "n_layers",
            "hidden_size": "d_model",
            "num_heads": "n_heads",
            "num_attention_heads": "n_heads",
            "vocab_size": "d_vocab",
            "head_dim": "d_head",
            "intermediate_size": "d_mlp",
            "max_position_embeddings": "n_ctx",
        }.items()
    },
    # parts
    **entries(("layers", "layer", "h", "block", "decoder_layers"), _LAYERS),
    "model": [("model.hf_model", "is the HuggingFace model")],
    "lm_head": [
        ("model.unembed", "has the weights of the head"),
        ("model.W_U", "is its matrix"),
    ],
    "embed_tokens": [("model.embed", "has the token embedding"), ("model.W_E", "is its matrix")],
    "token_embeddings": [("model.W_E", "is the matrix of the token embedding")],
    "mod_dict": [("model.hook_dict", "has the points by name")],
    # reading
    **entries(
        (
            *("trace", "session", "scan", "edit", "invoke", "nnsight", "envoy"),
            *("register_forward_hook", "register_hook", "register_forward_pre_hook"),
        ),
        _READ_OR_EDIT,
    ),
    **entries(
        (
            *("get_activations", "get_activation", "activations", "activation", "cache"),
            *("get_cache", "cache_all", "cache_some", "get_caching_hooks", "record"),
            *("retain_output", "collect", "get_hidden_states", "all_activations"),
        ),
        _READ,
    ),
    **entries(
        ("hidden_states", "layers_output", "layer_outputs", "residual", "resid", "residual_stream"),
        _reads("resid_post"),
    ),
    "layers_input": _reads("resid_pre"),
    **entries(("attentions_output", "attn_output"), _reads("attn_out")),
    **entries(("mlps_output", "mlp_output"), _reads("mlp_out")),
    **entries(
        (
            *("attentions", "attention", "attention_probabilities", "get_attention"),
            *("attention_patterns", "attn"),
        ),
        _reads("pattern"),
    ),
    **entries(("logits", "output", "outputs"), [("model(input)", "gives the logits")]),
    **entries(
        ("predict", "next_token_probs", "next_token", "probs", "get_next_token_probs"), _PREDICT
    ),
    **entries(("project_on_vocab", "lens", "tuned_lens", "get_logit_lens"), _LENS),
    # editing
    **entries(("ablate", "ablate_head", "ablation", "zero_ablate", "mean_ablate", "zero"), _ABLATE),
    **entries(
        ("steer", "steering", "steering_vector", "add_steering_vector", "add_vector"), _STEER
    ),
    **entries(
        ("patch", "activation_patch", "activation_patching", "patching", "patch_activations"),
        _PATCH,
    ),
    **entries(
        ("intervention", "interventions", "edit_activations", "set_activation"),
        [
            (
                "with model.intervene([lensbridge.interventions.Zero(('mlp_out', 1))]): "
                "model(input)",
                "edits all runs in the block",
            )
        ],
    ),
    **entries(
        (
            *("set_use_attn_result", "set_use_split_qkv_input", "set_use_hook_mlp_in"),
            *("set_use_attn_in", "set_ungroup_grouped_query_attention"),
        ),
        _NOTHING,
    ),
    "remove_all_hooks": [("model.reset_hooks()", "takes all hooks off")],
    "remove_hooks": [("model.reset_hooks()", "takes all hooks off")],
    # text
    **entries(
        ("tokenize", "encode", "tokenise", "to_token", "get_tokens"),
        [("model.to_tokens(input)", "gives the ids of a text")],
    ),
    **entries(
        ("decode", "detokenize", "to_text", "to_str"),
        [("model.to_string(tokens)", "gives the text of ids")],
    ),
    **entries(
        ("str_tokens", "to_str_token", "token_strings"),
        [("model.to_str_tokens(input)", "gives the text of each token")],
    ),
    "tok": [("model.tokenizer", "is the tokenizer")],
    # devices and files, which the HuggingFace model looks after
    "cuda": [("model.to", "moves the model: model.to('cuda')")],
    "cpu": [("model.to('cpu')", "moves the model")],
    "half": [("model.to(torch.float16)", "converts the model in place")],
    "bfloat16": [("model.to(torch.bfloat16)", "converts the model in place")],
    "float": [("model.to(torch.float32)", "converts the model in place")],
    **{
        name: [(f"model.hf_model.{name}", "is of the HuggingFace model")]
        for name in ("save_pretrained", "push_to_hub", "requires_grad_", "load_state_dict")
    },
    **{
        name: [(f"model.hf_model.{name}()", "has the native modules")]
        for name in ("modules", "named_modules", "children", "named_children")
    },
    # analyses
    **entries(
        ("dla", "direct_logit_attribution", "logit_attribution"),
        [("lensbridge.analysis.direct_logit_attribution", "attributes logits to parts")],
    ),
    **entries(
        ("attribute", "attribution", "attribution_patch", "attribution_patching"),
        [("lensbridge.causal.attribution_patch", "approximates patching by gradients")],
    ),
    **entries(
        ("path_patch", "path_patching"),
        [("lensbridge.patching.path_patch", "patches paths")],
    ),
    **entries(
        ("causal_trace", "causal_tracing", "rome"),
        [("lensbridge.interventions.causal_trace", "restores one state at a time")],
    ),
    "test_prompt": [
        ("lensbridge.analysis.test_prompt(input, ' Paris', model)", "ranks an answer"),
    ],
    **entries(
        ("probe", "fit_probe", "probes"),
        [("lensbridge.analysis.fit_probe", "fits linear probes to a cache")],
    ),
    **entries(
        ("plot", "show", "draw", "visualize"),
        [
            ("lensbridge.plot", "draws numbers"),
            ("print(model.explain('blocks.1.attn.hook_z'))", "says where a point is"),
        ],
    ),
    "compare": [("lensbridge.compare", "compares a model with its fine-tune")],
    "grad": [("model.gradients", "has gradients of any scalar at any points")],
    "backward": [("model(input, return_type='loss').backward()", "runs backward")],
    "loss": [("model(input, return_type='loss')", "gives the loss")],
    "info": [("print(model)", "says what it is"), ("model.hook_names", "lists its points")],
    "points": [("model.hook_names", "lists the points")],
    "names": [("model.hook_names", "lists the points")],
}
"""What to write for names of TransformerLens, nnsight, nnterp, pyvene, baukit and transformers."""
