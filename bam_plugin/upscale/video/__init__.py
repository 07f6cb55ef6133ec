"""Clips in, larger clips out: every frame, its time, all other streams and all tags are kept. Needs PyAV.

clip.py: what a clip holds, and its frames with damaged ones replaced. colour.py: pixels by the tagged matrix and range.
unchanged.py: parts of a picture that did not change are not computed again. pieces.py: encoded pieces that survive a
kill. encoding.py: encoders. remux.py: the final file. pipeline.py: `upscale_video`, where the three stages run side by
side.
"""
