"""Mixing: what is replaced and why, pretrained weights, and the hosts that are registered in BasicSR."""

import pytest
import torch
from helpers.networks import HOSTS
from torch import nn

from bam_plugin.archs.binarized_arch import Binarized
from bam_plugin.archs.bsrn_arch import ARCH_REGISTRY
from bam_plugin.conversion.converter import convert_network
from bam_plugin.nn import METHODS, BinaryConv2d
from bam_plugin.nn.mixing.grouping import GroupedLayer
from bam_plugin.nn.mixing.recipe import Recipe, SwapError, as_recipe
from bam_plugin.nn.mixing.swap import binarize


def build(name, **recipe):
    torch.manual_seed(5)
    torch.set_num_threads(1)
    return Binarized(host={"type": name, **HOSTS[name][0]}, recipe=recipe)


def group_sizes(network):
    layers = [module for module in network.modules() if isinstance(module, GroupedLayer)]
    alone = sum(layer.group is None for layer in layers)
    return sorted([1] * alone + [group.size for group in {layer.group for layer in layers if layer.group}])


def train_step(network, size=12):
    network(torch.rand(2, 3, size, size)).square().mean().backward()
    for name, module in network.named_modules():
        if isinstance(module, BinaryConv2d):
            assert torch.isfinite(module.weight.grad).all() and module.weight.grad.abs().sum() > 0, name


@pytest.mark.parametrize("name", sorted(HOSTS))
def test_host_is_binarized_and_trains(name):
    _, scale, convs, binarized, sizes = HOSTS[name]
    network = build(name)
    assert (len(network.report.rows), len(network.report.binarized)) == (convs, binarized)
    assert sum(isinstance(module, BinaryConv2d) for module in network.modules()) == binarized
    assert group_sizes(network) == sizes
    train_step(network)
    network.eval()
    x = torch.rand(1, 3, 12, 12)
    with torch.no_grad():
        result = network(x)
        assert result.shape == (1, 3, 12 * scale, 12 * scale)
        assert torch.equal(result, network(x))


@pytest.mark.parametrize("name", sorted(HOSTS))
def test_state_dict_round_trip(name, tmp_path):
    network = build(name)
    torch.save(network.state_dict(), tmp_path / "net.pth")
    other = build(name)
    for value in other.parameters():
        nn.init.normal_(value)
    other.load_state_dict(torch.load(tmp_path / "net.pth", weights_only=True))
    x = torch.rand(1, 3, 12, 12)
    with torch.no_grad():
        assert torch.equal(network.eval()(x), other.eval()(x))


@pytest.mark.parametrize("method", sorted(METHODS))
def test_every_method_can_be_mixed_in(method):
    network = build("EDSR", binarizer=method, exclude="upsample*", group="all" if method == "bam" else "parent")
    assert len(network.report.binarized) == 5
    train_step(network)


@pytest.mark.parametrize("name", sorted(HOSTS))
def test_full_precision_checkpoint_loads_strictly_into_its_binarized_host(name):
    torch.manual_seed(6)
    pretrained = ARCH_REGISTRY.get(name)(**HOSTS[name][0])
    network = build(name)
    network.load_state_dict(pretrained.state_dict(), strict=True)
    own = dict(network.named_parameters())
    for key, value in pretrained.named_parameters():
        if key not in own and f"host.{key}" not in own:
            layer, _, leaf = key.rpartition(".")
            key = f"{layer}.conv.{leaf}"
        assert torch.equal(own[f"host.{key}"], value), key


def test_a_wrong_checkpoint_is_still_refused():
    network = build("EDSR")
    state = ARCH_REGISTRY.get("EDSR")(**HOSTS["EDSR"][0]).state_dict()
    state["conv_extra.weight"] = state.pop("conv_last.weight")
    with pytest.raises(RuntimeError, match=r"(?s)Missing.*conv_last\.weight.*Unexpected.*conv_extra\.weight"):
        network.load_state_dict(state)


def test_weights_that_the_network_has_become_the_latents():
    host = nn.Sequential(*(nn.Conv2d(4, 4, 3, padding=1) for _ in range(3)))
    weight, bias = host[1].weight.detach().clone(), host[1].bias.detach().clone()
    binarize(host, {"latent_gain": 0.5})
    assert torch.equal(host[1].conv.weight, 0.5 * weight) and torch.equal(host[1].bias, bias)


def test_report_says_what_was_kept_and_why():
    class Host(nn.Module):
        def __init__(self):
            super().__init__()
            self.first = nn.Conv2d(3, 8, 3, padding=1)
            self.good = nn.Conv2d(8, 8, 3, padding=1)
            self.grouped = nn.Conv2d(8, 8, 3, padding=1, groups=2)
            self.dilated = nn.Conv2d(8, 8, 3, padding=2, dilation=2)
            self.mirrored = nn.Conv2d(8, 8, 3, padding=1, padding_mode="reflect")
            self.narrow = nn.Conv2d(8, 8, (3, 1), padding=(1, 0))
            self.point = nn.Conv2d(8, 8, 1)
            self.frozen = nn.Conv2d(8, 8, 3, padding=1).requires_grad_(False)
            self.unused = nn.Conv2d(8, 8, 3, padding=1)
            self.shared = nn.Conv2d(8, 8, 3, padding=1)
            self.alias = self.shared.weight
            self.attention = nn.Conv2d(8, 8, 3, padding=1)
            self.left_out = nn.Conv2d(8, 8, 3, padding=1)
            self.transposed = nn.ConvTranspose2d(8, 8, 3, padding=1)
            self.linear = nn.Linear(8, 8)
            self.last = nn.Conv2d(8, 3, 3, padding=1)

        def forward(self, x):
            x = self.first(x)
            for layer in (self.good, self.grouped, self.dilated, self.mirrored, self.narrow, self.point, self.frozen):
                x = layer(x)
            x = self.transposed(self.left_out(self.shared(x)))
            x = x * self.attention(x.mean((2, 3), keepdim=True))
            x = self.linear(x.movedim(1, -1)).movedim(-1, 1)
            return self.last(x)

    report = binarize(Host(), {"exclude": ["left_*"]}, example=torch.rand(2, 3, 8, 8))
    reasons = {row.name: row.note for row in report.rows if not row.binarized}
    assert report.binarized == ["good"]
    expected = {
        "first": "first", "last": "last", "grouped": "2 groups", "dilated": "dilated", "mirrored": "reflect",
        "narrow": "both directions", "point": "kernel size 1", "frozen": "frozen", "unused": "not reached",
        "shared": "alias", "attention": "single pixel", "left_out": "excluded", "transposed": "ConvTranspose2d",
    }  # fmt: skip
    assert set(reasons) == set(expected)
    for name, part in expected.items():
        assert part in reasons[name], (name, reasons[name])
    text = str(report)
    assert "1 of 14 convolutions binarized; kept: 1 Host, 1 Linear" in text  # Host owns `alias`
    assert all(row.name in text and row.note in text for row in report.rows)


def test_groups_follow_the_recipe():
    def sizes(group, **options):
        layers = [nn.Conv2d(3, 4, 3, padding=1), *(nn.Conv2d(4, 4, 3, padding=1) for _ in range(5))]
        layers += [
            nn.Conv2d(4, 4, 3, padding=1, stride=2),
            nn.Conv2d(4, 4, 3, padding=1),
            nn.Conv2d(4, 3, 3, padding=1),
        ]
        host = nn.Sequential(*layers)
        binarize(host, {"group": group}, **options)
        train_step(host)
        return group_sizes(host)

    example = torch.rand(2, 3, 8, 8)
    assert sizes("none") == [1] * 7
    assert sizes(2, example=example) == [1, 1, 1, 2, 2]
    # After the stride the maps are smaller: an example tells, and another group begins.
    assert sizes("all", example=example) == [1, 1, 5]
    assert sizes("parent", example=example) == [1, 1, 5]


def test_groups_follow_the_order_of_execution():
    class Backwards(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1)

        def forward(self, x):
            return self.a(self.b(x))

    host = Backwards()
    binarize(host, {"keep_first_last": False}, example=torch.rand(2, 4, 8, 8))
    assert (host.b.index, host.a.index) == (0, 1)
    host(torch.rand(2, 4, 8, 8))


def test_a_convolution_called_twice_stands_alone():
    class Recurrent(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1)

        def forward(self, x):
            return self.b(self.a(self.a(x)))

    host = Recurrent()
    binarize(host, {"keep_first_last": False}, example=torch.rand(2, 4, 8, 8))
    assert host.a.group is None and host.b.group is None
    host(torch.rand(2, 4, 8, 8)).sum().backward()


def test_skip_adds_the_input():
    torch.manual_seed(0)
    x = torch.rand(1, 4, 8, 8)
    outputs = []
    for skip in (False, True):
        torch.manual_seed(1)
        host = nn.Sequential(nn.Conv2d(4, 4, 3, padding=1))
        binarize(host, {"keep_first_last": False, "skip": skip})
        outputs.append(host.eval()(x))
    torch.testing.assert_close(outputs[1], outputs[0] + x)


def test_wrong_recipes_are_refused_with_the_reason():
    host = nn.Sequential(nn.Conv2d(4, 4, 3, padding=1))
    with pytest.raises(SwapError, match=r"no convolution of Sequential qualifies \(0: first convolution\)"):
        binarize(host)
    with pytest.raises(SwapError, match=r"no key 'binariser'; did you mean binarizer\?"):
        binarize(host, {"binariser": "bam"})
    with pytest.raises(SwapError, match="'parent', 'all', 'none' or a positive number, found 0"):
        as_recipe({"group": 0})
    with pytest.raises(SwapError, match="type"):
        Binarized(host={"num_feat": 8})
    with pytest.raises(SwapError, match=r"nn\.Sequential"):
        binarize(nn.Conv2d(4, 4, 3), Recipe(keep_first_last=False))


@pytest.mark.parametrize(
    ("recipe", "message"),
    [
        ({"binarizer": "bamm"}, r"found 'bamm'; did you mean bam\?"),
        ({"binarizer": None}, "binarizer must be a text, found None"),
        ({"weight_binarizer": "abcd"}, r"weight_binarizer must be one of .* did you mean abc\?"),
        ({"activation_binarizer": "rsing"}, r"did you mean rsign\?"),
        ({"weight_options": {"alfa": "one"}}, r"weight_options: BAMWeight has no option 'alfa'; did you mean alpha\?"),
        ({"weight_options": {"group_index": 1}}, "has no option 'group_index'"),
        ({"weight_options": {"alpha": "two"}}, "weight_options: .* found 'two'"),
        ({"weight_options": "one"}, "weight_options must be a mapping or None, found 'one'"),
        ({"binarizer": "xnor", "activation_options": {"bases": 2}}, "XNORSign has no option 'bases'"),
        ({"kernel_sizes": 3}, r"kernel_sizes must be a list \(each a whole number\) or None, found 3"),
        ({"kernel_sizes": ["3"]}, r"kernel_sizes must be .* found \['3'\]"),
        ({"skip": "yes"}, "skip must be true or false or None, found 'yes'"),
        ({"norm": "bn"}, "norm must be true or false or None, found 'bn'"),
        ({"keep_first_last": 1}, "keep_first_last must be true or false, found 1"),
        ({"latent_gain": "0.1"}, "latent_gain must be a number, found '0.1'"),
        ({"beta": "twice"}, "beta mode must be one of .* found 'twice'"),
        ({"beta_offset": True}, "beta_offset must be a number or None, found True"),
        ({"output_scale": "pixel"}, "output_scale must be None, 'scalar' or 'channel', found 'pixel'"),
        ({"group": True}, "group must be"),
        ({"include": 3}, "include must be a list"),
        ("bam", "a recipe must be a mapping, found 'bam'"),
    ],
)
def test_every_mistake_in_a_recipe_is_a_swap_error(recipe, message):
    host = nn.Sequential(*(nn.Conv2d(4, 4, 3, padding=1) for _ in range(4)))
    with pytest.raises(SwapError, match=message):
        binarize(host, recipe)
    assert all(type(layer) is nn.Conv2d for layer in host)


def test_the_host_stays_untouched_by_watching():
    """The running statistics are those before, and no hook stays behind."""
    host = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Conv2d(4, 4, 3), nn.Conv2d(4, 3, 3))
    binarize(host, example=torch.rand(2, 3, 8, 8))
    assert host[1].num_batches_tracked == 0
    assert not host[0]._forward_pre_hooks and not host[1]._forward_pre_hooks


def test_re_parameterized_blocks_evaluate_what_they_train():
    """ECBSR folds its branches into one convolution in evaluation, past the binary one; the training form is kept."""
    network = build("ECBSR").eval()
    block = network.host.backbone[1]
    x = torch.rand(1, 8, 6, 6)
    with torch.no_grad():
        branches = [block.conv3x3, block.conv1x1_3x3, block.conv1x1_sbx, block.conv1x1_sby, block.conv1x1_lpl]
        expected = block.act(sum(branch(x) for branch in branches) + x)
        torch.testing.assert_close(block(x), expected)
    assert not block.conv3x3.training


def test_a_failed_swap_changes_nothing():
    host = nn.Sequential(*(nn.Conv2d(4, 4, 3, padding=1) for _ in range(4)))
    with pytest.raises(SwapError, match="output_scale"):
        binarize(host, {"output_scale": "pixel"})
    assert all(type(layer) is nn.Conv2d for layer in host) and not host._forward_pre_hooks


def test_a_group_of_the_whole_network_converts_without_a_wrapper():
    """The scope of the group is the network itself, whose own hooks fx does not run."""
    torch.manual_seed(5)
    network = ARCH_REGISTRY.get("SRVGGNetCompact_basicsr")(**HOSTS["SRVGGNetCompact_basicsr"][0])
    binarize(network, example=torch.rand(2, 3, 24, 24))
    assert group_sizes(network) == [4]
    conversion = convert_network(network.eval())
    assert conversion.comparison.same_signs.max_difference <= 1
    assert {row.layer for row in conversion.rows} > {"body.0", "body.2.conv"}


@pytest.mark.parametrize("method", ["bam", "react", "dorefa"])
@pytest.mark.parametrize("name", ["EDSR", "SRVGGNetCompact_basicsr"])
def test_mixed_networks_convert_to_packed_files(name, method):
    """The accumulated filters and sums of a foreign forward are traced like any other: same signs, same picture."""
    network = build(name, binarizer=method)
    with torch.no_grad():
        network(torch.rand(2, 3, 16, 16))
    comparison = convert_network(network.eval()).comparison
    assert comparison.same_signs.max_difference <= 1
    assert len(comparison.flips) == len(network.report.binarized)
    assert all(flipped == 0 for flipped, _ in comparison.flips.values())
