"""Fields of ``config.json`` that change nothing in what a model computes."""

from __future__ import annotations

# Of generation alone; older versions of transformers kept them here, newer ones in a file of
# their own (`GenerationConfig`).
_GENERATION = """
    assistant_confidence_threshold assistant_early_exit assistant_ensemble_weight
    assistant_lookbehind bad_words_ids begin_suppress_tokens bos_token_id cache_config
    cache_implementation compile_config constraints continuous_batching_config
    decoder_start_token_id disable_compile diversity_penalty do_sample dola_layers early_stopping
    encoder_no_repeat_ngram_size encoder_repetition_penalty eos_token_id epsilon_cutoff eta_cutoff
    exponential_decay_length_penalty force_words_ids forced_bos_token_id forced_decoder_ids
    forced_eos_token_id generation_kwargs guidance_scale is_assistant length_penalty low_memory
    max_cache_len max_length max_matching_ngram_size max_new_tokens max_time min_length
    min_new_tokens min_p no_repeat_ngram_size num_assistant_tokens num_assistant_tokens_schedule
    num_beam_groups num_beams num_return_sequences output_logits output_scores pad_token_id
    penalty_alpha prefill_chunk_size prefix prompt_lookup_num_tokens remove_invalid_values
    renormalize_logits repetition_penalty return_dict_in_generate return_legacy_cache sep_token_id
    sequence_bias speculation_type stop_strings suppress_tokens target_lookbehind temperature
    token_healing top_h top_k top_p typical_p unk_token_id use_cache use_mtp watermarking_config
"""
# Of every model (`PreTrainedConfig`, in any version): names, how outputs are packed, how the same
# values are computed, heads that are no language model's.
_COMMON = """
    _attn_implementation _attn_implementation_autoset _attn_implementation_internal _commit_hash
    _experts_implementation _flash_attn_2_enabled _from_model_config _name_or_path _num_labels
    _output_attentions attn_implementation chunk_size_feed_forward cross_attention_hidden_size
    finetuning_task gradient_checkpointing id2label is_decoder keys_to_ignore_at_inference
    label2id model_max_length name_or_path num_labels output_attentions output_hidden_states
    output_past problem_type return_dict task_specific_params tf_legacy_loss tie_encoder_decoder
    tokenizer_class torchscript transformers_version use_bfloat16 use_return_dict xla_device
"""
# Of tools that write configurations.
_TOOLS = "max_sequence_length transformers.js_config unsloth_fixed unsloth_version"
HARMLESS = frozenset(f"{_GENERATION} {_COMMON} {_TOOLS}".split())
"""Of any family. They stay as they are when a model is written again."""
