"""`python -m bam_plugin.train` and `torchrun -m bam_plugin.train`: the same as `bam train`."""

import sys

from bam_plugin.train.training import main

if __name__ == "__main__":
    sys.exit(main())
