"""Convert a training checkpoint to a bit-packed file: the same as `bam convert` (see `--help`)."""

import sys

from bam_plugin.cli import main

if __name__ == "__main__":
    sys.exit(main(["convert", *sys.argv[1:]]))
