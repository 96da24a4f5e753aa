"""Trains the demo's two teachers, a tiny SAM and a tiny CLIP, in the procedural world."""
