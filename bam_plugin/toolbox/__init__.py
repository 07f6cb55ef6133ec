"""Everything that knows BasicSR's quirks: repairs of its versions, networks by name, scripts that use both."""
