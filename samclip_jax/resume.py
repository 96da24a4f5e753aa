"""What a run that goes on must share with the one that began; it lies beside its checkpoints.

WORKDIR/config.json   the config, as it was given last
WORKDIR/data.json     what decides which examples a batch has
"""

import json

import jax
from absl import logging

from samclip_jax import checkpoint
from samclip_jax.data.pipeline import batch_sizes
from samclip_jax.errors import UserError, os_errors


def data_order(seed, streams):
    """What decides which examples a batch has, as JSON has it.

    streams: {name: streams.Stream}.
    """
    return {
        "seed": seed,
        "streams": {
            name: {
                "batches": {str(size): n for size, n in batch_sizes(stream.examples).items()},
                "sources": [[len(source), source.weight] for source in stream.sources],
            }
            for name, stream in streams.items()
        },
    }


def require_same(workdir, steps, order):
    """UserError unless a run of so many `steps` with this order of data goes on with `workdir`.

    Its position counts batches, so that other batches would repeat or skip examples.
    """
    newest = checkpoint.newest_step(workdir)
    if newest is None:
        return
    if newest > steps:
        raise UserError(
            f"{workdir} has {newest} steps already, more than --config.steps={steps}; raise it, or "
            "choose another --workdir"
        )
    before = _read(workdir / "data.json", order)
    changes = [] if before["seed"] == order["seed"] else ["--config.seed"]
    for name, stream in order["streams"].items():
        old = before["streams"].get(name, stream)
        if stream["batches"] != old["batches"]:
            sizes = (_sizes(each["batches"]) for each in (old, stream))
            changes.append(f"--config.streams.{name} (batches of {' then, now '.join(sizes)})")
        if stream["sources"] != old["sources"]:
            lengths = (" and ".join(str(n) for n, _ in each["sources"]) for each in (old, stream))
            changes.append(
                f"--config.streams.{name}.sources (records: {' then, now '.join(lengths)}; or "
                "their weights)"
            )
    if changes:
        raise UserError(
            f"{workdir} would repeat or skip examples, for it began with other values of "
            f"{' and '.join(changes)}; give the same as then, or begin anew: --config.init="
            f"{workdir} and another --workdir"
        )


def _read(path, default):  # -> what the JSON file holds, the default where there is none
    with os_errors(f"{path} was not read"):
        text = path.read_text() if path.exists() else None
    try:
        contents = default if text is None else json.loads(text)
        if not isinstance(contents, dict) or default.keys() - contents.keys():
            raise ValueError("it lacks what a run writes there")
    except ValueError as error:
        raise UserError(f"{path} is damaged; delete it to go on without: {error}") from None
    return contents


def _sizes(batches):
    return ", ".join(f"{images} images of {size} px" for size, images in batches.items())


def write(workdir, values, order):
    """Keeps the run's config and its data's order beside it; says what a resumed run changes."""
    if jax.process_index() != 0:
        return
    new, path = json.loads(values.to_json_best_effort()), workdir / "config.json"
    with os_errors(f"{path} was not written"):
        old = _read(path, {})
        if old:
            if changed := [key for key in new if new[key] != old.get(key)]:
                logging.warning("%s goes on with other values of: %s", workdir, ", ".join(changed))
        for name, contents in (("config.json", new), ("data.json", order)):
            part = workdir / f"{name}.part"
            part.write_text(json.dumps(contents, indent=2))
            part.replace(workdir / name)
