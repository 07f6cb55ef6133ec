"""The accumulation across a foreign forward: equal to a literal computation, and nothing is left, lost or mixed up."""

import copy
import gc
import pickle
import threading
import weakref

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from bam_plugin.archs.binarized_arch import Binarized
from bam_plugin.nn import sign
from bam_plugin.nn.mixing.grouping import GroupedLayer, GroupOrderError, GroupScopeError, open_frames
from bam_plugin.nn.mixing.swap import binarize

CHANNELS = 4


class Block(nn.Module):
    """A residual block that a host could have; `reentrant` (True or False) checkpoints its convolutions one by one."""

    def __init__(self, part=None):
        super().__init__()
        self.conv1, self.conv2 = (nn.Conv2d(CHANNELS, CHANNELS, 3, padding=1) for _ in range(2))
        self.part = part
        self.reentrant = None

    def forward(self, x):
        def run(layer, x):
            return layer(x) if self.reentrant is None else checkpoint(layer, x, use_reentrant=self.reentrant)

        return x + run(self.conv2, run(self.conv1, x).relu_())


class Host(nn.Module):
    """Two blocks; `reentrant` (True or False) checkpoints them."""

    def __init__(self):
        super().__init__()
        self.blocks = nn.ModuleList([Block(), Block()])
        self.reentrant = None

    def forward(self, x):
        for block in self.blocks:
            x = block(x) if self.reentrant is None else checkpoint(block, x, use_reentrant=self.reentrant)
        return x


def make(group="parent", **recipe):
    torch.manual_seed(7)
    torch.set_num_threads(1)
    host = Host()
    example = torch.rand(2, CHANNELS, 8, 8)
    binarize(host, {"keep_first_last": False, "group": group, **recipe}, example=example)
    return host


def groups(network):
    return {layer.group for layer in network.modules() if isinstance(layer, GroupedLayer) and layer.group}


def assert_nothing_left(network):
    assert groups(network)
    assert all(open_frames(group) == 0 for group in groups(network))


def gradients(network, x):
    network.zero_grad()
    result = network(x)
    result.square().mean().backward()
    return result.detach(), {name: value.grad.clone() for name, value in network.named_parameters()}


@pytest.fixture
def x():
    return torch.rand(2, CHANNELS, 8, 8, generator=torch.Generator().manual_seed(8), requires_grad=True)


@pytest.mark.parametrize("beta", ["spatial", "one"])
@torch.no_grad()
def test_accumulation_is_equations_3_and_9(x, beta):
    host = make(beta=beta).eval()
    expected = x
    for block in host.blocks:
        first, second = block.conv1, block.conv2

        def weighted(layer, activation):
            return (
                activation if beta == "one" else layer.beta.scale * activation.abs().mean(1, keepdim=True) * activation
            )

        inner = first(expected) if first.group is None else None
        assert inner is None

        def convolve(layer, source, previous):
            total = sum(previous, torch.zeros_like(layer.conv.weight)) + layer.conv.weight
            signs = sign(total - total.mean((1, 2, 3), keepdim=True))
            weight = signs * layer.conv.weight.abs().mean((1, 2, 3), keepdim=True)
            out = nn.functional.conv2d(sign(layer.conv.binarize_activation.norm(source)), weight, padding=1)
            return out * layer.conv.output_scale.view(1, -1, 1, 1) + layer.bias.view(1, -1, 1, 1)

        one = weighted(first, expected)
        inner = convolve(first, one, []).relu()
        expected = expected + convolve(second, one + weighted(second, inner), [first.conv.weight])
    torch.testing.assert_close(host(x), expected, rtol=1e-4, atol=1e-5)
    assert_nothing_left(host)


def test_each_side_of_the_accumulation_can_be_switched_off(x):
    host = make(accumulate_weights=False, accumulate_activations=False)
    assert not groups(host)
    host = make(accumulate_activations=False)
    assert groups(host) and host.blocks[0].conv1.beta is None
    host(x)
    host = make(accumulate_weights=False, weight_options={"alpha": "learned"})
    assert host.blocks[0].conv2.conv.binarize_weight.alpha.numel() == 1
    host(x)


def test_nothing_is_left_after_an_exception(x):
    host = make("all")
    host.blocks[1].conv1.register_forward_pre_hook(lambda *_: (_ for _ in ()).throw(KeyError("stop")))
    with pytest.raises(KeyError):
        host(x)
    assert_nothing_left(host)


def test_nothing_is_left_after_an_interrupt(x):
    """torch calls no hook after a KeyboardInterrupt; the next calls go on as if nothing had been."""
    host = make("all").eval()
    expected = host(x)
    interrupt = host.blocks[1].conv1.register_forward_pre_hook(lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    for _ in range(3):
        with pytest.raises(KeyboardInterrupt):
            host(x)
        assert_nothing_left(host)
    with pytest.raises(KeyboardInterrupt):
        host(x)
    interrupt.remove()
    with pytest.raises(GroupScopeError, match="called by itself"):
        host.blocks[1](x)
    assert torch.equal(host(x), expected)
    assert_nothing_left(host)


def test_no_tensor_outlives_the_forward(x):
    """The accumulated activations die with the result."""
    host = make("all")
    sums = []
    for layer in (layer for layer in host.modules() if isinstance(layer, GroupedLayer)):
        layer.conv.register_forward_pre_hook(lambda module, args: sums.append(weakref.ref(args[0])))
    result = host(x)
    assert len(sums) == 4
    del result
    gc.collect()
    assert all(reference() is None for reference in sums)


@pytest.mark.parametrize("reentrant", [True, False])
def test_checkpointed_scope_gives_equal_results(x, reentrant):
    host = make("parent")
    expected = gradients(host, x)
    host.reentrant = reentrant
    result, found = gradients(host, x)
    torch.testing.assert_close(result, expected[0])
    for name, value in expected[1].items():
        torch.testing.assert_close(found[name], value, msg=name)
    assert_nothing_left(host)


@pytest.mark.parametrize("reentrant", [True, False])
@pytest.mark.parametrize("group", ["parent", "all"])
def test_group_across_a_checkpointed_segment_is_refused(x, reentrant, group):
    """Whether the segment holds one convolution (`parent`) or a whole block of two (`all`)."""
    host = make(group)
    if group == "all":
        host.reentrant = reentrant
    else:
        host.blocks[0].reentrant = reentrant
    with pytest.raises(GroupScopeError, match=r"checkpointing covers a part of the group"):
        gradients(host, x)
    assert_nothing_left(host)


def test_a_part_called_by_itself_is_refused(x):
    host = make("all")
    with pytest.raises(GroupScopeError, match="called by itself"):
        host.blocks[0](x)
    make("parent").blocks[0](x)


def test_members_out_of_order_are_refused(x):
    host = make("parent")
    block = host.blocks[0]
    block.conv1, block.conv2 = block.conv2, block.conv1
    with pytest.raises(GroupOrderError, match="member 2 of 2 was called after 0 others"):
        host(x)
    assert_nothing_left(host)


def replicate(module):
    """What nn.DataParallel does before it runs the replicas in threads, on the CPU."""
    replicas = {}
    for part in module.modules():
        replicas[part] = part._replicate_for_data_parallel()
    for part, twin in replicas.items():
        for name, child in part._modules.items():
            twin._modules[name] = replicas.get(child)
        for name, value in part._parameters.items():
            # As Broadcast does: a non-leaf tensor that leads back to the parameter.
            twin._parameters[name] = None if value is None else value * 1
    return replicas[module]


def test_replicas_in_threads_give_equal_results(x):
    host = make("all")
    inputs = [torch.rand(2, CHANNELS, 8, 8) for _ in range(4)]
    expected = [host(value) for value in inputs]
    results = [None] * 4
    barrier = threading.Barrier(4)

    def run(index, network):
        barrier.wait()
        for _ in range(5):
            results[index] = network(inputs[index])

    replicas = [replicate(host) for _ in range(4)]
    threads = [threading.Thread(target=run, args=job) for job in enumerate(replicas)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for found, value in zip(results, expected, strict=True):
        torch.testing.assert_close(found, value)
    # The replica used its own copies of the earlier filters: gradients come back through all of them.
    sum(result.square().mean() for result in results).backward()
    assert all(layer.conv.weight.grad.abs().sum() > 0 for layer in host.modules() if isinstance(layer, GroupedLayer))
    assert_nothing_left(host)


@pytest.mark.parametrize("accumulated", [False, True])
def test_replica_sends_gradients_to_its_own_filters(x, accumulated):
    host = make("all", weight_options={"gradient": "accumulated" if accumulated else "latent"})
    expected = gradients(host, x)[1]
    host.zero_grad()
    replicate(host)(x).square().mean().backward()
    for name, value in host.named_parameters():
        torch.testing.assert_close(value.grad, expected[name], msg=name)


def test_one_network_in_several_threads(x):
    host = make("all").eval()
    with torch.no_grad():
        expected = host(x)
    results = {}

    def run(index):
        with torch.no_grad():
            for _ in range(10):
                results[index] = host(x)

    threads = [threading.Thread(target=run, args=(index,)) for index in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(torch.equal(result, expected) for result in results.values()) and len(results) == 4


def test_compiled_network_gives_equal_results(x):
    torch._dynamo.reset()
    host = make("all")
    expected, expected_gradients = gradients(host, x)
    host.load_state_dict(make("all").state_dict())  # the same running statistics again
    result, found = gradients(torch.compile(host, backend="aot_eager"), x)
    torch.testing.assert_close(result, expected)
    for name, value in found.items():
        torch.testing.assert_close(value, expected_gradients[name.removeprefix("_orig_mod.")], msg=name)
    assert_nothing_left(host)


def test_nested_networks_do_not_meet(x):
    """A binarized network inside a member's way: its own groups, in its own frames."""

    class Outer(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv1, self.conv2 = (nn.Conv2d(CHANNELS, CHANNELS, 3, padding=1) for _ in range(2))
            self.inner = nn.Identity()

        def forward(self, x):
            return self.conv2(self.inner(self.conv1(x)))

    outer = Outer()
    binarize(outer, {"keep_first_last": False})
    outer.inner = make("all")
    outer.eval()
    y = outer.conv1
    seen = []
    y.register_forward_hook(lambda module, args, output: seen.append(output))
    expected_inner = []
    outer.inner.register_forward_hook(lambda module, args, output: expected_inner.append(output))
    with torch.no_grad():
        outer(x)
        torch.testing.assert_close(outer.inner(seen[0]), expected_inner[0])
    assert_nothing_left(outer)


def test_a_scope_that_calls_itself_has_a_frame_per_call(x):
    class Recursive(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv1, self.conv2 = (nn.Conv2d(CHANNELS, CHANNELS, 3, padding=1) for _ in range(2))

        def forward(self, x, depth=0):
            inner = self(x, depth + 1) if depth < 1 else x
            return self.conv2(self.conv1(x)) + inner

    network = Recursive()
    binarize(network, {"keep_first_last": False})
    network.eval()
    with torch.no_grad():
        torch.testing.assert_close(network(x), network(x, 1) - x + network(x, 1))
    assert_nothing_left(network)


def test_copies_and_pickles_are_independent(x):
    host = make("all").eval()
    with torch.no_grad():
        expected = host(x)
        for twin in (copy.deepcopy(host), pickle.loads(pickle.dumps(host))):
            assert torch.equal(twin(x), expected)
            assert not groups(twin) & groups(host)
            for value in twin.parameters():
                value.add_(1)
            assert torch.equal(host(x), expected)


def test_in_place_changes_of_the_host_do_not_reach_the_accumulation():
    """With all factors 1 the first sum is the input itself; the host changes it afterwards."""

    class InPlace(nn.Module):
        def __init__(self, copies):
            super().__init__()
            self.conv1, self.conv2 = (nn.Conv2d(CHANNELS, CHANNELS, 3, padding=1) for _ in range(2))
            self.copies = copies

        def forward(self, x):
            x = x * 1
            y = self.conv1(x)
            if self.copies:
                x = x.clone()
            x.add_(5)
            return self.conv2(y) + x

    results = []
    for copies in (True, False):
        torch.manual_seed(9)
        network = InPlace(copies)
        binarize(network, {"keep_first_last": False, "beta": "one"})
        results.append(network.eval()(torch.rand(1, CHANNELS, 6, 6, generator=torch.Generator().manual_seed(1))))
    assert torch.equal(*results)


def test_data_parallel_wrapper_and_half_of_a_group_in_evaluation():
    network = Binarized(
        host={"type": "EDSR", "num_in_ch": 3, "num_out_ch": 3, "num_feat": 8, "num_block": 2, "upscale": 2}
    ).eval()
    x = torch.rand(1, 3, 8, 8)
    with torch.no_grad():
        assert torch.equal(nn.DataParallel(network)(x), network(x))
    network.host.body[0].conv1.train()
    network(torch.rand(2, 3, 8, 8)).sum().backward()
    assert_nothing_left(network)
