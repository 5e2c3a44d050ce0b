"""What stages share while a recipe runs: names to models, data and verifiers; fingerprints; where files go."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from functools import cached_property
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from posttrain.data import Message, Sample
from posttrain.data.readers import fingerprint as file_fingerprint
from posttrain.data.readers import read_samples
from posttrain.errors import UserError, nearest
from posttrain.policy import hub_commit, model_path
from posttrain.recipe import Continual, Data, Model, Recipe, Stage, Train, evaluations_read
from posttrain.registry import import_pieces
from posttrain.rewards import Score, Verify, reward_models
from posttrain.stages.fingerprints import deciding, digest, folder_fingerprint, stamp
from posttrain.tasks import Interactive, Task, tasks
from posttrain.tasks.answers import verify_exact, verify_number, verify_thought
from posttrain.terminal import Terminal
from posttrain.training.journal import Journal
from posttrain.training.ranks import Ranks
from posttrain.training.step import MICRO_BATCH_TOKENS

WAYS: dict[str, Verify] = {"number": verify_number, "exact": verify_exact, "thought": verify_thought}
"""How answers to a file's questions are compared: `Data.verify`."""


class Context:
    """A recipe while it runs (or is checked)."""

    def __init__(self, recipe: Recipe, ranks: Ranks, terminal: Terminal) -> None:
        import_pieces(recipe.imports)
        self.recipe, self.ranks, self.terminal = recipe, ranks, terminal
        self.folder = Path(recipe.folder)
        self.journal = Journal(self.folder, active=False)
        self.should_stop: Callable[[], bool] = lambda: False
        self._known: dict[Any, str] = {}

    # Models

    def model(self, name: str) -> Model:
        """The model that stages call `name`: 'base', one of `models`, or what an earlier stage wrote.

        What a stage wrote is held (dtype, attention ...) like the model that it goes back to.
        """
        if name == "base":
            return self.recipe.model
        if name in self.recipe.models:
            return self.recipe.models[name]
        stage = self.recipe.stages.get(name)
        if stage is not None and stage.kind in ("train", "merge"):
            written = {"path": str(self.folder / "models" / name), "weights": "pretrained"}
            return self.model(self._root(name)).model_copy(update=written)
        known = [
            "base",
            *self.recipe.models,
            *(n for n, s in self.recipe.stages.items() if s.kind in ("train", "merge")),
        ]
        raise UserError(
            f"model '{name}' is neither 'base', nor in models, nor a train or merge stage: {nearest(name, known)}"
        )

    def origin(self, name: str, *, with_weights: bool = True) -> Model:
        """The model that `name` goes back to: there, with its tokenizer and shape, before any stage has run."""
        model = self.model(self._root(name))
        model_path(model.path, with_weights=with_weights and model.weights == "pretrained")
        return model

    def _root(self, name: str) -> str:
        """What `name` goes back to through the stages that made it; a name that is no model stays as it is."""
        seen: set[str] = set()
        while name != "base" and name not in self.recipe.models and name not in seen:
            seen.add(name)
            stage = self.recipe.stages.get(name)
            if stage is None or stage.kind not in ("train", "merge"):
                return name
            name = stage.init_from if stage.kind == "train" else stage.models[0]
        if name in seen:
            raise UserError(f"stage '{name}' starts from its own output: give it another model to start from")
        return name

    # Data

    def data(self, name: str) -> Data:
        """The data set that stages call `name`: one of `data`, or what an earlier stage wrote."""
        if name in self.recipe.data:
            return self.recipe.data[name]
        stage = self.recipe.stages.get(name)
        if stage is not None and stage.kind in ("generate", "curate"):
            return Data(stage=name)
        known = [*self.recipe.data, *(n for n, s in self.recipe.stages.items() if s.kind in ("generate", "curate"))]
        raise UserError(
            f"data '{name}' is neither in data nor written by a generate or curate stage: {nearest(name, known)}"
        )

    def pending(self, data: Data) -> set[str]:
        """The stages that write `data` or parts of it. Raises `UserError` for one that is none or writes no data."""
        stages = {leaf.stage for leaf in leaves(data) if leaf.stage is not None}
        known = [name for name, stage in self.recipe.stages.items() if stage.kind in ("generate", "curate")]
        for unknown in stages.difference(known):
            raise UserError(
                f"data 'stage: {unknown}' is written by no generate or curate stage: {nearest(unknown, known)}"
            )
        return stages

    def samples(self, data: Data) -> Iterable[Sample]:
        """The samples of a data set, in its order."""
        if data.repeat > 1:
            once = data.model_copy(update={"repeat": 1})
            return (sample for _ in range(data.repeat) for sample in self.samples(once))
        if data.mix is not None:
            return (sample for part in data.mix for sample in self.samples(part))
        if data.task is not None:
            task = self._task(data.task)
            return task.samples(data.count or 1, data.seed, difficulty=data.difficulty, style=data.style)
        if data.stage is not None:
            path = self._written(data.stage)
            if not Path(path).stat().st_size:
                return ()  # a curate stage with `when_empty: skip` has kept nothing
            return read_samples(path, shape="sample", limit=data.count)
        found = read_samples(
            str(data.path),
            shape=data.shape,
            split=data.split,
            columns=data.columns,
            limit=data.count,
            scalars=data.scalars,
        )
        if "verify" not in data.model_fields_set:
            return found
        # Written into the sample, so that it is still known behind the stages that it goes through.
        return (replace(sample, meta={**sample.meta, "verify": data.verify}) for sample in found)

    def _written(self, stage: str) -> str:
        """The file that a stage has written."""
        path = self.folder / "data" / f"{stage}.jsonl"
        if not path.is_file():
            raise UserError(f"the data of stage '{stage}' are not there yet ({path}): run the recipe first")
        return str(path)

    def verify(self, sample: Sample, answer: str) -> Score:
        """Score an answer by the sample's task, or for a file's questions as its `verify` says."""
        task = self._tasks.get(sample.task)
        if task is not None:
            return task.verify(sample, answer)
        return WAYS.get(str(sample.meta.get("verify")), verify_number)(sample, answer)

    def final_answer(self, sample: Sample, answer: str) -> str | None:
        """What the verifier reads as the final answer, in one spelling, whether or not there is a right one."""
        info = self.verify(sample, answer).info
        found = info.get("canonical", info.get("extracted"))
        return None if found is None else str(found)

    def has_verifier(self, sample: Sample) -> bool:
        """Can an answer to this be scored: has it a right answer, or does its task do without?"""
        return sample.answer is not None or sample.task in self._tasks

    def environment(self, sample: Sample, turns: Sequence[Message]) -> str | Message | None:
        """What the environment of the sample's task replies to the last of `turns`, those behind its prompt."""
        return self.interactive(sample).environment(sample, turns)

    def interactive(self, sample: Sample) -> Interactive:
        """The sample's task, which has an environment to talk with. Raises `UserError` where it has none."""
        task = self._tasks.get(sample.task)
        if not isinstance(task, Interactive):
            raise UserError(
                f"a dialogue of several turns needs a task with an environment, and task '{sample.task or 'none'}' has "
                "none: set turns to 1, or give the data of a task such as 'assistant'"
            )
        return task

    @cached_property
    def _tasks(self) -> dict[str, Task]:
        specs = [leaf.task for data in self.recipe.data.values() for leaf in leaves(data) if leaf.task is not None]
        return {task.name: task for task in (self._task(spec) for spec in specs)}

    def _task(self, spec: str | dict[str, Any]) -> Task:
        name, options = tasks.options(spec)
        task: Task = tasks[name](**options)
        return task

    # Fingerprints: what an output depends on

    def model_fingerprint(self, name: str) -> str:
        """Hash of the weights and options of a model; of everything that leads to it, for a stage's model.

        Random weights are those of the recipe's seed. A hub model that was fetched is named by its commit, too.
        """
        if name in self.recipe.stages:
            return self.stage_fingerprint(name)
        model = self.model(name)
        folder = Path(model_path(model.path, with_weights=model.weights == "pretrained"))
        if folder.is_dir():
            content = self._once((folder, stamp(folder)), lambda: folder_fingerprint(folder))
        else:
            commit = hub_commit(model.path)
            content = model.path if commit is None else f"{model.path}@{commit}"
        drawn = [self.recipe.seed] if model.weights == "random" else []
        return digest([model.model_dump(exclude={"path"}), content, *drawn])

    def data_fingerprint(self, data: Data, *, written: bool = False) -> str:
        """Hash of a data set's content: the bytes of files, the ids of a task's samples.

        What a stage writes is named by all that the stage depends on; where it is `written` already, by its bytes.
        """
        if data.mix is not None:
            return digest([data.repeat, [self.data_fingerprint(part, written=written) for part in data.mix]])
        options = data.model_dump(exclude={"path", "max_refused"})
        if data.stage is not None and not written:
            return digest([options, self.stage_fingerprint(data.stage)])
        if data.stage is not None:
            return digest([options, self._file_fingerprint(self._written(data.stage))])
        if data.path is not None:
            return digest([options, self._file_fingerprint(data.path, data.split)])
        return digest([options, self._task_fingerprint(data)])

    def _file_fingerprint(self, path: str, split: str | None = None) -> str:
        key = (path, split, stamp(Path(path).expanduser()))
        return self._once(key, lambda: file_fingerprint(path, split=split))

    def _task_fingerprint(self, data: Data) -> str:
        """Of the files that a task reads and the samples that it makes: its code may have changed, too."""
        assert data.task is not None
        named = [value for value in tasks.options(data.task)[1].values() if isinstance(value, str)]
        files = [path for path in named if path and Path(path).expanduser().is_file()]
        stamps = tuple(stamp(Path(path).expanduser()) for path in files)

        def made() -> str:
            once = data.model_copy(update={"repeat": 1})
            return digest([[self._file_fingerprint(path) for path in files], [s.id for s in self.samples(once)]])

        return self._once((data.model_dump_json(), stamps), made)

    def _import_fingerprint(self, name: str) -> str:
        """Of a Python file, or of the file that a module is in."""
        found = None if name.endswith(".py") else find_spec(name)
        origin = found.origin if found else name
        return self._file_fingerprint(origin) if origin and origin.endswith(".py") else name

    def _once(self, key: Any, made: Callable[[], str]) -> str:
        """What was made before for `key`, which has the time and size of every file that is read."""
        if key not in self._known:
            self._known[key] = made()
        return self._known[key]

    def micro_batch_tokens(self, stage: Train) -> int:
        """Tokens computed at once: the stage's, or what suits the device."""
        return stage.micro_batch_tokens or self.evaluation_tokens

    @property
    def evaluation_tokens(self) -> int:
        """Tokens computed at once where no stage says how many: what suits the device."""
        return MICRO_BATCH_TOKENS.get(self.ranks.device.type, 8192)

    def stage_fingerprint(self, name: str) -> str:
        """Hash of all that a stage's output depends on: its fields, the seed, its models, data and own pieces."""
        stage = self.recipe.stages[name]
        inputs: list[str] = [self._import_fingerprint(name) for name in self.recipe.imports]
        inputs += [self.model_fingerprint(model) for model in models_of(stage)]
        if isinstance(stage, Continual):
            inputs += [self.stage_fingerprint(other) for other in evaluations_read(self.recipe, name).values()]
        inputs += [self.data_fingerprint(self.data(data)) for data in data_of(stage)]
        return digest([name, self.recipe.seed, deciding(stage), inputs])


def models_of(stage: Stage) -> list[str]:
    """The models that a stage reads, by the names that the recipe has for them."""
    named = [getattr(stage, field, None) for field in ("init_from", "model", "reference", "rerank")]
    found = [name for name in named if name is not None] + list(getattr(stage, "models", []))
    if isinstance(stage, Train):
        found += [stage.critic] if stage.critic not in (None, "head") else []
        found += reward_models(stage.rollouts.reward) if stage.rollouts is not None else []
    return found


def data_of(stage: Stage) -> list[str]:
    """The data sets that a stage reads, by the names that the recipe has for them."""
    found = [stage.data] if hasattr(stage, "data") else []
    if isinstance(stage, Train):
        found += [beside.data for beside in (stage.watch, stage.demonstrations) if beside is not None]
    return found + list(getattr(stage, "apart_from", []))


def leaves(data: Data) -> list[Data]:
    """The data sets that a data set is made of; itself, where it is no mix."""
    return [leaf for part in data.mix for leaf in leaves(part)] if data.mix is not None else [data]
