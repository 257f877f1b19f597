"""The supervised loop on a real flow-matching task: it learns, resumes bit for bit, and its file loads."""

import pytest
import torch
from accelerate import Accelerator

from lucidnft.backbones.tiny import TinyBackbone
from lucidnft.checkpoint import load_tensors
from lucidnft.images import resize
from lucidnft.metric_logger import read_metrics
from lucidnft.records import ImageBatch
from lucidnft.training.flow_matching_task import FlowMatchingTask
from lucidnft.training.settings import EvalConfig, FlowMatchingTrainConfig, LogConfig
from lucidnft.training.state import resume_trainer
from lucidnft.training.supervised_trainer import SupervisedTrainer
from tests.small_backbone import SMALL


class Gradients:
    """HR images that a small network can learn: smooth ramps, one per row."""

    name = "ramps"
    provides = frozenset({"lr", "hr"})

    def batch(self, step, num_groups, rows):
        ids = tuple(step * num_groups + row for row in rows)
        slopes = torch.stack([torch.rand((3, 1, 1), generator=torch.Generator().manual_seed(i)) for i in ids])
        hr = slopes * torch.linspace(0, 1, 32).view(1, 1, 1, 32).expand(len(ids), 3, 32, 32)
        lr = torch.nn.functional.avg_pool2d(hr, 4)
        return ImageBatch(lr=lr, hr=hr.contiguous(), keys=tuple(map(str, ids)), group_ids=ids)

    def __len__(self):
        return 2

    def batches(self):
        yield self.batch(10**6, 2, range(2))


def trainer(run_dir, **train):
    settings = FlowMatchingTrainConfig.model_validate(
        {"max_train_steps": 4, "learning_rate": 5e-3, "batch_size": 4, "ema_decay": 0.5, **train}
    )
    evaluation = EvalConfig(eval_steps=2, num_inference_steps=2)
    backbone = TinyBackbone.initialise(SMALL, seed=0)
    task = FlowMatchingTask(backbone, Gradients(), Gradients(), settings, evaluation, seed=1)
    return SupervisedTrainer(
        task, train=settings, evaluation=evaluation, log=LogConfig(save_steps=2, report_to="none"),
        run_dir=run_dir, accelerator=Accelerator(cpu=True), header={"data": "ramps"},
    )  # fmt: skip


def without_timings(run_dir):
    return [{k: v for k, v in row.items() if not k.startswith("perf/")} for row in read_metrics(run_dir)]


def test_two_steps_restore_two_steps_equal_four_bit_for_bit(tmp_path):
    trainer(tmp_path / "whole").fit()
    trainer(tmp_path / "parts", max_train_steps=2).fit()
    torch.manual_seed(99)
    second = trainer(tmp_path / "parts")
    resume_trainer(second, "latest")
    second.fit()
    for name in ("parameters", "ema", "optimizer", "weights"):
        whole, parts = (
            load_tensors(tmp_path / d / f"checkpoint-000004/{name}.safetensors")[0]
            for d in ("whole", "parts")
        )
        assert all(torch.equal(whole[n], parts[n]) for n in whole)
    assert without_timings(tmp_path / "whole") == without_timings(tmp_path / "parts")


def test_the_loss_falls_on_the_same_images_times_and_noise(tmp_path):
    run = trainer(tmp_path, max_train_steps=60, learning_rate=1e-2)
    losses = []
    for step in [*range(60), *range(15)]:
        run.step = step
        losses.append(run.run_step()["loss/total"])
    assert sum(losses[60:]) < 0.75 * sum(losses[:15])


def test_the_shipped_file_holds_the_average_and_loads_as_a_backbone(tmp_path):
    run = trainer(tmp_path)
    run.fit()
    loaded = TinyBackbone.from_pretrained(tmp_path / "checkpoint-000004/weights.safetensors")
    for name, value in loaded.module.state_dict().items():
        assert torch.equal(value, run.ema.shadow[name])
    _, header = load_tensors(tmp_path / "checkpoint-000004/weights.safetensors")
    assert header["data"] == "ramps"
    assert header["step"] == 4
    assert header["metrics"]["psnr_y"] > 0


@pytest.mark.parametrize("micro", [1, 3, 4])
def test_micro_batches_change_no_gradient(tmp_path, micro):
    whole, parts = trainer(tmp_path / "w"), trainer(tmp_path / "p", per_device_batch_size=micro)
    a, b = whole.run_step(), parts.run_step()
    assert a["loss/total"] == pytest.approx(b["loss/total"], rel=1e-5)
    assert a["train/grad_norm"] == pytest.approx(b["train/grad_norm"], rel=1e-4)


def test_an_evaluation_leaves_pictures_of_lr_restored_and_hr(tmp_path):
    run = trainer(tmp_path)
    run.fit()
    assert sorted(p.name for p in (tmp_path / "images").iterdir()) == [
        f"held_out-{step:06d}.png" for step in (0, 2, 4)
    ]
    found = run.task.evaluate()
    (held_out,) = run.task.held_out.batches()
    assert found.captions == ("LR", "restored", "HR") and found.pictures.shape == (2, 3, 3, 32, 32)
    assert torch.equal(found.pictures[:, 2], held_out.hr)
    assert torch.equal(found.pictures[:, 0], resize(held_out.lr, (32, 32)))
    run.task.num_grid_images = 1
    assert len(run.task.evaluate().pictures) == 1


def test_a_task_without_hr_images_is_refused():
    source = Gradients()
    source.provides = frozenset({"lr"})
    with pytest.raises(ValueError, match="needs HR images"):
        FlowMatchingTask(
            TinyBackbone.initialise(SMALL), source, source, FlowMatchingTrainConfig(), EvalConfig(), seed=0
        )


def test_a_checkpoint_of_another_task_is_refused(tmp_path):
    trainer(tmp_path).fit()
    other = trainer(tmp_path)
    other.task.name = "quality"
    with pytest.raises(ValueError, match="checkpoint of task 'flow_matching'"):
        resume_trainer(other, "latest")
