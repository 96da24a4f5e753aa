"""setup.py: the wheel holds the package alone, and does the whole job far from a checkout."""

import importlib.metadata
import os
import pathlib
import shutil
import subprocess
import sys
import venv
import zipfile

import pytest
from packaging.requirements import Requirement
from test_demo import check_report

ROOT = pathlib.Path(__file__).parents[1]
NOT_BUILT = shutil.ignore_patterns(".*", "*.egg-info", "__pycache__", "build", "dist", "runs")
USERS = """
import runpy, sys
from pathlib import Path

import numpy as np

import benchmarks, configs, tools
import samclip_jax as sc
from samclip_jax import demo, demo_stages
from samclip_jax.data.sources import make_source
from samclip_jax.errors import UserError

MARK = "----"

if __name__ == "__main__":
    assert Path(sc.__file__).is_relative_to(sys.prefix), sc.__file__
    here = Path(__file__).parent
    assert all(Path(mine.__file__).is_relative_to(here) for mine in (benchmarks, configs, tools))

    image = make_source(**demo.DATA["scenes"])[0]["image"]
    sam, clip = (sc.Predictor(sc.load(demo.TEACHERS[kind])) for kind in ("sam", "clip"))
    sam.set_image(image)
    masks, scores, _ = sam.predict(box=np.array([10, 20, 60, 70]))
    assert masks.shape == (3, *image.shape[:2]) and masks.any((1, 2)).all() and scores.shape == (3,)
    clip.set_image(image)
    assert abs(clip.classify(["zebra", "tiger"]).sum() - 1) < 1e-5

    for config in sys.argv[1:]:  # those of the checkout ask for nothing but the package
        assert "get_config" in runpy.run_path(config)

    def short(stage, get_config=demo_stages.get_config):
        config = get_config(stage)
        config.steps, config.streams.clip.batch_size = 2, 8
        config.streams.clip.resolutions = (48,)  # each one is a program to compile
        return config

    demo_stages.get_config = short
    for data in demo.DATA.values():
        data["size"] = 8  # as many as the page shows
    demo.run(here / "runs")
    print(MARK, flush=True)
    demo.run(here / "runs")
    print(MARK, flush=True)
    try:
        demo.run(here / "runs", seed=1)
    except UserError as error:
        print(error)
"""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """As `python -m build` makes it of this checkout, by way of the source archive."""
    folder = tmp_path_factory.mktemp("wheel")
    shutil.copytree(ROOT, folder / "samclip_jax", ignore=NOT_BUILT)
    subprocess.run([sys.executable, "-m", "build"], cwd=folder / "samclip_jax", check=True)
    (wheel,) = (folder / "samclip_jax" / "dist").glob("*.whl")
    return wheel


def link_dependencies(distribution, extras, site_packages):
    """Links what a distribution requires, and no more, from this environment into another one."""
    for requirement in map(Requirement, distribution.requires or ()):
        marker = requirement.marker
        if marker and not any(marker.evaluate({"extra": extra}) for extra in ("", *extras)):
            continue
        dependency = importlib.metadata.distribution(requirement.name)
        names = {file.parts[0] for file in dependency.files} - {"..", "__pycache__"}
        missing = [name for name in names if not (site_packages / name).exists()]
        for name in missing:
            (site_packages / name).symlink_to(dependency.locate_file(name))
        if missing or requirement.extras:
            link_dependencies(dependency, requirement.extras, site_packages)


WITHOUT_RECORDS = """
import sys
from pathlib import Path

import grain  # knows by the platform that there is none
for name in [name for name in sys.modules if name.startswith("array_record")]:
    sys.modules[name] = None
from samclip_jax.data import pipeline, sources
from samclip_jax.errors import command

print(sources.make_source("shape_scenes", split="train", size=2)[0]["image"].shape)
entry = {"name": "a.array_record", "records": 1, "sha256": ""}
command(sources.records.Shards(Path("."), [entry]).__getitem__)(0)
"""


def test_all_but_prepared_data_works_where_array_record_has_no_wheel(run_python):
    """On Windows."""
    code, out, err = run_python(WITHOUT_RECORDS)
    assert code == 1 and out and "need the package array-record" in err and "Traceback" not in err


@pytest.mark.slow
def test_a_wheel_holds_the_package_alone_and_needs_no_checkout(wheel, tmp_path):
    """In an environment of its own, with the required dependencies and no others, beside a user's
    own packages of the names of our folders: released weights, masks, classes and the whole demo,
    which does nothing twice."""
    files = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    package = [path for path in (ROOT / "samclip_jax").rglob("*.*") if path.is_file()]
    assert files == {str(path.relative_to(ROOT)) for path in package if path.suffix != ".pyc"}

    venv.create(tmp_path / "venv", symlinks=True)
    python = tmp_path / "venv" / "bin" / "python"
    pip = [sys.executable, "-m", "pip", "--python", python, "install", "--quiet", "--no-deps"]
    subprocess.run([*pip, wheel], check=True)
    (site_packages,) = (tmp_path / "venv" / "lib").glob("*/site-packages")
    (information,) = site_packages.glob("samclip_jax-*.dist-info")
    link_dependencies(importlib.metadata.PathDistribution(information), (), site_packages)

    for name in ("tools", "configs", "benchmarks"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").touch()
    (tmp_path / "users.py").write_text(USERS)
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    configs = sorted((ROOT / "configs").glob("[a-z]*.py"))
    done = subprocess.run(
        [python, tmp_path / "users.py", *configs],
        cwd=tmp_path,
        env=environment | {"JAX_PLATFORMS": "cpu"},
        check=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    once, again, with_another_seed = done.stdout.split("----\n")
    trained = "stage 3 of 3: 2/2 steps"
    assert trained in once and "stage 3 of 3" not in again
    assert "begun with another seed or config" in with_another_seed
    check_report(tmp_path / "runs")
