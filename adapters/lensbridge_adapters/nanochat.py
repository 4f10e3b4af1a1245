"""nanochat: RMSNorms without weights, norms on query and key heads behind rotary, squared ReLU."""

from dataclasses import replace

from lensbridge.spec import MLP, Dims
from lensbridge_adapters.llama import BLOCK, LLAMA

NANOCHAT = replace(
    LLAMA,
    name="nanochat",
    classes=("NanoChatForCausalLM", "NanoChatModel"),
    dims=Dims(kv_heads="num_key_value_heads"),
    # q_norm and k_norm come after rotary, so they are between hook_q and hook_rot_q
    block=replace(BLOCK, mlp=MLP("mlp", up="fc1", down="fc2")),
    embed_norm="model.norm",  # the very module that norms the last layer's output
    logit_softcap="final_logit_softcapping",
)

ARCHITECTURES = (NANOCHAT,)
