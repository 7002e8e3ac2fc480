"""What to learn or recall, with exact answers. `make_task(name, field=value, ...)` builds one by its name."""

from dataclasses import fields
from importlib import import_module
from typing import TYPE_CHECKING, Any, cast

from memseq.errors import ConfigError, nearest

if TYPE_CHECKING:
    from memseq.tasks.task import Task

__all__ = ["TASKS", "make_task", "task_class"]

TASKS = {  # name -> module and class; a module is imported when its task is asked for
    "recall": "recall.RecallTask",
    "recall_overwritten": "recall.OverwrittenRecallTask",
    "recall_horizon": "horizon.HorizonRecallTask",
    "copy": "copy.CopyTask",
    "reverse": "copy.ReverseTask",
    "selective_copy": "selective_copy.SelectiveCopyTask",
    "induction": "induction.InductionTask",
    "parity": "bits.ParityTask",
    "delayed_match": "bits.MatchTask",
    "mqar": "mqar.MQARTask",
    "interleaved_recall": "interleaved.InterleavedRecallTask",
    "topics": "topics.TopicsTask",
    "dialogue": "dialogue.DialogueTask",
    "delayed_meaning": "delayed_meaning.DelayedMeaningTask",
    "set_disjointness": "set_disjointness.SetDisjointnessTask",
    "repeat_previous": "popgym.RepeatPreviousTask",
    "autoencode": "popgym.AutoencodeTask",
    "passkey": "passkey.PasskeyTask",
    "passkey_depth": "passkey.PasskeyDepthTask",
    "passkey_words": "passkey.PasskeyWordsTask",
    "needle": "needles.NeedleTask",
    "variable_tracking": "needles.VariableTask",
    "babi": "babi.BabiTask",
    "order": "order.OrderTask",
}


def task_class(name: str) -> "type[Task]":
    """The class of a task, whose fields are its settings."""
    if name not in TASKS:
        raise ConfigError(f"there is no task {name!r}: {nearest(name, list(TASKS))}")
    module, cls = TASKS[name].split(".")
    return getattr(import_module(f"memseq.tasks.{module}"), cls)


def make_task(name: str, **settings: Any) -> "Task":
    """A task by its name: `make_task("recall", n_segments=8)`."""
    cls = task_class(name)
    known = [field.name for field in fields(cast("Any", cls))]
    for given in settings:
        if given not in known:
            raise ConfigError(f"the task {name!r} has no setting {given!r}: {nearest(given, known)}")
    return cls(**settings)
