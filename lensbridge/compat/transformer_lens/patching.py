"""`lensbridge.patching` for models of this package, and the names of its types."""

from collections.abc import Sequence
from typing import Literal, TypeAlias

from torch import Tensor

from lensbridge import patching
from lensbridge.compat.transformer_lens.translation import translated_names

Logits: TypeAlias = Tensor
CorruptedActivation: TypeAlias = Tensor
PatchedActivation: TypeAlias = Tensor
AxisNames = Literal["layer", "pos", "head_index", "head", "src_pos", "dest_pos"]
AxisNamesSequence: TypeAlias = Sequence[AxisNames]

globals().update(translated_names(patching))
__all__ = [*patching.__all__, "AxisNames", "CorruptedActivation", "Logits", "PatchedActivation"]
