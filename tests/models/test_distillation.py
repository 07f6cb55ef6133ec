from __future__ import annotations

import pytest
import torch
from helpers.training_runs import iterate, make_batch, make_model
from torch import nn

from bam_plugin.models.distillation import DistillationError, Teacher, feature_distance

BSRN = {"type": "BSRN", "num_feat": 8, "num_hpb": 1, "upscale": 4, "upsampler": "pixelshuffledirect"}


@pytest.fixture
def teacher_file(tiny_pairs, tmp_path):
    """A checkpoint of a network of the student's kind with other weights."""
    torch.manual_seed(99)
    path = tmp_path / "teacher.pth"
    torch.save({"params": make_model(tiny_pairs).net_g.state_dict()}, path)
    torch.manual_seed(0)
    return str(path)


def test_feature_distance_sees_only_directions():
    generator = torch.Generator().manual_seed(1)
    features = torch.randn(2, 3, 4, 4, generator=generator)
    assert float(feature_distance(features, 7 * features)) == pytest.approx(0, abs=1e-6)
    assert float(feature_distance(features, -features)) == pytest.approx(4, rel=1e-6)
    one, other = torch.zeros(2, 1, 1, 2), torch.zeros(2, 1, 1, 2)
    one[..., 0], other[..., 1] = 1, 5
    assert float(feature_distance(one, other)) == pytest.approx(2, rel=1e-6)


def test_student_gets_both_terms_and_the_teacher_stays(tiny_pairs, teacher_file):
    distill = {
        "network": BSRN, "path": teacher_file, "output_weight": 0.5, "feature_weight": 2.0,
        "features": ["body", ["body_end", "body_end"]],
    }  # fmt: skip
    # One term only: the gradient must then come from the teacher.
    model = make_model(tiny_pairs, distill=distill, accumulate=2, pixel_opt={"type": "L1Loss", "loss_weight": 0.0})
    batch = make_batch()
    teacher = model.teacher.network
    before = {name: value.clone() for name, value in teacher.state_dict().items()}
    start = {name: value.clone() for name, value in model.net_g.named_parameters()}
    with torch.no_grad():
        target = teacher(batch["lq"])
    iterate(model, 1, batch)
    assert set(model.log_dict) >= {"l_pix", "l_distill", "l_feature"}
    assert 0 < model.log_dict["l_feature"] < 8
    assert all(torch.equal(value, before[name]) for name, value in teacher.state_dict().items())
    assert any(not torch.equal(value, start[name]) for name, value in model.net_g.named_parameters())
    losses = []
    for iteration in range(2, 40):
        iterate(model, iteration, batch)
        losses.append(model.log_dict["l_distill"] + model.log_dict["l_feature"])
    assert losses[-1] < 0.75 * losses[0]
    assert float((model.output - target[2:]).abs().mean()) < float((batch["gt"][2:] - target[2:]).abs().mean())


def test_twin_teaches_in_full_precision(tiny_pairs, teacher_file):
    lq = make_batch()["lq"]
    outputs = {}
    for full_precision in (False, True):
        distill = {"network": BSRN, "path": teacher_file, "full_precision": full_precision}
        outputs[full_precision] = make_model(tiny_pairs, distill=distill).teacher.network(lq)
    model = make_model(tiny_pairs, stages={"float": 1}, ema_decay=0)
    model.net_g.load_state_dict(torch.load(teacher_file, weights_only=True)["params"])
    model.stages.enter(1)
    assert torch.equal(model.net_g.eval()(lq), outputs[True])
    model.stages.enter(2)
    assert torch.equal(model.net_g(lq), outputs[False])
    assert not torch.equal(outputs[True], outputs[False])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"output_weight": 0}, "both 0"),
        ({"feature_weight": 1.0}, "belong together"),
        ({"feature_weight": 1.0, "features": ["bodyy"]}, "student has no module 'bodyy'"),
        ({"feature_weight": 1.0, "features": [["body", "end"]]}, "teacher has no module 'end'"),
        ({"network": None}, "network"),
        ({"network": {"type": "Nothing"}}, "Nothing"),
        ({"output_wait": 1.0}, "output_wait"),
    ],
)
def test_wrong_options_are_explained(tiny_pairs, teacher_file, changes, message):
    distill = {"network": BSRN, "path": teacher_file, **changes}
    if distill["network"] is None:
        del distill["network"]
    with pytest.raises(DistillationError, match=message):
        make_model(tiny_pairs, distill=distill)


def test_features_of_other_shapes_are_refused():
    student, network = nn.Sequential(nn.Conv2d(3, 4, 1)), nn.Sequential(nn.Conv2d(3, 5, 1))
    teacher = Teacher(network=network, student=student, features=["0"], feature_weight=1.0, output_weight=0)
    x = torch.rand(1, 3, 2, 2)
    with pytest.raises(DistillationError, match=r"\(1, 4, 2, 2\).*\(1, 5, 2, 2\)"):
        teacher.losses(x, student(x))
