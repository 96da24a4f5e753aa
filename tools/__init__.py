"""Command lines beside the package: weight conversion and the demo's teachers."""
