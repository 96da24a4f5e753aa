"""python -m samclip_jax.data.prepare KIND SOURCE OUTPUT [--option=value ...]

Makes ArrayRecord shards of a data set as it is released, which any number of hosts read at random:

    sa1b         SA-1B, its sa_*.tar            tar      img2dataset's and webdataset's tars
    imagenet21k  a tar for each synset          folder   images; --labels: its folders are classes
    coco         instances json, LVIS' as well  tfds     a data set's name
    imagenet places365 voc pascal_context pascal_context_59 ade20k coco_panoptic coco_stuff
    coco_stuff_27 coco_object captions webdataset: docs/data.md

The source is cut into units. Each is prepared by itself, so the output does not depend on the
number of workers, and a run that was killed goes on with the units that are left; then they are
packed into shards of about 1 GB. What cannot be used is counted and listed: inputs = records +
rejects.

--runner hands the units to Apache Beam (pip install -e .[prepare]), which takes all options after
it, as --runner=DataflowRunner --project=P --region=R --temp_location=gs://...; its workers need
this package, and SOURCE and OUTPUT under the same paths (Filestore, Cloud Storage FUSE). That is
for tars: a list of files or COCO's json would have to travel with the job.
"""

import argparse
import collections
import concurrent.futures
import dataclasses
import functools
import inspect
import json
import multiprocessing
import os
import shutil
import threading
import time

from samclip_jax.data import evaluation_sets, raw, records, tars
from samclip_jax.data.decode import line
from samclip_jax.data.packing import find_duplicates, plan_shards, write_shard
from samclip_jax.data.unit import Options, examples_of, prepare_unit, write_atomically
from samclip_jax.data.worker import end_with
from samclip_jax.errors import UserError, command, os_errors
from samclip_jax.paths import local_path
from samclip_jax.progress import Bar

KINDS = tars.KINDS | raw.KINDS | evaluation_sets.KINDS
KIND_OPTIONS = {
    "images": "the folder of the image files",
    "maps": "the folder of the label maps",
    "split": "of the set; SOURCE of tfds is as name/config:1.0.0",
    "labels": "the folders are classes",
    "extension": "of the picture of a sample of several images, as jpg or image.png",
}
LEFT_OUT = ("duplicate", "other_image")  # rejects that speak of nothing to mend
PLANNED = {  # what a set is begun with besides options
    "kind": "KIND",
    "source": "SOURCE",
    "units": "list of files in SOURCE",
    "shard_bytes": "size of shards",
}
FEW = 1000  # inputs, before which no share of rejects stops a run


def prepare(kind_name, source, output, options, runner, **kind_options):
    """Prepares a data set and returns its manifest. UserError says what is wrong.

    runner(work, items, check) calls work(*item) for each of them, in any order: `run` or
    `run_beam`, their last argument given.
    """
    output = local_path(output)
    require_files(output / records.SHARDS)
    bound = inspect.signature(KINDS[kind_name]).bind(str(source), **kind_options)
    bound.apply_defaults()
    about = {"kind": kind_name, **bound.arguments, "options": dataclasses.asdict(options)}
    del about["options"]["max_rejects"]  # which changes no record
    if manifest := records.read_manifest(output):
        require_same(output, {key: manifest.get(key) for key in about}, about)
        clear(output, manifest)
        return manifest
    try:
        kind = KINDS[kind_name](*bound.args)
    except (ValueError, KeyError, IndexError) as error:
        raise UserError(f"{source} is not as {kind_name} is released: {line(error)}") from None
    units = list(kind.units())
    with os_errors(f"{output} was not written"):
        for folder in (records.SHARDS, "progress"):
            (output / folder).mkdir(parents=True, exist_ok=True)
        fingerprints = [[name, fingerprint] for name, _, fingerprint in units]
        plan = about | {"units": fingerprints, "shard_bytes": records.SHARD_BYTES}
        begun = output / "progress" / "plan"
        if begun.exists():
            require_same(output, json.loads(begun.read_text()), plan)
        write_atomically(begun, json.dumps(plan))
        check = functools.partial(require_usable, options=options, output=output)
        work = functools.partial(prepare_unit, kind, options, output)
        run_left(runner, work, output, [(name, what) for name, what, _ in units], check)
        return finish(output, about, [name for name, *_ in units], options, kind, runner)


def run_left(runner, work, output, items, check):
    """Gives the runner the items, (name, ...), without progress/NAME.json."""
    left = [each for each in items if not (output / "progress" / f"{each[0]}.json").exists()]
    if left:
        runner(work, left, check)


def require_same(output, begun, now):
    """UserError where `output` was begun with something else."""
    now = json.loads(json.dumps(now))
    begun, now = ({**each, **each.get("options", {}), "options": None} for each in (begun, now))
    changed = [PLANNED.get(key, f"--{key}") for key in now if begun.get(key) != now[key]]
    if changed:
        raise UserError(
            f"{output} was begun with a different {' and a different '.join(changed)}; give the "
            f"same as then, delete {output}, or give another OUTPUT."
        )


def require_files(folder):
    """UserError where a folder lies among the shards: `clear` could not remove it."""
    if folders := sorted(path for path in folder.glob("*") if path.is_dir()):
        raise UserError(f"{folders[0]} is a folder, which no shard is; move it elsewhere.")


def run_beam(work, items, check, arguments):
    """Works where Apache Beam's options say; what is wrong with the whole is checked at the end."""
    try:
        import apache_beam
        from apache_beam.options.pipeline_options import PipelineOptions
    except ImportError:
        raise UserError("--runner needs Apache Beam: pip install -e .[prepare]") from None
    known = PipelineOptions([]).get_all_options()
    for argument in (each for each in arguments if each.startswith("--")):  # Beam would only warn
        if argument[2:].partition("=")[0].removeprefix("no_") not in known:
            raise UserError(f"neither prepare nor Apache Beam has an option {argument}")
    with apache_beam.Pipeline(options=PipelineOptions(arguments)) as pipeline:
        created = pipeline | apache_beam.Create(items) | apache_beam.Reshuffle()
        _ = created | apache_beam.MapTuple(work)


def run(work, items, check, workers):
    """Works in `workers` processes. check(inputs, rejects, examples), as `require_usable`, may end
    it with a UserError."""
    context = multiprocessing.get_context("spawn")
    count = context.Value("q", 0)
    inputs, rejects, examples = 0, collections.Counter(), {}
    stage = work.func.__name__.replace("_", " ")
    bar, began = Bar(desc=stage, total=len(items), unit="units", delay=0), time.monotonic()
    pool = concurrent.futures.ProcessPoolExecutor(
        min(workers, len(items)), context, begin_worker, (work, count, os.getpid())
    )
    with pool, bar:
        waiting = {pool.submit(work_in_worker, *item) for item in items}
        try:
            while waiting:
                done, waiting = concurrent.futures.wait(waiting, 0.5, "FIRST_COMPLETED")
                for finished in done:
                    new_inputs, new_rejects, new_examples = finished.result()
                    inputs += new_inputs
                    rejects.update(new_rejects)
                    examples = new_examples | examples
                check(inputs, rejects, examples, few=FEW)
                rate = count.value / (time.monotonic() - began)
                bar.set_postfix_str(f"{count.value:,} images, {rate:.3g} a second")
                bar.update(len(done))
        except concurrent.futures.process.BrokenProcessPool:
            raise UserError(
                "a worker was killed, perhaps for lack of memory; run the same again, with fewer "
                "--workers."
            ) from None
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


def require_usable(inputs, rejects, examples, options, output, few=1):
    """UserError where too many inputs were rejected. rejects: {reason: number}; examples: {reason:
    the detail of one}."""
    dirt = collections.Counter({k: n for k, n in rejects.items() if k not in LEFT_OUT})
    bad = dirt.total()
    if inputs >= few and bad > options.max_rejects * inputs:
        (reason, number), *_ = dirt.most_common(1)
        raise UserError(
            f"{bad} of {inputs} inputs cannot be used, {number} of them are {reason} "
            f"({examples[reason]}); mend the source and delete {output}, or raise --max_rejects"
        )


_WORKER = {}


def begin_worker(work, count, parent):
    threading.Thread(target=end_with, args=(parent,), daemon=True).start()
    _WORKER.update(work=work, count=count)


def work_in_worker(*item):
    return _WORKER["work"](*item, tick=tick)


def tick():
    with _WORKER["count"].get_lock():
        _WORKER["count"].value += 1


# ----------------------------------------------------------------------------------------- the end


def finish(output, about, names, options, kind, runner):
    """Packs the units into shards without duplicates, writes rejects.jsonl and manifest.json, and
    returns the manifest."""
    units = [read_unit(output, name) for name in names]
    read_contents = functools.partial(contents, output, names)
    duplicates = find_duplicates(units, read_contents, options.deduplicate)
    rejects = [reject for unit in units for reject in unit["rejects"]]
    reasons = collections.Counter(reason for _, reason, _ in rejects)
    dropped = collections.Counter(reason for *_, reason, _ in kind.dropped)
    for unit in units:
        dropped.update(unit["dropped"])
    annotations = [*kind.dropped, *(each for unit in units for each in unit["dropped_annotations"])]
    inputs = sum(unit["inputs"] for unit in units)
    check = functools.partial(require_usable, options=options, output=output)
    check(inputs, reasons, examples_of(rejects))
    planned = plan_shards(units, duplicates)
    run_left(runner, functools.partial(write_shard, output), output, planned, check)
    shards = [json.loads((output / "progress" / f"{name}.json").read_text()) for name, _ in planned]
    manifest = about | {
        "inputs": inputs,
        "records": sum(shard["records"] for shard in shards),
        "rejects": len(rejects),
        "reasons": reasons,
        "annotations_dropped": dropped,
        "damaged": [each for unit in units for each in unit["damaged"]],
        "classes": kind.classes or sorted({label for unit in units for label in unit["labels"]}),
        "shards": shards,
    }
    if not manifest["records"]:
        raise UserError(f"nothing in {about['source']} can be used; see {output}/progress")
    named = ("key", "annotation", "reason", "detail"), annotations
    listed = [
        dict(zip(names, each, strict=True))
        for names, lines in (named, (("key", "reason", "detail"), rejects))
        for each in lines
    ]
    write_atomically(output / records.REJECTS, "".join(json.dumps(each) + "\n" for each in listed))
    write_atomically(output / records.MANIFEST, json.dumps(manifest, indent=2) + "\n")
    clear(output, manifest)
    return manifest


def clear(output, manifest):
    """Removes what served to make the set."""
    kept = {shard["name"] for shard in manifest["shards"]}
    for path in [*(output / records.SHARDS).iterdir(), *output.glob("*.part")]:
        if path.name not in kept:
            path.unlink()
    shutil.rmtree(output / "progress", ignore_errors=True)


def read_unit(output, name):
    """progress/NAME.json without its `contents`: the keys of 40 million images would not fit."""
    unit = json.loads((output / "progress" / f"{name}.json").read_text())
    return {key: value for key, value in unit.items() if key != "contents"}


def contents(output, names, number):
    """{split: {"keys", "digests"}} of the records of a unit."""
    return json.loads((output / "progress" / f"{names[number]}.json").read_text())["contents"]


def parse(arguments=None):
    """The command line -> what `prepare` takes, and the further options of the kind."""
    form = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(prog="prepare", description=__doc__, formatter_class=form)
    parser.add_argument("kind", choices=KINDS, metavar="KIND")
    parser.add_argument("source", metavar="SOURCE")
    parser.add_argument("output", metavar="OUTPUT")
    parser.add_argument("--workers", type=int, default=os.cpu_count(), help="processes")
    for name, says in KIND_OPTIONS.items():
        action = "store_true" if name == "labels" else "store"
        parser.add_argument(f"--{name}", action=action, default=None, help=says)
    for field in dataclasses.fields(Options):
        name = f"--{field.name}"
        says = field.metadata["help"]
        if field.default is False:
            parser.add_argument(name, action="store_true", help=says)
        else:
            kind = float if isinstance(field.default, float) else int
            parser.add_argument(name, type=kind, default=field.default, help=says)
    parser.add_argument("--runner", help="Apache Beam's; options of it may follow")
    flags, rest = parser.parse_known_args(arguments)
    flags = vars(flags)
    if rest and not flags["runner"]:
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    if flags["workers"] < 1:
        raise UserError(f"--workers must be 1 or more, got {flags['workers']}")
    runner = functools.partial(run, workers=flags["workers"])
    if flags["runner"]:
        runner = functools.partial(run_beam, arguments=[f"--runner={flags['runner']}", *rest])
    options = Options(
        **{field.name: flags.pop(field.name) for field in dataclasses.fields(Options)}
    )
    kind = flags["kind"]
    more = {name: flags[name] for name in KIND_OPTIONS if flags[name] is not None}
    _, *takes = inspect.signature(KINDS[kind]).parameters.values()
    for name in more.keys() - {parameter.name for parameter in takes}:
        owners = [k for k, make in KINDS.items() if name in inspect.signature(make).parameters]
        raise UserError(f"--{name} goes with {', '.join(owners)}")
    for parameter in takes:
        if parameter.default is parameter.empty and parameter.name not in more:
            raise UserError(f"{kind} needs --{parameter.name}, {KIND_OPTIONS[parameter.name]}")
    return (kind, flags["source"], flags["output"], options, runner), more


@command
def main():
    arguments, more = parse()
    manifest = prepare(*arguments, **more)
    print(f"{arguments[2]}: {manifest['records']} records of {manifest['inputs']} inputs", end="")
    reasons = ", ".join(f"{n} {reason}" for reason, n in sorted(manifest["reasons"].items()))
    print(f"; {manifest['rejects']} rejected: {reasons}" if reasons else "")
    for reason, number in manifest["annotations_dropped"].items():
        print(f"annotations left out: {number} {reason}")
    for each in manifest["damaged"]:
        print(f"damaged: {each}")


if __name__ == "__main__":
    main()
