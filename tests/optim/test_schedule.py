"""Laws of the schedules, and torch's own schedulers as oracles."""

import json
import math
import subprocess
import sys

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import sparta.optim
from sparta.optim.schedule import Decay, EarlyStop, Plateau, Schedule

DECAYS: list[Decay] = ["constant", "linear", "cosine", "exponential"]
values = st.lists(st.one_of(st.floats(0, 1), st.just(math.nan)), max_size=30)


@pytest.mark.parametrize("decay", DECAYS)
@given(warmup=st.integers(0, 30), rest=st.integers(0, 60), floor=st.floats(0.001, 1))
def test_rises_to_one_then_falls_to_the_floor(decay: Decay, warmup: int, rest: int, floor: float) -> None:
    schedule = Schedule(warmup + rest, warmup=warmup, decay=decay, floor=floor)
    scales = [schedule.scale(step) for step in range(warmup + rest + 10)]
    assert all(0 <= s <= 1 for s in scales)
    assert scales[:warmup] == [step / warmup for step in range(warmup)]
    assert all(a >= b - 1e-12 for a, b in zip(scales[warmup:], scales[warmup + 1 :], strict=False))
    if rest:
        assert scales[warmup] == 1
    assert scales[-1] == pytest.approx(1 if decay == "constant" else floor)
    assert scales[-1] == pytest.approx(scales[warmup + rest])


def torch_scales(scheduler: type, steps: int, **arguments: float) -> list[float]:
    optimizer = torch.optim.SGD([torch.zeros(1)], lr=1.0)
    rates, schedule = [], scheduler(optimizer, **arguments)
    for _ in range(steps):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    return rates


def test_decays_are_torchs() -> None:
    lr = torch.optim.lr_scheduler
    twins = {
        "linear": torch_scales(lr.LinearLR, 11, start_factor=1.0, end_factor=0.2, total_iters=10),
        "cosine": torch_scales(lr.CosineAnnealingLR, 11, T_max=10, eta_min=0.2),
        "exponential": torch_scales(lr.ExponentialLR, 11, gamma=0.2 ** (1 / 10)),
    }
    for decay in DECAYS[1:]:
        ours = [Schedule(10, decay=decay, floor=0.2).scale(step) for step in range(11)]
        assert ours == pytest.approx(twins[decay]), decay


@given(values, st.integers(0, 3), st.sampled_from([0.0, 0.01, 0.1]), st.booleans())
def test_plateau_is_torchs(evaluations: list[float], patience: int, min_delta: float, up: bool) -> None:
    optimizer = torch.optim.SGD([torch.zeros(1)], lr=1.0)
    twin = torch.optim.lr_scheduler.ReduceLROnPlateau(
        optimizer,
        mode="max" if up else "min",
        factor=0.5,
        patience=patience,
        threshold=min_delta,
        threshold_mode="abs",
        min_lr=0.1,
        eps=0,
    )
    ours = Plateau(
        metric="auc" if up else "logloss", factor=0.5, patience=patience, min_delta=min_delta, floor=0.1
    )
    for value in evaluations:
        twin.step(value)
        assert ours.observe(value) == pytest.approx(optimizer.param_groups[0]["lr"])


@given(values, st.booleans())
def test_early_stop_keeps_the_first_best(evaluations: list[float], up: bool) -> None:
    watch = EarlyStop(metric="gauc" if up else "logloss", min_delta=0.05)
    for step, value in enumerate(evaluations):
        watch.observe(value, step)
    known = [v for v in evaluations if not math.isnan(v)]
    assert watch.best == ((max if up else min)(known) if known else None)
    assert watch.best_step == (evaluations.index(watch.best) if known else None)


def test_patience_is_the_evaluations_let_pass() -> None:
    for patience in range(4):
        watch = EarlyStop(metric="logloss", patience=patience)
        stops = [watch.observe(value, step) for step, value in enumerate([0.5, 0.4, *[0.45] * 5])]
        assert stops.index(True) == 2 + patience


def test_a_slow_climb_is_a_gain_and_a_tremor_is_none() -> None:
    climb = EarlyStop(metric="auc", patience=2, min_delta=0.01)
    assert not any(climb.observe(0.5 + 0.005 * step, step) for step in range(50))
    tremor = EarlyStop(metric="auc", patience=2, min_delta=0.01)
    assert any(tremor.observe(0.5 + 0.005 * (step % 2), step) for step in range(4))
    assert tremor.best_step == 1  # the best by any margin


@given(values, st.integers(0, 30))
def test_state_survives_json_and_goes_on_alike(evaluations: list[float], cut: int) -> None:
    def pair() -> tuple[Plateau, EarlyStop]:
        return Plateau(factor=0.5, patience=1, min_delta=0.02), EarlyStop(patience=3, min_delta=0.02)

    whole, resumed = pair(), pair()
    for step, value in enumerate(evaluations):
        if step == cut:
            states = json.loads(json.dumps([part.state() for part in resumed]))
            resumed = pair()
            for part, state in zip(resumed, states, strict=True):
                part.load(state)
        assert whole[0].observe(value) == resumed[0].observe(value)
        assert whole[1].observe(value, step) == resumed[1].observe(value, step)
    assert [part.state() for part in whole] == [part.state() for part in resumed]


@pytest.mark.parametrize(
    "make, names",
    [
        (lambda: Schedule(10, warmup=-1), "-1"),
        (lambda: Schedule(10, decay="linear", floor=2), "2"),
        (lambda: Schedule(10, decay="exponential"), "floor"),
        (lambda: Plateau(factor=1.5), "1.5"),
        (lambda: Plateau(floor=-1), "-1"),
        (lambda: Plateau(patience=-2), "-2"),
        (lambda: EarlyStop(metric="calibration"), "calibration"),
    ],
)
def test_nonsense_is_refused_by_value(make: object, names: str) -> None:
    assert callable(make)
    with pytest.raises(ValueError, match=names):
        make()


def test_the_face_is_lazy_and_true() -> None:
    for name in sparta.optim.__all__:
        assert getattr(sparta.optim, name).__name__ == name
    with pytest.raises(AttributeError, match="Nothing"):
        _ = sparta.optim.Nothing
    code = "import sys, sparta.optim; sparta.optim.Schedule(1); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
