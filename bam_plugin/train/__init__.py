"""Training and testing from option files through BasicSR's pipelines, and the report of a test.

training.py: `bam train`. testing.py: `bam test`. report.py: its table beside the paper's values.
scripts.py: the same in training scripts of others. `python -m bam_plugin.train` and
`torchrun -m bam_plugin.train` train, too.
"""
