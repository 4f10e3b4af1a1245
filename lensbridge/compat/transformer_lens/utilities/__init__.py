"""The functions that notebooks take from `transformer_lens.utils`."""

from lensbridge.analysis import (
    composition_scores,
    lm_accuracy,
    logits_to_df,
    sample_logits,
    tokenize_and_concatenate,
)
from lensbridge.analysis import test_prompt as _test_prompt
from lensbridge.compat.transformer_lens.activations import (
    ACTIVATION_FN_DICT,
    SUPPORTED_ACTIVATIONS,
    XIELU,
    gelu_fast,
    gelu_new,
    solu,
    xielu,
)
from lensbridge.compat.transformer_lens.defaults import (
    USE_DEFAULT_VALUE,
    LocallyOverridenDefaults,
    override_or_use_default_value,
)
from lensbridge.compat.transformer_lens.downloads import (
    clear_huggingface_cache,
    download_file_from_hf,
    get_dataset,
    keep_single_column,
)
from lensbridge.compat.transformer_lens.initialization import (
    calc_fan_in_and_fan_out,
    init_kaiming_normal_,
    init_kaiming_uniform_,
    init_xavier_normal_,
    init_xavier_uniform_,
)
from lensbridge.compat.transformer_lens.slices import Slice, SliceInput
from lensbridge.compat.transformer_lens.tensors import (
    check_structure,
    filter_dict_by_prefix,
    get_corner,
    get_cumsum_along_dim,
    get_device,
    get_nested_attr,
    get_offset_position_ids,
    is_library_available,
    is_lower_triangular,
    is_square,
    print_gpu_mem,
    remove_batch_dim,
    repeat_along_head_dimension,
    select_compatible_kwargs,
    set_nested_attr,
    temporarily_swap_parameter,
    to_numpy,
    transpose,
)
from lensbridge.compat.transformer_lens.tokenizing import (
    get_attention_mask,
    get_input_with_manually_prepended_bos,
    get_tokenizer_with_bos,
    get_tokens_with_bos_removed,
)
from lensbridge.compat.transformer_lens.translation import translated
from lensbridge.points.short_names import get_act_name
from lensbridge.tensors.loss import lm_cross_entropy_loss

test_prompt = translated(_test_prompt)
get_matrix_corner = get_corner

__all__ = [
    "ACTIVATION_FN_DICT",
    "SUPPORTED_ACTIVATIONS",
    "USE_DEFAULT_VALUE",
    "XIELU",
    "LocallyOverridenDefaults",
    "Slice",
    "SliceInput",
    "calc_fan_in_and_fan_out",
    "check_structure",
    "clear_huggingface_cache",
    "composition_scores",
    "download_file_from_hf",
    "filter_dict_by_prefix",
    "gelu_fast",
    "gelu_new",
    "get_act_name",
    "get_attention_mask",
    "get_corner",
    "get_cumsum_along_dim",
    "get_dataset",
    "get_device",
    "get_input_with_manually_prepended_bos",
    "get_matrix_corner",
    "get_nested_attr",
    "get_offset_position_ids",
    "get_tokenizer_with_bos",
    "get_tokens_with_bos_removed",
    "init_kaiming_normal_",
    "init_kaiming_uniform_",
    "init_xavier_normal_",
    "init_xavier_uniform_",
    "is_library_available",
    "is_lower_triangular",
    "is_square",
    "keep_single_column",
    "lm_accuracy",
    "lm_cross_entropy_loss",
    "logits_to_df",
    "override_or_use_default_value",
    "print_gpu_mem",
    "remove_batch_dim",
    "repeat_along_head_dimension",
    "sample_logits",
    "select_compatible_kwargs",
    "set_nested_attr",
    "solu",
    "temporarily_swap_parameter",
    "test_prompt",
    "to_numpy",
    "tokenize_and_concatenate",
    "transpose",
    "xielu",
]
