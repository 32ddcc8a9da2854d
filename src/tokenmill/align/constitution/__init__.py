"""Constitutional AI: a model's answers to red-team prompts, critiqued and revised by principles, as preference pairs.

    transcripts = revise(read_prompts(None), read_constitution(None), model, critic, Options(rounds=2))
    kept, dropped = pairs_of(transcripts, constitution)

Source: Bai et al. 2022, "Constitutional AI: Harmlessness from AI Feedback" (arXiv 2212.08073), its supervised stage;
the preference pair of a revised answer over the first one is then for ``train dpo`` or ``train reward``.
"""

from tokenmill.align.constitution.local import LocalAnswers
from tokenmill.align.constitution.pairs import Judgement, judge, training_rows
from tokenmill.align.constitution.report import write_constitution_report
from tokenmill.align.constitution.revise import Asker, Options, Round, Transcript, revise
from tokenmill.align.constitution.rules import Constitution, Prompt, read_constitution, read_prompts

__all__ = [
    "Asker",
    "Constitution",
    "Judgement",
    "LocalAnswers",
    "Options",
    "Prompt",
    "Round",
    "Transcript",
    "judge",
    "read_constitution",
    "read_prompts",
    "revise",
    "training_rows",
    "write_constitution_report",
]
