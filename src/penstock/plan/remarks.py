"""What is told of a question's job beside its plan: in words, and where what was asked cannot be had."""

from collections.abc import Iterator, Mapping

from penstock.plan.plan import Prediction, Use
from penstock.plan.policy import Tier
from penstock.plan.question import Question
from penstock.units import format_seconds


def bounds(question: Question, predicted: Prediction) -> Iterator[str]:
    """How long a row and its tokens take, where that was bounded."""
    sweep_s = predicted.steady.seconds
    of_row = "a row takes {} from its first prompt token to its last token"
    asked = (
        (question.latency_s, question.row_sweeps * sweep_s, of_row),
        (question.token_s, sweep_s, "a row waits {} for each token"),
    )
    for most, seconds, said in asked:
        if most is not None:
            kept = "within" if seconds <= most else "and nothing that was tried keeps to"
            yield f"{said.format(format_seconds(seconds))}, {kept} the {format_seconds(most)} allowed"


def too_long(question: Question, context: int | None) -> Iterator[str]:
    """Prompts that a run would refuse."""
    beyond = sum(prompt >= context for prompt, _ in question.requests) if context is not None else 0
    if beyond:
        prompts = "1 prompt is" if beyond == 1 else f"{beyond:,} prompts are"
        yield f"{prompts} longer than the model's context of {context:,} tokens allows, and a run refuses them"


def nothing_beside(question: Question, memory: Mapping[Tier, Use]) -> Iterator[str]:
    """Attention on the cpu that was asked for beside a gpu, where that holds all KV."""
    elsewhere = sum(use.kv for tier, use in memory.items() if tier != "gpu")
    if question.asked.attention == "cpu" and "gpu" in memory and memory["gpu"].kv and not elsewhere:
        yield "--attention cpu changes nothing: all KV lies on the gpu, and is attended to there"


def job(question: Question) -> str:
    """The job: ``2,000 prompts of 480 tokens, 150 to generate``."""
    requests = question.requests
    prompt = sum(p for p, _ in requests) / len(requests)
    new = sum(n for _, n in requests) / len(requests)
    prompts = "1 prompt" if len(requests) == 1 else f"{len(requests):,} prompts"
    return f"{prompts} of {prompt:,.0f} tokens, {new:,.0f} to generate"
