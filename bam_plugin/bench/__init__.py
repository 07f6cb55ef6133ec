"""What `bam bench` measures the packed engine against: other runtimes on the same network with the same weights.

A rival gets the packed graph itself, so it needs no training library. Its result is compared with the engine's before
it is timed. `segments.py` cuts body and tail, `rivals.py` has the list of rivals, and each runtime has one module.
"""
