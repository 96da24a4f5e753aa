"""The frozen models that a student is distilled from."""

import functools

import jax

from samclip_jax import checkpoint, families
from samclip_jax.config import TEXT_HEAD
from samclip_jax.errors import UserError, under
from samclip_jax.models.samclip import same_texts


def targets(terms):
    """{teacher: what these terms ask of it}."""
    asked = {}
    for term in terms.values():
        asked.setdefault(term.teacher, set()).add(term.target)
    return asked


def load_configs(config):
    """{name: config} of the teachers in the terms; UserError where one cannot give its target."""
    configs = {}
    for name, asked in targets(config.terms).items():
        if not config.teachers[name]:
            wanted = families.that_give(asked)[0].title
            raise UserError(f"set --config.teachers.{name} to the checkpoint of {wanted}")
        with under(f"--config.teachers.{name}: "):
            configs[name] = checkpoint.load_config(config.teachers[name], asked)
    return configs


def load(config, configs, mesh):
    """{name: params} of these teachers, over the mesh, and {name: graph} without their text
    towers."""
    params, graphs = {}, {}
    for name, model_config in configs.items():
        with under(f"--config.teachers.{name}: "):
            _, loaded, _ = checkpoint.load_model(config.teachers[name], mesh=mesh)
        params[name] = at_rest(loaded, config.dtype)
        graphs[name], _ = families.split_images(model_config)
    return params, graphs


@functools.partial(jax.jit, static_argnums=1)
def at_rest(params, dtype):
    """A teacher's parameters with its matrices in the dtype that they are multiplied in."""
    return {k: x.astype(dtype) if k.endswith("/kernel") else x for k, x in params.items()}


def require_fit(config, params, teachers):
    """UserError unless the student can learn from these teachers."""
    for term in config.terms.values():
        if term.head == TEXT_HEAD and not same_texts(params, teachers[term.teacher]):
            raise UserError(
                f"--config.teachers.{term.teacher}: its text tower is not the student's, whose "
                "images would be learnt for other texts; give the CLIP that the first stage had, "
                "or start from a plain SAM"
            )
