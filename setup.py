"""pip install -e .[test]; extras: eval, prepare, tfds, test, tpu, gpu, oracle.

Upper bounds stand where the next release is known, or has often been, to break its users.
"""

from setuptools import find_packages, setup

TFDS = "tensorflow-datasets>=4.9.9,<5"

setup(
    name="samclip_jax",
    version="0.1.0",
    description="SAM-CLIP in JAX: two vision foundation models merged into one by distillation",
    license="Apache-2.0",
    packages=find_packages(include=["samclip_jax", "samclip_jax.*"]),  # the rest is the checkout's
    package_data={"samclip_jax": ["**/*.json", "assets/**/*"]},
    python_requires=">=3.11",
    install_requires=[
        "absl-py>=2.1",
        "array-record>=0.8,<0.9; sys_platform != 'win32'",  # no wheels; data/records.py says so
        "etils[epath]>=1.9,<2",
        "flax>=0.12.8,<0.13",
        "grain>=0.2.15,<0.3",
        "hotcoco>=1.3,<2",
        "jax>=0.10,<0.13",
        "matplotlib>=3.9,<4",
        "ml_collections>=1.0,<2",
        "msgpack>=1.0,<2",
        "numpy>=2.0,<3",
        "opencv-python-headless>=4.10,<6",
        "optax>=0.2.6,<0.3",
        "orbax-checkpoint>=0.12.4,<0.13",  # its v1 API is young
        "Pillow>=11.3",  # it reads AVIF
        "pycocotools>=2.0.10,<3",
        "safetensors>=0.5,<1",
        "scipy>=1.13,<2",
        "simplejpeg>=1.8,<2",
        "tokenizers>=0.21,<1",
        "tqdm>=4.66,<5",
    ],
    extras_require={
        "eval": [TFDS],
        "test": [
            TFDS,
            "build>=1,<2",
            "pytest>=8,<10",
            "pytest-xdist>=3.6,<4",
            "ruff>=0.17,<0.18",
            "scikit-learn>=1.5,<2",
        ],
        # data.prepare's kind tfds, for sets that TFDS has yet to make
        "tfds": [TFDS, "importlib_resources>=6,<8", "tensorflow>=2.16,<3"],
        "prepare": ["apache-beam[gcp]>=2.60,<3"],
        "tpu": ["jax[tpu]>=0.10,<0.13", "gcsfs"],
        "gpu": ["jax[cuda12]>=0.10,<0.13"],  # NVIDIA's, on Linux
        # The PyTorch originals, for live parity tests. .ci/run adds open_clip_torch and timm.
        "oracle": [
            "ftfy",
            "segment-anything>=1,<2",
            "torch==2.13.0",
            "transformers>=5,<6",
            "webdataset>=1,<2",
        ],
    },
)
