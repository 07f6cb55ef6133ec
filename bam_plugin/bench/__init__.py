"""What `bam bench` measures the packed engine against: other runtimes on the same network with the same weights.

A rival gets the packed graph itself, so no training library is needed, and its result is compared with the engine's
before it is timed. `segments.py` cuts body and tail, `rivals.py` has the list, one module per runtime has the rest.
"""
