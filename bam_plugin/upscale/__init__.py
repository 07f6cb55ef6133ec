"""Pictures in, larger pictures out: `Upscaler`, batches of files, memory for tiles, results side by side. No torch."""

from bam_plugin.upscale.upscaler import Upscaler

__all__ = ["Upscaler"]
