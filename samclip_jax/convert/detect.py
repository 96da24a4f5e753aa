"""The model's config, from its tensors' shapes and from the JSON files that lie beside them."""

from samclip_jax.convert.readers import read_json
from samclip_jax.errors import UserError

STATISTICS_ASSUMED = {"mean": "mean {}", "std": "std {}"}  # as in ASSUMED of a family
RESCALED = {"do_rescale": [True], "rescale_factor": [1 / 255]}  # a view of pixels, see other_views


class Shapes(dict):
    """{our name, one layer at a time: shape of its tensor}; a missing one is a UserError."""

    def __init__(self, layout, shapes):
        super().__init__(shapes)
        self.layout = layout

    def __missing__(self, name):
        raise UserError(f"{self.layout.key(name)} is missing, which tells the model's size.")

    def layers(self, stack):
        """The number of layers in "vision/blocks/"."""
        numbers = [name[len(stack) :].split("/")[0] for name in self if name.startswith(stack)]
        return 1 + max(map(int, numbers), default=-1)


def detect(family, layout, shapes, path, quick_gelu=None):
    """(config, [what is assumed]) of the model in a weight file.

    Assumed is what no file tells, and what is done here in another way than a file says.

    family: its module, sam.py or clip.py. layout: its Layout. shapes: {our name, one layer at a
    time: shape in the layout}. quick_gelu: CLIP's activation, where it is not as the files beside
    `path` say.
    """
    try:
        return family.config_of(Shapes(layout, shapes), path.parent, quick_gelu)
    except UserError as error:
        raise UserError(f"{path}: {error}") from error
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
        raise UserError(
            f"{path}: its shapes and the JSON files beside it are not those of one {layout.title} "
            f"model ({error})."
        ) from error


def completed(values, defaults, said):
    """(the values, with defaults where they are absent or None; how those are reported).

    said: {name: how a default is reported, "{} heads in the mask decoder"}.
    """
    values = {name: value for name, value in values.items() if value is not None}
    missing = [name for name in defaults if name not in values]
    return defaults | values, [said[name].format(defaults[name]) for name in missing]


def section(config, name):
    return config.get(name) or {}


def _json(path):
    return read_json(path) if path.is_file() else {}


def hugging_face(folder, model_type):
    """config.json, where there is one and it is of this type of model."""
    config = _json(folder / "config.json")
    return config if config.get("model_type") == model_type else {}


def image_processor(folder):
    config = _json(folder / "processor_config.json").get("image_processor", {})
    return config | _json(folder / "preprocessor_config.json")


def square(side):
    return {"height": side, "width": side}


def other_views(config, view):
    """How values of the file are reported that ask for another view of a photograph.

    view: {name: [what is done here, and how else a file may write it]}.
    """
    return [
        f"{name} {ours[0]!r}, though a file beside the weights has {config[name]!r}"
        for name, ours in view.items()
        if config.get(name) is not None and config[name] not in ours
    ]


def statistics(config, prefix=""):
    """Mean and std, published for pixels in [0, 1]; ours are for 0 to 255."""
    if config.get("do_normalize") is False:
        return {"mean": (0.0,) * 3, "std": (255.0,) * 3}
    published = {name: config.get(prefix + name) for name in ("mean", "std")}
    for name, values in published.items():
        if values and (len(values) != 3 or (name == "std" and not min(values) > 0)):
            raise UserError(f"{prefix}{name} is {values}: three numbers are needed, std over 0")
    return {
        k: tuple(round(255 * v, 8) for v in values) for k, values in published.items() if values
    }
