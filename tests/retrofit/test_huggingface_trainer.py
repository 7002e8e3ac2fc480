"""Our models under transformers' Trainer and peft: the steps that we would take."""

import copy
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

os.environ["HF_HUB_OFFLINE"] = "1"


from causal_lms import MODELS, PROMPTS, V, padded

import memseq
from memseq.retrofit import MemseqForCausalLM

TRAIN = """
import json, os, sys, torch
import memseq
from torch.utils.data import SequentialSampler
from transformers import AutoModelForCausalLM, Trainer, TrainingArguments


class InOrder(Trainer):
    def _get_train_sampler(self, train_dataset=None):
        return SequentialSampler(self.train_dataset)


def train(model, rows, out, per_device):
    arguments = TrainingArguments(
        output_dir=out, per_device_train_batch_size=per_device, max_steps=4, learning_rate=0.3, optim="sgd", lr_scheduler_type="constant",
        max_grad_norm=0.0, report_to=[], save_strategy="no", logging_steps=1, use_cpu=True, disable_tqdm=True, gradient_checkpointing=True,
    )
    data = [{"input_ids": row, "labels": row} for row in rows]
    trainer = InOrder(model=model, args=arguments, train_dataset=data, eval_dataset=data[:4])
    trainer.train()
    return trainer


if __name__ == "__main__":
    torch.set_num_threads(1)
    start, rows, out = sys.argv[1:]
    trainer = train(AutoModelForCausalLM.from_pretrained(start), torch.load(rows), out, per_device=2)
    loss = trainer.evaluate()["eval_loss"]
    trainer.save_model(out)
    if trainer.is_world_process_zero():
        with open(os.path.join(out, "log.json"), "w") as file:
            json.dump({"loss": loss, "world": trainer.args.world_size}, file)
    os._exit(0)  # gloo's threads now and then abort a process whose interpreter is already ending
"""


def steps_by_hand(model, rows: Tensor) -> None:
    """Four steps of plain SGD with full back-propagation, on batches of four."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.3)
    for batch in rows.split(4):
        total, count, _ = model.loss(batch[:, :-1], batch[:, 1:], model.init_state(len(batch)))
        optimizer.zero_grad()
        (total / count).backward()
        optimizer.step()


def test_trainer_takes_the_steps_that_we_would(tmp_path):
    """With gradient checkpointing, over several segments."""
    from types import ModuleType

    script = ModuleType("script")
    exec(TRAIN, script.__dict__)
    model = MODELS["memformer"].build()
    ours, start = copy.deepcopy(model), copy.deepcopy(model)
    rows = torch.randint(0, V, (16, 11))
    script.train(MemseqForCausalLM.of(model), rows, str(tmp_path), per_device=4)
    steps_by_hand(ours, rows)
    assert_close(model.state_dict(), ours.state_dict(), rtol=1e-4, atol=1e-6)
    assert not torch.allclose(model.embedding.weight, start.embedding.weight, atol=1e-4)


def test_trainer_on_two_processes_takes_the_same_steps(tmp_path):
    """One segment only: nothing reads what was written, and data-parallel training must not wait for its gradient."""
    model = MODELS["memformer"].build()
    memseq.save(model, tmp_path / "start")
    rows = torch.randint(0, V, (16, 4))
    torch.save(rows, tmp_path / "rows.pt")
    (tmp_path / "train.py").write_text(TRAIN)
    out = tmp_path / "out"
    out.mkdir()
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", str(tmp_path / "train.py")]
    source = str(Path(memseq.__file__).parents[1])
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([source, os.environ.get("PYTHONPATH", "")]), "OMP_NUM_THREADS": "1"}
    command = [*launch, str(tmp_path / "start"), str(tmp_path / "rows.pt"), str(out)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr[-3000:]
    log = json.loads((out / "log.json").read_text())
    assert log["world"] == 2
    steps_by_hand(model, rows)
    trained = memseq.load(out)
    assert_close(trained.state_dict(), model.state_dict(), rtol=1e-4, atol=1e-6)
    batch = rows[:4]
    total, count, _ = model.loss(batch[:, :-1], batch[:, 1:], model.init_state(4))
    assert log["loss"] == pytest.approx(float(total / count), rel=1e-4)


def test_lora_trains_generates_and_merges(hf, tmp_path):
    from peft import LoraConfig, PeftModel, get_peft_model

    base = copy.deepcopy(hf)
    model = get_peft_model(hf, LoraConfig(task_type="CAUSAL_LM", target_modules="all-linear", r=2, init_lora_weights=False))
    model.double()
    x = torch.randint(0, V, (2, 13))
    model(x, labels=x).loss.backward()
    adapters = [name for name, p in model.named_parameters() if p.requires_grad]
    assert adapters
    assert all("lora" in name for name in adapters)
    assert all(p.grad is not None and bool(p.grad.any()) for name, p in model.named_parameters() if "lora_B" in name), (
        "an adapter without effect"
    )
    model.eval()
    tuned = model(x).logits
    assert not torch.allclose(tuned, base(x).logits)
    batch = padded(PROMPTS)
    written = model.generate(**batch, max_new_tokens=6, do_sample=False)
    model.save_pretrained(tmp_path)
    again = PeftModel.from_pretrained(base, tmp_path).double()
    assert_close(again(x).logits, tuned, rtol=1e-10, atol=1e-10)
    merged = model.merge_and_unload()
    assert_close(merged(x).logits, tuned, rtol=1e-9, atol=1e-10)
    assert merged.generate(**batch, max_new_tokens=6, do_sample=False).tolist() == written.tolist()
