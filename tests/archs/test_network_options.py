"""The options of the networks are declared once: constructors, `help` and the check of option files all show them."""

import inspect
from dataclasses import dataclass, fields
from typing import get_type_hints

import pytest
import torch
from torch import nn

from bam_plugin.archs.bsrn_arch import ARCH_REGISTRY, BSRN, BSRNOptions
from bam_plugin.archs.describing import describe_network
from bam_plugin.archs.options import NetworkOptions, UnknownOptionError, takes
from bam_plugin.archs.srresnet_arch import SRResNet, SRResNetOptions
from bam_plugin.archs.vdsr_arch import VDSR, VDSROptions
from bam_plugin.cli import main
from bam_plugin.config.check import check_network
from bam_plugin.nn.mixing.recipe import Recipe
from bam_plugin.nn.options import ChainOptions, ConvOptions

NETWORKS = [(BSRN, BSRNOptions), (SRResNet, SRResNetOptions), (VDSR, VDSROptions)]


def problems(values):
    return {".".join(problem.key): problem.message for problem in check_network(values, ("network_g",))}


@pytest.mark.parametrize(("network", "options"), NETWORKS)
def test_signature_shows_every_option_with_type_and_default(network, options):
    parameters = inspect.signature(network).parameters
    assert list(parameters) == [field.name for field in fields(options)]
    hints = get_type_hints(options)
    for field in fields(options):
        parameter = parameters[field.name]
        assert parameter.kind is inspect.Parameter.KEYWORD_ONLY
        assert (parameter.default, parameter.annotation) == (field.default, hints[field.name])


@pytest.mark.parametrize("network", [network for network, _ in NETWORKS])
def test_positional_and_unknown_options_are_refused(network):
    with pytest.raises(TypeError, match="positional"):
        network(3)
    with pytest.raises(UnknownOptionError, match=rf"{network.__name__} has no option 'num_fet'; did you mean num_feat"):
        network(num_fet=8)


@pytest.mark.parametrize("kind", ["BSRN", "SRResNet", "VDSR"])
def test_check_of_option_files_knows_shared_options(kind):
    good = {"type": kind, "num_feat": 8, "binarizer": "bam", "latent_gain": 0.2, "beta_statistic": "mean"}
    assert not problems(good)
    assert "did you mean latent_gain?" in problems({**good, "latent_gian": 0.2})["network_g.latent_gian"]
    assert "did you mean bam?" in problems({**good, "binarizer": "bamm"})["network_g.binarizer"]
    for key, value in {
        "num_feat": "wide",
        "output_scale_init": "0.1",
        "binary_parts": 3,
        "weight_options": "x",
    }.items():
        assert "found" in problems({**good, key: value})[f"network_g.{key}"]


@pytest.mark.parametrize(("key", "value"), [("skip", "yes"), ("norm", "bn"), ("kernel_sizes", 3), ("beta", 1)])
def test_check_of_recipes_knows_inherited_options(key, value):
    recipe = {"binarizer": "bam", key: value}
    host = {"type": "EDSR", "num_in_ch": 3, "num_out_ch": 3, "num_feat": 8, "num_block": 1, "upscale": 2}
    found = problems({"type": "Binarized", "host": host, "recipe": recipe})
    assert "found" in found[f"network_g.recipe.{key}"]


def test_shared_options_are_declared_once():
    """A network declares again only what has another default."""
    shared = {field.name: field.default for base in (ChainOptions, NetworkOptions) for field in fields(base)}
    for options in (*(options for _, options in NETWORKS), Recipe):
        for name in options.__annotations__:
            if name in shared and issubclass(options, ChainOptions):
                assert getattr(options, name) != shared[name], (options, name)


def test_a_network_of_its_own_is_one_dataclass_and_one_class():
    """The recipe of bam_plugin/archs/__init__.py, with nothing else."""

    @dataclass(frozen=True, kw_only=True)
    class TwoChainsOptions(ChainOptions, NetworkOptions):
        num_convs: int = 2

    class TwoChains(nn.Module):
        @takes(TwoChainsOptions)
        def __init__(self, options):
            super().__init__()
            self.head = nn.Conv2d(options.num_in_ch, options.num_feat, 3, padding=1)
            self.body = options.chain(num_feat=options.num_feat, num_convs=options.num_convs)

        def forward(self, x):
            return self.body(self.head(x))

    ARCH_REGISTRY.register(TwoChains)
    try:
        section = {"type": "TwoChains", "num_feat": 8, "binarizer": "bam", "num_convs": 3}
        assert not problems(section)
        assert "did you mean num_convs?" in problems({**section, "num_conv": 3})["network_g.num_conv"]
        network = TwoChains(num_feat=8, binarizer="bam", num_convs=3)
        assert network(torch.rand(2, 3, 6, 6)).shape == (2, 8, 6, 6)
        assert len(network.body.layers) == 3
    finally:
        del ARCH_REGISTRY._obj_map["TwoChains"]


OURS = [arch for _, arch in ARCH_REGISTRY if hasattr(arch.__init__, "options_type")]


@pytest.mark.parametrize("network", OURS)
def test_every_option_is_listed_with_its_sentence(network, capsys):
    options = network.__init__.options_type
    (listed,) = describe_network(network.__name__).values()
    assert [each.name for each in listed] == [field.name for field in fields(options)]
    assert all(each.kind and each.default and each.sentence.endswith(".") for each in listed), listed
    assert main(["options", "--network", network.__name__]) == 0
    text = capsys.readouterr().out
    assert f"num_feat: int = {options.num_feat}\n    " in text


def test_listing_follows_the_field_that_is_declared_last():
    skip = next(each for each in describe_network("VDSR")[""] if each.name == "skip")
    assert (skip.default, skip.kind) == ("True", "bool | None") and "18 of them" in skip.sentence


def test_recipes_and_networks_of_others_are_listed_too(capsys):
    sections = describe_network("Binarized")
    assert [each.name for each in sections["recipe"]] == [field.name for field in fields(Recipe)]
    assert all(each.sentence for each in sections["recipe"])
    assert main(["options", "--network", "SRVGGNetCompact", "--json"]) == 0
    assert '"name": "num_conv"' in capsys.readouterr().out
    assert main(["options", "--network", "VDRS"]) == 2
    assert "did you mean VDSR?" in capsys.readouterr().err


def test_conv_options_make_the_method_with_replaced_sides():
    method = ConvOptions(binarizer="bam", activation_binarizer="float", weight_options={"alpha": "learned"}).method()
    assert (method.weight, method.activation, method.weight_options) == ("bam", "float", {"alpha": "learned"})
    assert ChainOptions(binarizer="bam", skip=True, accumulate_activations=False).method().skip
