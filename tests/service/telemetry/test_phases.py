"""The phases of a step add up to its time, whoever keeps it."""

from dataclasses import dataclass, field

from hypothesis import given
from hypothesis import strategies as st

from sparta.service.telemetry.phases import Phases

PHASES = ("data_wait", "ascend", "second_pass")


@dataclass
class Device:
    """A timer whose marks pass some calls late, as events of a GPU do."""

    every_seconds: float = 0.0
    late: int = 0
    now: float = 0.0
    marks: list[float] = field(default_factory=list)
    asked: int = 0

    def mark(self) -> float:
        self.marks.append(self.now)
        return self.now

    def passed(self, mark: float) -> bool:
        self.asked += 1
        return self.asked > self.late

    def seconds(self, start: float, end: float) -> float:
        return end - start


steps = st.lists(
    st.lists(st.tuples(st.sampled_from(PHASES), st.integers(0, 9)), min_size=1, max_size=6),
    min_size=1,
    max_size=5,
)


@given(steps, st.lists(st.integers(0, 5), min_size=5, max_size=5))
def test_every_phase_of_every_step_is_told_once_and_what_is_between_steps_is_not(
    drawn: list[list[tuple[str, int]]], between: list[int]
) -> None:
    device, told = Device(), list[tuple[str, float]]()
    phases = Phases(device, lambda phase, seconds: told.append((phase, seconds)), clock=lambda: device.now)
    expected = []
    for step, pause in zip(drawn, between, strict=False):
        for phase, seconds in step:
            phases.begin(phase)
            device.now += seconds
        phases.end_step()
        device.now += pause
        names = dict.fromkeys(name for name, _ in step)
        expected += [(name, float(sum(s for n, s in step if n == name))) for name in names]
    assert told == expected


def test_a_device_is_timed_now_and_then_and_read_when_it_has_come_by() -> None:
    device, told = Device(every_seconds=10.0, late=2), list[tuple[str, float]]()
    phases = Phases(device, lambda phase, seconds: told.append((phase, seconds)), clock=lambda: device.now)
    for _ in range(13):  # steps of 2 s
        phases.begin("ascend")
        device.now += 2
        phases.end_step()
    # Steps 1, 7 and 13 are timed; the events of the first have passed when step 3 ends.
    assert told == [("ascend", 2.0)] * 3
    assert len(device.marks) == 6
