"""All knowledge of BasicSR's quirks: repairs of its versions, networks by name, checkpoints."""
