"""From files to batches: numpy, Pillow and Grain; nothing here may import jax (see worker.py)."""
