"""The evaluation's engine: judges every method on every test case and intervention.

It is a MONAI evaluator. A batch holds ``image``, ``label``, ``variables``, ``spacing`` and ``id``, as
:meth:`segcft_ext.datalist.Datalist.items` gives them; when the engine has run,
:attr:`JudgeEvaluator.evaluation` is the content of ``evaluation.json`` and
:attr:`JudgeEvaluator.pairs` has one row for each method, case and intervention.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from math import nan
from typing import Any

import numpy as np
import pandas as pd
import torch
from ignite.engine import Engine, Events
from monai.data.meta_tensor import MetaTensor
from monai.engines import Evaluator
from torch import Tensor, nn
from torch.utils.data import DataLoader
from tqdm import tqdm

import segcft_ext
from segcft_ext.checkpoints import SelfDescribing
from segcft_ext.command_line import read_whole
from segcft_ext.datalist import Datalist
from segcft_ext.dscm import DSCM
from segcft_ext.evaluation.axioms import composition, reversibility
from segcft_ext.evaluation.cases import Cases
from segcft_ext.evaluation.draws import draw_targets, intervened_variables
from segcft_ext.evaluation.judge import structure_scores
from segcft_ext.evaluation.judged_batches import JudgedBatches
from segcft_ext.evaluation.locality import change, dilate, margin, region_of_change
from segcft_ext.evaluation.methods import IDENTITY, Answer, Identity, Method, abducted, describe_methods
from segcft_ext.evaluation.place import GainMap, misplaced
from segcft_ext.evaluation.realism import BottleneckFeatures
from segcft_ext.evaluation.summary import flat_metrics, summarise
from segcft_ext.evaluation.tally import Tally
from segcft_ext.evaluation.truth import Truth, image_quality
from segcft_ext.figures import picture
from segcft_ext.freezing import freeze
from segcft_ext.networks.folding import folding
from segcft_ext.networks.segmentor import Segmentor
from segcft_ext.provenance import check_independent, check_unseen, fingerprint, summary, upstream
from segcft_ext.ruler import Ruler
from segcft_ext.seeding import mixed, same_draws

__all__ = ["JudgeEvaluator"]

TEMPERATURES = {"composition": 0.0, "composition_sampled": 1.0}


@dataclass(frozen=True)
class _Question:
    """Interventions on one variable of a batch of cases.

    Attributes:
        variable: its name.
        target: what it is set to, shape (B,).
        wanted: by how much that changes it, shape (B,).
        before: where it lives in the factual label maps that the judge sees, shape (B, *spatial).
        truth: true images and label maps, the judge's measurements of these images, and what the variable's mask truly
            gains, shape (B, *spatial); None where they are not known.
    """

    variable: str
    target: Tensor
    wanted: Tensor
    before: Tensor
    truth: tuple[Tensor, Tensor, Tensor, Tensor] | None


class JudgeEvaluator(Evaluator):
    """Judges counterfactuals of any number of methods side by side.

    Args:
        device: where everything is computed.
        val_data_loader: batches of test cases.
        network: the judge, a segmentor that took no part in the training of any method.
        datalist: the data.
        methods: the models that are judged, by name. ``identity`` is added; the mechanisms of the first model predict
            which variables should have changed under it.
        interventions: variables that are intervened on; every continuous measured one by default.
        interventions_per_case: targets for each case and variable.
        seed: seed of targets, bootstrap and sampling.
        inferer: how the judge is applied to a batch of images.
        reference_loader: batches with ``image`` and ``id`` of real cases that the judge was not trained on, for the
            realism of real images.
        growth: where the measured variables (J) grow in the population, shape (J, *spatial), see
            :func:`~segcft_ext.population.growth_maps`; without it, the place of a change is not judged.
        val_handlers: MONAI's handlers; at the end of the epoch, :attr:`evaluation` and :attr:`pairs` are there.
        batches: saves the results of each batch, so that the evaluation can be resumed; None does not.

    Raises:
        CheckpointError: when the judge is not independent of a method's guide, or was trained on test cases; at the
            start of a resumed evaluation, when it was begun with other data, models or settings.
    """

    def __init__(
        self,
        device: torch.device | str,
        val_data_loader: DataLoader,
        network: Segmentor,
        datalist: Datalist,
        methods: Mapping[str, Method],
        interventions: Sequence[str] | None = None,
        interventions_per_case: int = 4,
        seed: int = 0,
        inferer: Callable[[Tensor, nn.Module], Tensor] | None = None,
        reference_loader: Iterable | None = None,
        growth: Tensor | None = None,
        val_handlers: Sequence | None = None,
        batches: JudgedBatches | None = None,
    ) -> None:
        check_independent(network, methods)
        check_unseen(network, datalist)
        super().__init__(device=device, val_data_loader=val_data_loader, decollate=False)
        self.loader = val_data_loader
        self.datalist = datalist
        self.seed = seed
        self.draws = read_whole("interventions_per_case", interventions_per_case, 1)
        self.interventions = intervened_variables(datalist, interventions)
        self.judge = Ruler(freeze(network.to(device)), datalist.measurements(), datalist.num_classes, inferer)
        scm = next((method.scm for method in methods.values() if isinstance(method, DSCM)), None)
        self.methods: dict[str, Method] = {IDENTITY: Identity(datalist.variable_names, scm), **methods}
        for method in methods.values():
            if isinstance(method, nn.Module):
                method.to(device)
        self.truth = Truth(datalist) if datalist.truth else None
        example = torch.zeros(1, 1, *datalist.size, device=device)
        self.features = BottleneckFeatures(network, example, f"judge ({network.definition['architecture']})")
        self.reference_loader = reference_loader
        self.growth = growth
        test = [entry["id"] for entry in datalist.entries["test"]]
        self.rows = {key: row for row, key in enumerate(test)}
        self.targets = {name: draw_targets(datalist, name, len(test), self.draws, seed) for name in self.interventions}
        self.may_be_zero = datalist.may_be_zero
        self.regions = {v.name: (v.structure, v.region) for v in datalist.variables if v.region}
        self.evaluation: dict[str, Any] = {}
        self.pairs = pd.DataFrame()
        self.batches = batches
        if batches is not None:  # before the handlers, whose files may lie in the batches' folder
            self.add_event_handler(Events.STARTED, lambda: batches.start(self._made_from()))
        self.add_event_handler(Events.STARTED, JudgeEvaluator._start)
        self.add_event_handler(Events.EPOCH_COMPLETED, JudgeEvaluator._finish)
        self._register_handlers(val_handlers or [])
        if batches is not None:
            self.add_event_handler(Events.COMPLETED, batches.remove)

    def _start(self) -> None:
        self._found = Tally()
        steps = len(self.loader) * len(self.methods) * (len(self.interventions) + 1)
        self._progress = tqdm(total=steps, desc="judging", unit="batch")

    def _made_from(self) -> dict[str, Any]:
        """All that the figures depend on."""
        models = {"judge": self.judge.segmentor, **{f"method {name}": model for name, model in self.methods.items()}}
        return {
            "datalist": self.datalist.digest(),
            "batch_size": self.loader.batch_size,
            "interventions": self.interventions,
            "interventions_per_case": self.draws,
            "seed": self.seed,
            "version": segcft_ext.__version__,
            **{key: _made(model) for key, model in models.items()},
        }

    @torch.no_grad()
    def _iteration(self, engine: Engine, batchdata: dict[str, Any]) -> dict[str, Any]:
        number = engine.state.iteration
        found = self.batches.read(number) if self.batches else None
        if found is None:
            found = self._judge_batch(batchdata)
            if self.batches:
                self.batches.write(number, found)
        else:
            self._progress.update(len(self.methods) * (len(self.interventions) + 1))
        self._found.add(found)
        return {"found": found}

    def _judge_batch(self, batchdata: Mapping[str, Any]) -> Tally:
        cases, judged = self.cases(batchdata)
        found = Tally()
        for name, (dice, percent) in structure_scores(judged, cases.label, self.datalist.foreground).items():
            found.structures[name] += list(zip(dice.tolist(), percent.tolist()))
        found.features["real"].append((list(cases.ids), self.features(cases.image).cpu()))
        found.cases.append(cases.frame({"before": cases.before, "factual": cases.factual}, method="judge"))
        for name, method in self.methods.items():
            found.cases.append(cases.frame(self._compose(method, cases), method=name))
            self._progress.update()
        cases, judged = cases.repeat(self.draws), judged.repeat_interleave(self.draws, 0)
        asked = [self._ask(variable, cases, judged, found) for variable in self.interventions]
        for name, method in self.methods.items():
            answer = abducted(method, cases.image, cases.of_method(method))
            for question in asked:
                self._intervene(name, method, answer, question, cases, found)
                self._progress.update()
        return found

    def cases(self, batchdata: Mapping[str, Any]) -> tuple[Cases, Tensor]:
        """A batch on the device with the judge's measurements, and the judge's label maps (B, 1, *spatial)."""
        image, label, values, spacing = (
            self._tensor(batchdata[key]) for key in ("image", "label", "variables", "spacing")
        )
        judged = self.judge.segment(image)
        before = self.judge.measure(judged, image, spacing, label)
        names = self.datalist.variable_names
        return Cases(list(batchdata["id"]), image, label, spacing, values, names, before, self.judge.names), judged

    def _same_draws(self, cases: Cases) -> AbstractContextManager[None]:
        """The same draws for all methods; other ones for each batch."""
        return same_draws(mixed(self.seed, self.rows[cases.ids[0]]))

    def _compose(self, method: Method, cases: Cases) -> dict[str, Tensor]:
        found: dict[str, Tensor] = {}
        for key, temperature in TEMPERATURES.items():
            with self._same_draws(cases):
                errors = composition(method, cases.image, cases.of_method(method), self.interventions, temperature)
            found |= {f"{key}.{count}": error for count, error in errors.items()}
        return found

    def _ask(self, variable: str, cases: Cases, factual: Tensor, found: Tally) -> _Question:
        """The interventions on a variable of the cases; ``factual`` holds the judge's label maps before."""
        ids = cases.ids[:: self.draws]
        targets = self.targets[variable][[self.rows[key] for key in ids]]
        target = torch.as_tensor(targets.reshape(-1), dtype=torch.float32, device=cases.image.device)
        wanted = target - cases.of([variable])[:, 0]
        truth = self._true(variable, target, cases)
        if truth is not None:
            image, *_, gained = truth
            possible = image.flatten(1).isfinite().all(1)
            found.true_gains[variable].add(gained, torch.where(possible, wanted, 0))
        return _Question(variable, target, wanted, self._mask(factual, variable, cases), truth)

    def _intervene(
        self, name: str, method: Method, answer: Answer, question: _Question, cases: Cases, found: Tally
    ) -> None:
        """Judge a method's counterfactuals for the interventions on one variable."""
        variable = question.variable
        figures, image, judged = self._judge(method, answer, question, cases)
        if question.truth is not None:
            true_image, true_label, seen, gained = question.truth
            figures |= self._compare(image, judged, true_image, true_label, variable, cases)
            figures |= {"truth.seen": seen, "truth.changed": gained.flatten(1).any(1)}
        draw = np.tile(np.arange(self.draws), len(cases.ids) // self.draws)
        found.changes[name][variable] = (image - cases.image).abs().double().sum(0).cpu()
        found.gains[name][variable].add(self._mask(judged, variable, cases) - question.before, question.wanted)
        found.pairs.append(cases.frame({"draw": draw, **figures}, method=name, do=variable))
        found.features[name].append((list(cases.ids), self.features(image).cpu()))

    def _mask(self, label: Tensor, variable: str, cases: Cases) -> Tensor:
        """Where a variable lives in label maps (B, 1, *spatial): 0 or 1, shape (B, *spatial)."""
        return self.judge.masks(label, cases.label)[:, cases.measured.index(variable)].float()

    def _true(self, variable: str, target: Tensor, cases: Cases) -> tuple[Tensor, Tensor, Tensor, Tensor] | None:
        """What is true under the interventions, see :class:`_Question`."""
        if self.truth is None:
            return None
        image, label = map(self._tensor, self.truth(cases.ids, {variable: target.tolist()}))
        seen = self.judge.measure(self.judge.segment(image), image, cases.spacing, cases.label)
        gained = self._mask(label, variable, cases) - self._mask(cases.label, variable, cases)
        return image, label, seen.masked_fill(image.isnan().flatten(1).any(1, keepdim=True), nan), gained

    def _judge(
        self, method: Method, answer: Answer, question: _Question, cases: Cases
    ) -> tuple[dict[str, Any], Tensor, Tensor]:
        back = {question.variable: cases.of([question.variable])[:, 0]}
        with self._same_draws(cases):
            result = answer({question.variable: question.target})
            reversed_error = reversibility(method, cases.image, result.image, result.values, back)
        judged = self.judge.segment(result.image)
        asked = cases.factual.clone()
        for column, name in enumerate(cases.measured):
            if name in method.variables.names:
                asked[:, column] = result.values[:, method.variables.names.index(name)]
        before, after = (self.judge.masks(label, cases.label) for label in (cases.label, judged))
        changed = asked != cases.factual
        outside, inside = change(cases.image, result.image, region_of_change(before, after, changed))
        figures = {
            "asked": asked,
            "measured": self.judge.measure(judged, result.image, cases.spacing, cases.label),
            "before": cases.before,
            "factual": cases.factual,
            "outside": outside.masked_fill(~changed.any(1), nan),
            "inside": inside,
            "reversibility": reversed_error,
        }
        determinant = result.jacobian_determinant
        if determinant is not None:
            figures["folded"], figures["jacobian_minimum"] = folding(determinant)
        return figures, result.image, judged

    def _compare(
        self, image: Tensor, judged: Tensor, true_image: Tensor, true_label: Tensor, variable: str, cases: Cases
    ) -> dict[str, Tensor]:
        column = cases.measured.index(variable)
        seen, true = (self.judge.masks(label, cases.label)[:, column, None].long() for label in (judged, true_label))
        near = dilate((cases.label > 0) | (true_label > 0), margin(cases.image.shape[2:]))
        return {
            **{f"truth.{figure}": value for figure, value in image_quality(image, true_image, near).items()},
            "truth.dice": structure_scores(seen, true, {variable: 1})[variable][0],
            "true": self.judge.measure(true_label, true_image, cases.spacing, cases.label),
        }

    def _finish(self) -> None:
        self._progress.close()
        found = self._found
        self.pairs = pd.concat(found.pairs, ignore_index=True)
        with torch.no_grad():
            reference = [
                (list(batch["id"]), self.features(self._tensor(batch["image"])).cpu())
                for batch in self.reference_loader or []
            ]
        self.evaluation = summarise(
            pairs=self.pairs,
            cases=pd.concat(found.cases, ignore_index=True),
            structures=found.structures,
            features={name: _joined(parts) for name, parts in found.features.items()},
            reference=_joined(reference) if reference else None,
            measured=self.judge.names,
            may_be_zero=self.may_be_zero,
            regions=self.regions,
            places={name: self._place(gains) for name, gains in found.gains.items()},
            true_place=self._place(found.true_gains),
            seed=self.seed,
        )
        judge = self.judge.segmentor
        assert isinstance(judge, Segmentor)
        self.evaluation["data"] = {
            "name": self.datalist.name,
            "image_size": list(self.datalist.size),
            "cases": int(self.pairs["id"].nunique()),
            "interventions": self.interventions,
            "interventions_per_case": self.draws,
            "seed": self.seed,
            "figure": "mae" if set(self.interventions) & set(self.may_be_zero) else "mape",
            "may_be_zero": self.may_be_zero,
            "regions": {name: list(part) for name, part in self.regions.items()},
            "units": {name: self.datalist.variable(name).unit for name in self.judge.names},
            "realism_features": self.features.name,
            "judge": summary(upstream(judge)),
            "methods": describe_methods(self.methods),
        }
        self.state.metrics |= flat_metrics(self.evaluation)

    def change_maps(self) -> dict[str, dict[str, np.ndarray]]:
        """Mean absolute change of the image by method and intervened variable, (H, W) each."""
        count = len(self.pairs) / len(self.methods) / len(self.interventions)
        return {
            name: {do: picture(total / count) for do, total in by_do.items()}
            for name, by_do in self._found.changes.items()
            if name != IDENTITY
        }

    def gain_maps(self) -> dict[str, dict[str, np.ndarray]]:
        """Where structures grow: in the population, truly (where that is known), and by method; (H, W) each.

        By intervened variable, in shares of the largest gain in the population. Empty without growth maps.
        """
        population = self._growth_of_interventions()
        gains = {name: found for name, found in self._found.gains.items() if name != IDENTITY}
        if self._found.true_gains:
            gains = {"truth": self._found.true_gains, **gains}
        maps = {name: {do: found[do].result() for do in population} for name, found in gains.items()}
        return {
            name: {do: picture(each[do] / growth.abs().max()) for do, growth in population.items()}
            for name, each in {"population": population, **maps}.items()
            if population
        }

    def _growth_of_interventions(self) -> dict[str, Tensor]:
        """Growth maps of intervened variables, except structures that may be absent: their place differs by case."""
        if self.growth is None:
            return {}
        return {do: self.growth[self.judge.names.index(do)] for do in self.interventions if do not in self.may_be_zero}

    def _place(self, gains: Mapping[str, GainMap]) -> dict[str, float]:
        return {
            do: misplaced(gains[do].result(), expected)
            for do, expected in self._growth_of_interventions().items()
            if do in gains
        }

    def _tensor(self, value: Any) -> Tensor:
        value = value.as_tensor() if isinstance(value, MetaTensor) else torch.as_tensor(value)
        return value.to(self.state.device)


def _made(model: Any) -> Any:
    """What the figures of a model depend on."""
    if isinstance(model, SelfDescribing):
        return {"fingerprint": fingerprint(model), "definition": model.definition}
    return type(model).__name__


def _joined(parts: Sequence[tuple[Sequence[str], Tensor]]) -> tuple[list[str], Tensor]:
    """Cases and features of several batches."""
    return [case for cases, _ in parts for case in cases], torch.cat([features for _, features in parts])
