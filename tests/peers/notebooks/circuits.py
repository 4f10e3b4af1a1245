"""A notebook of the kind that circulates: two prompts, patching, attribution, induction heads.

`test_notebooks.py` runs this text as it is, and with the import changed. `MODEL` is the model's
class with the bundled weights behind it, and `keep` takes what is compared.
"""

from functools import partial

import einops
import torch
from transformer_lens import ActivationCache, FactoredMatrix, patching, utils
from transformer_lens.hook_points import HookPoint

torch.set_grad_enabled(False)
model = MODEL.from_pretrained("gpt2-small")  # noqa: F821
prompts = [
    f"When {one} and {two} went to the city, {again} gave the ball to"
    for one, two, again in (("John", "Mary", "Mary"), ("John", "Mary", "John"))
]
answers = torch.tensor([[model.to_single_token(name) for name in (" John", " Mary")]] * 2)
answers[1] = answers[1].flip(0)
tokens = model.to_tokens(prompts)
keep("tokens", tokens)  # noqa: F821
keep("strings", model.to_str_tokens(prompts[0]))  # noqa: F821
logits, cache = model.run_with_cache(tokens)


def difference(logits: torch.Tensor) -> torch.Tensor:
    pairs = logits[:, -1].gather(-1, answers)
    return (pairs[:, 0] - pairs[:, 1]).mean()


# attribution
directions = model.tokens_to_residual_directions(answers)
directions = directions[:, 0] - directions[:, 1]


def attributed(stack: torch.Tensor, cache: ActivationCache) -> torch.Tensor:
    scaled = cache.apply_ln_to_stack(stack, layer=-1, pos_slice=-1)
    return einops.einsum(scaled, directions, "... b d, b d -> ... b").mean(-1)


for method, options in (
    ("accumulated_resid", {"incl_mid": True}),
    ("decompose_resid", {}),
    ("stack_head_results", {}),
):
    stack, labels = getattr(cache, method)(layer=-1, pos_slice=-1, return_labels=True, **options)
    keep(method, attributed(stack, cache))  # noqa: F821
    keep(f"{method} labels", labels)  # noqa: F821

# patching
swapped = tokens.flip(0)
keep("z", patching.get_act_patch_attn_head_out_all_pos(model, swapped, cache, difference))  # noqa: F821


def patch(stream: torch.Tensor, hook: HookPoint, position: int) -> torch.Tensor:
    stream[:, position] = cache[hook.name][:, position]
    return stream


grid = torch.zeros(model.cfg.n_layers, tokens.shape[1])
for layer in range(model.cfg.n_layers):
    for position in range(tokens.shape[1]):
        hooks = [(utils.get_act_name("resid_pre", layer), partial(patch, position=position))]
        grid[layer, position] = difference(model.run_with_hooks(swapped, fwd_hooks=hooks))
keep("resid_pre", grid)  # noqa: F821

# induction heads
half = torch.randint(20, 500, (2, 12), generator=torch.Generator().manual_seed(0))
repeated = torch.cat([half, half], -1)
scores = torch.zeros(model.cfg.n_layers, model.cfg.n_heads)


def score(pattern: torch.Tensor, hook: HookPoint) -> None:
    scores[hook.layer()] = pattern.diagonal(1 - 12, -2, -1).mean((0, -1))


model.run_with_hooks(
    repeated, return_type=None, fwd_hooks=[(lambda name: name.endswith("pattern"), score)]
)
keep("induction", scores)  # noqa: F821
copying = FactoredMatrix(model.W_E @ model.W_V[3, 1], model.W_O[3, 1] @ model.W_U)
values = copying.eigenvalues
keep("copying", values.sum().real / values.abs().sum())  # noqa: F821
keep("composition", model.all_composition_scores("K"))  # noqa: F821
model.add_hook("blocks.2.attn.hook_pattern", lambda pattern, hook: pattern / 2)
keep("text", model.generate(prompts[0], max_new_tokens=4, do_sample=False, verbose=False))  # noqa: F821
model.reset_hooks()
