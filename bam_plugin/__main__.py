"""`python -m bam_plugin`: the same as `bam`."""

import sys

from bam_plugin.cli import main

if __name__ == "__main__":
    sys.exit(main())
