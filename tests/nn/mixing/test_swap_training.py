"""A mixed network through BasicSR's training: it starts from a pretrained host, is averaged, saved and loaded."""

import pytest
import torch
from helpers import training_options

import bam_plugin.archs  # noqa: F401
from bam_plugin.archs.bsrn_arch import ARCH_REGISTRY
from bam_plugin.nn import BinaryConv2d
from bam_plugin.train.training import train

HOST = {"type": "EDSR", "num_in_ch": 3, "num_out_ch": 3, "num_feat": 8, "num_block": 2, "upscale": 4}


@pytest.fixture
def trained(tiny_pairs, tmp_path, monkeypatch):
    """(checkpoint of a mixed network trained for 6 iterations from a full-precision host, the host)."""
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(1)
    host = ARCH_REGISTRY.get("EDSR")(**{key: value for key, value in HOST.items() if key != "type"})
    torch.save({"params": host.state_dict()}, tmp_path / "host.pth")
    options = training_options.tiny_options(tiny_pairs, total_iter=6)
    options["network_g"] = {"type": "Binarized", "host": HOST, "recipe": {"exclude": ["upsample*"]}}
    options["path"].update(pretrain_network_g=str(tmp_path / "host.pth"), strict_load_g=True, param_key_g="params")
    options["val"]["val_freq"] = 6
    options["logger"].update(save_checkpoint_freq=6, use_tb_logger=False)
    assert train(["-opt", training_options.write_options(options, tmp_path / "mix.yml")]) in (0, None)
    return tmp_path / "experiments/tiny/models/net_g_6.pth", host


def test_mixed_network_trains_from_a_full_precision_host(trained):
    path, host = trained
    state = torch.load(path, weights_only=True)
    network = ARCH_REGISTRY.get("Binarized")(host=HOST, recipe={"exclude": ["upsample*"]})
    for key in ("params", "params_ema"):
        network.load_state_dict(state[key], strict=True)
        for value in network.state_dict().values():
            assert torch.isfinite(value.float()).all()
    convs = [name for name, module in network.named_modules() if isinstance(module, BinaryConv2d)]
    assert len(convs) == 5
    for name in convs:
        start = host.get_parameter(name.removeprefix("host.").removesuffix(".conv") + ".weight")
        moved = (state["params"][f"{name}.weight"] - start).abs()
        # Six steps of Adam at 1e-3: it began at the host's weight and has left it.
        assert 0 < moved.max() <= 0.0061, name
