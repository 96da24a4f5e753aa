"""The PyTorch originals at any size, with random weights that leave nothing at zero.

Needs torch, segment-anything, transformers and open_clip; torchvision may be absent.
"""

import contextlib
import copy
import re
import sys
import types

import torch
import torch.nn.functional as F
import transformers
from torch import nn


@contextlib.contextmanager
def torchvision_absent():
    """segment-anything and open_clip import torchvision; what is used of them here needs none."""

    def placeholder(name):
        return type(name, (), {"BICUBIC": None, "BILINEAR": None, "NEAREST": None})

    def stand_in(name):
        module = types.ModuleType(name)
        module.__path__, module.__getattr__ = [], placeholder
        return module

    parts = "transforms.functional", "transforms", "ops.misc", "ops.boxes", "ops"
    modules = {"torchvision": stand_in("torchvision")}
    for name in sorted(f"torchvision.{part}" for part in parts):
        modules[name] = stand_in(name)
        parent, child = name.rsplit(".", 1)
        setattr(modules[parent], child, modules[name])
    sys.modules.update(modules)
    yield
    for name in modules:
        del sys.modules[name]


with torchvision_absent():
    import open_clip.model
    import segment_anything.modeling as segment_anything
    from segment_anything.modeling.image_encoder import Block


def sam(config):
    """segment_anything.modeling.Sam for a SamConfig."""
    encoder, decoder = config.encoder, config.mask_decoder
    width, grid = encoder.out_channels, encoder.image_size // encoder.patch
    run = encoder.depth // encoder.groups
    return segment_anything.Sam(
        segment_anything.ImageEncoderViT(
            img_size=encoder.image_size,
            patch_size=encoder.patch,
            embed_dim=encoder.width,
            depth=encoder.depth,
            num_heads=encoder.heads,
            mlp_ratio=encoder.mlp_width / encoder.width,
            out_chans=width,
            norm_layer=lambda width: nn.LayerNorm(width, eps=1e-6),
            use_rel_pos=True,
            window_size=encoder.window,
            global_attn_indexes=range(run - 1, encoder.depth, run),
        ),
        segment_anything.PromptEncoder(
            width, (grid, grid), (encoder.image_size,) * 2, decoder.mask_channels
        ),
        segment_anything.MaskDecoder(
            transformer_dim=width,
            transformer=segment_anything.TwoWayTransformer(
                decoder.depth, width, decoder.heads, decoder.mlp_width
            ),
            num_multimask_outputs=decoder.multimask_outputs,
            iou_head_depth=decoder.iou_depth,
            iou_head_hidden_dim=decoder.iou_width,
        ),
    ).eval()


def openclip(config):
    """open_clip.model.CLIP for a ClipConfig."""
    vision, text = config.vision, config.text
    return open_clip.model.CLIP(
        text.embed_dim,
        dict(
            layers=vision.depth,
            width=vision.width,
            head_width=vision.width // vision.heads,
            mlp_ratio=vision.mlp_width / vision.width,
            patch_size=vision.patch,
            image_size=vision.image_size,
        ),
        dict(
            context_length=text.context_length,
            vocab_size=text.vocab_size,
            width=text.width,
            heads=text.heads,
            layers=text.depth,
            mlp_ratio=text.mlp_width / text.width,
        ),
        quick_gelu=vision.activation == "quick_gelu",
    ).eval()


def huggingface_clip(config):
    """transformers.CLIPModel for a ClipConfig."""

    def tower(tower):
        return dict(
            hidden_size=tower.width,
            intermediate_size=tower.mlp_width,
            num_hidden_layers=tower.depth,
            num_attention_heads=tower.heads,
            hidden_act=tower.activation,
        )

    vision, text = config.vision, config.text
    return transformers.CLIPModel(
        transformers.CLIPConfig(
            vision_config=tower(vision)
            | dict(image_size=vision.image_size, patch_size=vision.patch),
            text_config=tower(text)
            | dict(
                vocab_size=text.vocab_size,
                max_position_embeddings=text.context_length,
                bos_token_id=text.vocab_size - 2,
                eos_token_id=text.vocab_size - 1,
            ),
            projection_dim=text.embed_dim,
        )
    ).eval()


def huggingface_sam(config):
    """transformers.SamModel for a SamConfig."""
    encoder, decoder = config.encoder, config.mask_decoder
    run = encoder.depth // encoder.groups
    return transformers.SamModel(
        transformers.SamConfig(
            vision_config=dict(
                hidden_size=encoder.width,
                output_channels=encoder.out_channels,
                num_hidden_layers=encoder.depth,
                num_attention_heads=encoder.heads,
                image_size=encoder.image_size,
                patch_size=encoder.patch,
                window_size=encoder.window,
                global_attn_indexes=list(range(run - 1, encoder.depth, run)),
                mlp_dim=encoder.mlp_width,
                num_pos_feats=encoder.out_channels // 2,
            ),
            prompt_encoder_config=dict(
                hidden_size=encoder.out_channels,
                image_size=encoder.image_size,
                patch_size=encoder.patch,
                mask_input_channels=decoder.mask_channels,
            ),
            mask_decoder_config=dict(
                hidden_size=encoder.out_channels,
                mlp_dim=decoder.mlp_width,
                num_hidden_layers=decoder.depth,
                num_attention_heads=decoder.heads,
                num_multimask_outputs=decoder.multimask_outputs,
                iou_head_depth=decoder.iou_depth,
                iou_head_hidden_dim=decoder.iou_width,
                layer_norm_eps=1e-5,  # as segment_anything; the default here, 1e-6, is not
            ),
        )
    ).eval()


class ClipHead(nn.Module):
    """SAM-CLIP's head (appendix A) told in torch, of segment_anything's own blocks."""

    def __init__(self, config, encoder):
        super().__init__()
        grid = encoder.image_size // encoder.patch
        self.blocks = nn.ModuleList(
            Block(
                encoder.width,
                encoder.heads,
                encoder.mlp_width / encoder.width,
                norm_layer=lambda width: nn.LayerNorm(width, eps=1e-6),
                use_rel_pos=True,
                input_size=(grid, grid),
            )
            for _ in range(config.depth)
        )
        self.norm = nn.LayerNorm(encoder.width, eps=1e-6)
        self.mlp = nn.Sequential(
            nn.Linear(encoder.width, config.mlp_hidden),
            nn.GELU(),
            nn.Linear(config.mlp_hidden, config.mlp_hidden),
            nn.GELU(),
            nn.Linear(config.mlp_hidden, config.embed_dim),
        )

    def forward(self, tokens):  # [B, h, w, width] -> [B, D], [B, h, w, D]
        for block in self.blocks:
            tokens = block(tokens)
        return self.mlp(self.norm(tokens.amax((1, 2)))), self.mlp(self.norm(tokens))


SPREAD = (  # pattern of a name, standard deviation; the first that is found counts
    (r"gaussian|shared_\w*embedding", 1.0),
    (r"rel_pos", 0.2),
    (r"output_upscaling.*bias", 0.3),
    (r"hypernetworks.*bias", 0.5),
    (r"^mlp.*bias", 1.0),
    (r"bias|(iou|mask)_token|(pos|class|point|mask|token)\w*_embed\w*(\.\d)?(\.weight)?$", 0.1),
)
GAIN = (  # the same, times 1 / sqrt(inputs)
    (r"patch_embed|visual\.conv1|patch_embedding|mask_downscaling\.[03]|mask_embed\.conv[12]", 0.1),
    (r"out_proj|attn\.proj|lin2|c_proj|fc2|neck|cross\w*\.v_proj", 0.1),
    (r"", 1.4),
)
SMALL_NORMS = r"transformer\.layers.*norm|neck|ln_pre|pre_layrnorm"


def randomise(model, seed=0):
    """`model` with all its weights and buffers drawn at random; float16 holds them exactly.

    Attention is far from uniform and activations see a wide range, so that every detail shows;
    what enters a LayerNorm is small, so that its eps shows too.
    """
    generator = torch.Generator().manual_seed(seed)
    for name, value in model.state_dict().items():
        if not value.is_floating_point():
            continue
        noise = torch.randn(value.shape, generator=generator)
        if value.ndim == 1 and name.endswith("weight"):
            drawn = (1 + 0.3 * noise) * (0.1 if re.search(SMALL_NORMS, name) else 1)
        else:
            std = next((std for pattern, std in SPREAD if re.search(pattern, name)), None)
            if std is None:
                gain = next(gain for pattern, gain in GAIN if re.search(pattern, name))
                std = gain / (value[0].numel() if value.ndim > 1 else 1) ** 0.5
            drawn = std * noise
        value.copy_(drawn.half())
    return model


@torch.no_grad()
def resize_sam(model, size):
    """A copy whose tables are resized (outside, as users do) to an input of `size` = (h, w) px.

    The relative-position tables are resized by the original itself.
    """
    model = copy.deepcopy(model)
    encoder, prompts = model.image_encoder, model.prompt_encoder
    patch = encoder.patch_embed.proj.kernel_size[0]
    grid = tuple(side // patch for side in size)
    table = encoder.pos_embed.permute(0, 3, 1, 2)
    table = F.interpolate(table, grid, mode="bicubic", align_corners=False)
    encoder.pos_embed = nn.Parameter(table.permute(0, 2, 3, 1))
    prompts.image_embedding_size, prompts.input_image_size = grid, size
    return model
