"""How the toy decoder of `lensbridge_toy.model` lays out its modules. No torch here."""

from lensbridge.hookspecs import hookimpl
from lensbridge.spec import Architecture, Attention, Block, Dims, GatedMLP, Norms, SplitQKV

TOY = Architecture(
    name="toy",
    classes=("ToyForCausalLM",),
    dims=Dims(
        layers="depth",
        d_model="width",
        heads="askers",
        kv_heads="answerers",
        vocab="words",
        context="room",
    ),
    embed="body.lookup",
    pos_embed="body.places",
    blocks="body.floors",
    block=Block(
        norms=Norms(pre_attn="calm.look", pre_mlp="calm.think", kind="RMS"),
        attn=Attention(
            "gaze", qkv=SplitQKV(q="ask", k="offer", v="carry"), out="say", written_by="said"
        ),
        mlp=GatedMLP("mind", gate="doors.a", up="doors.b", down="exit", act="bend"),
        residual="parallel",
    ),
    final_norm="body.last_calm",
    unembed="speak",
)


@hookimpl
def lensbridge_architectures() -> list[Architecture]:
    """The toy."""
    return [TOY]
