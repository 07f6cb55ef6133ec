"""The subcommands of `bam`, one module each (see `bam_plugin.cli`)."""
