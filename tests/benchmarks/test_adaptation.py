"""The loop of one photo against its published form."""

import json

import pytest
import torch

pytest.importorskip("safetensors")

from benchmarks import adaptation
from torchext.models.semantic_photo_manipulation.networks import CODE_LAYER, ProgressiveGenerator


def given(kind: str) -> tuple:
    torch.manual_seed(0)
    generator = ProgressiveGenerator(sizes=(8, 8, 8, 8, 6, 4)).eval().requires_grad_(False)
    batch = {
        "code": generator.run(torch.randn(1, 8, 1, 1), last=CODE_LAYER),
        "photo": torch.rand(1, 3, 64, 64) * 2 - 1,
        "keep": torch.rand(1, 1, 64, 64),
    }
    return generator, adaptation.perturbation_of(kind, generator), batch


@pytest.mark.parametrize("kind", ["network", "maps"])
def test_both_loops_are_the_same(kind):
    adaptation.check_equal(*given(kind))


def test_what_differs_is_not_timed(monkeypatch):
    generator, perturbation, batch = given("maps")
    render = adaptation.Adaptation.render
    monkeypatch.setattr(adaptation.Adaptation, "render", lambda *a: render(*a) + 0.01)
    with pytest.raises(RuntimeError, match="match: "):
        adaptation.check_equal(generator, perturbation, batch)
    monkeypatch.setattr(adaptation.Adaptation, "render", lambda *a: render(*a).detach())
    with pytest.raises(RuntimeError, match="gradients differ from the published by"):
        adaptation.check_equal(generator, perturbation, batch)


def test_the_loops_learn_alike():
    generator, perturbation, batch = given("network")
    theirs, ours = adaptation.both(generator, perturbation, torch.float64)
    batch = {name: value.double() for name, value in batch.items()}
    loop, prepared = adaptation.Loop(ours), ours.prepared(batch)
    ours.networks.train()
    for _ in range(3):
        assert loop.step([prepared], epoch=0) == pytest.approx(theirs.step(batch), rel=1e-6)


def test_the_command_writes_its_rows(tmp_path, capsys):
    threads = torch.get_num_threads()
    try:
        how = ["--size", "64", "--rounds", "1", "--threads", "1"]
        assert adaptation.main([*how, "--output", str(tmp_path / "a.json")]) == 0
    finally:
        torch.set_num_threads(threads)
    rows = json.loads((tmp_path / "a.json").read_text())["rows"]
    assert [row["network"] for row in rows] == ["adaptation, network 64", "adaptation, maps 64"]
    assert "steps/s" in capsys.readouterr().out
