"""The fused training path: one function per layer (fused.py), its passes in C (native.py, csrc/)."""
