"""`HookedTransformer`: a decoder with TransformerLens's names and defaults."""

from contextvars import ContextVar
from typing import Any, TypeVar

import torch
from torch import Tensor

from lensbridge.compat.transformer_lens.circuits import CircuitMethods
from lensbridge.compat.transformer_lens.config import HookedTransformerConfig
from lensbridge.compat.transformer_lens.config_reading import config_of
from lensbridge.compat.transformer_lens.fresh import fresh_model
from lensbridge.compat.transformer_lens.names_of_models import (
    checkpoint_revision,
    get_official_model_name,
)
from lensbridge.compat.transformer_lens.opening import Order
from lensbridge.compat.transformer_lens.root import LensRoot
from lensbridge.compat.transformer_lens.running import RunMethods
from lensbridge.compat.transformer_lens.switches import Switches
from lensbridge.compat.transformer_lens.tokenizing import tokenizer_of
from lensbridge.errors import InputError
from lensbridge.inputs.prompts import Side
from lensbridge.model import LensModel

T = TypeVar("T", bound="HookedTransformer")

_being_opened: ContextVar[tuple[Any, LensModel, HookedTransformerConfig] | None] = ContextVar(
    "lensbridge_being_opened", default=None
)
"""The object that `of` makes, with the model that it is to have."""


class HookedTransformer(RunMethods, CircuitMethods, Switches, LensRoot):
    """A decoder with the interface of TransformerLens's class, on the HuggingFace model.

    Args:
        cfg: the config of a new model with random weights; see `from_pretrained` for trained ones.
        tokenizer: for text.
        move_to_device: put it on `cfg.device`.
        default_padding_side: the tokenizer's padding side.

    Example:
        >>> model = HookedTransformer.from_pretrained("demo")
        >>> logits, cache = model.run_with_cache("The Eiffel Tower is in the city of")
        >>> model.to_single_str_token(logits[0, -1].argmax().item())
        ' Paris'
        >>> cache["pattern", 2].shape
        torch.Size([1, 4, 9, 9])
    """

    def __init__(
        self,
        cfg: HookedTransformerConfig | dict[str, Any],
        tokenizer: Any = None,
        move_to_device: bool = True,
        default_padding_side: Side | None = None,
    ) -> None:
        opened = _being_opened.get()
        if opened is not None and opened[0] is self:
            super().__init__(*opened[1:])
            self._note_processing()
            return
        asked = HookedTransformerConfig.unwrap(cfg)
        tokenizer = tokenizer_of(asked, tokenizer)
        lens, known = fresh_model(asked, tokenizer, move_to_device)
        super().__init__(lens, known)
        if tokenizer is not None:
            self.set_tokenizer(tokenizer, default_padding_side)

    @classmethod
    def of(cls: type[T], lens: LensModel, **known: Any) -> T:
        """A model that `lensbridge.load` returned.

        The class's own `__init__` is called, with a config, as TransformerLens calls it.

        Args:
            lens: the `LensModel`.
            known: fields of the config to set.
        """
        self = cls.__new__(cls)
        cfg = config_of(lens, **known)
        token = _being_opened.set((self, lens, cfg))
        try:
            cls.__init__(self, cfg, None, move_to_device=False)
        finally:
            _being_opened.reset(token)
        return self

    def _note_processing(self) -> None:
        """A norm whose gain and bias were folded is called "LNPre" or "RMSPre"."""
        kind = self.lens.cfg.normalization_type
        self.cfg.normalization_type = f"{kind}Pre" if self.lens.processing.fold_ln else kind

    @classmethod
    def from_pretrained(
        cls: type[T],
        model_name: str,
        fold_ln: bool = True,
        center_writing_weights: bool = True,
        center_unembed: bool = True,
        refactor_factored_attn_matrices: bool = False,
        checkpoint_index: int | None = None,
        checkpoint_value: int | None = None,
        checkpoint_label: int | None = None,
        hf_model: Any = None,
        device: Any = None,
        n_devices: int = 1,
        tokenizer: Any = None,
        move_to_device: bool = True,
        fold_value_biases: bool = True,
        default_prepend_bos: bool | None = None,
        default_padding_side: Side | None = None,
        dtype: str | torch.dtype | None = "float32",
        first_n_layers: int | None = None,
        n_ctx: int | None = None,
        **from_pretrained_kwargs: Any,
    ) -> T:
        """Open a model and process its weights.

        Args:
            model_name: a short name ("gpt2-small", "pythia-70m"), a hub id, a folder, or "demo".
            fold_ln: fold gains and biases of norms into the matrices that read them.
            center_writing_weights: centre the weights that write to the residual stream.
            center_unembed: centre W_U over the vocabulary.
            refactor_factored_attn_matrices: make W_Q, W_K, W_V and W_O from the SVD of QK and OV.
            checkpoint_index: a checkpoint of the training, by its index.
            checkpoint_value: or by its training step.
            checkpoint_label: the same as `checkpoint_value`.
            hf_model: a model to use instead of loading one. It is not changed: where something has
                to be, a copy is used.
            device: where to; by default a GPU if there is one, or where `hf_model` is.
            n_devices: on how many GPUs.
            tokenizer: a tokenizer or the name of one; by default the model's own.
            move_to_device: False leaves the model on the CPU.
            fold_value_biases: fold b_V into b_O.
            default_prepend_bos: whether text begins with BOS by default; None: as in
                TransformerLens for this class.
            default_padding_side: where lists of texts are padded; None: as the tokenizer does.
            dtype: dtype of the weights; None: as they are stored.
            first_n_layers: keep only these.
            n_ctx: keep only this many positions.
            from_pretrained_kwargs: for transformers' `from_pretrained`.

        Each processing step is done as far as the model allows; `model.lens.processing.left` has
        what was left out, and why.

        Raises:
            LoadError: there is no such model, or it is not a HuggingFace model.
        """
        checkpoint = checkpoint_index, checkpoint_value, checkpoint_label
        revision = checkpoint_revision(model_name, *checkpoint)
        lens = Order(
            name=model_name if hf_model is not None else get_official_model_name(model_name),
            hf_model=hf_model,
            device=device if move_to_device else "cpu",
            dtype=dtype,
            n_devices=n_devices,
            tokenizer=tokenizer,
            layers=first_n_layers,
            n_ctx=n_ctx,
            steps={
                "fold_ln": fold_ln,
                "center_writing_weights": center_writing_weights,
                "center_unembed": center_unembed,
                "fold_value_biases": fold_value_biases,
                "refactor_factored_attn_matrices": refactor_factored_attn_matrices,
            },
            hf={**from_pretrained_kwargs, **({} if revision is None else {"revision": revision})},
        ).open()
        known: dict[str, Any] = {"model_name": model_name.rpartition("/")[2]}
        known |= {"from_checkpoint": revision is not None, "checkpoint_index": checkpoint_index}
        known |= {"checkpoint_value": checkpoint_value, "n_devices": n_devices}
        if default_prepend_bos is not None:
            known["default_prepend_bos"] = default_prepend_bos
        model = cls.of(lens, **known)
        if default_padding_side is not None and model.tokenizer is not None:
            model.tokenizer.padding_side = default_padding_side
        return model

    @classmethod
    def from_pretrained_no_processing(
        cls: type[T],
        model_name: str,
        fold_ln: bool = False,
        center_writing_weights: bool = False,
        center_unembed: bool = False,
        refactor_factored_attn_matrices: bool = False,
        fold_value_biases: bool = False,
        **from_pretrained: Any,
    ) -> T:
        """`from_pretrained` with the weights as they are, unless a step is asked for."""
        return cls.from_pretrained(
            model_name,
            fold_ln=fold_ln,
            center_writing_weights=center_writing_weights,
            center_unembed=center_unembed,
            refactor_factored_attn_matrices=refactor_factored_attn_matrices,
            fold_value_biases=fold_value_biases,
            **from_pretrained,
        )

    # --- weights -----------------------------------------------------------------------------

    def process_weights_(
        self,
        fold_ln: bool = True,
        center_writing_weights: bool = True,
        center_unembed: bool = True,
        refactor_factored_attn_matrices: bool = False,
        fold_value_biases: bool = True,
    ) -> None:
        """Process the weights of this model, for good, as far as it allows."""
        ungrouped = self.cfg.ungroup_grouped_query_attention
        self.cfg.ungroup_grouped_query_attention = False  # the weights as they are stored
        self.lens.process_weights_(
            fold_ln=fold_ln,
            center_writing_weights=center_writing_weights,
            center_unembed=center_unembed,
            fold_value_biases=fold_value_biases,
            refactor_factored_attn_matrices=refactor_factored_attn_matrices,
            on_impossible="skip",
        )
        self._note_processing()
        self.setup()
        self.cfg.ungroup_grouped_query_attention = ungrouped

    def load_and_process_state_dict(self, state_dict: dict[str, Tensor], **steps: bool) -> None:
        """Write weights into the model, and process them."""
        self.load_state_dict(state_dict, strict=False)
        self.process_weights_(**steps)

    # --- data --------------------------------------------------------------------------------

    def sample_datapoint(
        self,
        tokenize: bool = False,
        prepend_bos: bool | None = None,
        padding_side: Side | None = None,
    ) -> Any:
        """A random text of `model.dataset`, which you have to set; with `tokenize` its ids.

        Raises:
            InputError: there is no dataset.
        """
        dataset = self.__dict__.get("dataset")
        if dataset is None:
            raise InputError(
                "There is no dataset to sample from. Set one with a 'text' column: "
                "model.dataset = utils.get_dataset('pile')."
            )
        text = dataset[int(torch.randint(len(dataset), ()))]["text"]
        return self.to_tokens(text, prepend_bos, padding_side) if tokenize else text

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.lens!r})"
