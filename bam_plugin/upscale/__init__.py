"""Pictures in, larger pictures out: `Upscaler`, batches of files, results side by side. No torch."""

from bam_plugin.upscale.batch import FileResult, UpscaleBatch, upscale_files
from bam_plugin.upscale.before_after import compare_files
from bam_plugin.upscale.upscaler import Upscaler, UpscaleResult

__all__ = ["FileResult", "UpscaleBatch", "UpscaleResult", "Upscaler", "compare_files", "upscale_files"]
