"""The model that is trained: what it starts from, its heads, and what of it is frozen."""

import jax

from samclip_jax import checkpoint, families, optim, sharding
from samclip_jax.config import MASKS, TEXT_HEAD
from samclip_jax.errors import UserError, under
from samclip_jax.models.config import ClipHeadConfig, SamClipConfig
from samclip_jax.models.samclip import start_params


def student_config(config, start, teachers):
    """The SamClipConfig that `start`, of a SAM or a merged model, is trained as.

    teachers: {name: config}. It has the heads that `start` has, and those that the terms name
    besides, each as wide as what it learns; a SAM gets the text tower of `text_teacher`. UserError
    where a head of `start` is not as config.heads has it, or not as wide as its teacher, and where
    a SAM and its teacher differ in patches or masks.
    """
    heads = dict(getattr(start, "heads", {}))
    for term_name, term in config.terms.items():
        teacher = teachers[term.teacher]
        sams = start.sam, getattr(teacher, "sam", start.sam)
        if term.target != "summary" and len({sam.encoder.patch for sam in sams}) > 1:
            raise UserError(
                f"--config.teachers.{term.teacher}: its patches are not as large as the student's; "
                "give a SAM of the student's kind"
            )
        if term.head == MASKS and len({sam.mask_decoder.multimask_outputs for sam in sams}) > 1:
            raise UserError(
                f"--config.teachers.{term.teacher}: it has another number of masks than the "
                "student; give a SAM of the student's kind"
            )
        if term.head == MASKS:
            continue
        width = families.of(teacher).width(teacher)
        new = ClipHeadConfig(**vars(config.heads[term.head]), embed_dim=width)
        head = heads.setdefault(term.head, new)
        if head.embed_dim != width:
            raise UserError(
                f"--config.terms.{term_name}: head {term.head!r} has {head.embed_dim} channels, "
                f"teacher {term.teacher!r} gives {width}; name another of --config.heads"
            )
        for key, value in vars(config.heads[term.head]).items():
            if getattr(head, key) != value:
                there = getattr(head, key)
                raise UserError(
                    f"--config.heads.{term.head}.{key} is {value!r}, but the head {term.head!r} "
                    f"that training starts from has {there!r}: set it to that"
                )
    text = getattr(start, "text", None) or teachers[text_teacher(config, teachers)].text
    return SamClipConfig(start.sam, heads, text)


def text_teacher(config, teachers):
    """The name of the teacher whose text tower a plain SAM gets: it teaches TEXT_HEAD."""
    for term in config.terms.values():
        if term.head == TEXT_HEAD and "text" in families.of(teachers[term.teacher]).outputs:
            return term.teacher
    raise UserError(
        f"--config.init is a plain SAM, without texts: add a term with head={TEXT_HEAD!r} whose "
        "teacher is a CLIP, or start from a merged model"
    )


def start_student(config, teachers, mesh):
    """(config, params, tokenizer) of config.init with its new heads, laid out over the mesh.

    teachers: {name: config}.
    """
    if not config.init:
        raise UserError("set --config.init to the checkpoint that training starts from")
    with under("--config.init: "):
        start, params, tokenizer = checkpoint.load_model(config.init, {"masks"}, mesh)
    student, clip_params = student_config(config, start, teachers), None
    if student == start:
        return student, params, tokenizer
    if "text" not in families.of(start).outputs:
        clip = config.teachers[text_teacher(config, teachers)]
        _, clip_params, tokenizer = checkpoint.load_model(clip, {"text"}, mesh)

    def started(params, clip_params):
        return start_params(student, params, clip_params, config.seed)

    there = sharding.shardings(mesh, jax.eval_shape(started, params, clip_params))
    return student, jax.jit(started, out_shardings=there)(params, clip_params), tokenizer


def require_heads(config, teachers, student, workdir):
    """UserError unless the run in workdir, whose config is `student`, has what the terms teach."""
    if student_config(config, student, teachers) != student:
        raise UserError(
            f"{workdir} was begun with the heads {', '.join(student.heads)}, the terms ask for "
            f"others: begin anew from it, --config.init={workdir} and another --workdir"
        )


def partition(config, params):
    """(trainable, frozen, factors), see optim.partition. A head that no term teaches is frozen:
    weight decay would wear it away."""
    trainable, frozen, factors = optim.partition(params, config.lr_factors)
    taught = {f"heads/{term.head}/" for term in config.terms.values() if term.weight}
    idle = {n for n in trainable if n.startswith("heads/") and not n.startswith(tuple(taught))}
    frozen = {n: leaf for n, leaf in params.items() if n in frozen or n in idle}
    trainable = {n: leaf for n, leaf in trainable.items() if n not in idle}
    return trainable, frozen, {n: factors[n] for n in trainable}
