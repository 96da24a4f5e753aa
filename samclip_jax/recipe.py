"""The recipe of the paper, for config files to build on: what its three stages share.

Values without a source are our choice: the paper is silent there. Those of a head are in
config.HeadConfig, of a stream's examples in data/pipeline.py, of its prompts in data/prompts.py.

"CVNets" is apple/ml-cvnets examples/range_augment/clip/clip_vit_base.yaml, the recipe of the code
base that the paper used.
"""

import dataclasses
import inspect
import statistics

from ml_collections import ConfigDict
from ml_collections.config_dict import FieldReference

from samclip_jax.config import MASKS, HeadConfig
from samclip_jax.data import pipeline
from samclip_jax.data.sources import SOURCES
from samclip_jax.evals.probing import ATTENTIVE, CVNETS
from samclip_jax.inference.reading import PAPER
from samclip_jax.inference.refine import Refinement

CLIP_IMAGES = 40_194_000  # 99 % of the 40.6 M images of D_CLIP (4.1)


def steps(config, epochs):
    """Steps of `epochs` of D_CLIP, whose batches are as often of one resolution as of another."""
    images = pipeline.batch_sizes(config.streams.clip).values()
    return round(epochs * CLIP_IMAGES / statistics.mean(images))


def anything(value=None):
    """A value that the command line may replace by one of any type."""
    return FieldReference(value, field_type=object)


def fields(options):
    """The fields of a dataclass, for the command line to replace."""
    values = dataclasses.asdict(options).items()
    return {name: anything() if value is None else value for name, value in values}


def source(name, **options):
    """A source of data/sources.py and every option that one can have; None: not given."""
    known = {name for kind in SOURCES.values() for name in inspect.signature(kind).parameters}
    names = sorted(known | options.keys())
    return ConfigDict({"name": name} | {key: anything(options.get(key)) for key in names})


def base():
    config = ConfigDict()
    config.init = ""  # stage 1: a converted SAM ViT-B; later stages: the workdir of the one before
    config.teachers = dict(
        clip="",  # a converted OpenCLIP ViT-L-14 datacomp_xl_s13b_b90k (4.1)
        sam="",  # a converted SAM ViT-B (4.1)
    )
    config.heads = dict(clip=dataclasses.asdict(HeadConfig()))  # appendix A
    config.terms = ConfigDict()
    config.mask_loss = dict(
        focal=20.0,  # Segment Anything, appendix A
        dice=1.0,
        iou=1.0,  # Segment Anything's weight; SAM-CLIP does not say if it distils this head
        focal_alpha=0.25,  # SAM 2's code
        focal_gamma=2.0,
        targets="soft",  # or binary
        padding=True,  # or not; SAM's masks, too, are of the whole frame
        tokens=(1.0, 1.0, 1.0, 1.0),  # evenly: the single mask, then the three of an unclear prompt
    )
    config.streams = ConfigDict()
    config.streams.clip = dict(
        kind="clip",
        sources=dict(main=source("folder", weight=1)),  # how often an epoch has each image
        workers=8,
        micro_batches=1,
        # so that chips share every batch evenly, 1024 px too
        **dataclasses.asdict(pipeline.ClipStream(batch_multiple=32)),
    )
    config.optimizer = dict(
        learning_rate=8e-4,
        end_learning_rate=1e-6,  # CVNets
        warmup_steps=1000,  # CVNets
        schedule_steps=0,  # set by the stage
        weight_decay=0.2,  # CVNets
        b1=0.9,  # CVNets
        b2=0.98,  # CVNets
        eps=1e-6,  # CVNets
        clip_norm=0.0,  # 0: none, CVNets
    )
    config.lr_factors = ()
    config.steps = 0
    config.max_bad_steps = 10  # in a row without a finite loss and gradient; then the run stops
    config.dtype = "bfloat16"  # CVNets: mixed precision; state, losses and norms are float32
    config.gradient_dtype = "float32"  # of sums over micro-batches and streams; or bfloat16
    config.remat = True  # the gradient makes activations again, all but most of attention's outputs
    config.fsdp = 1  # chips that share one copy of the state; 8 on pods
    config.seed = 0
    config.log_every = 50
    config.checkpoint_every = 1000
    config.checkpoints_kept = 3
    # sets that data.prepare has made; one whose data.path is not given is left out
    config.evals = dict(
        imagenet=evaluation("zero_shot_classification", "prepared"),
        coco=evaluation("box_masks", "prepared"),
        voc=evaluation("zero_shot_segmentation", "prepared"),
    )
    config.eval_every = 20_000  # steps, about an epoch of stage 1; 0: at the end alone
    return config


def clip_term():
    """L_CLIP, eq. 1."""
    return ConfigDict(
        dict(
            stream="clip",
            teacher="clip",
            target="summary",
            head="clip",
            loss="cosine",
            weight=1.0,
        )
    )


def sam_term():
    """L_SAM, eq. 2, and the data it is computed on."""
    term = dict(
        stream="sam",
        teacher="sam",
        target="masks",
        head=MASKS,
        loss="masks",
        weight=10.0,  # lambda
    )
    stream = dict(
        kind="sam",
        sources=dict(main=source("sa1b", weight=1)),
        workers=4,
        micro_batches=1,
        **dataclasses.asdict(pipeline.SamStream()),
    )
    return ConfigDict(term), ConfigDict(stream)


def evaluations():
    """{task of evals.EVALUATORS: the kind of its data, and its options}, the paper's."""
    background = dict(
        background=anything("class"),  # or clippy (the paper's likeliest), none, or texts
        background_threshold=anything(),  # a probability, SCLIP's prob_thd
        names=anything(),  # a json file {class: [texts]}
    )
    reading = fields(PAPER)  # the paper's form
    return {
        "zero_shot_classification": dict(
            data="folder",  # with --config.data.labels=True: a sub-folder for each class
            image_size=336,  # of a merged model; table 1 is table 6's row of 336 px
            templates=anything("openai"),  # 80 a class (4.2); or simple, or texts with {}
            batch_size=64,  # images that a device takes at once
        ),
        "retrieval": dict(
            data="captions",
            image_size=336,  # of a merged model; the paper does not say
            captions=anything(5),  # of each image, the first (Karpathy's protocol); None: all
            batch_size=64,
        ),
        "box_masks": dict(
            data="coco_instances",
            threshold=anything(),  # a logit to report masks at besides 0, or "best"
            batch_size=4,
        ),
        "point_masks": dict(data="coco_instances", threshold=anything(), batch_size=4),
        "instance_segmentation": dict(
            data="coco_instances",
            detections=anything(),  # COCO results json of a detector; None: the true boxes
            mask_iterations=1,  # Segment Anything, D.4; HQ-SAM: 0
            multimask=True,  # D.4's "most confident" of three; HQ-SAM: False
            batch_size=4,
        ),
        "zero_shot_segmentation": dict(
            data="coco_panoptic",
            image_size=448,  # of a merged model (4.2)
            templates=anything("openai"),
            **background,
            upsample="logits",  # 4.2; or labels (appendix C)
            maskclip=False,  # of a plain CLIP: its last block's values alone
            reading=reading,
            batch_size=16,
        ),
        "refined_segmentation": dict(
            data="coco_panoptic",
            templates=anything("openai"),
            **background,
            refinement=fields(Refinement()),  # the paper's form
            reading=reading,
            seed=0,
            batch_size=4,
        ),
        "cascade_segmentation": dict(  # table 5's baseline, of --checkpoint=SAM
            data="coco_panoptic",
            clip=anything(),  # the checkpoint that names crops; None: the model itself
            image_size=336,  # of a merged model's crops
            points_per_side=32,  # this and the next two: SamAutomaticMaskGenerator's
            pred_iou_thresh=0.88,
            stability_score_thresh=0.95,
            templates=anything("openai"),
            **background,
            batch_size=64,
        ),
        "knn": dict(
            data="folder",
            train=source("folder"),  # the images that vote
            neighbours=20,  # DINO, appendix F: 10, 20, 100 and 200
            temperature=0.07,  # DINO's
            layer=anything(),  # encoder, head or embedding; None: the head, of a SAM the encoder
            image_size=224,  # of a SAM or a merged model
            batch_size=64,
        ),
        "classification_probe": dict(  # table 4
            data="folder",
            train=source("folder"),
            probe="linear",  # or attentive
            layer=anything(),
            image_size=224,
            C=0.316,  # of the linear one, as scikit-learn has it; CLIP's README
            iterations=1000,  # of its L-BFGS at most; CLIP's README
            training=dataclasses.asdict(ATTENTIVE),  # of the attentive one
            batch_size=64,
        ),
        "segmentation_probe": dict(  # table 3
            data="prepared",
            train=source("prepared"),
            head="linear",  # deeplabv3, pspnet
            layer=anything(),
            image_size=512,  # this and the next three: CVNets
            short=(256, 768),
            longest=1024,
            class_share=0.75,
            training=dataclasses.asdict(CVNETS),
            batch_size=16,
        ),
    }


def evaluation(task, data=None):
    """One of them as a config has it: {"task", "data", "limit", options}. data: another kind of
    source than the usual one."""
    options = evaluations()[task]
    usual = options.pop("data")
    return ConfigDict({"task": task, "data": source(data or usual), "limit": anything(), **options})
