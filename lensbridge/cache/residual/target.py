"""Where the residual stream is decomposed, and through which norm it is read there."""

from dataclasses import dataclass

from lensbridge.errors import InputError
from lensbridge.native.norm import Norm
from lensbridge.native.parts import BlockPart, StackPart
from lensbridge.points.point_names import PointNames


@dataclass(frozen=True)
class Target:
    """A place in the stream: the point, and the norm through which the next part reads it."""

    point: str
    norm: Norm | None
    scale: str

    @classmethod
    def of(
        cls, stack: StackPart, front: str, names: PointNames, layer: int | None, mlp_input: bool
    ) -> "Target":
        """The input of layer `layer`; for None, -1 or the number of layers, the last output.

        Raises:
            InputError: there is no such layer, or its MLP reads one of two streams.
        """
        count = len(stack.blocks)
        layer = count if layer is None or layer == -1 else layer
        if not 0 <= layer <= count or (mlp_input and layer == count):
            raise InputError(
                f"layer={layer}, mlp_input={mlp_input}: {stack.prefix} has {count} layers. Pass 0 "
                f"to {count - 1} for the input of a layer, or {count} (None, -1) without mlp_input "
                "for the output of the last."
            )
        if layer == count:
            last = f"{stack.prefix}.{count - 1}.hook_resid_post"
            return cls(last, stack.ln_final, f"{front}ln_final.hook_scale")
        return cls._inside(f"{stack.prefix}.{layer}.", stack.blocks[layer], names, mlp_input)

    @classmethod
    def _inside(cls, at: str, part: BlockPart, names: PointNames, mlp_input: bool) -> "Target":
        if mlp_input and part.pair is not None:
            raise InputError(
                f"mlp_input=True: layers of {type(part.module).__name__} have two streams, and the "
                f"MLP reads one of them, {at}hook_resid_mid. Pass mlp_input=False for both."
            )
        marks = ["hook_resid_mid_cross", "hook_resid_mid"] if mlp_input else []
        point = next((one for one in marks if at + one in names.index), "hook_resid_pre")
        slot, norm = ("ln2", part.ln2) if mlp_input else ("ln1", part.ln1)
        if f"{at}{slot}.hook_scale" not in names.index:  # one norm for both branches is ln1
            slot = "ln1"
        reads_it_as_it_is = part.residual in (None, "post_norm")
        return cls(at + point, None if reads_it_as_it_is else norm, f"{at}{slot}.hook_scale")
