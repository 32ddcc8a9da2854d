"""Policies that call tools: the tokens are those that were drawn, what tools said teaches nothing, runs are learned
from and go on exactly whatever the tools do."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from fakes.tool_model import SECRET, call, tool_folder
from fakes.training import Recorder
from tokenmill.align.conversations import MOST_CALLS, Conversations, talk_metrics
from tokenmill.align.experience import Completion, Rollout, batch_of, with_advantages
from tokenmill.align.policy import train
from tokenmill.align.rollouts import Ask, Writer, Written
from tokenmill.align.turns import Turns
from tokenmill.config.compose import compose
from tokenmill.config.policy import PRESETS, PolicyConfig
from tokenmill.config.tools import ToolsConfig
from tokenmill.core.errors import ConfigError
from tokenmill.data.prompts import Prompts
from tokenmill.models import load_model, load_tokenizer
from tokenmill.text.tokenizer import Tokenizer
from tokenmill.tools.box import ToolBox
from tokenmill.train.objectives import logprobs
from tokenmill.train.objectives.logprobs import NO_LABEL, batch_logprobs
from tokenmill.train.objectives.policy import Policy
from tokenmill.train.plan import plan_run
from tokenmill.train.run import RunResult

END = "<|im_end|>"


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    patch = pytest.MonkeyPatch()
    folder = tmp_path_factory.mktemp("tools")
    patch.setenv("TOKENMILL_HOME", str(folder / "home"))
    yield tool_folder(folder)  # type: ignore[misc]
    patch.undo()


@pytest.fixture(scope="module")
def tokenizer(place: Path) -> Tokenizer:
    return load_tokenizer(place / "model")


@pytest.fixture(scope="module")
def box(place: Path) -> Any:
    box = ToolBox(ToolsConfig(use=[f"{place}/tools.py:lookup", f"{place}/tools.py:boom", "calculator"], turns=3))
    yield box
    box.close()


class Script:
    """A writer whose model says what stands in the script, turn by turn."""

    def __init__(self, tokenizer: Tokenizer, *lines: Sequence[str], room: int = 200) -> None:
        self.config, self.tokenizer = PolicyConfig(completion_tokens=room), tokenizer
        self.lines = [list(line) for line in lines]
        self.seen: list[list[Ask]] = []

    def write(self, asked: Sequence[Ask], *, refresh: bool = True) -> list[Written]:
        assert refresh == (not self.seen)
        self.seen.append(list(asked))
        told = [self.tokenizer.encode(self.lines[ask.prompt_ids[0]].pop(0)) for ask in asked]
        cut = [(ids[: ask.max_tokens], ids) for ids, ask in zip(told, asked, strict=True)]
        return [Written(ids, [-0.5] * len(ids), ids == whole) for ids, whole in cut]


def converse(box: ToolBox, tokenizer: Tokenizer, *lines: Sequence[str], **how: Any) -> tuple[list[Written], Script]:
    """Conversations by script; the n-th prompt is the token n."""
    script = Script(tokenizer, *lines, **how)
    offered = ("lookup", "boom", "calculator")
    writes = Conversations(script, box, Turns(tokenizer, box.schemas), tokenizer)  # type: ignore[arg-type]
    return writes.write([Ask([n], seed=n + 5, tools=offered) for n in range(len(lines))]), script


def sums(expression: str) -> str:
    return f'<tool_call>{{"name": "calculator", "arguments": {{"expression": "{expression}"}}}}</tool_call>'


def test_conversations_are_drawn_tokens_with_given_ones_between(box: ToolBox, tokenizer: Tokenizer) -> None:
    first = [f"I look{call('lookup')}{END}", f"and{sums('6*7')}{call('lookup')}{END}", f"it is 42{END}"]
    written, script = converse(box, tokenizer, first, [f"no tools{END}"])
    one, other = written
    turns = Turns(tokenizer, box.schemas)
    drawn = [tokenizer.encode(line) for line in first]
    own = Completion(0, one.ids, one.logprobs, True, given=one.given).own
    assert (
        [token for token, mine in zip(one.ids, own, strict=True) if mine]
        == one.drawn
        == [*drawn[0], *drawn[1], *drawn[2]]
    )
    assert len(one.logprobs) == len(one.drawn)
    pieces = [one.ids[start:end] for start, end in one.given]
    assert [tokenizer.decode(piece) for piece in pieces] == [
        f"\ntool\n{SECRET}\nassistant\n", f"\ntool\n42\ntool\n{SECRET}\nassistant\n",
    ]  # fmt: skip
    assert one.ids == [*drawn[0], *pieces[0], *drawn[1], *pieces[1], *drawn[2]]
    assert script.seen[1][0].prompt_ids == [0, *drawn[0], *pieces[0]]  # what the engine is given is what is trained on
    assert [len(asks) for asks in script.seen] == [2, 1, 1]
    assert len({ask.seed for asks in script.seen for ask in asks}) == 4
    assert one.talk is not None
    assert (one.talk.calls, one.talk.failures, one.talk.invalid, one.talk.turns) == (3, 0, 0, 3)
    assert [m["role"] for m in one.talk.messages] == ["assistant", "tool", "assistant", "tool", "tool", "assistant"]
    assert one.talk.messages[0]["content"] == "I look"
    ids = [c["id"] for m in one.talk.messages for c in m.get("tool_calls", ())]
    assert ids == [m["tool_call_id"] for m in one.talk.messages if m["role"] == "tool"]
    assert tokenizer.decode(one.ids[one.talk.last :]) == "it is 42"
    assert (other.given, other.ids) == ([], tokenizer.encode(f"no tools{END}"))
    assert turns.read(other.ids, []).calls == []


@pytest.mark.parametrize(
    ("turn", "kind", "words"),
    [
        (call("boom"), "failures", "RuntimeError: boom"),
        (call("nothing"), "invalid", "there is no tool 'nothing'"),
        (sums("1/0"), "failures", "division by zero"),
        ('<tool_call>{"name": "calculator", "arguments": {"expresion": "1"}}</tool_call>', "invalid", "do not fit"),
        ('<tool_call>{"name": "calculator", "arg</tool_call>', "invalid", "which this is not"),
        (call("lookup") * (MOST_CALLS + 1), "invalid", f"more than {MOST_CALLS} calls"),
    ],
)
def test_what_goes_wrong_is_told_and_counted(
    box: ToolBox, tokenizer: Tokenizer, turn: str, kind: str, words: str
) -> None:
    [one], _ = converse(box, tokenizer, [f"{turn}{END}", f"so{END}"], room=900)
    assert one.talk is not None
    assert getattr(one.talk, kind) == 1
    assert words in tokenizer.decode(one.ids)
    assert one.finished
    assert talk_metrics([one])[f"tools/{kind}"] == (1, one.talk.calls)


def test_bounds_of_turns_and_tokens(box: ToolBox, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    again = [f"{call('lookup')}{END}"] * 9
    [one], script = converse(box, tokenizer, again)
    assert one.talk is not None
    assert (one.talk.turns, one.talk.calls, one.finished) == (3, 2, False)
    assert one.ids[-1] == tokenizer.encode(END)[0]
    length, step = len(one.ids), one.given[0][1]
    assert [ask.max_tokens for asks in script.seen for ask in asks] == [200, 200 - step, 200 - 2 * step]
    for room in (1, 2, step - 1, step, step + 1, length - 1, length):
        [short], _ = converse(box, tokenizer, again, room=room)
        assert len(short.ids) <= room
        assert not short.given or short.given[-1][1] < len(short.ids)  # it ends with what the model wrote
        assert not short.finished
        assert short.ids == one.ids[: len(short.ids)]
    long = [f"{sums('2**4000')}{END}", f"well{END}"]
    monkeypatch.setattr(box, "config", box.config.model_copy(update={"result_tokens": 8}))
    [cut], _ = converse(box, tokenizer, long, room=400)
    assert "… (cut off)" in tokenizer.decode(cut.ids)


def test_a_tool_that_is_not_on_offer_is_none(box: ToolBox, tokenizer: Tokenizer) -> None:
    script = Script(tokenizer, [f"{call('boom')}{END}", f"so{END}"])
    writes = Conversations(script, box, Turns(tokenizer, box.schemas), tokenizer)  # type: ignore[arg-type]
    [one] = writes.write([Ask([0], seed=1, tools=["lookup"])])
    assert one.talk is not None
    assert one.talk.invalid == 1


# --- over the real engine


def real(place: Path, box: ToolBox, tokenizer: Tokenizer) -> tuple[Any, list[Written], list[Ask]]:
    model = load_model(place / "model", dtype="float32").decoder
    config = PolicyConfig(completion_tokens=96, temperature=0.8)
    writer = Writer(model, config, tokenizer.eos_token_ids, longest=192, batch=8)
    writes = Conversations(writer, box, Turns(tokenizer, box.schemas), tokenizer)
    prompt = tokenizer.encode_chat([{"role": "user", "content": "what is on the mat"}], tools=box.schemas[:2])
    asks = [Ask(prompt, seed, tools=("lookup", "boom")) for seed in range(8)]
    return model, writes.write(asks), asks


def test_trainer_and_engine_agree_over_turns(
    place: Path, box: ToolBox, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Log-probabilities of drawn tokens are the sampler's; a second turn reads its beginning from the cache; what the
    model says of given tokens has no part in the gradient, and its drawn tokens do."""
    cached: list[int] = []
    write = Writer.write

    def watched(self: Writer, asked: Sequence[Ask], *, refresh: bool = True) -> list[Written]:
        add = self.engine.add
        seen: list[Any] = []
        monkeypatch.setattr(self.engine, "add", lambda request: (add(request), seen.append(request))[0])
        found = write(self, asked, refresh=refresh)
        monkeypatch.setattr(self.engine, "add", add)
        cached.extend(request.cached_tokens for request in seen if not refresh)
        return found

    monkeypatch.setattr(Writer, "write", watched)
    model, written, asks = real(place, box, tokenizer)
    assert cached
    assert min(cached) > len(asks[0].prompt_ids) - 32 > 0  # all whole blocks of it
    rows = [Completion(0, one.ids, one.logprobs, one.finished, given=one.given) for one in written]
    rows = with_advantages(rows, [(-1.0) ** n for n in range(len(rows))])
    assert sum(len(one.given) for one in rows) > 3
    batch = batch_of(rows, [ask.prompt_ids for ask in asks], per_token=True)
    model.requires_grad_(True)
    logps_T = batch_logprobs(model, batch, temperature=0.8).detach()
    here_T = batch.labels_T != NO_LABEL
    assert int(here_T.sum()) == sum(len(one.drawn) for one in written) == batch.num_labels
    assert float((logps_T - batch.sampler_T)[here_T].abs().max()) < 1e-5
    assert batch.labels_T[here_T].tolist() == [token for one in written for token in one.drawn]

    hidden = logprobs.hidden_states

    def gradient(where_T: torch.Tensor | None) -> dict[str, torch.Tensor]:
        def shaken(*given: Any) -> torch.Tensor:
            found_TC = hidden(*given)
            noise = torch.randn(found_TC.shape, generator=torch.Generator().manual_seed(0))
            return found_TC if where_T is None else torch.where(where_T[:, None], found_TC + noise, found_TC)

        monkeypatch.setattr(logprobs, "hidden_states", shaken)
        config = PolicyConfig(completion_tokens=48, temperature=0.8, clip_low=0.2, clip_high=0.2)
        loss = Policy(config, PRESETS["grpo"], kl_in_loss=True, correct="off")(model, batch)
        model.zero_grad()
        loss.sum.backward()
        return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}

    plain, masked, others = gradient(None), gradient(~here_T), gradient(here_T)
    assert all(torch.equal(plain[name], masked[name]) for name in plain)
    assert any(not torch.equal(plain[name], others[name]) for name in plain)  # the planted fault shows


def test_a_rollout_is_kept_with_what_was_given() -> None:
    one = Completion(3, [5, 6, 7, 8, 9], [-1.0, -2.0, -3.0], True, 1.0, [0.5] * 3, given=[[1, 3]])
    again = Rollout.of_state(json.loads(json.dumps(Rollout([one], {}).state())))
    assert again.completions == [one]
    batch = batch_of([one], [[1, 2]], per_token=True)
    assert batch.tokens_T.tolist() == [1, 2, 5, 6, 7, 8]
    assert batch.labels_T.tolist() == [NO_LABEL, 5, NO_LABEL, NO_LABEL, 8, 9]
    assert batch.sampler_T.tolist() == [0, -1, 0, 0, -2, -3]
    assert batch.advantages_T.tolist() == [0, 0.5, 0, 0, 0.5, 0.5]


# --- runs


def recipe(place: Path, out: Path, **changes: Any) -> dict[str, Any]:
    policy = {"prompts": 2, "group": 8, "completion_tokens": 48, **changes.pop("policy", {})}
    use = [f"{place}/tools.py:lookup", f"{place}/tools.py:boom"]
    return {
        "objective": "grpo", "model": str(place / "model"), "policy": policy, "steps": 4,
        "data": {"path": str(place / "prompts.jsonl"), "eval_share": 0.0},
        "rewards": [{"kind": "regex", "pattern": SECRET}], "tools": {"use": use, "turns": 3},
        "adapter": {"kind": "lora", "rank": 8}, "seq_len": 128, "micro_batch": 8, "lr": 1e-2,
        "schedule": "constant", "warmup": 0, "dtype": "float32", "eval_every": 0, "save_every": 0,
        "sample_tokens": 0, "trackers": [], "out": str(out), **changes,
    }  # fmt: skip


def weights(result: RunResult) -> dict[str, torch.Tensor]:
    assert result.model is not None
    return load_file(result.model / "adapter_model.safetensors")


def test_it_learns_to_call_the_tool_that_helps(place: Path, tmp_path: Path) -> None:
    """And a run that is stopped in the middle of a rollout ends with the same weights."""
    seen = Recorder()
    changes: dict[str, Any] = {"policy": {"minibatches": 2, "beta": 0.01}, "steps": 8}
    whole = train(recipe(place, tmp_path / "a", **changes), watchers=[seen])
    steps = [step.extra for step in seen.steps]
    assert steps[-1]["reward"] > steps[0]["reward"] + 0.3
    assert steps[-1]["tools/failures"] + steps[-1]["tools/invalid"] < steps[0]["tools/failures"] + 0.1
    assert steps[-1]["turns/mean"] > 1.7
    assert max(step["sampling/logp_difference/max"] for step in steps) < 1e-5
    half = train(recipe(place, tmp_path / "b", **{**changes, "steps": 3}), watchers=[])
    again = train(resume=half.folder, overrides=["steps=8"], watchers=[])
    one, other = weights(whole), weights(again)
    assert all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("how", ["exit", "nan"])
def test_other_objectives_over_tools_that_break(
    how: str, place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """RLOO with its price of distance, PPO with advantages of tokens; a reward of the person's own sees all of it."""
    monkeypatch.setenv("BOOM", how)
    file = tmp_path / "mine.py"
    file.write_text(
        "def all_of_it(samples):\n"
        "    for s in samples:\n"
        "        asked = [c for m in s.turns for c in m.get('tool_calls', ())]\n"
        "        said = [m for m in s.turns if m['role'] == 'tool']\n"
        "        assert s.messages[0]['role'] == 'user' and s.turns[-1]['role'] == 'assistant'\n"
        "        assert s.tool_calls == len(said) <= len(asked) or not s.finished\n"
        "        assert s.tool_failures == sum(m['name'] == 'boom' for m in said) or not s.finished\n"
        "        assert s.tool_invalid == sum(m['name'] == 'nothing' for m in said) or not s.finished\n"
        "    return [float(s.tool_calls) for s in samples]\n"
    )
    objective = "rloo" if how == "exit" else "ppo"
    seen = Recorder()
    rewards: list[dict[str, Any]] = [{"kind": "function", "path": f"{file}:all_of_it", "timeout_s": 60.0}]
    if objective == "ppo":
        rewards = [{"kind": "regex", "pattern": SECRET}]
    adapter = {"adapter": None, "lr": 1e-4} if objective == "ppo" else {}
    told = recipe(place, tmp_path, objective=objective, steps=1, rewards=rewards, policy={"beta": 0.1}, **adapter)
    result = train(told, watchers=[seen])
    assert result.reason == "finished"
    step = seen.steps[0].extra
    assert step["rewards/excluded"] == 0.0
    assert step["tools/failures"] > 0
    assert step["sampling/logp_difference/max"] < 1e-5


def test_plan_tells_the_tools(place: Path, tmp_path: Path) -> None:
    rows = [{"prompt": "a", "tools": ["boom"]}, {"prompt": "b"}, {"prompt": "c", "tools": ["nothing"]}]
    file = tmp_path / "p.jsonl"
    file.write_text("\n".join(map(json.dumps, rows)))
    data = {"path": str(file), "eval_share": 0.0, "max_broken": 0.5}
    plan = plan_run(compose(recipe(place, tmp_path, data=data)))
    assert isinstance(plan.splits.train, Prompts)
    assert [list(prompt.tools) for prompt in plan.splits.train.prompts] == [["boom"], ["lookup", "boom"]]
    assert "system\nboom " in plan.splits.train.prompts[0].text
    assert "cannot call" in plan.splits.report.broken_rows[0]
    for changes, words in (
        ({"tools": {"turns": 3}}, "tools.turns=3 has no effect"),
        ({"tools": {"use": ["calculator"], "memory_mb": 64}}, "needs the tool python"),
        ({"data": {"path": str(file), "prompts": "text"}}, "called in a conversation"),
    ):
        with pytest.raises(ConfigError, match=words):
            compose(recipe(place, tmp_path, **changes))
