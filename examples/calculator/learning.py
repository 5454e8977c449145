"""The learning loop around two agents: yesterday, base, nights, proof. Every step is one call of Spanloop's own API."""

from __future__ import annotations

import importlib
import itertools
import shlex
import shutil
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, fields
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import tasks as calculator
from plan import Plan
from processes import (
    AGENTS,
    BIN,
    HERE,
    AgentAddresses,
    AgentRun,
    DemoError,
    Process,
    Processes,
    answers,
    free_ports,
)

from spanloop_store import connect, flush, read_owner, registry
from spanloop_trainer.settings import Settings

MODEL = "calculator"  # names in the registry
IMITATION = "calculator-sft"  # what RL is compared with
STAMP_TIMEOUT_S = 30.0
SWITCH_TIMEOUT_S = 30.0
PROGRESS_EVERY_S = 5.0

# Model calls of agents for which the gateway's own span, with the token ids, is not there yet.
_UNSTAMPED = """
SELECT countIf(id NOT IN (
    SELECT SpanAttributes['gen_ai.response.id'] FROM otel_traces WHERE SpanAttributes['spanloop.gateway'] = 'true'
))
FROM (
    SELECT SpanAttributes['gen_ai.response.id'] AS id FROM otel_traces
    WHERE ServiceName IN {agents:Array(String)} AND id != '' AND Timestamp >= fromUnixTimestamp64Nano({since:Int64})
)
"""


@dataclass
class Round:
    """What one round of agents left behind: its dataset and the version that played."""

    version: str
    dataset: Path
    dataset_id: str
    episodes: int
    transitions: int
    mean_reward: float | None


@dataclass
class Loop:
    """One run of the whole loop.

    Attributes:
        out: folder of the run; must not exist or be a folder of an earlier run, which is replaced.
        plan: sizes and settings.
        seed: of tasks, policy and training.
        say: shows one line.
        shuffle_rewards: permute rewards between episodes before each night's training: the control.
        base_from: a trained base to start from instead of making one: the control's twin.
    """

    out: Path
    plan: Plan
    seed: int
    say: Callable[[str], None]
    shuffle_rewards: bool = False
    base_from: Path | None = None
    stages: list[tuple[str, float]] = field(default_factory=list)
    rounds: list[Round] = field(default_factory=list)
    versions: list[registry.ModelVersion] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.out = self.out.resolve()
        self.store = f"chdb://{self.out / 'store'}"
        self.processes = Processes(self.out / "logs")
        self._servers: list[Process] = []
        self._ports = dict(
            zip(("http", "grpc", "clickhouse", "gateway", "policy", "serve"), free_ports(6), strict=True)
        )
        self.addresses = AgentAddresses(self.url("http"), self.url("gateway") + "/v1")
        self.client: Any = None
        self.config: Any = None

    def url(self, part: str) -> str:
        """Base URL of a part of this run."""
        return f"http://127.0.0.1:{self._ports[part]}"

    # Showing what happens.

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Time a stage and show it."""
        self.say(f"── {name}")
        started = time.monotonic()
        yield
        seconds = time.monotonic() - started
        self.stages.append((name, round(seconds, 1)))
        self.say(f"   {name}: {seconds:.1f} s")

    def command(self, *words: object) -> None:
        """Show the command that does the same from a terminal."""
        self.say("   $ spanloop " + shlex.join(self._short(word) for word in words))

    def _short(self, word: object) -> str:
        text = str(word)
        if text.startswith("chdb://"):  # a store's URL has no relative form
            return text
        for path in (Path.cwd(), HERE.parent.parent):
            text = text.replace(f"{path}/", "")
        return text

    # Stages.

    def start(self) -> None:
        """Task files, receivers, store, gateway, yesterday's model; and both agents, which wait for their tasks."""
        self._fresh_folder()
        self._write_tasks()
        up = [BIN / "spanloop", "up", "--store", self.store]
        for option, part in (
            ("otlp-http", "http"),
            ("otlp-grpc", "grpc"),
            ("clickhouse", "clickhouse"),
            ("gateway", "gateway"),
        ):
            up += [f"--{option}-port", self._ports[part]]
        for name, part in (("yesterday", "policy"), (MODEL, "serve"), (IMITATION, "serve")):
            up += ["--upstream", f"{name}={self.url(part)}/v1"]
        self.command(*up[1:])
        up_process = self.processes.start("up", map(str, up))
        policy = [sys.executable, HERE / "policy.py", "--port", self._ports["policy"], "--seed", self.seed]
        policy_process = self.processes.start("policy", map(str, policy))
        self._servers = [up_process, policy_process]
        self.processes.wait_until(up_process, self._up_is_ready)
        self.processes.wait_until(policy_process, lambda: answers(self.url("policy") + "/v1/models"))
        self.client = connect(self.store)
        from spanloop_trainer.config import load_config

        self.config = load_config(self.out / "spanloop.toml")

    def _up_is_ready(self) -> bool:
        return (
            read_owner(self.store) is not None
            and answers(self.url("http") + "/healthz")
            and answers(self.url("gateway") + "/healthz")
        )

    def _fresh_folder(self) -> None:
        if self.out.exists() and any(self.out.iterdir()):
            if not (self.out / "spanloop.toml").is_file():
                raise DemoError(
                    f"{self.out} is not empty and no run of ours; it is untouched", "choose another --out"
                )
            if read_owner(self.store) is not None:
                raise DemoError(
                    f"another demo is running in {self.out}", "wait for it, or choose another --out"
                )
            shutil.rmtree(self.out)
        self.out.mkdir(parents=True, exist_ok=True)

    def _write_tasks(self) -> None:
        plan = self.plan
        yesterday, night, test = (sum(part.values()) for part in (plan.yesterday, plan.night, plan.test))
        night //= plan.samples
        training = calculator.generate(
            yesterday + plan.nights * night, held_out=False, seed=self.seed, largest=plan.largest
        )
        self.test = calculator.generate(
            test, held_out=True, seed=self.seed, unseen_share=plan.unseen_share, largest=plan.largest
        )
        calculator.write(self.out / "tasks" / "train.jsonl", training)
        calculator.write(self.out / "tasks" / "test.jsonl", self.test)
        shutil.copy(HERE / "spanloop.toml", self.out)
        self.files: dict[str, Mapping[str, Path]] = {
            "yesterday": self._share("yesterday", training[:yesterday], plan.yesterday, 1),
            "test": self._share("test", self.test, plan.test, 1),
        }
        for number in range(plan.nights):
            first = yesterday + number * night
            name = f"night{number + 1}"
            self.files[name] = self._share(name, training[first : first + night], plan.night, plan.samples)

    def _share(
        self, name: str, tasks: list[calculator.Task], shares: Mapping[str, int], samples: int
    ) -> Mapping[str, Path]:
        """One file an agent, each task `samples` times."""
        files: dict[str, Path] = {}
        rest = iter(tasks)
        for agent, count in shares.items():
            mine = list(itertools.islice(rest, count // samples))
            files[agent] = self.out / "tasks" / f"{name}-{agent}.jsonl"
            calculator.write(files[agent], mine * samples)
        return files

    def agents(self, label: str, model: str) -> AgentRun:
        """Start both agents for one round; they import their libraries now and wait for tasks."""
        return AgentRun(self.processes, label, model, self.addresses, self.plan.concurrency)

    def play(self, agents: AgentRun, tasks: str) -> None:
        """Let both agents work through their tasks, to the end."""
        agents.feed(self.files[tasks])
        self.finish(agents)

    def finish(self, agents: AgentRun) -> None:
        """Wait for a round of agents to end; shows every few seconds how many spans have come in."""
        shown = time.monotonic()

        def alive() -> None:
            nonlocal shown
            self.processes.check(self._servers)
            if time.monotonic() - shown > PROGRESS_EVERY_S:
                shown = time.monotonic()
                self.say(f"   {agents.label}: {self._spans():,} spans in the store")

        agents.wait(alive)

    def _spans(self) -> int:
        return int(self.client.query("SELECT count() FROM otel_traces").result_rows[0][0])

    def yesterday(self, agents: AgentRun) -> None:
        """Both agents under the scripted policy; meanwhile this process imports what training needs."""
        loader = threading.Thread(target=_load_trainer, name="load-trainer", daemon=True)
        loader.start()
        self.play(agents, "yesterday")
        loader.join()

    def serve(self) -> None:
        """Start the policy server; it loads a version when the gateway first asks for it."""
        command = [BIN / "spanloop", "serve", "--store", self.store, "--port", self._ports["serve"]]
        self.command(*command[1:])
        self._serve_process = self.processes.start("serve", map(str, command))
        self._servers.append(self._serve_process)

    def base(self) -> None:
        """The first version: SFT on yesterday's traces, or a base that was made before."""
        if self.base_from is not None:
            made = registry.register_model(self.client, MODEL, str(self.base_from.resolve()))
            self.versions.append(made)
        else:
            played = self.build("yesterday", "yesterday", since=None)
            self.rounds.append(played)
            self._train(played.dataset, str(HERE / "model"), "sft", self.plan.base, MODEL)
        self._switch()

    def night(self, number: int, agents: AgentRun, meanwhile: Callable[[], None]) -> None:
        """Collect with the candidate, learn, move the alias.

        Args:
            number: from 1.
            agents: started for this night.
            meanwhile: called before training starts, to put the other core to work.
        """
        since = datetime.now(UTC)
        self.play(agents, f"night{number}")
        self.wait_for_stamps(since)
        played = self.build(f"night{number}", self.versions[-1].id, since=since)
        self.rounds.append(played)
        self.say(f"   {played.version}: mean reward {played.mean_reward:.3f} over {played.episodes} episodes")
        meanwhile()
        dataset = self._shuffled(played) if self.shuffle_rewards else played.dataset
        self._train(dataset, self.versions[-1].id, self.plan.algorithm, self.plan.night_settings, MODEL)
        self._switch()

    def imitation(self, settings: Settings, since: datetime) -> None:
        """What RL is compared with: SFT on the successful episodes of all nights, from the same base."""
        played = self.build("nights", "", since=since)
        self.rounds.append(played)
        self._train(played.dataset, self.versions[0].id, "sft", settings, IMITATION)

    # Steps.

    def build(self, name: str, version: str, *, since: datetime | None) -> Round:
        """Traces of a window to a dataset."""
        from spanloop_trainer.transform import build, load_dataset

        out = self.out / "datasets" / name
        window = [] if since is None else ["--since", since.isoformat()]
        self.command(
            "build", "--store", self.store, "--config", self.out / "spanloop.toml", "--out", out, *window
        )
        flush(self.store)
        manifest = build(self.client, out, config=self.config, since=since)
        _, frame = load_dataset(out)
        episodes = frame.group_by("episode_id").agg(reward=_col("reward").mean(), split=_col("split").first())
        mean = episodes.filter(_col("split") == "train").select(_col("reward").mean()).item()
        counts = manifest.counts
        self.say(
            f"   dataset {manifest.id[:12]}: {counts['spans']:,} spans → {counts['episodes']:,} episodes, "
            f"{counts['usable']:,} usable transitions"
        )
        # What can be learnt from: rows of held-out tasks that fell into the window are never trained on.
        episodes_to_learn = manifest.splits.get("train", 0)
        return Round(version, out, manifest.id, episodes_to_learn, counts["transitions"], mean)

    def _train(self, dataset: Path, model: str, algorithm: str, settings: Settings, name: str) -> None:
        from spanloop_trainer.train import train

        number = len(self.versions) + 1 if name == MODEL else 1
        out = self.out / "models" / f"{name}-{number}"
        words: list[object] = []
        for part in fields(Settings):
            if (value := getattr(settings, part.name)) != part.default:
                words += ["--" + part.name.replace("_", "-"), value]
        self.command(
            "train", "--store", self.store, "--dataset", dataset, "--model", model, "--out", out,
            "--algorithm", algorithm, "--register", name, "--seed", self.seed, *words,
        )  # fmt: skip
        result = train(
            dataset, model, out, algorithm=algorithm, seed=self.seed, settings=settings,
            client=self.client, register=name, progress=lambda line: self.say("   " + line),
        )  # fmt: skip
        if name == MODEL:
            self.versions.append(registry.resolve(self.client, result.version))

    def _switch(self) -> None:
        """Point `candidate` at the newest version and wait until the gateway serves it."""
        version = self.versions[-1]
        from spanloop_trainer.promotion import promote

        self.command("promote", version.id, "--alias", "candidate", "--store", self.store)
        promote(self.client, version.id, registry.CANDIDATE, why="newest version, to be played")
        self.processes.wait_until(self._serve_process, lambda: answers(self.url("serve") + "/health"))
        deadline = time.monotonic() + SWITCH_TIMEOUT_S
        while (serving := self._served_version()) != version.id:
            if time.monotonic() > deadline:
                raise DemoError(
                    f"the gateway serves {serving or 'nothing'} as {MODEL}@candidate, not {version.id}",
                    f"read {self.processes.logs / 'up.log'}",
                )
            time.sleep(0.1)

    def _served_version(self) -> str:
        """The version behind the alias as the gateway sees it, by one short call."""
        import openai

        client = openai.OpenAI(
            base_url=self.addresses.openai_base_url, api_key="not-needed-here", max_retries=0
        )
        try:
            answer = client.chat.completions.with_raw_response.create(
                model=f"{MODEL}@candidate",
                messages=[{"role": "user", "content": "Which version?"}],
                max_tokens=1,
            )
        except openai.OpenAIError as error:
            return f"an error ({error})"
        return answer.headers.get("x-spanloop-model-version", "")

    def wait_for_stamps(self, since: datetime) -> None:
        """Wait until the gateway's spans, which travel by themselves, are there for every call of the agents."""
        deadline = time.monotonic() + STAMP_TIMEOUT_S
        nanoseconds = int(since.timestamp() * 1e9)
        while True:
            flush(self.store)
            parameters = {"agents": list(AGENTS), "since": nanoseconds}
            missing = int(self.client.query(_UNSTAMPED, parameters=parameters).result_rows[0][0])
            if not missing:
                return
            if time.monotonic() > deadline:
                self.say(
                    f"   {missing} model calls have no stamp of the gateway; they are left out of learning"
                )
                return
            time.sleep(0.2)

    def _shuffled(self, played: Round) -> Path:
        """The control's dataset: every episode with the reward of another, drawn without replacement."""
        import polars as pl

        from spanloop_trainer.transform import load_dataset
        from spanloop_trainer.transform.datasets.dataset import write_dataset

        manifest, frame = load_dataset(played.dataset)
        scored = frame.filter(pl.col("reward").is_not_null())
        rewards = scored.group_by("episode_id").agg(pl.col("reward").mean().alias("given")).sort("episode_id")
        rewards = rewards.with_columns(pl.col("given").shuffle(seed=self.seed))
        given = pl.when(pl.col("reward").is_not_null()).then(pl.col("given"))
        frame = frame.join(rewards, on="episode_id", how="left").with_columns(
            given.alias("reward"), given.alias("return_"), given.alias("advantage")
        )
        out = played.dataset.with_name(played.dataset.name + "-shuffled")
        made = write_dataset(
            out,
            frame.drop("given"),
            query=manifest.query,
            config_hash=manifest.config_hash,
            credit=manifest.credit,
            counts=manifest.counts,
            splits=manifest.splits,
            decoders=manifest.decoders,
            parent=manifest.id,
        )
        self.say(f"   control: rewards shuffled between episodes, dataset {made.id[:12]}")
        return out


def _col(name: str) -> Any:
    import polars as pl

    return pl.col(name)


def _load_trainer() -> None:
    """Import torch, transformers and TRL: some ten seconds that would otherwise be spent while nothing else runs."""
    import torch

    # Before the first operation: threads of a pool that exists already are not taken back.
    torch.set_num_threads(1)
    for module in ("train", "algorithms.sft", "algorithms.policy_gradient"):
        importlib.import_module(f"spanloop_trainer.{module}")
    # TRL loads a trainer when it is first asked for.
    importlib.import_module("trl.trainer.sft_trainer")
