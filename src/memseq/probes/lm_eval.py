"""Our checkpoints as a model of EleutherAI's lm-evaluation-harness, in constant memory.

    from memseq.probes.lm_eval import MemseqLM                            # registers the model under the name "memseq"
    lm_eval.simple_evaluate(model=MemseqLM(pretrained="runs/first"), tasks=["lambada_openai"])
    lm_eval.simple_evaluate(model="memseq", model_args="pretrained=runs/first", tasks=[...])

A context is read as a stream, whatever its length: nothing is cut off on the left, which harnesses do to models with a window.
`scoring.py` does the work, `Answers` speaks the harness's words without needing it, and `MemseqLM`, made when it is first asked for,
is the two together with the harness's own class. Needs the extra `eval`.
"""

from collections.abc import Sequence
from functools import cache
from typing import Any

import torch

from memseq.errors import ConfigError, MissingExtraError, nearest
from memseq.pretrained import load_pretrained
from memseq.probes.scoring import Continuation, Scorer
from memseq.tasks.tokenizers import load_tokenizer

__all__ = ["Answers", "continuation"]


class Answers:
    """What the harness asks of a model. `pretrained` is a directory that `memseq train` wrote."""

    cache_hook: Any  # of the harness: keeps what was answered

    def __init__(
        self, pretrained: str, *, batch_size: int | str = 16, device: str | None = None, max_gen_toks: int | str = 256, **others: Any
    ) -> None:
        super().__init__()
        if unknown := sorted(name for name, value in others.items() if value is not None and name != "max_batch_size"):
            known = ["pretrained", "batch_size", "device", "max_gen_toks"]
            raise ConfigError(f"MemseqLM has no argument {unknown[0]!r}; {nearest(unknown[0], known)}")
        if str(batch_size).startswith("auto"):
            batch_size = 16
        device = device or ("cuda" if torch.cuda.is_available() else "cpu")
        self._device = torch.device(device)
        self.most = int(max_gen_toks)
        self.scorer = Scorer(load_pretrained(pretrained, device=device), load_tokenizer(pretrained), batch_size=int(batch_size))
        self._name = f"memseq-{self.scorer.tokenizer.fingerprint}"

    @property
    def tokenizer_name(self) -> str:
        return self._name

    def loglikelihood(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        """Of each request's (context, continuation): log p, and whether it is greedy."""
        found = self.scorer.loglikelihoods([request.args for request in requests])
        for request, answer in zip(requests, found, strict=True):
            self.cache_hook.add_partial("loglikelihood", request.args, answer)
        return found

    def loglikelihood_rolling(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[float]:
        """Of each request's text: log p of the whole, one state from its first character to its last."""
        found = self.scorer.rolling([request.args[0] for request in requests])
        for request, answer in zip(requests, found, strict=True):
            self.cache_hook.add_partial("loglikelihood_rolling", request.args, answer)
        return found

    def generate_until(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[str]:
        """Of each request's (context, settings): the continuation up to one of the texts in `until`."""
        ways = [continuation(request.args[1], self.most) for request in requests]
        found = [""] * len(requests)
        for how in dict.fromkeys(ways):
            rows = [row for row, way in enumerate(ways) if way == how]
            said = self.scorer.continue_until([requests[row].args[0] for row in rows], how)
            for row, text in zip(rows, said, strict=True):
                found[row] = text
                self.cache_hook.add_partial("generate_until", requests[row].args, text)
        return found


@cache
def harness_model() -> type:
    """`Answers` as a class of the harness, registered there. Raises `MissingExtraError` where the harness is not installed."""
    try:
        from lm_eval.api.model import LM  # ty: ignore[import-not-found]
        from lm_eval.api.registry import register_model  # ty: ignore[import-not-found]
    except ModuleNotFoundError:
        raise MissingExtraError("lm_eval", extra="eval") from None
    made = type("MemseqLM", (Answers, LM), {"__doc__": Answers.__doc__, "__module__": __name__})
    return register_model("memseq")(made)


def __getattr__(name: str) -> Any:
    if name == "MemseqLM":
        return harness_model()
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def continuation(settings: Any, most: int) -> Continuation:
    """The harness's words for how to generate. Raises `ConfigError` on one that has no meaning here."""
    given = dict(settings)
    until = given.pop("until", None) or ()
    most = int(given.pop("max_gen_toks", given.pop("max_new_tokens", most)))
    temperature = float(given.pop("temperature", 0.0) or 0.0)
    drawn = given.pop("do_sample", temperature > 0)
    top_p, top_k = float(given.pop("top_p", 1.0) or 1.0), given.pop("top_k", None)
    if given:
        known = ["until", "max_gen_toks", "do_sample", "temperature", "top_p", "top_k"]
        raise ConfigError(f"generation has no setting {next(iter(given))!r}; {nearest(next(iter(given)), known)}")
    return Continuation(
        until=(until,) if isinstance(until, str) else tuple(until),
        tokens=most,
        temperature=(temperature or 1.0) if drawn else 0.0,
        top_p=top_p,
        top_k=int(top_k) if top_k else None,
    )
