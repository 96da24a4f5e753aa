"""The frozen models that a student is distilled from."""

import functools

import jax

from samclip_jax import checkpoint, models, sharding
from samclip_jax.errors import UserError, under
from samclip_jax.models.samclip import same_texts


def kinds(terms):
    """{teacher: the kinds of models that give all that these terms ask of it}."""
    targets = {}
    for term in terms.values():
        targets.setdefault(term.teacher, set()).add(term.target)
    return {
        name: [kind for kind, model in models.MODELS.items() if asked <= {*model.OUTPUTS}]
        for name, asked in targets.items()
    }


def load(config, mesh):
    """{name: params} of the teachers in the terms, and {name: graph} without their text towers."""
    params, graphs = {}, {}
    place = functools.partial(sharding.shardings, mesh)
    for name, fitting in kinds(config.terms).items():
        if not config.teachers[name]:
            wanted = checkpoint.KIND_NAMES[fitting[0]]
            raise UserError(f"set --config.teachers.{name} to the checkpoint of {wanted}")
        with under(f"--config.teachers.{name}: "):
            model_config, loaded, _ = checkpoint.load_model(config.teachers[name], fitting, place)
        params[name] = at_rest(loaded, config.dtype)
        graphs[name], _ = models.split_images(model_config)
    return params, graphs


@functools.partial(jax.jit, static_argnums=1)
def at_rest(params, dtype):
    """A teacher's parameters with its matrices in the dtype that they are multiplied in."""
    return {k: x.astype(dtype) if k.endswith("/kernel") else x for k, x in params.items()}


def require_fit(config, params, teachers):
    """UserError unless the student can learn from these teachers."""
    for term in config.terms.values():
        if term.target == "summary" and not same_texts(params, teachers[term.teacher]):
            raise UserError(
                f"--config.teachers.{term.teacher}: its text tower is not the student's, whose "
                "images would be learnt for other texts; give the CLIP that the first stage had, "
                "or start from a plain SAM"
            )
