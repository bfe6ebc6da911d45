"""Language models of transformers: decoders, encoders, and pairs of them."""

from __future__ import annotations

from typing import Any

from torch import nn

from tests.zoo.families import (
    CLASSES,
    VOCABULARY,
    classified_words,
    next_words,
    padded_words,
    pretrained,
)


def sizes(**given: Any) -> dict[str, Any]:
    """Config entries under the names that most families use; None leaves one out."""
    usual = {
        "vocab_size": VOCABULARY,
        "hidden_size": 24,
        "intermediate_size": 29,
        "num_hidden_layers": 1,
        "num_attention_heads": 12,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "pad_token_id": 0,
    }
    return {name: value for name, value in {**usual, **given}.items() if value is not None}


def decoder_sizes(**given: Any) -> dict[str, Any]:
    """The same for decoders with grouped queries."""
    return sizes(**{"num_key_value_heads": 3, "attention_dropout": 0.1, **given})


def bare(**given: Any) -> dict[str, Any]:
    """Config entries of families with names of their own."""
    return {
        "vocab_size": VOCABULARY, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0, **given
    }  # fmt: skip


def pair(**given: Any) -> dict[str, Any]:
    """Config entries of the BART line of encoder-decoders."""
    usual = {
        "d_model": 24,
        "encoder_layers": 1,
        "decoder_layers": 1,
        "encoder_attention_heads": 12,
        "decoder_attention_heads": 12,
        "encoder_ffn_dim": 29,
        "decoder_ffn_dim": 29,
        "max_position_embeddings": 32,
        "decoder_start_token_id": 2,
        "dropout": 0.1,
    }
    return bare(**{**usual, **given})


def experts(way: str) -> Any:
    """How the experts of a mixture are multiplied."""

    def choose(model: nn.Module) -> None:
        model.config._experts_implementation = way

    return choose


def heads(name: str, prefix: str, config: str, **given: Any) -> None:
    """A decoder with a language-model head."""
    pretrained(name, f"{prefix}ForCausalLM", f"{config}Config", next_words(), **given)


GPT2 = bare(n_embd=36, n_layer=2, n_head=12, n_positions=32, attn_pdrop=0.1)
# Grouped products want rows of whole 16 bytes: no odd widths here.
MIXTURE = {"num_local_experts": 5, "num_experts_per_tok": 2, "intermediate_size": 28}
CAUSAL = next_words()

# -- decoders -----------------------------------------------------------------------------------

pretrained("gpt2", "GPT2LMHeadModel", "GPT2Config", CAUSAL, **GPT2)
pretrained("gpt2_padded", "GPT2LMHeadModel", "GPT2Config", padded_words(), **GPT2)
pretrained(
    "gpt2_eager", "GPT2LMHeadModel", "GPT2Config", CAUSAL, attn_implementation="eager", **GPT2
)
pretrained(
    "gpt2_classes",
    "GPT2ForSequenceClassification",
    "GPT2Config",
    classified_words,
    num_labels=CLASSES,
    **GPT2,
)
heads("llama", "Llama", "Llama", **decoder_sizes())
pretrained("llama_padded", "LlamaForCausalLM", "LlamaConfig", padded_words(), **decoder_sizes())
heads("qwen2", "Qwen2", "Qwen2", **decoder_sizes())
heads("qwen3", "Qwen3", "Qwen3", **decoder_sizes(head_dim=4))
for way in ("batched_mm", "grouped_mm", "eager"):
    pretrained(
        f"mixtral_{way}",
        "MixtralForCausalLM",
        "MixtralConfig",
        CAUSAL,
        experts(way),
        **decoder_sizes(**MIXTURE, output_router_logits=True),
    )
heads("mistral", "Mistral", "Mistral", **decoder_sizes(sliding_window=4))
heads("ministral", "Ministral", "Ministral", **decoder_sizes(sliding_window=4, head_dim=2))
heads("gemma", "Gemma", "Gemma", **decoder_sizes(head_dim=2))
heads("gemma2", "Gemma2", "Gemma2", **decoder_sizes(num_hidden_layers=2, head_dim=2,
      sliding_window=4))  # fmt: skip
heads("gemma3", "Gemma3", "Gemma3Text", **decoder_sizes(num_hidden_layers=2, head_dim=2,
      sliding_window=4))  # fmt: skip
heads("phi", "Phi", "Phi", **decoder_sizes(partial_rotary_factor=1.0, embd_pdrop=0.1))
heads("phi3", "Phi3", "Phi3", **decoder_sizes(resid_pdrop=0.1))
heads("gpt_neox", "GPTNeoX", "GPTNeoX", **sizes(hidden_dropout=0.1, rotary_pct=1.0))
pretrained("gpt2_checkpointed", "GPT2LMHeadModel", "GPT2Config", CAUSAL,
           lambda model: model.gradient_checkpointing_enable(), **GPT2)  # fmt: skip
heads("gptj", "GPTJ", "GPTJ", **bare(n_embd=24, n_layer=1, n_head=6, rotary_dim=4, n_positions=32))
heads("gpt_neo", "GPTNeo", "GPTNeo", **bare(hidden_size=24, num_layers=2, num_heads=6,
      attention_types=[[["global", "local"], 1]], window_size=4,
      max_position_embeddings=32))  # fmt: skip
heads("gpt_bigcode", "GPTBigCode", "GPTBigCode", **GPT2)
heads("codegen", "CodeGen", "CodeGen", **bare(n_embd=32, n_layer=1, n_head=8, rotary_dim=4,
      n_positions=32, n_ctx=32))  # fmt: skip
heads("opt", "OPT", "OPT", **sizes(ffn_dim=29, word_embed_proj_dim=16, intermediate_size=None))
heads("bloom", "Bloom", "Bloom", **bare(hidden_size=24, n_layer=1, n_head=6, hidden_dropout=0.1))
heads("falcon", "Falcon", "Falcon", **sizes(hidden_dropout=0.1))
heads("falcon_alibi", "Falcon", "Falcon", **sizes(alibi=True, new_decoder_architecture=True,
      num_kv_heads=3))  # fmt: skip
heads("mpt", "Mpt", "Mpt", **bare(d_model=24, n_layers=1, n_heads=6, max_seq_len=32))
heads("olmo", "Olmo", "Olmo", **decoder_sizes())
heads("olmo2", "Olmo2", "Olmo2", **decoder_sizes())
heads("cohere", "Cohere", "Cohere", **decoder_sizes(use_qk_norm=True))
heads("cohere2", "Cohere2", "Cohere2", **decoder_sizes(sliding_window=4, num_hidden_layers=2))
heads("stablelm", "StableLm", "StableLm", **decoder_sizes(partial_rotary_factor=1.0))
heads("granite", "Granite", "Granite", **decoder_sizes())
heads("nemotron", "Nemotron", "Nemotron", **decoder_sizes(partial_rotary_factor=1.0, head_dim=2))
heads("starcoder2", "Starcoder2", "Starcoder2", **decoder_sizes(residual_dropout=0.1))
heads("smollm3", "SmolLM3", "SmolLM3", **decoder_sizes(num_hidden_layers=2))
heads("glm", "Glm", "Glm", **decoder_sizes(head_dim=4))
heads("glm4", "Glm4", "Glm4", **decoder_sizes(head_dim=4))
heads("helium", "Helium", "Helium", **decoder_sizes(head_dim=2))
heads("persimmon", "Persimmon", "Persimmon", **sizes(partial_rotary_factor=1.0))
heads("xglm", "XGLM", "XGLM", **bare(d_model=24, ffn_dim=29, num_layers=1, attention_heads=6))
heads("biogpt", "BioGpt", "BioGpt", **sizes(max_position_embeddings=32))
heads("diffllama", "DiffLlama", "DiffLlama", **decoder_sizes(num_key_value_heads=6,
      attention_dropout=0.0))  # fmt: skip
heads("exaone4", "Exaone4", "Exaone4", **decoder_sizes())
heads("modernbert_decoder", "ModernBertDecoder", "ModernBertDecoder", **sizes(local_attention=4))
heads("seed_oss", "SeedOss", "SeedOss", **decoder_sizes(head_dim=4))
heads("ernie4_5", "Ernie4_5", "Ernie4_5", **decoder_sizes(head_dim=4))
heads("arcee", "Arcee", "Arcee", **decoder_sizes())
heads("apertus", "Apertus", "Apertus", **decoder_sizes())
heads("bitnet", "BitNet", "BitNet", **decoder_sizes())
heads("nanochat", "NanoChat", "NanoChat", **decoder_sizes())
pretrained("openai_gpt", "OpenAIGPTLMHeadModel", "OpenAIGPTConfig", CAUSAL, vocab_size=VOCABULARY,
           n_embd=24, n_layer=1, n_head=6, n_positions=32)  # fmt: skip
pretrained("ctrl", "CTRLLMHeadModel", "CTRLConfig", CAUSAL, vocab_size=VOCABULARY, n_embd=24,
           dff=29, n_layer=1, n_head=6, n_positions=32)  # fmt: skip

# -- mixtures of experts ------------------------------------------------------------------------

heads("qwen2_moe", "Qwen2Moe", "Qwen2Moe", **decoder_sizes(num_experts=5, num_experts_per_tok=2,
      moe_intermediate_size=8, shared_expert_intermediate_size=16))  # fmt: skip
heads("qwen3_moe", "Qwen3Moe", "Qwen3Moe", **decoder_sizes(num_experts=5, num_experts_per_tok=2,
      moe_intermediate_size=8, head_dim=4))  # fmt: skip
heads("olmoe", "Olmoe", "Olmoe", **decoder_sizes(num_experts=5, num_experts_per_tok=2,
      intermediate_size=28))  # fmt: skip
heads("phimoe", "Phimoe", "Phimoe", **decoder_sizes(**MIXTURE))
heads("granitemoe", "GraniteMoe", "GraniteMoe", **decoder_sizes(**MIXTURE))
heads("gpt_oss", "GptOss", "GptOss", **decoder_sizes(**MIXTURE, head_dim=4))
heads("dbrx", "Dbrx", "Dbrx", **bare(d_model=24, n_heads=6, n_layers=1, max_seq_len=32,
      attn_config={"kv_n_heads": 3, "rope_theta": 1e4, "clip_qkv": 8.0},
      ffn_config={"ffn_hidden_size": 29, "moe_num_experts": 5, "moe_top_k": 2,
                  "hidden_size": 24}))  # fmt: skip
heads("deepseek_v2", "DeepseekV2", "DeepseekV2", **sizes(n_routed_experts=4, n_shared_experts=1,
      num_experts_per_tok=2, moe_intermediate_size=8, q_lora_rank=8, kv_lora_rank=8,
      qk_rope_head_dim=4, qk_nope_head_dim=4, v_head_dim=4, n_group=2, topk_group=1,
      first_k_dense_replace=1, num_key_value_heads=12, num_hidden_layers=2))  # fmt: skip
heads("deepseek_v3", "DeepseekV3", "DeepseekV3", **sizes(n_routed_experts=4, n_shared_experts=1,
      num_experts_per_tok=2, moe_intermediate_size=8, q_lora_rank=8, kv_lora_rank=8,
      qk_rope_head_dim=4, qk_nope_head_dim=4, v_head_dim=4, n_group=2, topk_group=1,
      first_k_dense_replace=1, num_key_value_heads=12, num_hidden_layers=2))  # fmt: skip
heads("glm4_moe", "Glm4Moe", "Glm4Moe", **decoder_sizes(n_routed_experts=4, num_experts_per_tok=2,
      moe_intermediate_size=8, n_group=2, topk_group=1, first_k_dense_replace=1, head_dim=4,
      num_hidden_layers=2))  # fmt: skip
heads("ernie4_5_moe", "Ernie4_5_Moe", "Ernie4_5_Moe", **decoder_sizes(moe_num_experts=4, moe_k=2,
      moe_intermediate_size=8, num_hidden_layers=2))  # fmt: skip
heads("jetmoe", "JetMoe", "JetMoe", **sizes(num_attention_heads=None, num_key_value_heads=6,
      kv_channels=4, num_local_experts=4, num_experts_per_tok=2))  # fmt: skip

# -- recurrences and state spaces ---------------------------------------------------------------

STATES = {"state_size": 4, "hidden_size": 24, "num_hidden_layers": 1}
heads("mamba", "Mamba", "Mamba", **bare(**STATES))
heads("mamba2", "Mamba2", "Mamba2", **bare(**STATES, num_heads=6, head_dim=8, n_groups=2,
      chunk_size=4))  # fmt: skip
heads("falcon_mamba", "FalconMamba", "FalconMamba", **bare(**STATES))
heads("jamba", "Jamba", "Jamba", **decoder_sizes(num_hidden_layers=2, num_experts=4,
      intermediate_size=28,
      num_experts_per_tok=2, attn_layer_period=2, attn_layer_offset=1, expert_layer_period=2,
      expert_layer_offset=1, mamba_d_state=4, use_mamba_kernels=False))  # fmt: skip
heads("bamba", "Bamba", "Bamba", **decoder_sizes(num_hidden_layers=2, attn_layer_indices=[1],
      mamba_n_heads=6, mamba_d_head=8, mamba_d_state=4, mamba_chunk_size=4))  # fmt: skip
heads("lfm2", "Lfm2", "Lfm2", **decoder_sizes(layer_types=["conv", "full_attention"],
      num_hidden_layers=2))  # fmt: skip
heads("recurrent_gemma", "RecurrentGemma", "RecurrentGemma", **sizes(num_hidden_layers=3,
      num_attention_heads=6, num_key_value_heads=1, lru_width=24,
      attention_window_size=4))  # fmt: skip
heads("qwen3_next", "Qwen3Next", "Qwen3Next", **decoder_sizes(num_hidden_layers=2, head_dim=4,
      layer_types=["linear_attention", "full_attention"], linear_num_value_heads=4,
      linear_num_key_heads=2, linear_key_head_dim=4, linear_value_head_dim=4, num_experts=4,
      num_experts_per_tok=2, moe_intermediate_size=8,
      shared_expert_intermediate_size=8))  # fmt: skip
heads("rwkv", "Rwkv", "Rwkv", **bare(hidden_size=24, num_hidden_layers=2, context_length=32,
      attention_hidden_size=24))  # fmt: skip

# -- encoders -----------------------------------------------------------------------------------


def encoder(name: str, prefix: str, **given: Any) -> None:
    """An encoder with a masked-word head, under a padding mask."""
    pretrained(name, f"{prefix}ForMaskedLM", f"{prefix}Config", padded_words(), **given)


encoder("bert", "Bert", **sizes())
encoder("bert_deep", "Bert", **sizes(num_hidden_layers=3))
encoder("bert_eager", "Bert", **sizes(attn_implementation="eager"))
pretrained("bert_classes", "BertForSequenceClassification", "BertConfig", classified_words,
           **sizes(num_labels=CLASSES))  # fmt: skip
encoder("roberta", "Roberta", **sizes(pad_token_id=1, max_position_embeddings=40))
encoder("xlm_roberta", "XLMRoberta", **sizes(pad_token_id=1, max_position_embeddings=40))
encoder("electra", "Electra", **sizes(embedding_size=16))
encoder("distilbert", "DistilBert", **bare(dim=24, n_layers=1, n_heads=6, hidden_dim=29))
encoder("albert", "Albert", **sizes(embedding_size=8, num_hidden_layers=2))
encoder("deberta", "Deberta", **sizes(relative_attention=True, pos_att_type=["c2p", "p2c"]))
encoder("deberta_v2", "DebertaV2", **sizes(relative_attention=True, pos_att_type=["c2p", "p2c"],
        position_buckets=4))  # fmt: skip
encoder("mpnet", "MPNet", **sizes())
encoder("modernbert", "ModernBert", **sizes(local_attention=4, num_hidden_layers=2))
encoder("convbert", "ConvBert", **sizes(embedding_size=24, num_attention_heads=4))
encoder("squeezebert", "SqueezeBert", **sizes(intermediate_size=28, num_attention_heads=4,
        q_groups=2, k_groups=2, v_groups=2, post_attention_groups=1, intermediate_groups=4,
        output_groups=4, embedding_size=24))  # fmt: skip
encoder("mobilebert", "MobileBert", **sizes(embedding_size=16, intra_bottleneck_size=24,
        num_attention_heads=4))  # fmt: skip
encoder("roformer", "RoFormer", **sizes(embedding_size=24, num_attention_heads=4))
encoder("megatron_bert", "MegatronBert", **sizes())
encoder("rembert", "RemBert", **sizes(input_embedding_size=16, output_embedding_size=20))
encoder("fnet", "FNet", **sizes(num_attention_heads=None))
encoder("nystromformer", "Nystromformer", **sizes(num_landmarks=7, segment_means_seq_len=7))
encoder("longformer", "Longformer", **sizes(attention_window=4, pad_token_id=1,
        max_position_embeddings=40))  # fmt: skip
encoder("big_bird", "BigBird", **sizes(attention_type="original_full"))
encoder("funnel", "Funnel", **bare(block_sizes=[1, 1], d_model=24, n_head=6, d_head=4, d_inner=29))
encoder("esm", "Esm", **sizes(position_embedding_type="rotary", mask_token_id=3))
encoder("ibert", "IBert", **sizes(pad_token_id=1, max_position_embeddings=40))
encoder("eurobert", "EuroBert", **decoder_sizes())
encoder("perceiver", "Perceiver", **bare(num_latents=5, d_latents=12, d_model=16, num_blocks=1,
        num_self_attends_per_block=1, num_self_attention_heads=3, num_cross_attention_heads=4,
        max_position_embeddings=7))  # fmt: skip
pretrained("xlnet", "XLNetLMHeadModel", "XLNetConfig", CAUSAL, **bare(d_model=24, n_layer=1,
           n_head=6, d_inner=29))  # fmt: skip
pretrained("xlm", "XLMWithLMHeadModel", "XLMConfig", CAUSAL, **bare(emb_dim=24, n_layers=1,
           n_heads=6, max_position_embeddings=32, n_words=VOCABULARY))  # fmt: skip
pretrained("canine", "CanineForSequenceClassification", "CanineConfig", classified_words,
           **sizes(vocab_size=None, downsampling_rate=1, local_transformer_stride=4,
                   num_labels=CLASSES, num_hash_buckets=97))  # fmt: skip

# -- encoder-decoders ---------------------------------------------------------------------------


def summaries(name: str, prefix: str, config: str = "", **given: Any) -> None:
    """An encoder-decoder that reads words and writes words."""
    model = f"{prefix}ForConditionalGeneration"
    pretrained(name, model, f"{config or prefix}Config", next_words(), **given)


T5 = bare(d_model=24, d_kv=2, d_ff=29, num_layers=1, num_heads=12, decoder_start_token_id=0)
summaries("t5", "T5", **T5)
summaries("t5_gated", "T5", **T5, feed_forward_proj="gated-gelu", tie_word_embeddings=False)
summaries("mt5", "MT5", **T5)
summaries("umt5", "UMT5", **T5)
pretrained("long_t5", "LongT5ForConditionalGeneration", "LongT5Config", padded_words(), **T5,
           local_radius=3)  # fmt: skip
pretrained("switch", "SwitchTransformersForConditionalGeneration", "SwitchTransformersConfig",
           padded_words(), **T5, num_experts=4, num_sparse_encoder_layers=1,
           num_sparse_decoder_layers=1)  # fmt: skip
summaries("bart", "Bart", **pair(attention_dropout=0.1, activation_dropout=0.1))
summaries("mbart", "MBart", **pair())
summaries("pegasus", "Pegasus", **pair())
summaries("pegasus_x", "PegasusX", **pair(block_size=4, num_global_tokens=3))
summaries("blenderbot", "Blenderbot", **pair())
summaries("plbart", "PLBart", **pair())
summaries("m2m_100", "M2M100", **pair(encoder_layerdrop=0.0, decoder_layerdrop=0.0))
summaries("led", "LED", **pair(attention_window=4, max_encoder_position_embeddings=32,
          max_decoder_position_embeddings=32))  # fmt: skip
summaries("prophetnet", "ProphetNet", **bare(hidden_size=24, encoder_ffn_dim=29, decoder_ffn_dim=29,
          num_encoder_layers=1, num_decoder_layers=1, num_encoder_attention_heads=6,
          num_decoder_attention_heads=6, max_position_embeddings=32, ngram=2,
          decoder_start_token_id=1))  # fmt: skip
pretrained("marian", "MarianMTModel", "MarianConfig", CAUSAL, **pair(decoder_start_token_id=0))
pretrained("fsmt", "FSMTForConditionalGeneration", "FSMTConfig", CAUSAL,
           **pair(langs=["en", "de"], src_vocab_size=VOCABULARY, tgt_vocab_size=VOCABULARY,
                  vocab_size=VOCABULARY))  # fmt: skip
