"""Models as judges: of two answers the better one, asked in both orders; of one answer a mark by a rubric."""

from tokenmill.evals.judge.duel import Duel, Pair, duel
from tokenmill.evals.judge.figures import Figures, figures_of
from tokenmill.evals.judge.judge import Judge
from tokenmill.evals.judge.questions import Question, answer_questions, read_questions
from tokenmill.evals.judge.rubric import Mark, mark_answers

__all__ = [
    "Duel",
    "Figures",
    "Judge",
    "Mark",
    "Pair",
    "Question",
    "answer_questions",
    "duel",
    "figures_of",
    "mark_answers",
    "read_questions",
]
