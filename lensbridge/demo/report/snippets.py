"""The code that the demo report shows next to its pictures. The tests run it."""

from typing import Final

PATCHING: Final = """
import lensbridge

model = lensbridge.load("demo")
clean = model.to_tokens("The Eiffel Tower is in the city of")
corrupted = model.to_tokens("The Colosseum is in the city of")
paris, rome = model.to_single_token(" Paris"), model.to_single_token(" Rome")


def difference(logits):
    return (logits[0, -1, paris] - logits[0, -1, rome]).item()


top, floor = difference(model(clean)), difference(model(corrupted))
_, cache = model.run_with_cache(clean)


def restored(point, layer, position):
    def patch(value, hook):
        value[:, position] = cache[point, layer][:, position]

    logits = model.run_with_hooks(corrupted, fwd_hooks=[((point, layer), patch)])
    return (difference(logits) - floor) / (top - floor)


print(restored("resid_pre", 0, 2))
"""

ATTRIBUTION: Final = """
import lensbridge

model = lensbridge.load("demo")
text = "When John and Mary went to the store, Mary gave a bottle to"
john, mary = model.to_single_token(" John"), model.to_single_token(" Mary")
towards = model.W_U[:, john] - model.W_U[:, mary]
_, cache = model.run_with_cache(text, names_filter=["result", "ln_final.hook_scale"])


def contribution(layer, head):
    write = cache["result", layer][0, -1, head]
    scaled = (write - write.mean()) / cache["ln_final.hook_scale"][0, -1] * model.ln_final.w
    return (scaled @ towards).item()


def ablated(layer, head):
    def silence(z, hook):
        z[:, :, head] = 0

    logits = model.run_with_hooks(text, fwd_hooks=[(("z", layer), silence)])
    return (logits[0, -1, john] - logits[0, -1, mary]).item()


print(contribution(3, 1), ablated(3, 1))
"""

INDUCTION: Final = """
import torch

import lensbridge

model = lensbridge.load("demo")
period = 20
words = torch.randint(len(model.tokenizer), (16, period))
bos = torch.full((16, 1), model.tokenizer.bos_token_id)
tokens = torch.cat([bos, words, words], dim=1)
loss, cache = model.run_with_cache(
    tokens, names_filter="pattern", return_type="loss", loss_per_token=True
)


def score(layer, head):
    stripe = cache["pattern", layer][:, head].diagonal(offset=1 - period, dim1=-2, dim2=-1)
    return stripe[:, -period:].mean().item()


print(score(2, 2), loss[:, :period].mean().item(), loss[:, period:].mean().item())
"""
