"""What a deformation does to the annotated structures, without a segmentor in between.

    python benchmarks/moved_masks.py runs/radiographs/data/datalist.json runs/radiographs/seg_head_s0/model.pt

A judge sees an edit through its own errors. Where the deformation head moves anatomy and paints nothing, the masks that
were drawn on the factual image can be moved along with it and measured. This is done for the test cases and the
interventions that the evaluation draws. It says how large the moved structures are, not how the image looks.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from monai.bundle import ConfigParser
from monai.networks.utils import one_hot
from torch import Tensor
from tqdm import tqdm

from segcft_ext.evaluation.draws import draw_targets
from segcft_ext.evaluation.methods import load_methods
from segcft_ext.measurements import measure

CONFIG = Path(__file__).parents[1] / "bundles" / "segmentor_evaluation" / "configs" / "evaluate.json"
METHOD = "model"


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("datalist", help="the datalist.json")
    parser.add_argument("model", help="model.pt of seg_cft_finetuning with the deformation head")
    arguments = parser.parse_args()
    config = ConfigParser(ConfigParser.load_config_file(CONFIG))
    config["datalist"] = arguments.datalist
    datalist, interventions = config.get_parsed_content("data"), config.get_parsed_content("names")
    dscm = load_methods({METHOD: arguments.model}, datalist, interventions)[METHOD]
    if dscm.deformation is None or dscm.deformation.painted:
        parser.error(f"{arguments.model}: expected a deformation head that paints nothing")
    measurements = {name: datalist.measurements()[name] for name in interventions}
    draws = config.get_parsed_content("interventions_per_case")
    entries = datalist.entries["test"]
    targets = {
        name: torch.tensor(draw_targets(datalist, name, len(entries), draws, 0)).float() for name in measurements
    }
    rows: dict[str, list[Tensor]] = {name: [] for name in measurements}
    first = 0
    for batch in tqdm(config.get_parsed_content("dataloader"), unit="batch"):
        image, spacing = batch["image"], batch["spacing"]
        known = batch["variables"][:, [datalist.variable_names.index(name) for name in dscm.variables.names]]
        abduction = dscm.abduct(image, known)
        masks = one_hot(batch["label"], datalist.num_classes)
        before = measure(measurements, masks, image, spacing)
        for name, drawn in targets.items():
            for target in drawn[first : first + len(image)].T:
                wanted = dscm.scm.counterfactual(known, {name: target})
                displacement = dscm.predict(abduction, wanted).displacement
                moved = measure(measurements, dscm.deformation.resample_linear(masks, displacement), image, spacing)
                asked = before.clone()
                asked[:, interventions.index(name)] = target
                rows[name].append(torch.stack([before, moved, asked]))
        first += len(image)
    print(f"{len(entries)} test cases, {draws} interventions for each variable")
    for j, name in enumerate(interventions):
        before, moved, asked = torch.cat(rows[name], dim=1).double()
        wanted, achieved = (asked - before)[:, j], (moved - before)[:, j]
        error = 100 * ((moved - asked).abs() / asked).mean(0)
        print(f"do({name}): error {error[j]:.1f} %, slope {wanted @ achieved / (wanted @ wanted):.2f}", end="")
        drift = 100 * ((moved - before).abs() / before).mean(0)
        print("".join(f", drift of {other} {drift[i]:.2f} %" for i, other in enumerate(interventions) if i != j))


if __name__ == "__main__":
    main()
