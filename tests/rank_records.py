"""python tests/rank_records.py DIR [key=value ...]: two steps of nft.yaml, and what each rank saw, for comparisons."""

import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parents[1]))
from lucidnft.checkpoint import save_tensors  # noqa: E402
from lucidnft.config import load_config  # noqa: E402
from lucidnft.training.device import build_accelerator  # noqa: E402
from train import prepare_nft  # noqa: E402

output, overrides = Path(sys.argv[1]), sys.argv[2:]
config = load_config(Path(__file__).parents[1] / "configs/tiny/nft.yaml", overrides)
accelerator = build_accelerator("cpu")
trainer = prepare_nft(config, output / "unused", accelerator)
records = {f"start/{name}": p.detach().clone() for name, p in trainer.parameters.items()}
for step in range(2):
    report = trainer.run_step(step)
    trainer.step += 1
    mine = slice(trainer.rows.start, trainer.rows.stop)
    records[f"step{step}/group_ids"] = torch.tensor(report.batch.group_ids)
    records[f"step{step}/x_0"] = report.rollout.x_0
    records[f"step{step}/scores"] = report.scores.stacked[mine].contiguous()
    records[f"step{step}/advantages"] = report.advantages[mine].contiguous()
records |= {f"weights/{name}": p.detach().clone() for name, p in trainer.parameters.items()}
output.mkdir(parents=True, exist_ok=True)
save_tensors(output / f"rank-{accelerator.process_index}.safetensors", records, {})
