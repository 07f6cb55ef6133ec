"""Validation: compute every image in 8 bits, measure it by BasicSR's metrics, and keep one record per image."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from basicsr.metrics import calculate_metric
from basicsr.utils import imwrite, tensor2img
from tqdm import tqdm

from bam_plugin.errors import BamError
from bam_plugin.pictures.measures import luma


def validate(model: Any, dataloader: Any, current_iter: Any, tb_logger: Any, save_img: bool) -> None:
    """Run `model` on each image of `dataloader` (batches of one), measure, save, and log the means.

    Fills `model.image_results[NAME]` with one record per image: `image` and each metric of `val.metrics`. Metrics are
    those of BasicSR on the 8-bit result. Images go to `visualization/NAME/IMAGE_SUFFIX.png` (testing) or
    `visualization/IMAGE/IMAGE_ITER.png` (training).
    """
    name = dataloader.dataset.opt["name"]
    metrics = model.opt["val"].get("metrics") or {}
    records: list[dict[str, Any]] = []
    for data in tqdm(dataloader, desc=name, unit="image", leave=False, disable=not model.opt["val"].get("pbar", False)):
        image = Path(data["lq_path"][0]).stem
        result, target = _super_resolve(model, data)
        if save_img:
            imwrite(result, str(_image_path(model.opt, name, image, current_iter)))
        record: dict[str, Any] = {"image": image}
        if target is not None:
            pair = _comparable(result, target)
            for metric, options in metrics.items():
                record[metric] = float(calculate_metric(pair, options))
        records.append(record)
    if not records:
        raise BamError(f"the dataset {name} holds no images; check its dataroot_lq and dataroot_gt")
    model.image_results[name] = records
    measured = [metric for metric in metrics if metric in records[0]]
    if measured:
        model._initialize_best_metric_results(name)
        model.metric_results = {metric: sum(record[metric] for record in records) / len(records) for metric in measured}
        for metric, value in model.metric_results.items():
            model._update_best_metric_result(name, metric, value, current_iter)
        model._log_validation_metric_values(current_iter, name, tb_logger)


def _comparable(result: np.ndarray, target: np.ndarray) -> dict[str, np.ndarray]:
    """The result and the target as a metric compares them. A single-channel target is measured as grey
    (pictures.measures).

    Then both are (H, W, 1), for BasicSR's metrics and for ours.
    """
    if target.ndim == 3:
        return {"img": result, "img2": target}
    return {"img": luma(result, full_range=True), "img2": target[..., None]}


def _super_resolve(model: Any, data: dict[str, Any]) -> tuple[Any, Any]:
    """The 8-bit result and the 8-bit target, if the data has one, both (H, W, 3) BGR or (H, W)."""
    model.feed_data(data)
    model.test()
    visuals = model.get_current_visuals()
    result = tensor2img([visuals["result"]])
    target = tensor2img([visuals["gt"]]) if "gt" in visuals else None
    # The next image may be larger, so nothing of this one stays on the device.
    model.lq = model.output = None
    if hasattr(model, "gt"):
        del model.gt
    if model.device.type == "cuda":
        torch.cuda.empty_cache()
    return result, target


def _image_path(opt: dict[str, Any], dataset: str, image: str, current_iter: Any) -> Path:
    folder = Path(opt["path"]["visualization"])
    if opt["is_train"]:
        return folder / image / f"{image}_{current_iter}.png"
    return folder / dataset / f"{image}_{opt['val'].get('suffix') or opt['name']}.png"
