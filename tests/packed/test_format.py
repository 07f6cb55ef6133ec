"""The packed file: what is written comes back, and every way to be wrong has its own error."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import numpy as np
import pytest
from helpers.packed_files import header_of, resign, rewrite
from helpers.packed_models import random_filters, small_model
from helpers.places import ROOT, TESTS
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import save

from bam_plugin.packed import errors, read_packed, write_packed
from bam_plugin.packed.bits import bits_to_words, pack_filters, unpack_filters, words_to_bits
from bam_plugin.packed.container import METADATA_KEY, NEWEST_VERSION
from bam_plugin.packed.format import PackedModel, pack_model, unpack_model
from bam_plugin.packed.graph import packed_filter_bytes
from bam_plugin.packed.graph_builder import GraphBuilder


@settings(max_examples=30, deadline=None)
@given(channels=st.integers(1, 140), kernel=st.sampled_from([1, 3, 5]), out=st.integers(1, 9), seed=st.integers(0, 99))
def test_bits_survive_packing(channels, kernel, out, seed):
    generator = np.random.default_rng(seed)
    negative = generator.random((out, kernel, kernel, channels)) < 0.5
    packed = pack_filters(negative)
    assert packed.nbytes == out * packed_filter_bytes(channels, kernel) == out * -(-(kernel * kernel * channels) // 8)
    assert np.array_equal(unpack_filters(packed, kernel, channels), negative)
    words = bits_to_words(negative)
    assert words.shape[-1] == -(-channels // 64)
    assert np.array_equal(words_to_bits(words, channels), negative)
    # Bit i % 64 of word i // 64 is channel i, and padding bits are 0.
    channel = seed % channels
    assert np.array_equal(words[..., channel // 64] >> np.uint64(channel % 64) & np.uint64(1), negative[..., channel])
    assert int(np.bitwise_count(words).sum()) == int(negative.sum())


@settings(max_examples=15, deadline=None)
@given(
    channels=st.integers(1, 40),
    blocks=st.integers(0, 2),
    scale=st.integers(1, 4),
    info=st.dictionaries(st.text(max_size=8), st.integers() | st.text(max_size=20) | st.none(), max_size=3),
)
def test_models_survive_the_file(channels, blocks, scale, info):
    made = small_model(channels=channels, blocks=blocks, scale=scale)
    model = PackedModel(graph=made.graph, tensors=made.tensors, metadata=info)
    data = pack_model(model)
    again = unpack_model(data)
    assert again.graph == model.graph
    assert again.metadata == info
    assert (again.scale, again.num_in_ch, again.sha256) == (scale, 3, model.sha256)
    assert all(np.array_equal(again.tensors[name], array) for name, array in model.tensors.items())
    assert pack_model(again) == data


def test_bytes_are_the_same_in_another_process(tmp_path):
    write_packed(small_model(), tmp_path / "here.bam.safetensors")
    program = "import sys; from helpers.packed_models import small_model; from bam_plugin.packed import write_packed\n"
    program += "write_packed(small_model(), sys.argv[1])"
    there = tmp_path / "there.bam.safetensors"
    paths = os.pathsep.join([str(ROOT), str(TESTS)])
    environment = {**os.environ, "PYTHONPATH": paths, "PYTHONHASHSEED": "7"}
    subprocess.run([sys.executable, "-c", program, str(there)], check=True, env=environment)
    assert there.read_bytes() == (tmp_path / "here.bam.safetensors").read_bytes()


def test_binary_weights_take_one_bit_each():
    model = small_model(channels=13)
    packed = {n.tensors["weight"]: n for n in model.graph.nodes if n.op == "binary_conv2d"}
    bits = [
        int(node.attrs["kernel"]) ** 2 * model.graph.types[node.inputs[0]].channels
        for name, node in packed.items()
        for _ in range(len(model.tensors[name]))
    ]
    stored = sum(model.tensors[name].nbytes for name in packed)
    assert stored <= sum(-(-count // 8) for count in bits)
    assert model.binary_bits == sum(bits)


def set_path(*path, value):
    def edit(meta):
        for key in path[:-1]:
            meta = meta[key]
        meta[path[-1]] = value

    return edit


def edit_node(op, index, value):
    def edit(meta):
        node = next(node for node in meta["graph"]["nodes"] if node[0] == op)
        node[index] = value

    return edit


@pytest.mark.parametrize(
    ("expected", "edit"),
    [
        (errors.NewerVersionError, set_path("format_version", value=NEWEST_VERSION + 1)),
        (errors.NotPackedError, set_path("format_version", value="1")),
        (errors.NotPackedError, set_path("extra", value=1)),
        (errors.NotPackedError, set_path("info", value=[])),
        (errors.InvalidGraphError, set_path("graph", value=[])),
        (errors.InvalidGraphError, set_path("graph", "num_in_ch", value=0)),
        (errors.TensorShapeError, set_path("graph", "num_in_ch", value=4)),
        (errors.InvalidGraphError, set_path("graph", "output", value="nowhere")),
        (errors.InvalidGraphError, set_path("graph", "nodes", 0, value={})),
        (errors.InvalidGraphError, edit_node("relu", 0, "evil_op")),
        (errors.InvalidGraphError, edit_node("relu", 1, "input")),
        (errors.InvalidGraphError, edit_node("relu", 2, ["tail"])),
        (errors.InvalidGraphError, edit_node("relu", 2, ["head", "head"])),
        (errors.InvalidGraphError, edit_node("relu", 3, {"slope": 1})),
        (errors.InvalidGraphError, edit_node("pixel_shuffle", 3, {"factor": 2.0})),
        (errors.InvalidGraphError, edit_node("resize", 3, {"factor": 4000, "mode": "bilinear"})),
        (errors.InvalidGraphError, edit_node("resize", 3, {"factor": 2, "mode": "lanczos"})),
        (errors.InvalidGraphError, edit_node("binary_conv2d", 3, {"kernel": 2, "alphabet": "0,1"})),
        (errors.InvalidGraphError, edit_node("binary_conv2d", 3, {"kernel": 3, "alphabet": "0,2"})),
        (errors.InvalidGraphError, edit_node("scale", 3, {"factor": 0.1})),  # no float32 number
        (errors.InvalidGraphError, edit_node("prelu", 4, [])),
        (errors.TensorShapeError, edit_node("binary_conv2d", 3, {"kernel": 5, "alphabet": "0,1"})),
        (errors.InvalidGraphError, set_path("scale", value=3)),
        (errors.InvalidGraphError, set_path("receptive_radius", value=3)),
    ],
)
def test_wrong_metadata_is_named(expected, edit):
    data = pack_model(small_model())
    edited = rewrite(data, document=edit)
    with pytest.raises(expected, match=r"^net\.bam: .") as caught:
        unpack_model(resign(edited), where="net.bam")
    assert type(caught.value) is expected and str(caught.value).count("net.bam") == 1
    if expected not in (errors.NewerVersionError, errors.NotPackedError):  # without a forger, the checksum speaks first
        with pytest.raises((errors.ChecksumError, expected)):
            unpack_model(edited)


def spoil(name, change):
    def edit(arrays):
        arrays[name] = change(arrays[name])

    return edit


@pytest.mark.parametrize(
    ("expected", "edit"),
    [
        (errors.MissingTensorError, lambda arrays: arrays.pop("head.weight")),
        (errors.UnexpectedTensorError, lambda arrays: arrays.update(extra=np.zeros(3, np.float32))),
        (errors.TensorShapeError, spoil("head.bias", lambda a: a[:-1])),
        (errors.TensorShapeError, spoil("head.weight", lambda a: a.reshape(-1))),
        (errors.TensorShapeError, spoil("body.0.conv3.weight", lambda a: a.astype(np.float32))),
        (errors.TensorShapeError, spoil("head.bias", lambda a: a * np.nan)),
        (errors.TensorShapeError, spoil("body.0.conv3.scale", lambda a: a + np.float32("inf"))),
        (errors.InvalidGraphError, spoil("body.0.conv3.weight", lambda a: a | np.uint8(0xF0))),
        (errors.InvalidGraphError, spoil("body.0.conv3.sign.flip", lambda a: a + np.uint8(2))),
        (errors.InvalidGraphError, spoil("body.0.conv3.sign.threshold", lambda a: a * np.nan)),
    ],
)
def test_wrong_tensors_are_named(expected, edit):
    edited = rewrite(pack_model(small_model(channels=12)), tensors=edit)
    with pytest.raises(expected, match=r"^net\.bam: .") as caught:
        unpack_model(resign(edited), where="net.bam")
    assert type(caught.value) is expected and str(caught.value).count("net.bam") == 1
    with pytest.raises(errors.ChecksumError):
        unpack_model(edited)


def test_one_changed_bit_is_found():
    data = bytearray(pack_model(small_model()))
    data[-1] ^= 1
    with pytest.raises(errors.ChecksumError, match="SHA-256"):
        unpack_model(bytes(data))


def test_short_and_foreign_files_are_named(tmp_path):
    data = pack_model(small_model())
    for cut in (0, 7, 8, 100, len(data) // 2, len(data) - 1):
        with pytest.raises(errors.TruncatedFileError, match=r"^net\.bam: ."):
            unpack_model(data[:cut], where="net.bam")
    for foreign in (b"\x89PNG\r\n\x1a\n" + bytes(64), b"PK\x03\x04" + bytes(64), bytes(64), b"\xff" * 64):
        with pytest.raises(errors.NotPackedError, match=r"^net\.bam: ."):
            unpack_model(foreign, where="net.bam")
    with pytest.raises(errors.NotPackedError, match="bam convert"):
        unpack_model(save({"a": np.zeros(2, np.float32)}))
    with pytest.raises(errors.NotPackedError, match="F16"):
        unpack_model(save({"a": np.zeros(2, np.float16)}))
    with pytest.raises(errors.NotPackedError):
        unpack_model(data + b"more")
    for dtype in (["F32"], {"F32": 1}, None):
        header = header_of(data)
        next(entry for name, entry in header.items() if name != "__metadata__")["dtype"] = dtype
        text = json.dumps(header).encode()
        with pytest.raises(errors.NotPackedError, match=r"only .* are allowed"):
            unpack_model(len(text).to_bytes(8, "little") + text + data[8 + int.from_bytes(data[:8], "little") :])
    deep = save({}, metadata={METADATA_KEY: "[" * 100_000})
    with pytest.raises(errors.NotPackedError):
        unpack_model(deep)
    path = tmp_path / "short.bam.safetensors"
    path.write_bytes(data[:50])
    with pytest.raises(errors.TruncatedFileError, match="short"):
        read_packed(path)


@settings(max_examples=300, deadline=None)
@given(data=st.data())
def test_mutated_files_raise_only_named_errors(data):
    original = PACKED
    mutated = bytearray(original)
    for _ in range(data.draw(st.integers(1, 4))):
        position = data.draw(st.integers(0, len(mutated) - 1) | st.integers(0, 3000))
        action = data.draw(st.sampled_from(["set", "cut", "insert"]))
        if action == "set":
            mutated[position] = data.draw(st.integers(0, 255))
        elif action == "cut":
            del mutated[position : position + data.draw(st.integers(1, 40))]
        else:
            mutated[position:position] = data.draw(st.binary(min_size=1, max_size=9))
    if bytes(mutated) == original:
        return
    with pytest.raises(errors.PackedFormatError, match=r"^net\.bam: ."):
        unpack_model(bytes(mutated), where="net.bam")


PACKED = pack_model(small_model(channels=5, blocks=1))


def test_builder_leaves_out_what_the_output_does_not_need():
    builder = GraphBuilder(num_in_ch=2)
    kept = builder.add("relu", "kept", builder.input)
    dropped = {"weight": np.zeros((1, 2, 3, 3), np.float32)}
    builder.add("conv2d", "dropped", builder.input, tensors=dropped)
    graph = builder.finish(kept)
    assert [node.name for node in graph.nodes] == ["kept"]
    assert builder.tensors == {}


def test_receptive_radius_counts_at_each_magnification():
    generator = np.random.default_rng(0)
    builder = GraphBuilder(num_in_ch=1)
    value = builder.add("resize", "up", builder.input, attrs={"factor": 4, "mode": "bicubic"})  # 2 input pixels
    for index in range(3):  # 3 pixels at magnification 4: 3/4 of an input pixel
        tensors = {"weight": generator.random((1, 1, 3, 3)).astype(np.float32)}
        value = builder.add("conv2d", f"conv{index}", value, tensors=tensors)
    assert builder.finish(value).receptive_radius == 3
    tensors = {"weight": random_filters(generator, 1, 5, 1), "scale": np.ones(1, np.float32)}
    limits = {"threshold": np.zeros(1, np.float32), "flip": np.zeros(1, np.uint8)}
    signs = builder.add("threshold", "sign", value, tensors=limits)
    value = builder.add("binary_conv2d", "binary", signs, attrs={"kernel": 5, "alphabet": "-1,+1"}, tensors=tensors)
    assert builder.finish(value).receptive_radius == 4


def test_the_version_is_the_first_one_that_has_all_operations():
    """Files of older operations keep their bytes; a number that does not fit the operations is refused."""

    def joined(twice: bool) -> PackedModel:
        builder = GraphBuilder(num_in_ch=3)
        value = builder.add("cat", "cat", builder.input, builder.input) if twice else builder.input
        return PackedModel(graph=builder.finish(builder.add("relu", "act", value)), tensors={})

    for twice, version in ((False, 1), (True, 3)):
        data = pack_model(joined(twice))
        assert json.loads(header_of(data)["__metadata__"][METADATA_KEY])["format_version"] == version
        assert unpack_model(data).num_out_ch == (6 if twice else 3)
        forged = resign(rewrite(data, document=lambda meta: meta.update(format_version=4 - meta["format_version"])))
        with pytest.raises(errors.InvalidGraphError, match="states format version"):
            unpack_model(forged)


@pytest.mark.parametrize(
    ("attrs", "words"),
    [
        ({"mode": "bicubic", "coefficient": -0.75}, "left out"),
        ({"mode": "bicubic", "coefficient": 0.5}, "from -2 to 0"),
        ({"mode": "bilinear", "coefficient": -0.5}, "not one of bicubic"),
    ],
)
def test_coefficients_that_cannot_be_are_refused(attrs, words):
    builder = GraphBuilder(num_in_ch=3)
    with pytest.raises(errors.InvalidGraphError, match=words):
        builder.add("resize", "grown", builder.input, attrs={"factor": 2, **attrs})


@pytest.mark.parametrize(
    ("attrs", "words"),
    [
        ({"groups": 1}, "from 2 to 6"),
        ({"groups": 4}, "divide 6 channels"),
        ({"stride": 17}, "from 2 to 16"),
        ({"stride": True}, "from 2 to 16"),
        ({"stride": 2}, "smaller than the input"),
    ],
)
def test_groups_and_strides_that_cannot_be_are_refused(attrs, words):
    builder = GraphBuilder(num_in_ch=6)
    weight = np.zeros((6, 6 // attrs.get("groups", 1), 3, 3), np.float32)
    with pytest.raises(errors.InvalidGraphError, match=words):
        builder.finish(builder.add("conv2d", "conv", builder.input, attrs=attrs, tensors={"weight": weight}))


def with_document_text(text: str) -> bytes:
    """A file of no tensors whose metadata is this text."""
    return save({}, metadata={METADATA_KEY: text})


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('{"format_version": 1, "info": {"x": 1e999}}', "beyond the range"),
        ('{"format_version": 1, "info": {"x": ' + "[" * 40 + "]" * 40 + "}}", "in each other"),
        ('{"format_version": 1, "info": {"x": ' + "[" * 900 + "]" * 900 + "}}", "in each other"),
        ('{"format_version": 1, "info": {"x": ' + "[" * 99999 + "]" * 99999 + "}}", "not valid JSON"),
        ('{"format_version": 1, "info": {"x": "\\ud800"}}', "not valid JSON"),
        ('{"format_version": 1, "info": {"\\udfff": 1}}', "not valid JSON"),
        ('{"format_version": 1, "info": {"x": [' + "[]," * 2_000_000 + "[]]}}", "metadata of .* characters"),
    ],
    ids=["number", "depth", "more depth", "recursion", "surrogate", "surrogate as key", "lists"],
)
def test_json_that_is_no_document_is_refused(text, words):
    with pytest.raises(errors.NotPackedError, match=words):
        unpack_model(with_document_text(text))


def test_large_headers_are_refused_before_they_are_read():
    header = b'{"a":[' + b"[]," * 6_000_000 + b"[]]}"
    with pytest.raises(errors.NotPackedError, match="header of"):
        unpack_model(len(header).to_bytes(8, "little") + header)


def test_what_a_reader_refuses_is_not_written():
    model = small_model()
    with pytest.raises(errors.NotPackedError, match="accepts"):
        pack_model(PackedModel(graph=model.graph, tensors=model.tensors, metadata={"x": "x" * (5 << 20)}))


def test_too_many_nodes_are_refused_before_they_are_made():
    data = pack_model(small_model())

    def edit(meta):
        meta["graph"]["nodes"] = [[]] * 20_001

    with pytest.raises(errors.InvalidGraphError, match="20001 nodes"):
        unpack_model(resign(rewrite(data, document=edit)))
