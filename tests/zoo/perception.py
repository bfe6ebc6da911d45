"""Models of transformers that see, hear, do both, or read series of numbers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from tests.zoo.families import (
    CLASSES,
    ROWS,
    VOCABULARY,
    Arguments,
    next_words,
    pictures,
    pretrained,
    tokens,
)
from tests.zoo.language import bare, pair, sizes


def blocks(**given: Any) -> dict[str, Any]:
    """Config entries of a transformer on patches of small pictures."""
    return sizes(
        **{
            **dict.fromkeys(("vocab_size", "bos_token_id", "eos_token_id", "pad_token_id")),
            "image_size": 16,
            "patch_size": 4,
            "num_labels": CLASSES,
            "hidden_dropout_prob": 0.1,
            "attention_probs_dropout_prob": 0.1,
            **given,
        }
    )


def classifier(
    name: str,
    prefix: str,
    arguments: Callable[[], Arguments] | None = None,
    **given: Any,
) -> None:
    """A model that names what is in a picture."""
    pretrained(
        name,
        f"{prefix}ForImageClassification",
        f"{prefix}Config",
        arguments or pictures(),
        **{"num_labels": CLASSES, **given},
    )


# -- pictures: transformers ---------------------------------------------------------------------

classifier("vit", "ViT", **blocks())
classifier("deit", "DeiT", **blocks())
classifier("beit", "Beit", **blocks(use_mask_token=True, use_relative_position_bias=True))
classifier("dinov2", "Dinov2", **blocks(hidden_size=24, intermediate_size=None))
classifier("ijepa", "IJepa", **blocks())
classifier("vit_msn", "ViTMSN", **blocks())
classifier("data2vec_vision", "Data2VecVision", **blocks())
classifier("siglip_image", "Siglip", vision_config=blocks(num_labels=None))
classifier("clip_image", "CLIP", vision_config=blocks(num_labels=None))
SWIN = {"image_size": 32, "patch_size": 4, "embed_dim": 12, "depths": [2, 1], "num_heads": [3, 6]}
classifier("swin", "Swin", pictures(32), **SWIN, window_size=4)
classifier("swinv2", "Swinv2", pictures(32), **SWIN, window_size=4)
classifier("focalnet", "FocalNet", pictures(32), image_size=32, patch_size=4, embed_dim=12,
           depths=[1, 1], focal_levels=[2, 2], focal_windows=[3, 3])  # fmt: skip
classifier("pvt", "Pvt", pictures(32), image_size=32, depths=[1, 1, 1, 1],
           hidden_sizes=[8, 16, 24, 24], num_attention_heads=[1, 2, 3, 4])  # fmt: skip
classifier("pvt_v2", "PvtV2", pictures(32), image_size=32, depths=[1, 1, 1, 1],
           hidden_sizes=[8, 16, 24, 24], num_attention_heads=[1, 2, 3, 4])  # fmt: skip
classifier("levit", "Levit", pictures(32), image_size=32, hidden_sizes=[16, 24, 32], depths=[1] * 3,
           num_attention_heads=[2, 3, 4], key_dim=[4, 4, 4])  # fmt: skip
classifier("mobilevit", "MobileViT", pictures(32), image_size=32, hidden_sizes=[16, 20, 24],
           neck_hidden_sizes=[8, 8, 12, 16, 20, 24, 32], num_attention_heads=4)  # fmt: skip
classifier("poolformer", "PoolFormer", pictures(32), depths=[1, 1, 1, 1],
           hidden_sizes=[8, 16, 24, 32])  # fmt: skip
classifier("swiftformer", "SwiftFormer", pictures(32), depths=[1, 1, 1, 1],
           embed_dims=[8, 16, 24, 32])  # fmt: skip
pretrained("vit_mae", "ViTMAEForPreTraining", "ViTMAEConfig",
           lambda: {"pixel_values": torch.randn(ROWS, 3, 16, 16)},
           **blocks(decoder_hidden_size=16, decoder_num_attention_heads=4,
                    decoder_intermediate_size=29, decoder_num_hidden_layers=1))  # fmt: skip
pretrained("vit_masked", "ViTForMaskedImageModeling", "ViTConfig",
           lambda: {"pixel_values": torch.randn(ROWS, 3, 16, 16),
                    "bool_masked_pos": torch.arange(ROWS * 16).reshape(ROWS, 16) % 3 == 0},
           **blocks(encoder_stride=4))  # fmt: skip
pretrained("imagegpt", "ImageGPTForCausalImageModeling", "ImageGPTConfig", next_words(),
           vocab_size=VOCABULARY + 1, n_embd=24, n_layer=1, n_head=6, n_positions=32)  # fmt: skip

# -- pictures: convolutions ---------------------------------------------------------------------

RESNET = {"embedding_size": 8, "hidden_sizes": [8, 12], "depths": [1, 1]}
classifier("resnet", "ResNet", **RESNET, layer_type="basic")
classifier("resnet_bottleneck", "ResNet", **RESNET)
classifier("regnet", "RegNet", embedding_size=8, hidden_sizes=[8, 12, 16, 20], depths=[1] * 4,
           groups_width=4)  # fmt: skip
classifier("convnext", "ConvNext", pictures(32), num_stages=2, hidden_sizes=[8, 12], depths=[1, 1])
classifier("convnextv2", "ConvNextV2", pictures(32), num_stages=2, hidden_sizes=[8, 12],
           depths=[1, 1])  # fmt: skip
classifier("mobilenet_v1", "MobileNetV1", pictures(32), depth_multiplier=0.25, image_size=32)
classifier("mobilenet_v2", "MobileNetV2", pictures(32), depth_multiplier=0.25, image_size=32)
classifier("efficientnet", "EfficientNet", pictures(32), image_size=32, width_coefficient=0.25,
           depth_coefficient=0.1, hidden_dim=320, drop_connect_rate=0.2)  # fmt: skip
classifier("hgnet_v2", "HGNetV2", pictures(32), stem_channels=[3, 8, 8], stage_in_channels=[8, 12],
           embedding_size=8, depths=[1, 1], hidden_sizes=[12, 16], stage_mid_channels=[8, 8],
           stage_out_channels=[12, 16], stage_num_blocks=[1, 1], stage_numb_of_layers=[2, 2],
           stage_downsample=[False, True], stage_light_block=[False, True],
           stage_kernel_size=[3, 3], stem_strides=[2, 1, 1, 2, 1])  # fmt: skip
classifier("textnet", "TextNet", pictures(64))

# -- pictures to pictures, and boxes ------------------------------------------------------------


def segmented(size: int = 32, rows: int = 2) -> Callable[[], Arguments]:
    def arguments() -> Arguments:
        labels = torch.randint(0, CLASSES, (rows, size, size))
        return {"pixel_values": torch.randn(rows, 3, size, size), "labels": labels}

    return arguments


SEGFORMER = {"hidden_sizes": [8, 8, 16, 16], "depths": [1] * 4, "decoder_hidden_size": 12}
pretrained("segformer", "SegformerForSemanticSegmentation", "SegformerConfig", segmented(),
           **SEGFORMER, num_attention_heads=[1, 2, 2, 4], num_labels=CLASSES)  # fmt: skip
pretrained("beit_segmenting", "BeitForSemanticSegmentation", "BeitConfig", segmented(),
           **blocks(image_size=32, num_hidden_layers=4, out_indices=[1, 2, 3, 4],
                    pool_scales=[1, 2]))  # fmt: skip
pretrained("dpt", "DPTForSemanticSegmentation", "DPTConfig", segmented(),
           **blocks(image_size=32, patch_size=8, num_hidden_layers=4,
                    backbone_out_indices=[0, 1, 2, 3], neck_hidden_sizes=[4, 8, 12, 16],
                    fusion_hidden_size=8,
                    is_hybrid=False))  # fmt: skip
pretrained("glpn", "GLPNForDepthEstimation", "GLPNConfig",
           lambda: {"pixel_values": torch.randn(2, 3, 32, 32), "labels": torch.rand(2, 32, 32)},
           hidden_sizes=[8, 8, 16, 16], depths=[1] * 4, num_attention_heads=[1, 2, 2, 4],
           decoder_hidden_size=8)  # fmt: skip
pretrained("swin2sr", "Swin2SRForImageSuperResolution", "Swin2SRConfig",
           lambda: {"pixel_values": torch.randn(2, 3, 16, 16)},
           image_size=16, patch_size=1, embed_dim=12, depths=[1], num_heads=[3], window_size=4,
           upscale=2)  # fmt: skip
pretrained("detr", "DetrModel", "DetrConfig", lambda: {"pixel_values": torch.randn(2, 3, 64, 64)},
           d_model=24, encoder_layers=1, decoder_layers=1, encoder_attention_heads=4,
           decoder_attention_heads=4, encoder_ffn_dim=29, decoder_ffn_dim=29, num_queries=5,
           use_timm_backbone=False, use_pretrained_backbone=False,
           backbone_config={"model_type": "resnet", **RESNET,
                            "out_features": ["stage2"]})  # fmt: skip
pretrained("yolos", "YolosModel", "YolosConfig",
           lambda: {"pixel_values": torch.randn(2, 3, 16, 16)},
           **blocks(image_size=[16, 16], num_detection_tokens=5))  # fmt: skip
pretrained("sam_encoder", "SamVisionModel", "SamVisionConfig",
           lambda: {"pixel_values": torch.randn(2, 3, 32, 32)}, hidden_size=24, output_channels=8,
           num_hidden_layers=2, num_attention_heads=4, image_size=32, patch_size=4, window_size=3,
           global_attn_indexes=[1], mlp_dim=29)  # fmt: skip
pretrained("timesformer", "TimesformerForVideoClassification", "TimesformerConfig",
           lambda: {"pixel_values": torch.randn(2, 3, 3, 16, 16),
                    "labels": torch.randint(0, CLASSES, (2,))},
           **blocks(num_frames=3))  # fmt: skip
pretrained("videomae", "VideoMAEForVideoClassification", "VideoMAEConfig",
           lambda: {"pixel_values": torch.randn(2, 4, 3, 16, 16),
                    "labels": torch.randint(0, CLASSES, (2,))},
           **blocks(num_frames=4))  # fmt: skip
pretrained("vivit", "VivitForVideoClassification", "VivitConfig",
           lambda: {"pixel_values": torch.randn(2, 4, 3, 16, 16),
                    "labels": torch.randint(0, CLASSES, (2,))},
           **blocks(num_frames=4, tubelet_size=[2, 4, 4]))  # fmt: skip

# -- sound --------------------------------------------------------------------------------------

WAVES = sizes(conv_dim=(8, 8), conv_stride=(5, 2), conv_kernel=(10, 3), num_feat_extract_layers=2,
              num_conv_pos_embeddings=4, num_conv_pos_embedding_groups=2, layerdrop=0.0,
              mask_time_prob=0.0)  # fmt: skip


def heard() -> Arguments:
    return {"input_values": torch.randn(2, 400)}


def transcribed() -> Arguments:
    return {**heard(), "labels": torch.randint(1, 20, (2, 6))}


def named_sounds() -> Arguments:
    return {"input_values": torch.randn(2, 400), "labels": torch.randint(0, CLASSES, (2,))}


for name, prefix in {
    "wav2vec2": "Wav2Vec2",
    "hubert": "Hubert",
    "wavlm": "WavLM",
    "unispeech": "UniSpeech",
    "data2vec_audio": "Data2VecAudio",
    "sew": "SEW",
}.items():
    given = dict(WAVES)
    if name == "sew":
        given |= {"squeeze_factor": 2}
    if name == "data2vec_audio":
        given |= {"num_conv_pos_embeddings": 2, "conv_pos_kernel_size": 3}
    pretrained(f"{name}_ctc", f"{prefix}ForCTC", f"{prefix}Config", heard, **given)
    pretrained(f"{name}_classes", f"{prefix}ForSequenceClassification", f"{prefix}Config",
               named_sounds, **given, num_labels=CLASSES, classifier_proj_size=16)  # fmt: skip
pretrained("wav2vec2_transcribed", "Wav2Vec2ForCTC", "Wav2Vec2Config", transcribed, **WAVES)
pretrained(
    "whisper",
    "WhisperForConditionalGeneration",
    "WhisperConfig",
    lambda: {"input_features": torch.randn(ROWS, 8, 22), "labels": tokens()},
    **{name: value for name, value in pair().items() if name != "max_position_embeddings"},
    num_mel_bins=8,
    max_source_positions=11,
    max_target_positions=20,
)
pretrained(
    "speech_to_text",
    "Speech2TextForConditionalGeneration",
    "Speech2TextConfig",
    lambda: {"input_features": torch.randn(ROWS, 31, 8), "labels": tokens()},
    **{name: value for name, value in pair().items() if name != "max_position_embeddings"},
    input_feat_per_channel=8,
    conv_channels=16,
    max_source_positions=40,
    max_target_positions=20,
)
pretrained("ast", "ASTForAudioClassification", "ASTConfig",
           lambda: {"input_values": torch.randn(ROWS, 24, 16),
                    "labels": torch.randint(0, CLASSES, (ROWS,))},
           **blocks(image_size=None, max_length=24, num_mel_bins=16, frequency_stride=4,
                    time_stride=4))  # fmt: skip
pretrained("moonshine", "MoonshineForConditionalGeneration", "MoonshineConfig",
           lambda: {"input_values": torch.randn(2, 1200), "labels": tokens(2)},
           **bare(hidden_size=24, intermediate_size=29, encoder_num_hidden_layers=1,
                  decoder_num_hidden_layers=1, encoder_num_attention_heads=4,
                  decoder_num_attention_heads=4, decoder_start_token_id=1))  # fmt: skip
pretrained("encodec", "EncodecModel", "EncodecConfig",
           lambda: {"input_values": torch.randn(2, 1, 320)}, num_filters=4,
           upsampling_ratios=[4, 2], codebook_size=16, hidden_size=16, codebook_dim=16,
           num_lstm_layers=1)  # fmt: skip

# -- several senses -----------------------------------------------------------------------------


def captioned() -> Arguments:
    return {
        "input_ids": tokens(),
        "pixel_values": torch.randn(ROWS, 3, 16, 16),
        "return_loss": True,
    }


WORDS = sizes(max_position_embeddings=16, attention_dropout=0.1)
EYES = blocks(num_labels=None)
for name, prefix in {"clip": "CLIP", "siglip": "Siglip", "altclip": "AltCLIP"}.items():
    extra: dict[str, Any] = {} if name == "siglip" else {"projection_dim": 8}
    pretrained(name, f"{prefix}Model", f"{prefix}Config", captioned, text_config=dict(WORDS),
               vision_config=dict(EYES), **extra)  # fmt: skip
pretrained("blip", "BlipForConditionalGeneration", "BlipConfig",
           lambda: {**next_words()(), "pixel_values": torch.randn(ROWS, 3, 16, 16)},
           text_config=sizes(max_position_embeddings=16, sep_token_id=2, encoder_hidden_size=24),
           vision_config=dict(EYES), projection_dim=8)  # fmt: skip
pretrained("vilt", "ViltForQuestionAnswering", "ViltConfig",
           lambda: {"input_ids": tokens(), "pixel_values": torch.randn(ROWS, 3, 16, 16),
                    "labels": torch.rand(ROWS, CLASSES)},
           **sizes(image_size=16, patch_size=4, num_labels=CLASSES))  # fmt: skip
pretrained("git", "GitForCausalLM", "GitConfig",
           lambda: {**next_words()(), "pixel_values": torch.randn(ROWS, 3, 16, 16)},
           **sizes(), vision_config=dict(EYES))  # fmt: skip


def seen_words() -> Arguments:
    """One picture of 16 patches stands at the front of every row of words."""
    ids = tokens()
    pictured = torch.full((ROWS, 16), VOCABULARY - 1)
    ids = torch.cat([pictured, ids.clamp_max(VOCABULARY - 2)], dim=1)
    return {"input_ids": ids, "labels": ids.clone(), "pixel_values": torch.randn(ROWS, 3, 16, 16)}


pretrained("llava", "LlavaForConditionalGeneration", "LlavaConfig", seen_words,
           text_config={"model_type": "llama", **sizes(num_key_value_heads=3)},
           vision_config={"model_type": "clip_vision_model", **EYES},
           image_token_id=VOCABULARY - 1)  # fmt: skip
pretrained("pix2struct", "Pix2StructForConditionalGeneration", "Pix2StructConfig",
           lambda: {"flattened_patches": torch.rand(ROWS, 9, 14), "labels": tokens()},
           text_config={"vocab_size": VOCABULARY, "hidden_size": 24, "d_kv": 4, "d_ff": 29,
                        "num_layers": 1, "num_heads": 6, "decoder_start_token_id": 0},
           vision_config={"hidden_size": 24, "patch_embed_hidden_size": 12, "d_ff": 29, "d_kv": 4,
                          "num_hidden_layers": 1, "num_attention_heads": 6})  # fmt: skip

# -- tables, series, decisions ------------------------------------------------------------------


def series() -> Arguments:
    return {
        "past_values": torch.randn(ROWS, 16, 3),
        "future_values": torch.randn(ROWS, 5, 3),
    }


pretrained("tapas", "TapasModel", "TapasConfig",
           lambda: {"input_ids": tokens(), "token_type_ids": torch.zeros(ROWS, 7, 7).long()},
           **sizes())  # fmt: skip
pretrained("patchtst", "PatchTSTForPrediction", "PatchTSTConfig",
           series,
           num_input_channels=3, context_length=16, patch_length=4, patch_stride=4, d_model=12,
           num_attention_heads=3, num_hidden_layers=1, ffn_dim=16, prediction_length=5,
           loss="mse")  # fmt: skip
pretrained("patchtsmixer", "PatchTSMixerForPrediction", "PatchTSMixerConfig",
           series,
           num_input_channels=3, context_length=16, patch_length=4, patch_stride=4, d_model=12,
           num_layers=1, prediction_length=5, loss="mse")  # fmt: skip
pretrained("decision", "DecisionTransformerModel", "DecisionTransformerConfig",
           lambda: {"states": torch.randn(ROWS, 5, 7), "actions": torch.randn(ROWS, 5, 3),
                    "rewards": torch.randn(ROWS, 5, 1), "returns_to_go": torch.randn(ROWS, 5, 1),
                    "timesteps": torch.arange(5).repeat(ROWS, 1),
                    "attention_mask": torch.ones(ROWS, 5)},
           state_dim=7, act_dim=3, hidden_size=24, n_layer=1, n_head=6, max_ep_len=16)  # fmt: skip
pretrained(
    "time_series", "TimeSeriesTransformerForPrediction", "TimeSeriesTransformerConfig",
    lambda: {"past_values": torch.rand(ROWS, 10), "past_time_features": torch.randn(ROWS, 10, 2),
             "past_observed_mask": torch.ones(ROWS, 10), "future_values": torch.rand(ROWS, 5),
             "future_time_features": torch.randn(ROWS, 5, 2)},
    prediction_length=5, context_length=7, lags_sequence=[1, 2, 3], num_time_features=2,
    d_model=12, encoder_layers=1, decoder_layers=1, encoder_attention_heads=3,
    decoder_attention_heads=3, encoder_ffn_dim=16, decoder_ffn_dim=16)  # fmt: skip
