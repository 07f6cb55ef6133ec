"""Picture files: read, decoded, written, resized, cut into tiles. No torch, no network."""
