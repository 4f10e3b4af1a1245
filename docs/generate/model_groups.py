"""The methods and properties of `LensModel` by task: the headings of docs/api/model.md."""

from collections.abc import Iterable
from typing import NamedTuple


class Group(NamedTuple):
    """Names that serve one purpose.

    Args:
        title: the task.
        names: methods, properties and attributes, in the order in which they are shown.
        about: a remark on all of them.
        guides: where it is explained, as title and path from docs/.
    """

    title: str
    names: tuple[str, ...]
    about: str = ""
    guides: tuple[tuple[str, str], ...] = ()


_README = ("README", "../README.md")
_POINTS = ("Points", "points.md")
_CIRCUITS = ("Read circuits off the weights", "how-to/circuits.md")
_INTERVENE = ("Intervene", "how-to/interventions.md")
_RESIDUAL = ("Take the residual stream apart", "how-to/residual-stream.md")
_PATCHING = ("Patch activations", "how-to/patching.md")
_ANALYSE = ("Analyse a model", "how-to/analyse.md")
_SAES = ("Use sparse autoencoders", "how-to/saes.md")
_EDIT_WEIGHTS = ("Edit weights", "how-to/edit-weights.md")
_EXPERIMENTS = ("Experiments as data", "how-to/experiments.md")
_PROCESS = ("Process weights", "how-to/process-weights.md")
_ARCHITECTURE = ("Add an architecture", "how-to/add-an-architecture.md")

GROUPS = (
    Group(
        "Load and inspect",
        ("hf_model", "cfg", "architecture"),
        "[`lensbridge.load`](lensbridge.md#load) opens a model.",
        (_README, _ARCHITECTURE),
    ),
    Group(
        "Run",
        ("forward", "loss_fn"),
        "`model(...)` is `model.forward(...)`. To run with hooks, a cache, interventions or SAEs, "
        "see below.",
        (_README,),
    ),
    Group(
        "Hook activations",
        (
            *("run_with_hooks", "hooks", "add_hook", "add_perma_hook"),
            *("remove_hook", "reset_hooks"),
        ),
        "A hook function gets an activation and a [`Hook`](hooks.md#hook).",
        (_README, _POINTS),
    ),
    Group(
        "Cache activations",
        ("run_with_cache", "plan"),
        "The cache is an [`ActivationCache`](cache.md).",
        (_README, _RESIDUAL),
    ),
    Group(
        "List and explain points",
        ("hook_names", "hook_dict", "hook_points", "explain"),
        guides=(_POINTS,),
    ),
    Group(
        "Read weights",
        (
            *("W_E", "W_pos", "W_E_pos", "W_U", "b_U"),
            *("W_Q", "W_K", "W_V", "W_K_expanded", "W_V_expanded", "W_O"),
            *("b_Q", "b_K", "b_V", "b_O"),
            *("W_in", "W_gate", "W_out", "b_in", "b_gate", "b_out"),
            *("blocks", "embed", "pos_embed", "ln_final", "unembed"),
            *("weight", "weight_names", "named_weights", "weight_state", "weight_stack"),
            "describe_weights",
        ),
        "Stacks over layers are lazy: `model.W_Q[5, 3]` reads layer 5 alone. A bias that the model "
        "does not have is zeros.",
        (_CIRCUITS, _PROCESS),
    ),
    Group(
        "Read circuits off the weights",
        (
            *("QK", "OV", "QK_for_attn_layers", "OV_for_attn_layers"),
            *("all_composition_scores", "composition_layer_indices"),
            *("all_head_labels", "attn_head_labels"),
            *("accumulated_bias", "tokens_to_residual_directions"),
        ),
        guides=(_CIRCUITS, _RESIDUAL),
    ),
    Group(
        "Text and tokens",
        (
            *("tokens", "tokenizer", "to_tokens", "to_string", "to_str_tokens"),
            *("to_single_token", "to_single_str_token", "get_token_position", "positions_of"),
        ),
        guides=(_README, ("Ids are taken at face value", "decisions/0002-ids-at-face-value.md")),
    ),
    Group("Generate", ("generate", "generate_with_and_without", "stream"), guides=(_INTERVENE,)),
    Group("Score answers", ("answer_logprobs",), guides=(_ANALYSE,)),
    Group("Run an experiment", ("run",), guides=(_EXPERIMENTS,)),
    Group(
        "Intervene",
        ("intervene", "run_with_interventions", "interchange"),
        "Interventions are made with [`lensbridge.interventions`](interventions.md).",
        (_INTERVENE,),
    ),
    Group(
        "Sweep over patches",
        ("sweep",),
        "Patching functions by name are in [`lensbridge.patching`](patching.md).",
        (_PATCHING,),
    ),
    Group(
        "Differentiate",
        ("gradients", "activation_x_gradient", "integrated_gradients", "jacobian"),
        "Attribution patching is in [`lensbridge.causal`](causal.md).",
        (_INTERVENE, ("Attribute effects", "how-to/attribution-patching.md")),
    ),
    Group(
        "Read states",
        ("logit_lens", "states_at"),
        "Other analyses are functions of [`lensbridge.analysis`](analysis.md).",
        (_ANALYSE, _RESIDUAL),
    ),
    Group(
        "Process weights",
        ("processed", "process_weights_", "processing", "processed_by", "processings"),
        guides=(_PROCESS,),
    ),
    Group("Edit weights", ("edited", "edit_weights"), guides=(_EDIT_WEIGHTS,)),
    Group(
        "Sparse autoencoders",
        (
            *("saes", "run_with_saes", "run_with_cache_with_saes", "run_with_hooks_with_saes"),
            *("add_sae", "acts_to_saes", "reset_saes", "spliced"),
        ),
        guides=(_SAES,),
    ),
    Group(
        "As a torch object",
        (
            *("device", "dtype", "to", "eval", "train"),
            *("parameters", "named_parameters", "zero_grad", "state_dict"),
        ),
        guides=(_README,),
    ),
    Group(
        "For authors of tools",
        (
            *("prepare", "run_callbacks", "collector", "cache_of", "listening"),
            *("vocabulary", "native", "engine", "components", "preparer", "follow"),
        ),
        "The methods above are made of these.",
        (("Points", "points.md"), ("The promise", "promise.md")),
    ),
)


def ungrouped(names: Iterable[str]) -> tuple[str, ...]:
    """The names that are in no group."""
    known = {name for group in GROUPS for name in group.names}
    return tuple(name for name in names if name not in known)
