"""Networks as people write them: the table is true for each, and nothing raw reaches the user."""

import copy
import threading
import warnings

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from bam_plugin.archs.binarized_arch import Binarized
from bam_plugin.nn import BinaryConv2d
from bam_plugin.nn.mixing.grouping import GroupedLayer, GroupScopeError, GroupShapeError
from bam_plugin.nn.mixing.recipe import SwapError
from bam_plugin.nn.mixing.swap import binarize
from bam_plugin.nn.mixing.watching import WatchError

EXAMPLE = torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(1))


def conv(inputs=4, outputs=4, kernel=3, **options):
    return nn.Conv2d(inputs, outputs, kernel, **{"padding": kernel // 2, **options})


class Host(nn.Module):
    """first, two or more body convolutions, last; `body(x)` is what a test puts there."""

    def __init__(self, body=None, **parts):
        super().__init__()
        torch.manual_seed(2)
        self.first, self.a, self.b = conv(3), conv(), conv()
        for name, part in parts.items():
            setattr(self, name, part)
        self.last = conv(4, 3)
        self.run = body or (lambda host, x: host.b(host.a(x)))

    def forward(self, x):
        return self.last(self.run(self, self.first(x)))


def rows(report):
    return {row.name: row.note if not row.binarized else "binary" for row in report.rows}


def check(network, report, example=EXAMPLE):
    """What the table calls binary is a binary layer that a training step reaches; the rest is as it was."""
    network.train()(example).square().mean().backward()
    for row in report.rows:
        part = network.get_submodule(row.name)
        assert isinstance(part, GroupedLayer) is row.binarized
        if row.binarized:
            assert part.conv.weight.grad is not None and part.conv.weight.grad.abs().sum() > 0, row.name


def test_convolutions_in_a_plain_list_stay_float_and_the_table_says_so():
    """The list goes on to call what was replaced elsewhere."""
    host = Host(lambda host, x: host.c(sum(layer(x) for layer in host.layers)), c=conv())
    host.layers = [host.a, host.b]
    report = binarize(host, {"binarizer": "react"}, example=EXAMPLE)
    assert report.binarized == ["c"]
    assert "second place" in rows(report)["a"] and "second place" in rows(report)["b"]
    check(host, report)
    assert host.layers[0].weight.grad is not None and host.a is host.layers[0]


def test_a_convolution_behind_a_closure_stays_float():
    host = Host(lambda host, x: host.c(host.b(host.call(x))), c=conv())
    inner = host.a
    host.call = lambda x: inner(x)
    report = binarize(host, example=EXAMPLE)
    assert report.binarized == ["b", "c"] and "not reached" in rows(report)["a"]
    check(host, report)
    assert host.b.group is not None and host.b.group.size == 2


def test_without_an_example_the_table_says_what_it_does_not_know():
    assert "not run on an example" in str(binarize(Host()))
    assert "not run on an example" not in str(binarize(Host(), example=EXAMPLE))


def test_groups_keep_frames_and_fused_maps_apart():
    """As in EDVR: one convolution works on N x T frames, the next on N maps of the same size."""

    class Video(Host):
        def forward(self, x):
            n, t = x.shape[:2]
            frames = self.first(x.flatten(0, 1))
            fused = (frames + self.a(frames)).unflatten(0, (n, t)).mean(1)
            return self.last(fused + self.b(fused))

    network = Video()
    video = torch.rand(2, 5, 3, 8, 8)
    report = binarize(network, example=video)
    assert [row.note for row in report.rows if row.binarized] == ["alone", "alone"]
    for batch in (1, 2):
        assert network(video[:batch]).shape == (batch, 3, 8, 8)


def test_a_group_over_maps_of_different_batches_is_refused_when_no_example_told():
    network = Host(lambda host, x: host.b(host.a(x).mean(0, keepdim=True)))
    binarize(network)
    with pytest.raises(GroupShapeError, match=r"member 2 of 2 .* \(1, 4, 8, 8\), the members before it \(2, 4, 8, 8\)"):
        network(EXAMPLE)
    network = Host(lambda host, x: host.b(host.a(x).mean(0, keepdim=True)))
    binarize(network, example=EXAMPLE)
    assert network(EXAMPLE).shape == (1, 3, 8, 8)


def test_branches_that_the_example_does_not_reach_are_told_from_weights_used_directly():
    def body(host, x):
        x = nn.functional.conv2d(x, host.a.weight, padding=1)
        return host.c(x) if x.shape[-1] > 100 else host.b(x)

    host = Host(body, c=conv())
    notes = rows(binarize(host, example=EXAMPLE))
    assert notes["b"] == "binary"
    assert "uses its weight without it" in notes["a"] and "not reached by the example" in notes["c"]


@pytest.mark.parametrize("wrap", ["weight_norm", "spectral_norm"])
@pytest.mark.parametrize("example", [EXAMPLE, None])
def test_computed_weights_stay_and_the_table_says_how_to_make_them_plain(wrap, example):
    host = Host()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        host.a = getattr(nn.utils, wrap)(host.a)
    host.first(EXAMPLE), host.a(torch.rand(1, 4, 8, 8))  # the computed weight has a graph
    report = binarize(host, example=example)
    assert report.binarized == ["b"] and "remove_weight_norm" in rows(report)["a"]
    host(EXAMPLE)


def test_hooks_of_a_convolution_are_not_lost():
    host = Host()
    calls = []
    host.a.register_forward_hook(lambda *_: calls.append(1))
    report = binarize(host, example=EXAMPLE)
    assert "hooks" in rows(report)["a"]
    calls.clear()
    host(EXAMPLE)
    assert calls == [1]


def test_a_host_may_ask_its_convolutions_what_they_are():
    def body(host, x):
        assert (host.a.in_channels, host.a.out_channels, host.a.kernel_size, host.a.stride) == (4, 4, (3, 3), (1, 1))
        assert (host.a.padding, host.a.dilation, host.a.groups, host.a.padding_mode) == ((1, 1), (1, 1), 1, "zeros")
        return host.b(host.a(x.to(host.a.weight.dtype)))

    host = Host(body)
    report = binarize(host, example=EXAMPLE)
    assert report.binarized == ["a", "b"]
    check(host, report)


def test_a_host_that_asks_for_more_keeps_that_convolution():
    host = Host(lambda host, x: host.b(host.a._conv_forward(x, host.a.weight, None) + host.a(x)))
    report = binarize(host, example=EXAMPLE)
    assert report.binarized == ["b"] and "'_conv_forward'" in rows(report)["a"]


def test_convolutions_may_be_called_by_keyword():
    host = Host(lambda host, x: host.b(input=host.a(input=x)))
    report = binarize(host, example=EXAMPLE)
    assert report.binarized == ["a", "b"]
    check(host, report)


def test_padding_by_name():
    host = Host(a=conv(padding="same"), b=conv(padding="valid"))
    report = binarize(host, example=EXAMPLE)
    assert report.binarized == ["a", "b"]
    assert (host.a.conv.padding, host.b.conv.padding) == (1, 0)
    check(host, report)
    host = Host(a=conv(kernel=2, padding="same"))
    assert "two sides" in rows(binarize(host, {"kernel_sizes": [2, 3]}, example=EXAMPLE))["a"]


def test_even_kernels_train_and_the_table_says_that_they_cannot_be_packed():
    host = Host(a=conv(kernel=4, padding=1))
    report = binarize(host, {"kernel_sizes": [3, 4]}, example=EXAMPLE)
    notes = {row.name: row.note for row in report.rows}
    assert report.binarized == ["a", "b"] and "size 4 cannot be packed" in notes["a"] and "packed" not in notes["b"]
    check(host, report)


def test_scripted_and_lazy_convolutions_stay():
    host = Host(lambda host, x: host.b(host.c(host.a(x))), a=torch.jit.script(conv()), c=nn.LazyConv2d(4, 3, padding=1))
    for example in (EXAMPLE, None):
        report = binarize(copy.deepcopy(host), {"keep_first_last": False}, example=example)
        notes = rows(report)
        assert "scripted Conv2d" in notes["a"] and "run the network once" in notes["c"] and notes["b"] == "binary"
        assert "not known yet" in str(report)


def test_double_networks_take_a_float_example():
    host = Host().double()
    report = binarize(host, example=EXAMPLE)
    assert report.binarized == ["a", "b"]
    check(host, report, EXAMPLE.double())
    assert all(value.dtype == torch.float64 for value in host.parameters())
    assert host.eval()(EXAMPLE.double()).dtype == torch.float64


def test_networks_with_several_inputs_take_a_tuple():
    class Two(Host):
        def forward(self, x, strength):
            return super().forward(x) * strength

    host = Two()
    assert binarize(host, example=(EXAMPLE, torch.rand(2, 1, 1, 1))).binarized == ["a", "b"]
    with pytest.raises(WatchError, match=r"shape \(2, 3, 8, 8\) in training .*strength"):
        binarize(Two(), example=EXAMPLE)
    for wrong in (EXAMPLE.numpy(), [EXAMPLE], (), "photo.png"):
        with pytest.raises(WatchError, match="must be a tensor, or a tuple"):
            binarize(Two(), example=wrong)
    with pytest.raises(SwapError, match=r"an nn\.Module, found 'EDSR'"):
        binarize("EDSR")


def test_gradient_checkpointing_across_a_group_shows_at_once():
    """Evaluation does not show it: the rehearsal runs backwards too."""
    host = Host(lambda host, x: checkpoint(host.b, checkpoint(host.a, x, use_reentrant=False), use_reentrant=False))
    with pytest.raises(GroupScopeError, match="checkpointing covers a part"):
        binarize(host, example=EXAMPLE)
    assert type(host.a) is nn.Conv2d
    report = binarize(host, {"group": "none"}, example=EXAMPLE)
    check(host, report)


def test_two_recipes_for_two_parts():
    host = Host()
    first = binarize(host, {"include": ["a"]}, example=EXAMPLE)
    second = binarize(host, {"include": ["b"], "binarizer": "react"}, example=EXAMPLE)
    assert (first.binarized, second.binarized) == (["a"], ["b"])
    assert host(EXAMPLE).shape == EXAMPLE.shape


def test_patterns_that_match_nothing_are_named():
    report = binarize(Host(), {"include": ["*"], "exclude": ["upsampel*"]}, example=EXAMPLE)
    assert report.unmatched == ["upsampel*"] and "pattern 'upsampel*' matches no convolution" in str(report)


def test_a_network_that_cannot_be_copied_is_a_named_error():
    host = Host()
    host.lock = threading.Lock()
    with pytest.raises(WatchError, match=r"Host cannot be copied.* give no example"):
        binarize(host, example=EXAMPLE)
    assert binarize(host).binarized == ["a", "b"]


def test_a_rehearsal_leaves_the_network_and_the_random_states_alone():
    """The binary network starts from the same random numbers as without an example."""
    states = []
    for example in (EXAMPLE, None):
        host = Host()
        torch.manual_seed(3)
        binarize(host, {"weight_options": {"alpha": "learned"}}, example=example)
        states.append(torch.get_rng_state())
        assert host.a.conv.binarize_activation.norm.num_batches_tracked == 0
        assert not host.a._forward_pre_hooks and not host.last._forward_pre_hooks
    assert torch.equal(*states)


EDVR = {"type": "EDVR", "num_feat": 8, "deformable_groups": 2, "num_extract_block": 1, "num_reconstruct_block": 1}


@pytest.mark.parametrize(
    ("host", "options", "shape", "scale"),
    [
        (EDVR, {}, (5, 3, 8, 8), 4),  # the default of num_frame tells the frames
        ({"type": "BasicVSR", "num_feat": 8, "num_block": 1}, {"probe_frames": 2, "probe_size": 64}, (2, 3, 64, 64), 4),
    ],
)
def test_video_networks_are_binarized_from_options(host, options, shape, scale):
    torch.set_num_threads(1)
    network = Binarized(host=host, recipe={"exclude": "spynet*"}, **options)
    layers = [module for module in network.modules() if isinstance(module, BinaryConv2d)]
    assert len(layers) == len(network.report.binarized) > 5
    with torch.no_grad():
        frames = network.eval()(torch.rand(1, *shape))
    assert frames.shape[-2:] == (shape[-2] * scale, shape[-1] * scale) and frames.shape[0] == 1


def test_a_host_that_runs_on_no_example_names_what_was_tried():
    with pytest.raises(WatchError, match=r"set probe_size, and probe_frames .*\(2, 3, 3, 8, 8\)"):
        Binarized(host=EDVR, probe_frames=3, probe_size=8)
    with pytest.raises(SwapError, match="did you mean bam"):
        Binarized(host=EDVR, recipe={"binarizer": "bamm"})
