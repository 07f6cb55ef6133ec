from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from helpers.training_runs import iterate, make_batch, make_model
from torch import nn

from bam_plugin.archs.bsrn_arch import BSRN
from bam_plugin.models.training_stages import StagedTraining, StageError
from bam_plugin.nn import ESTIMATORS, BinaryConv2d
from bam_plugin.nn.binary_conv import binary_convs
from bam_plugin.nn.fast import fused
from bam_plugin.nn.sign import PROGRESSIVE, RELAXATIONS, sign


@pytest.mark.parametrize(
    ("name", "progress"), [(name, None) for name in sorted(ESTIMATORS)] + [("ede", 0.3), ("ede", 0.8)]
)
def test_relaxations_have_the_estimators_as_derivatives(name, progress):
    arguments = (progress or 0.0,) if name in PROGRESSIVE else ()
    x = torch.linspace(-2.03, 2.05, 57, requires_grad=True)
    (estimated,) = torch.autograd.grad(ESTIMATORS[name](x, *arguments).sum(), x)
    (derivative,) = torch.autograd.grad(RELAXATIONS[name](x, *arguments).sum(), x)
    torch.testing.assert_close(derivative, estimated)


def make_conv() -> BinaryConv2d:
    torch.manual_seed(2)
    return BinaryConv2d(in_channels=3, out_channels=4, output_scale="channel")


def test_each_stage_computes_what_it_says():
    conv = make_conv()
    with fused.switched(False):
        stages = StagedTraining(lengths={"float": 2, "binary_activations": 3}, networks=[conv])
        assert [stages.at(iteration) for iteration in (1, 2, 3, 5, 6, 99)] == [
            "float", "float", "binary_activations", "binary_activations", "binary", "binary",
        ]  # fmt: skip
        x = torch.randn(2, 3, 5, 5)
        binary = conv(x)
        normalized = F.batch_norm(x, None, None, training=True)
        scaled = conv.weight * conv.output_scale.view(-1, 1, 1, 1)
        assert stages.enter(1)
        torch.testing.assert_close(conv(x), F.conv2d(F.hardtanh(normalized), scaled, padding=1))
        assert not stages.enter(2)
        assert stages.enter(3)
        torch.testing.assert_close(conv(x), F.conv2d(sign(normalized), scaled, padding=1))
        assert stages.enter(6)
        assert torch.equal(conv(x), binary)
        assert conv.mode == "binary"


def test_training_passes_through_the_stages(tiny_pairs):
    model = make_model(tiny_pairs, stages={"float": 2, "binary_activations": 2}, precision="bf16", ema_decay=0.5)
    outputs = {}
    for iteration in range(1, 6):
        iterate(model, iteration, make_batch())
        model.test()
        staged = model.output.clone()
        model.stages.enter(99)
        model.test()
        outputs[iteration] = torch.equal(staged, model.output)
        model.stages.enter(iteration)
    # The averaged network is validated in the stage that is trained; behind the last staged iteration it is binary.
    assert outputs == {1: False, 2: False, 3: False, 4: True, 5: True}
    assert {conv.mode for conv in binary_convs(model.net_g).values()} == {"binary"}


def make_bsrn(**options) -> BSRN:
    torch.manual_seed(4)
    network = BSRN(num_feat=8, num_hpb=2, num_lb=3, upscale=2, upsampler="pixelshuffledirect", **options)
    for parameter in network.parameters():
        torch.nn.init.uniform_(parameter, -0.3, 0.3)
    return network


@pytest.mark.parametrize("output_scale", ["channel", "scalar"])
def test_behind_the_stages_accumulated_filters_have_the_signs_they_had_alone(output_scale):
    alone = make_bsrn(output_scale=output_scale, long_range=False, short_range=False)
    accumulating = make_bsrn(output_scale=output_scale)
    accumulating.load_state_dict(alone.state_dict())
    x = torch.rand(2, 3, 7, 6)
    with torch.no_grad():
        assert not torch.allclose(accumulating.eval()(x), alone.eval()(x))
    stages = StagedTraining(lengths={"binary_activations": 2}, networks=[accumulating])
    stages.enter(1)
    accumulating(x)
    assert not stages.leave(1)
    assert stages.leave(2)
    assert stages.stage == "binary"
    convs = {name: conv for name, conv in alone.named_modules() if isinstance(conv, BinaryConv2d)}
    wanted = {name: conv.decompose()[0] for name, conv in convs.items()}
    found: dict[str, tuple[torch.Tensor, torch.Tensor]] = {}
    for name, conv in accumulating.named_modules():
        if isinstance(conv, BinaryConv2d):
            conv.register_forward_hook(
                lambda conv, inputs, _, name=name: found.update({name: conv.decompose(*inputs[1:])[0]})
            )
    with torch.no_grad():
        accumulating(x)
    assert found.keys() == wanted.keys()
    for name, (signs, scale) in wanted.items():
        assert torch.equal(found[name][0], signs), name
        if output_scale == "channel":
            torch.testing.assert_close(found[name][1], scale * centred_share(convs[name].weight))
        else:
            expected = (scale * centred_share(convs[name].weight)).mean()
            torch.testing.assert_close(found[name][1].mean(), expected)


def centred_share(weight: torch.Tensor) -> torch.Tensor:
    """E|W - E(W)| / E|W| per output filter."""
    centred = weight - weight.mean(dim=(1, 2, 3), keepdim=True)
    return (centred.abs().mean(dim=(1, 2, 3)) / weight.abs().mean(dim=(1, 2, 3))).detach()


def test_the_average_is_handed_over_too_and_a_training_of_stages_alone_is_not(tiny_pairs):
    def latents(network):
        blocks = network.body[0].blocks
        return blocks[0].conv3.weight.detach().clone(), blocks[1].conv3.weight.detach().clone()

    stages = {"float": 2}
    model = make_model(tiny_pairs, stages=stages, ema_decay=0.5, optim_g={"type": "SGD", "lr": 0.0})
    before = latents(model.net_g)
    iterate(model, 1, make_batch())
    assert torch.equal(latents(model.net_g)[1], before[1])
    iterate(model, 2, make_batch())
    first, second = before[0], before[1]
    expected = (second - second.mean(dim=(1, 2, 3), keepdim=True)) - (first - first.mean(dim=(1, 2, 3), keepdim=True))
    for network in (model.net_g, model.net_g_ema):
        torch.testing.assert_close(latents(network)[1], expected)
    model = make_model(tiny_pairs, stages=stages, ema_decay=0.5, optim_g={"type": "SGD", "lr": 0.0}, total_iter=2)
    before = latents(model.net_g)
    for iteration in (1, 2):
        iterate(model, iteration, make_batch())
    assert torch.equal(latents(model.net_g)[1], before[1])


def test_learning_in_the_float_stage_reaches_the_latents(tiny_pairs):
    model = make_model(tiny_pairs, stages={"float": 1}, optim_g={"type": "SGD", "lr": 0.1})
    iterate(model, 1, make_batch())
    assert all(float(p.grad.abs().max()) > 0 for name, p in model.net_g.named_parameters() if "conv3.weight" in name)


@pytest.mark.parametrize(
    ("lengths", "network", "message"),
    [
        ({"binary": 5}, make_conv(), "float, binary_activations"),
        ({"float": "5"}, make_conv(), "numbers of iterations"),
        ({"float": 5}, nn.Conv2d(1, 1, 1), "no BinaryConv2d"),
        ({"float": 5}, BinaryConv2d(in_channels=1, out_channels=1, activation_binarizer="dorefa"), "DoReFaActivation"),
    ],
)
def test_wrong_options_are_explained(lengths, network, message):
    with pytest.raises(StageError, match=message):
        StagedTraining(lengths=lengths, networks=[network])
