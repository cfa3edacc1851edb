"""What a process finds out about its job, by whom it was launched."""

from __future__ import annotations

import pytest

from megatron_grow.inputs.errors import UserError
from megatron_grow.parallel.launch import check_address, first_host, missing, own_gpu

TORCHRUN = {
    "RANK": "9",
    "WORLD_SIZE": "16",
    "LOCAL_RANK": "1",
    "MASTER_ADDR": "gpu-01",
    "MASTER_PORT": "29400",
}
SRUN = {
    "SLURM_PROCID": "9",
    "SLURM_NTASKS": "16",
    "SLURM_LOCALID": "1",
    "SLURM_JOB_NODELIST": "gpu-[03-04]",
    "SLURM_JOB_ID": "1234567",
}


def test_a_bare_process_is_a_job_of_one() -> None:
    assert missing({}) == {
        "RANK": "0",
        "WORLD_SIZE": "1",
        "LOCAL_RANK": "0",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": "0",
    }


def test_torchrun_leaves_nothing_out_even_inside_srun() -> None:
    assert missing(TORCHRUN) == missing({**TORCHRUN, **SRUN}) == {}


def test_plain_srun_is_one_job() -> None:
    assert missing(SRUN) == {
        "RANK": "9",
        "WORLD_SIZE": "16",
        "LOCAL_RANK": "1",
        "MASTER_ADDR": "gpu-03",
        "MASTER_PORT": "19567",
    }


def test_what_is_set_is_not_replaced() -> None:
    found = missing({**SRUN, "MASTER_ADDR": "head", "MASTER_PORT": "4000"})
    assert found == {"RANK": "9", "WORLD_SIZE": "16", "LOCAL_RANK": "1"}


def test_a_step_may_be_a_part_of_the_job() -> None:
    found = missing({**SRUN, "SLURM_STEP_NUM_TASKS": "12", "SLURM_STEP_NODELIST": "gpu-04"})
    assert (found["WORLD_SIZE"], found["MASTER_ADDR"]) == ("12", "gpu-04")


def test_one_task_of_srun_needs_no_address() -> None:
    found = missing({"SLURM_PROCID": "0", "SLURM_NTASKS": "1"})
    assert (found["WORLD_SIZE"], found["MASTER_ADDR"]) == ("1", "127.0.0.1")


def test_ranks_of_another_launcher_take_their_place_on_the_host_from_slurm() -> None:
    given = {name: value for name, value in TORCHRUN.items() if name != "LOCAL_RANK"}
    assert missing({**given, **SRUN, "SLURM_LOCALID": "5"}) == {"LOCAL_RANK": "5"}


@pytest.mark.parametrize(
    ("nodes", "host"),
    [
        ("gpu1", "gpu1"),
        ("gpu1,gpu2", "gpu1"),
        ("gpu-[07-09,12],login1", "gpu-07"),
        ("rack[2-3]n[5,7]-ib", "rack2n5-ib"),
        ("a100-[001]", "a100-001"),
        ("", ""),
    ],
)
def test_first_host(nodes: str, host: str) -> None:
    assert first_host(nodes) == host


@pytest.mark.parametrize("absent", ["WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"])
def test_ranks_that_cannot_find_each_other(absent: str) -> None:
    with pytest.raises(UserError, match=absent) as error:
        check_address({name: value for name, value in TORCHRUN.items() if name != absent})
    assert "torchrun" in str(error.value) and "\n" not in str(error.value)


def test_a_port_that_nobody_has_named() -> None:
    """``torchrun --master-port 0`` hands on the 0, at which several ranks would wait for ever."""
    with pytest.raises(UserError, match=r"^MASTER_PORT=0: .*--standalone"):
        check_address({**TORCHRUN, "MASTER_PORT": "0"})
    check_address(missing({}))


def test_every_rank_has_its_own_gpu() -> None:
    assert own_gpu({"LOCAL_RANK": "3", "WORLD_SIZE": "4"}, 4) == 3
    assert own_gpu({"LOCAL_RANK": "3", "WORLD_SIZE": "4"}, 1) == 0  # it is shown its own alone
    assert own_gpu({"WORLD_SIZE": "1"}, 8) == 0


@pytest.mark.parametrize("local_rank", [None, "", "8"])
def test_no_two_ranks_share_a_gpu(local_rank: str | None) -> None:
    environment = {"WORLD_SIZE": "16"} | ({} if local_rank is None else {"LOCAL_RANK": local_rank})
    with pytest.raises(UserError, match=r"LOCAL_RANK.* 8 GPUs"):
        own_gpu(environment, 8)
