"""Questions: what the page may ask, with bounds. Anything else is refused before the model runs."""

from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field


def _is_text(text: str) -> str:
    """Refuse halves of characters, which no tokenizer reads."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        raise ValueError("it has half of a character (a lone surrogate)") from None
    return text


Text = Annotated[str, Field(max_length=20_000), AfterValidator(_is_text)]
Index = Annotated[int, Field(ge=0, le=1_000_000)]
Token = (
    Annotated[int, Field(ge=0, le=10_000_000)]
    | Annotated[str, Field(max_length=200), AfterValidator(_is_text)]
)
"""A token's id, or a text that is one token."""

Count = Annotated[int, Field(ge=1, le=50)]
Factor = Annotated[float, Field(ge=-1000, le=1000, allow_inf_nan=False)]


class Question(BaseModel):
    """What all questions have."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    prompt: Text


class AtPosition(Question):
    """A question about one position; None is the last."""

    position: Index | None = None


class Predictions(AtPosition):
    """The likeliest next tokens."""

    k: Count = 12


class Lens(Question):
    """The logit lens of every layer and position."""

    k: Annotated[int, Field(ge=1, le=10)] = 5
    middle: bool = False


class Attention(Question):
    """The pattern of one head, and small pictures of all heads of its layer."""

    layer: Index = 0
    head: Index = 0
    strip: bool = True


class Neurons(AtPosition):
    """Activations of one neuron, and the strongest neurons at a position."""

    layer: Index = 0
    neuron: Index | None = None
    k: Count = 20


class Attribution(AtPosition):
    """What each part adds to the logit of a token, or to the difference of two."""

    target: Token | None = None
    against: Token | None = None
    unit: Literal["component", "layer", "head"] = "component"


class Edit(BaseModel):
    """One edit of a run.

    Attributes:
        part: a head, a whole attention, mixer or MLP, the stream before a layer, or a neuron.
        index: the number of the head or neuron.
        position: where; None is everywhere.
        source: the prompt that a patch takes its values from.
        source_position: where it takes them; None is the same position.
    """

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    part: Literal["head", "attn", "mixer", "mlp", "stream", "neuron"]
    layer: Index
    index: Index | None = None
    position: Index | None = None
    action: Literal["zero", "mean", "scale", "patch"] = "zero"
    factor: Factor = 2.0
    source: Text | None = None
    source_position: Index | None = None


class Edits(AtPosition):
    """The predictions with some edits and without them."""

    edits: Annotated[list[Edit], Field(min_length=1, max_length=24)]
    target: Token | None = None
    k: Count = 12


class Ablation(AtPosition):
    """The change of a token's logit when each head, attention or MLP is set to zero."""

    target: Token | None = None


class Comparison(BaseModel):
    """Activation patching: the corrupted prompt with clean activations, one place at a time."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    clean: Text
    corrupted: Text
    answer: Token | None = None
    wrong: Token | None = None
    what: Literal["resid_pre", "attn_out", "mixer_out", "mlp_out", "z"] = "resid_pre"


class Steering(Question):
    """A text continued with a steering vector and without it."""

    positive: Text
    negative: Text
    layer: Index = 0
    strength: Factor = 1.0
    new_tokens: Annotated[int, Field(ge=1, le=512)] = 12
    k: Count = 8
