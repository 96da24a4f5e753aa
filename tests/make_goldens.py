"""Parity data from the PyTorch originals: weights, inputs and outputs, small, nothing at zero.

    python tests/make_goldens.py        # with torch, segment-anything, transformers, open_clip

writes tests/goldens/NAME.npz, one original each: "config" (ours, JSON), "weights/<its names>"
(float16) and "CASE/ARRAY" for what goes in and what comes out. The tests then need no torch.
"""

import json
import pathlib

import numpy as np
import originals
import torch
import torch.nn.functional as F

from samclip_jax.families import to_dict
from samclip_jax.models.config import (
    ClipConfig,
    ClipHeadConfig,
    ClipTextConfig,
    ClipVisionConfig,
    ImageEncoderConfig,
    MaskDecoderConfig,
    SamClipConfig,
    SamConfig,
)

FOLDER = pathlib.Path(__file__).parent / "goldens"
SAM = SamConfig(
    ImageEncoderConfig(
        width=32, depth=6, heads=2, groups=2, patch=8, image_size=64, window=3, mlp_width=64,
        out_channels=48,
    ),
    MaskDecoderConfig(heads=4, mlp_width=64, iou_width=32),
)  # fmt: skip
DEEP_SAM = SamConfig(  # one group, three heads, the real patch, a window larger than a small grid
    ImageEncoderConfig(
        width=24, depth=4, heads=3, groups=1, patch=16, image_size=96, window=5, mlp_width=48,
        out_channels=16,
    ),
    MaskDecoderConfig(heads=2, mlp_width=32, iou_width=16),
)  # fmt: skip
CLIP_16 = ClipConfig(
    ClipVisionConfig(32, 3, 2, 128, patch=16, image_size=64, embed_dim=24),
    ClipTextConfig(24, 3, 3, 96, context_length=12, vocab_size=60, embed_dim=24),
)
CLIP_32 = ClipConfig(
    ClipVisionConfig(24, 2, 2, 48, 32, 64, embed_dim=16, activation="quick_gelu"),
    ClipTextConfig(16, 2, 2, 32, 77, vocab_size=60, embed_dim=16, activation="quick_gelu"),
)
CLIP_14 = ClipConfig(
    ClipVisionConfig(32, 3, 4, 96, patch=14, image_size=56, embed_dim=20),
    ClipTextConfig(24, 2, 2, 48, context_length=12, vocab_size=60, embed_dim=20),
)
CLIP_HEAD = ClipHeadConfig(depth=2, mlp_hidden=40, embed_dim=24)


def photographs(generator, *shape):
    """uint8 [*shape, 3]: smooth colours and noise, as varied as photographs."""
    coarse = generator.uniform(0, 255, (*shape[:-2], 4, 4, 3))
    rows, columns = (np.arange(side) * 4 // side for side in shape[-2:])
    noise = generator.normal(0, 40, (*shape, 3))
    return np.clip(coarse[..., rows, :, :][..., columns, :] + noise, 0, 255).astype(np.uint8)


def channels_first(x):  # [B, h, w, C] -> [B, C, h, w]
    return torch.from_numpy(np.ascontiguousarray(x)).permute(0, 3, 1, 2)


def channels_last(x):  # [B, C, h, w] -> [B, h, w, C]
    return x.permute(0, 2, 3, 1).contiguous()


def prompts(generator, count, size, box):
    """Point prompts as SAM's original takes them, and as one list of labelled points."""
    h, w = size
    coords = generator.uniform(0, (w, h), (count, 3, 2)).astype(np.float32)
    labels = np.tile([1, 0, 1], (count, 1))
    labels[-1, 1:] = -1  # a shorter prompt, filled up as in the original
    theirs = {"points": (torch.from_numpy(coords), torch.from_numpy(labels)), "boxes": None}
    if box:
        corners = np.sort(generator.uniform(0, (w, h), (count, 2, 2)).astype(np.float32), 1)
        theirs["boxes"] = torch.from_numpy(corners.reshape(count, 4))
        last, last_labels = corners, np.tile([2, 3], (count, 1))
    else:
        last, last_labels = np.zeros((count, 1, 2), np.float32), np.full((count, 1), -1)
    coords, labels = np.concatenate([coords, last], 1), np.concatenate([labels, last_labels], 1)
    return theirs, {"points": coords, "labels": labels.astype(np.int32)}


def encoder_cases(config, sizes):
    """Images of any size through the encoder; `sizes` are (h, w)."""
    for seed, size in enumerate(sizes):
        generator = np.random.default_rng(seed)
        sam = originals.resize_sam(originals.randomise(originals.sam(config)), size)
        images = photographs(generator, 2, *size)
        yield f"encoder/{size[0]}x{size[1]}", {"images": images, **encode(sam, images)}


def encode(sam, images):
    tokens = []
    hook = sam.image_encoder.blocks[-1].register_forward_hook(lambda *args: tokens.append(args[2]))
    embedding = sam.image_encoder((channels_first(images) - sam.pixel_mean) / sam.pixel_std)
    hook.remove()
    return {"tokens": tokens[0], "embedding": channels_last(embedding)}


def sam_cases(config):
    yield from encoder_cases(config, [(64, 64), (40, 40), (96, 96), (56, 88), (88, 40)])
    for size in (64, 64), (56, 88):
        generator = np.random.default_rng(size)
        sam = originals.resize_sam(originals.randomise(originals.sam(config)), size)
        side = f"{size[0]}x{size[1]}"
        yield f"prompts/{side}", prompt_case(sam, generator, size)
        yield f"decoder/{side}", decoder_case(sam, generator, size)
        for box in (False, True):
            yield f"end_to_end/{side}/box={box}", end_to_end(sam, generator, size, box)


def prompt_case(sam, generator, size):
    encoder = sam.prompt_encoder
    case = {}
    for box in (False, True):
        theirs, ours = prompts(generator, 3, size, box)
        sparse, _ = encoder(**theirs, masks=None)
        case |= {f"box={box}/{key}": value for key, value in ours.items()}
        case[f"box={box}/sparse"] = sparse
    masks = 5 * generator.standard_normal((2, 1, size[0] // 2, size[1] // 2), np.float32)
    case["masks"] = masks[:, 0]
    case["dense"] = channels_last(encoder(None, None, torch.from_numpy(masks))[1])
    case["grid"] = channels_last(encoder.get_dense_pe())[0]
    return case


def decoder_case(sam, generator, size):
    """Two prompts of five tokens, each with a dense embedding of its own."""
    h, w = size[0] // 8, size[1] // 8
    width = sam.mask_decoder.transformer_dim

    def draw(*shape):
        return 0.1 * generator.standard_normal(shape, np.float32)

    case = {"embedding": draw(1, h, w, width), "image_pe": 7 * draw(1, h, w, width)}
    case |= {"sparse": 7 * draw(2, 5, width), "dense": draw(2, h, w, width)}
    masks, iou = sam.mask_decoder.predict_masks(
        channels_first(case["embedding"]),
        channels_first(case["image_pe"]),
        torch.from_numpy(case["sparse"]),
        channels_first(case["dense"]),
    )
    return {**case, "low_res_masks": masks, "iou": iou}


def end_to_end(sam, generator, size, box):
    """A photograph smaller than the frame, three prompts and then one with the mask it gave."""
    photo = photographs(generator, 1, size[0] - 10, size[1] - 3)
    frame = np.zeros((1, *size, 3), np.uint8)
    frame[:, : photo.shape[1], : photo.shape[2]] = photo
    pixels = (channels_first(photo) - sam.pixel_mean) / sam.pixel_std
    pixels = F.pad(pixels, (0, 3, 0, 10))
    embedding = sam.image_encoder(pixels)
    theirs, ours = prompts(generator, 3, size, box)

    def predict(masks):
        sparse, dense = sam.prompt_encoder(**theirs, masks=masks)
        image_pe = sam.prompt_encoder.get_dense_pe()
        return sam.mask_decoder.predict_masks(embedding, image_pe, sparse, dense)

    masks, iou = predict(None)
    case = {"images": frame, "sizes": np.int32([photo.shape[1:3]]), **ours}
    case |= {"low_res_masks": masks, "iou": iou}
    masks, iou = predict(masks[:, 1:2])
    return {**case, "refined_masks": masks, "refined_iou": iou}


def clip_case(config, generator):
    """Inputs for both towers: images at the tower's size, texts of several lengths."""
    size, text = config.vision.image_size, config.text
    images = photographs(generator, 3, size, size)
    tokens = np.zeros((4, text.context_length), np.int32)
    for row, length in zip(tokens, (3, 5, 8, text.context_length), strict=True):
        row[:length] = generator.integers(1, text.vocab_size - 2, length)
        row[0], row[length - 1] = text.vocab_size - 2, text.vocab_size - 1
    return images, tokens


def normalised(images, config):
    mean, std = (torch.tensor(x).view(-1, 1, 1) for x in (config.vision.mean, config.vision.std))
    return (channels_first(images) - mean) / std


def openclip_cases(config):
    clip = originals.randomise(originals.openclip(config))
    images, tokens = clip_case(config, np.random.default_rng(0))
    pixels = normalised(images, config)
    texts = torch.from_numpy(tokens)
    yield "vision", {"images": images, "pooled": clip.encode_image(pixels)}
    yield "text", {"tokens": tokens, "pooled": clip.encode_text(texts)}
    image, text, _ = clip(pixels, texts)
    yield "clip", {"images": images, "tokens": tokens, "image": image, "text": text}


def huggingface_cases(config):
    clip = originals.randomise(originals.huggingface_clip(config))
    images, tokens = clip_case(config, np.random.default_rng(0))
    texts = torch.from_numpy(tokens).long()
    seen = clip.vision_model(normalised(images, config))
    read = clip.text_model(texts)
    dense = clip.vision_model.post_layernorm(seen.last_hidden_state[:, 1:])
    yield (
        "vision",
        {
            "images": images,
            "pooled": clip.visual_projection(seen.pooler_output),
            "unprojected": seen.pooler_output,
            "dense": clip.visual_projection(dense),
        },
    )
    yield (
        "text",
        {
            "tokens": tokens,
            "pooled": clip.text_projection(read.pooler_output),
            "unprojected": read.pooler_output,
        },
    )
    images = photographs(np.random.default_rng(1), 1, 84, 42)
    seen = clip.vision_model(normalised(images, config), interpolate_pos_encoding=True)
    yield "vision/84x42", {"images": images, "pooled": clip.visual_projection(seen.pooler_output)}


def clip_head_cases(config):
    for size in (8, 8), (7, 11):
        head = originals.randomise(originals.ClipHead(config, SAM.encoder))
        tokens = 0.1 * np.random.default_rng(0).standard_normal((2, *size, 32), np.float32)
        pooled, dense = head(torch.from_numpy(tokens))
        yield f"{size[0]}x{size[1]}", {"tokens": tokens, "pooled": pooled, "dense": dense}


def resize_cases():
    """F.interpolate down, up and to another shape, as the original tables and masks need it."""
    draw = np.random.default_rng(0).standard_normal
    table, line, maps = (np.float32(draw(shape)) for shape in ((7, 9, 3), (13, 3), (2, 6, 5, 2)))
    for size in (3, 4), (15, 20):
        grid = F.interpolate(channels_first(table[None]), size, mode="bicubic")
        row = F.interpolate(torch.from_numpy(line).T[None], size[0], mode="linear")
        resized = F.interpolate(channels_first(maps), size, mode="bilinear")
        yield (
            f"{size[0]}x{size[1]}",
            {
                **{"table": table, "resized_table": channels_last(grid)[0]},
                **{"line": line, "resized_line": row[0].T.contiguous()},
                **{"maps": maps, "resized_maps": channels_last(resized)},
            },
        )


def write(name, config, original, cases):
    arrays = {"config": np.array(json.dumps(config))}
    weights = originals.randomise(original).state_dict() if original else {}
    for key, value in weights.items():
        arrays[f"weights/{key}"] = value.half().numpy()
    for case, values in cases:
        for key, value in values.items():
            arrays[f"{case}/{key}"] = value.numpy() if torch.is_tensor(value) else value
    np.savez_compressed(FOLDER / f"{name}.npz", **arrays)
    print(f"{name}: {(FOLDER / name).with_suffix('.npz').stat().st_size / 1e3:.0f} kB")


@torch.no_grad()
def main():
    FOLDER.mkdir(exist_ok=True)
    write("sam", to_dict(SAM), originals.sam(SAM), sam_cases(SAM))
    deep = encoder_cases(DEEP_SAM, [(96, 96), (128, 48)])
    write("sam_one_group", to_dict(DEEP_SAM), originals.sam(DEEP_SAM), deep)
    for name, config in ("openclip_16", CLIP_16), ("openclip_32_quick", CLIP_32):
        write(name, to_dict(config), originals.openclip(config), openclip_cases(config))
    clip = originals.huggingface_clip(CLIP_14)
    write("huggingface_14", to_dict(CLIP_14), clip, huggingface_cases(CLIP_14))
    head = originals.ClipHead(CLIP_HEAD, SAM.encoder)
    config = to_dict(SamClipConfig(SAM, {"clip": CLIP_HEAD}, CLIP_16.text))
    write("clip_head", config, head, clip_head_cases(CLIP_HEAD))
    write("resize", None, None, resize_cases())


if __name__ == "__main__":
    main()
