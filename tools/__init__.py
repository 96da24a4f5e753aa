"""Command lines of the checkout: weight conversion and the making of the demo's teachers."""
