import pytest
import torch
from torch.optim import lr_scheduler

from segcft_ext.schedules import OneCycleLR


def rates(scheduler, steps, share):
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    schedule = scheduler(optimizer, 1.0, total_steps=steps, pct_start=share, cycle_momentum=False)
    found = []
    for _ in range(steps):
        found.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    return found


@pytest.mark.parametrize("steps", [9, 11, 40])
def test_it_is_that_of_pytorch(steps):
    assert rates(OneCycleLR, steps, 0.1) == rates(lr_scheduler.OneCycleLR, steps, 0.1)


@pytest.mark.parametrize(("steps", "share"), [(10, 0.1), (20, 0.05)])
def test_a_warm_up_of_one_step_begins_at_the_highest_rate(steps, share):
    with pytest.raises(ZeroDivisionError):
        rates(lr_scheduler.OneCycleLR, steps, share)
    found = rates(OneCycleLR, steps, share)
    assert found[0] == pytest.approx(1.0, abs=1e-4)
    assert found == sorted(found, reverse=True)
    assert found[-1] < 1e-4
