"""Torch networks whose binary convolutions are packed: their files, layers and engine."""
