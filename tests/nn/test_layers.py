"""BinaryLayer, BinaryChain and the methods: eq. 9 and the order of the parts against literal computations."""

import pytest
import torch
import torch.nn.functional as F

from bam_plugin.nn import METHODS, BinaryChain, BinaryLayer, DepthwiseResidual, make_method, normalize_filters, sign

CHANNELS = 5


def randomize(module):
    for part in module.modules():
        if isinstance(part, torch.nn.BatchNorm2d):
            part.running_mean.normal_(0, 0.3)
            part.running_var.uniform_(0.5, 2)
    for name, value in module.named_parameters():
        if not name.endswith("conv.weight"):
            torch.nn.init.normal_(value)
    return module.eval()


def conv_by_hand(layer, x, earlier=()):
    """Signs of the activations and of the accumulated filters, their convolution, and the factors."""
    conv = layer.conv
    total = sum(earlier, torch.zeros_like(conv.weight)) + conv.weight
    weight = sign(normalize_filters(total)) * conv.weight.abs().mean((1, 2, 3), keepdim=True)
    out = F.conv2d(sign(conv.binarize_activation.norm(x)), weight, padding=1)
    return out if conv.output_scale is None else out * conv.output_scale.view(1, -1, 1, 1)


@pytest.mark.parametrize("options", [{}, {"beta": "one"}, {"beta_statistic": "mean", "beta_offset": 0.5}])
@pytest.mark.parametrize(("skip", "norm"), [(False, None), (True, None), (False, True)])
@torch.no_grad()
def test_chain_is_equations_3_and_9(skip, norm, options):
    """A_n^B = Sign(BN(b_1 A_1 + ... + b_n A_n)), b_i = s_i E(A_i); W_n^B from W_1 + ... + W_n."""
    chain = randomize(
        BinaryChain(
            num_feat=CHANNELS, num_convs=3, method=make_method("bam", skip=skip), norm=norm, output_scale="channel",
            **options,
        )
    )  # fmt: skip
    x = torch.randn(2, CHANNELS, 6, 6)
    newest, summed, earlier = x, torch.zeros_like(x), []
    for layer, beta in zip(chain.layers, chain.betas, strict=True):
        values = newest if options.get("beta_statistic") == "mean" else newest.abs()
        factor = 1 if "beta" in options else beta.scale * values.mean(1, keepdim=True) + options.get("beta_offset", 0)
        summed = summed + factor * newest
        out = conv_by_hand(layer, summed, earlier)
        if norm:
            out = layer.norm(out)
        newest = out + newest if skip else out
        earlier.append(layer.conv.weight)
    torch.testing.assert_close(chain(x), newest, rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_planes_stand_beside_each_other():
    """Each step adds, plane by plane, what the layers make of one input; filters accumulate within their plane."""
    chain = randomize(
        BinaryChain(
            num_feat=CHANNELS, num_convs=2, num_planes=2, method=make_method("bam", skip=True, accumulate=False)
        )
    )
    x = torch.randn(2, CHANNELS, 6, 6)
    expected, earlier = x, ([], [])
    for step in (chain.layers[:2], chain.layers[2:]):
        source = expected
        for layer, filters in zip(step, earlier, strict=True):
            expected = expected + conv_by_hand(layer, source, filters)
            filters.append(layer.conv.weight)
    torch.testing.assert_close(chain(x), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("activation", "starts"), [("bn_sign", [-0.6, 0, 0.6]), ("rsign", [0.6, 0, -0.6])])
def test_thresholds_of_the_planes_start_apart(activation, starts):
    method = make_method("bam", skip=True, activation=activation)
    chain = BinaryChain(num_feat=4, num_convs=1, num_planes=3, plane_shift=0.6, method=method)
    for layer, start in zip(chain.layers, starts, strict=True):
        binarizer = layer.conv.binarize_activation
        learned = binarizer.norm.bias if activation == "bn_sign" else binarizer.threshold
        torch.testing.assert_close(learned.detach().flatten(), torch.full((4,), float(start)), atol=1e-6, rtol=0)


def test_planes_are_refused_where_they_cannot_differ_or_add_up():
    with pytest.raises(ValueError, match="num_planes must be at least 1, found 0"):
        BinaryChain(num_feat=4, num_convs=1, num_planes=0, method=METHODS["bam"])
    with pytest.raises(ValueError, match="set skip to true"):
        BinaryChain(num_feat=4, num_convs=1, num_planes=2, method=METHODS["bam"])
    with pytest.raises(ValueError, match=r"learned threshold \(bn_sign, rsign\), found 'sign'"):
        BinaryChain(num_feat=4, num_convs=1, num_planes=2, method=METHODS["e2fif"])


@torch.no_grad()
def test_depthwise_residual():
    layer = randomize(DepthwiseResidual(num_feat=CHANNELS))
    x = torch.randn(2, CHANNELS, 6, 5)
    own = torch.cat([F.conv2d(x[:, [c]], layer.conv.weight[[c]], padding=1) for c in range(CHANNELS)], dim=1)
    expected = x + F.prelu(own + layer.conv.bias.view(-1, 1, 1), layer.act.weight)
    torch.testing.assert_close(layer(x), expected)


@torch.no_grad()
def test_accumulation_can_be_switched_off_on_each_side():
    method = make_method("bam", accumulate=False)
    chain = randomize(BinaryChain(num_feat=CHANNELS, num_convs=2, method=method, accumulate_weights=False))
    x = torch.randn(1, CHANNELS, 6, 6)
    expected = conv_by_hand(chain.layers[1], conv_by_hand(chain.layers[0], x))
    torch.testing.assert_close(chain(x), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("method", ["bnn", "dorefa", "abc", "xnor"])
@torch.no_grad()
def test_other_methods_do_not_accumulate(method):
    """Each layer alone, in sequence, is the chain."""
    chain = BinaryChain(num_feat=CHANNELS, num_convs=3, method=METHODS[method]).eval()
    x = torch.randn(1, CHANNELS, 6, 6)
    expected = x
    for layer in chain.layers:
        expected = layer(expected)
    assert torch.equal(chain(x), expected)


@pytest.mark.parametrize(
    ("method", "formula"),
    [
        ("bireal", lambda p, y, x: p.norm(y) + x),
        ("e2fif", lambda p, y, x: p.norm(y) + x),
        ("react", lambda p, y, x: p.rprelu(p.norm(y) + x)),
        ("bbcu", lambda p, y, x: p.rprelu(y) + x),
        ("bnn", lambda p, y, x: y),
    ],
)
@torch.no_grad()
def test_order_of_the_parts_around_the_convolution(method, formula):
    layer = randomize(BinaryLayer(in_channels=CHANNELS, out_channels=CHANNELS, method=METHODS[method]))
    x = torch.randn(2, CHANNELS, 5, 5)
    torch.testing.assert_close(layer(x), formula(layer, layer.conv(x), x))


@torch.no_grad()
def test_identity_path_needs_equal_shapes_and_bias_is_added():
    layer = randomize(BinaryLayer(in_channels=4, out_channels=6, method=METHODS["bbcu"], bias=True))
    x = torch.randn(1, 4, 5, 5)
    torch.testing.assert_close(layer(x), layer.rprelu(layer.conv(x) + layer.bias.view(1, -1, 1, 1)))


@pytest.mark.parametrize(("relu", "rectified"), [("all", [True, True]), ("between", [True, False])])
@torch.no_grad()
def test_full_precision_activations_keep_the_rectifiers(relu, rectified):
    chain = BinaryChain(num_feat=CHANNELS, num_convs=2, method=make_method("bnn", activation="float"), relu=relu)
    x = torch.randn(1, CHANNELS, 6, 6)
    expected = x
    for layer, rectify in zip(chain.eval().layers, rectified, strict=True):
        expected = F.conv2d(expected, sign(layer.conv.weight), padding=1)
        expected = expected.relu() if rectify else expected
    torch.testing.assert_close(chain(x), expected, rtol=1e-4, atol=1e-3)


def test_one_start_of_the_output_scale_suits_scaled_and_unscaled_weights():
    """The first output of a layer has about the same range with every method's weights."""
    x = torch.randn(2, 16, 12, 12)
    spreads = {}
    for weight in ("bam", "bnn", "dorefa", "abc", "react"):
        method = make_method("bam", weight=weight)
        layer = BinaryLayer(in_channels=16, out_channels=16, method=method, output_scale="channel", latent_gain=0.1)
        spreads[weight] = layer(x).std().item()
    assert max(spreads.values()) < 2 * min(spreads.values()), spreads


def test_make_method_replaces_sides_and_fields():
    method = make_method("abc", weight_options={"bases": 5}, skip=True)
    assert (method.weight, method.weight_options, method.activation, method.skip) == ("abc", {"bases": 5}, "abc", True)
    method = make_method("react", activation="bn_sign", activation_options={"estimator": "identity"}, skip=None)
    assert (method.activation, method.skip, method.rprelu) == ("bn_sign", True, "after")
    for options in ({"name": "x"}, {"name": "bam", "weight": "x"}, {"name": "bam", "activation": "x"}):
        with pytest.raises(ValueError, match=r"binarizer must be one of .* found 'x'"):
            make_method(**options)


def test_every_method_names_existing_binarizers_and_its_source():
    for method in METHODS.values():
        assert BinaryLayer(in_channels=2, out_channels=2, method=method)
        assert method.source
