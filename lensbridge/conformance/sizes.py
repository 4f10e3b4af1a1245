"""The sizes of tiny models: the value of each config field, and what a model type needs besides.

They differ on purpose, so that one cannot be taken for another, and multipliers are not 1.
"""

from typing import Any

VOCAB = 97
HEADS, KV_HEADS, HEAD_DIM, ODD_HEAD_DIM = 4, 2, 8, 12
WIDTH, NEURONS, EXPERT_NEURONS = HEADS * HEAD_DIM, 44, 20
CONTEXT = 48

SIZES: dict[str, Any] = {
    **dict.fromkeys(
        ("vocab_size", "unpadded_vocab_size", "vocab_size_per_layer_input", "embedding_vocab_size",
         "src_vocab_size", "tgt_vocab_size"),
        VOCAB,
    ),
    **dict.fromkeys(("hidden_size", "d_model", "n_embd", "embed_dim", "emb_dim", "dim"), WIDTH),
    **dict.fromkeys(("word_embed_proj_dim",), WIDTH),
    **dict.fromkeys(
        ("num_hidden_layers", "num_layers", "n_layer", "n_layers", "decoder_layers",
         "encoder_layers", "num_decoder_layers", "num_encoder_layers"),
        2,
    ),
    **dict.fromkeys(
        ("num_attention_heads", "n_head", "n_heads", "num_heads", "decoder_attention_heads",
         "encoder_attention_heads", "num_decoder_attention_heads", "num_encoder_attention_heads"),
        HEADS,
    ),
    **dict.fromkeys(("num_key_value_heads", "num_kv_heads"), KV_HEADS),
    **dict.fromkeys(("head_dim", "kv_channels", "d_kv"), ODD_HEAD_DIM),
    **dict.fromkeys(
        ("intermediate_size", "n_inner", "ffn_dim", "decoder_ffn_dim", "encoder_ffn_dim", "d_ff",
         "ffn_hidden_size", "hidden_dim"),
        NEURONS,
    ),
    **dict.fromkeys(
        ("max_position_embeddings", "n_positions", "n_ctx", "max_seq_len", "context_length",
         "max_source_positions", "max_target_positions"),
        CONTEXT,
    ),
    **dict.fromkeys(("sliding_window", "window_size", "attention_window_size"), 4),
    "embedding_size": 24,
    # mixtures of experts
    **dict.fromkeys(
        ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts"), 4
    ),
    **dict.fromkeys(("num_experts_per_tok", "moe_k", "moe_topk", "top_k_experts", "moe_top_k"), 2),
    **dict.fromkeys(("n_shared_experts", "moe_num_shared_experts", "num_shared_experts"), 1),
    **dict.fromkeys(
        ("moe_intermediate_size", "shared_expert_intermediate_size", "expert_ffn_hidden_size",
         "shared_intermediate_size", "intermediate_size_mlp"),
        EXPERT_NEURONS,
    ),
    **dict.fromkeys(("n_group", "topk_group", "interleave_moe_layer_step"), 1),
    "first_k_dense_replace": 1,
    "routed_scaling_factor": 1.7,
    "decoder_sparse_step": 1,
    # latent attention
    "q_lora_rank": 14, "kv_lora_rank": 18, "qk_nope_head_dim": 10, "qk_rope_head_dim": 6,
       "v_head_dim": 8,
    # state-space and linear attention
    "state_size": 6, "mamba_d_state": 6, "mamba_n_heads": 8, "mamba_d_head": 8,
       "mamba_n_groups": 1, "mamba_chunk_size": 4, "chunk_size": 4, "lru_width": WIDTH,
       "linear_num_key_heads": 2, "linear_num_value_heads": 4, "linear_key_head_dim": 6,
       "linear_value_head_dim": 10, "use_mamba_kernels": False, "time_step_rank": 5,
    # multipliers, caps, scales
    "residual_multiplier": 0.6, "embedding_multiplier": 1.7, "attention_multiplier": 0.4,
       "logits_scaling": 1.6, "logit_scale": 0.45, "scale_emb": 1.8, "scale_depth": 1.2,
       "dim_model_base": 20, "lm_head_multiplier": 0.7, "key_multiplier": 0.8,
       "attention_out_multiplier": 0.65, "ssm_out_multiplier": 0.75, "ssm_in_multiplier": 0.85,
       "full_attn_alpha_factor": 1.3, "linear_attn_alpha_factor": 0.8, "mlp_alpha_factor": 1.2,
       "attention_in_multiplier": 1.15, "mlp_multipliers": [0.7, 1.3],
       "ssm_multipliers": [0.9, 1.1, 0.8, 1.2, 0.7], "full_attn_beta_factor": 0.9,
       "linear_attn_beta_factor": 1.1, "mlp_beta_factor": 0.75, "attn_logit_softcapping": 3.0,
       "final_logit_softcapping": 4.0, "query_pre_attn_scalar": 10, "clip_qkv": 4.0,
    # optional parts, switched on
    "attention_bias": True, "mlp_bias": True, "attn_bias": True, "qkv_bias": True,
       "use_qkv_bias": True,
    # ids
    "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 1,
       "sep_token_id": 3, "cls_token_id": 4, "forced_eos_token_id": None,
    # other
    "type_vocab_size": 2, "rotary_dim": 4, "hidden_size_per_layer_input": 6,
       "image_size": 12, "patch_size": 4, "num_channels": 3, "projection_dim": 20,
       "num_mel_bins": 8, "image_token_id": 90, "image_token_index": 90, "boi_token_index": 91,
       "eoi_token_index": 92, "video_token_id": 93, "vision_start_token_id": 94,
       "vision_end_token_id": 95, "reference_compile": False, "laurel_rank": 8,
}  # fmt: skip
"""The value of each config field, for configs that have it."""

ALTERNATIVES: tuple[dict[str, Any], ...] = (
    {},
    {"head_dim": HEAD_DIM, "d_kv": HEAD_DIM, "kv_channels": HEAD_DIM},
    {"num_key_value_heads": HEADS, "num_kv_heads": HEADS, "head_dim": HEAD_DIM},
    {"attention_bias": False, "mlp_bias": False, "qkv_bias": False, "head_dim": HEAD_DIM},
    {"is_decoder": False},
)
"""Other sizes, tried in turn, because some classes do not allow sizes that differ."""

_BERT: dict[str, Any] = {
    "model_type": "bert", "vocab_size": VOCAB, "hidden_size": WIDTH, "num_hidden_layers": 2,
    "num_attention_heads": HEADS, "intermediate_size": NEURONS, "max_position_embeddings": CONTEXT,
}  # fmt: skip

BY_TYPE: dict[str, dict[str, Any]] = {
    "gpt_neo": {"attention_types": [[["global", "local"], 1]]},
    "gpt2": {"scale_attn_by_inverse_layer_idx": True},
    "gpt_bigcode": {"multi_query": True},
    "opt": {"word_embed_proj_dim": WIDTH},
    "bloom": {"n_head": HEADS},
    "falcon": {"num_kv_heads": KV_HEADS, "bias": True},
    "t5": {"feed_forward_proj": "gated-gelu", "num_decoder_layers": 2},
    "mamba2": {"num_heads": 8, "head_dim": 8, "n_groups": 1},
    "bamba": {"attn_layer_indices": [1]},
    "jamba": {"attn_layer_period": 2, "attn_layer_offset": 1, "expert_layer_period": 2,
              "expert_layer_offset": 1, "num_key_value_heads": KV_HEADS},
    "falcon_h1": {"mamba_d_ssm": 64},
    "recurrent_gemma": {"num_hidden_layers": 3, "attention_window_size": 4},
    "zamba2": {"layers_block_type": ["linear_attention", "hybrid"], "num_key_value_heads": HEADS,
               "n_mamba_heads": 8, "mamba_ngroups": 1},
    "rwkv": {"attention_hidden_size": WIDTH, "intermediate_size": NEURONS, "num_hidden_layers": 3,
             "rescale_every": 2},
    "gemma3n_text": {"num_kv_shared_layers": 0, "altup_num_inputs": 2,
                     "activation_sparsity_pattern": [0.6, 0.0]},
    "deepseek_v2": {"num_key_value_heads": HEADS},
    "deepseek_v3": {"num_key_value_heads": HEADS},
    "minicpm3": {"num_key_value_heads": HEADS},
    "glm4_moe_lite": {"num_key_value_heads": HEADS},
    "dbrx": {
        "attn_config": {"kv_n_heads": KV_HEADS, "clip_qkv": 4.0, "rope_theta": 10000.0},
        "ffn_config": {"ffn_hidden_size": EXPERT_NEURONS, "moe_num_experts": 4, "moe_top_k": 2,
                       "hidden_size": WIDTH},
    },
    "afmoe": {"num_hidden_layers": 3, "num_dense_layers": 1, "layer_types": [
        "sliding_attention", "full_attention", "sliding_attention"]},  # full: no rotary
    "exaone_moe": {"num_hidden_layers": 3, "mlp_layer_types": ["dense", "sparse", "sparse"],
                   "layer_types": ["sliding_attention", "full_attention", "sliding_attention"]},
    "modernbert": {"global_attn_every_n_layers": 2, "local_attention": 6},
    "qwen2_vl_vision": {"hidden_size": WIDTH, "mlp_ratio": 2},
    "qwen2_5_vl_vision": {"out_hidden_size": WIDTH, "window_size": 16,
                          "fullatt_block_indexes": [1]},
    "qwen3_vl_vision": {"out_hidden_size": WIDTH, "num_position_embeddings": 16,
                        "deepstack_visual_indexes": []},
    "qwen3_vl_moe_vision": {"out_hidden_size": WIDTH, "num_position_embeddings": 16,
                            "deepstack_visual_indexes": []},
    "cohere2_moe": {"rms_norm_eps": 1e-5},  # None: LayerNorms
    "cohere_compass_text": {"rope_parameters": {"full_attention": {
        "rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 2, 2]}},
        "head_dim": ODD_HEAD_DIM},
    "dots3_note_text": {
        "num_key_value_heads": HEADS, "head_dim": 16, "swa_num_attention_heads": HEADS,
        "swa_num_key_value_heads": HEADS, "swa_q_lora_rank": 14, "swa_kv_lora_rank": 18,
        "swa_head_dim": 16, "swa_qk_nope_head_dim": 10, "swa_v_head_dim": 8,
        "layer_types": ["indexed_attention", "sliding_attention"]},
    "granitemoehybrid": {"layer_types": ["linear_attention", "full_attention"],
                         "num_hidden_layers": 2},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"], "num_dense_layers": 1},
    "longcat_flash": {"num_key_value_heads": HEADS, "num_layers": 2, "head_dim": 6,
                      "zero_expert_num": 2, "ffn_hidden_size": NEURONS},
    "kimi_linear": {"num_key_value_heads": HEADS, "linear_head_dim": 8, "linear_num_heads": 4,
                    "layer_types": ["linear_attention", "full_attention"]},
    "bailing_hybrid": {"num_key_value_heads": HEADS, "layer_group_size": 2, "head_dim": 8},
    **{name: {"attention_window": 4} for name in ("led", "longformer")},
    "pegasus_x": {"block_size": 4, "num_global_tokens": 3},
    **{name: {"scale_embedding": True}
       for name in ("blenderbot-small", "marian", "mvp", "pegasus")},
    "encoder-decoder": {
        "encoder": _BERT, "decoder": {**_BERT, "is_decoder": True, "add_cross_attention": True},
        "decoder_start_token_id": 1, "pad_token_id": 0},
    "squeezebert": {"embedding_size": WIDTH},
    "neomme": {"head_dim": 16},
    "reformer": {
        "is_decoder": True, "attn_layers": ["local", "lsh"], "axial_pos_shape": [4, 8],
        "axial_pos_embds_dim": [16, 16], "num_buckets": 2, "num_hashes": 1,
        "lsh_attn_chunk_length": 16, "local_attn_chunk_length": 16, "attention_head_size": 8,
        "hash_seed": 3,
        "feed_forward_size": NEURONS, "max_position_embeddings": 32},
    "xlm": {"causal": True},
    "xmod": {"default_language": "en_XX", "languages": ["en_XX"]},
    **{name: {"num_key_value_heads": HEADS, "head_dim": 6} for name in ("axk1", "youtu")},
    "axk2": {"num_key_value_heads": HEADS, "head_dim": 6, "gated_norm_rank": 5,
             "mlp_layer_types": ["dense", "sparse"]},
    "beam": {"num_hidden_layers": 3, "mlp_layer_types": ["dense", "sparse", "sparse"],
             # full: no rotary
             "layer_types": ["sliding_attention", "full_attention", "sliding_attention"]},
    **{
        name: {"rope_parameters": {
            "rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 1, 1]}}
        for name in ("qwen2_vl_text", "qwen2_5_vl_text")
    },
    "xlstm": {"hidden_size": 64, "num_heads": 4, "qk_dim_factor": 1.0, "v_dim_factor": 1.0,
              "ffn_round_up_to_multiple_of": 4, "chunk_size": 16},
    "siglip_text_model": {"projection_size": 24},
    "gemma3": {"mm_tokens_per_image": 9},
    "idefics3": {"scale_factor": 3},
    "paligemma": {"projection_dim": WIDTH},
    "smolvlm": {"scale_factor": 3},
    "internvl_vision": {"image_size": [16, 16], "patch_size": [4, 4]},
    "zamba": {
        "num_hidden_layers": 6, "attention_head_dim": 16, "num_key_value_heads": HEADS,
        "layers_block_type": ["linear_attention", "hybrid"] * 3, "attn_layer_period": 2,
        "attn_layer_offset": 1},
    "zaya": {"num_experts_per_tok": 1, "router_hidden_size": 16},
    "qwen4_exp_text": {
        "ple_layer_ids": [1], "ngram_vocab_size_base": 64, "heads_per_ngram": 2,
        "split_ngram_parts": 1, "hc_count": 2, "hc_lowrank": 8, "ple_embed_dim": WIDTH,
        "ngram_size": 2, "make_ngram_vocab_size_divisible_by": 1,
        "layer_types": ["linear_attention", "full_attention"], "indexer_n_heads": 2,
        "indexer_kv_heads": 1, "indexer_head_dim": 8, "indexer_budget": 4,
        "indexer_compress_ratio": 2},
    **{name: {"swa_num_attention_heads": HEADS, "swa_num_key_value_heads": KV_HEADS,
              "swa_head_dim": ODD_HEAD_DIM}
       for name in ("inkling_text", "inkling2_text", "inkling2_loop_text")},
    "mllama_text_model": {"cross_attention_layers": [1]},
    "mllama_vision_model": {
        "attention_heads": 3, "num_global_layers": 2, "intermediate_layers_indices": [0, 1],
        "vision_output_dim": 72, "max_num_tiles": 4},
    # without a cache: transformers 5.24 makes none of the right size
    "blt": {"encoder_hash_byte_group_vocab": 50, "encoder_hash_byte_group_size": [3, 4],
            "use_cache": False, "patching_threshold": 3.635},
    "blt_local_encoder": {"hidden_size_global": WIDTH},
    "blt_local_decoder": {"hidden_size_global": WIDTH},
    "hrm_text": {"L_cycles": 2, "L_bp_cycles": [2, 2], "embedding_scale": 1.7},
}  # fmt: skip
"""What a model type needs besides its sizes."""

VISION: dict[str, Any] = {
    "hidden_size": 24, "embed_dim": 24, "intermediate_size": 28, "num_attention_heads": 3,
    "num_heads": 3, "num_hidden_layers": 2, "depth": 2, "image_size": 12, "patch_size": 4,
    "projection_dim": WIDTH,
}  # fmt: skip
"""The sizes of a tower for images whose config is a part of another one."""
