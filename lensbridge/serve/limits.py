"""Limits: how much one question of the page may ask for."""

from dataclasses import dataclass, fields

from lensbridge.remote.limits import require_whole


@dataclass(frozen=True)
class Limits:
    """How much one question may ask for.

    Args:
        max_tokens: tokens of a prompt; the model's context is a limit as well.
        max_new_tokens: tokens that are generated.
        max_cells: patched runs of one heatmap.
        max_waiting: questions that run or wait at the same time, of all tabs together.
        max_body: bytes of one question.

    Raises:
        InputError: a limit below 1.
    """

    max_tokens: int = 256
    max_new_tokens: int = 64
    max_cells: int = 20_000
    max_waiting: int = 32
    max_body: int = 65_536

    def __post_init__(self) -> None:
        for one in fields(self):
            require_whole(one.name, getattr(self, one.name))
