"""What a trained network says of the explorer's scene: the best classifier with a name for the recipe."""

from dataclasses import dataclass
from html import escape

import torch

from lenslib.errors import InputError
from lenslib.fit_classify import FitClassifier, load_fit_classifier
from lenslib.inference import Classifier, judges_fits, load_classifier, metadata_of
from lenslib.recipe import Recipe
from lenslib.scene import Picture
from lenslib.validation import Validation, load_validation
from lenslib.weights import WEIGHTS, list_weights


@dataclass
class Judge:
    """A network by name, and what was found when it was validated."""

    name: str
    network: Classifier | FitClassifier
    validation: Validation | None

    @property
    def quick(self) -> bool:
        """Whether it can follow sliders: it needs no fit."""
        return isinstance(self.network, Classifier)

    def words(self, picture: Picture) -> str:
        """Probabilities of a picture with noise, at the temperature of the validation; or why there are none."""
        image = torch.tensor(picture.noisy)[None, None]
        try:
            found, doubt = self._found(image, picture)
        except InputError as error:
            return f"{self.name}: {escape(str(error))}"
        if self.validation is not None:
            found = self.validation.calibrated(found)
        shares = ", ".join(
            f"{name} <b>{share:.1%}</b>" for name, share in zip(self.network.classes, found[0], strict=True)
        )
        return f"{self.name}: {doubt or shares}"

    def _found(self, image: torch.Tensor, picture: Picture):
        if self.quick:
            found = self.network.probabilities(image)
            strange = self.validation.strange(self.network.prepare(image).numpy())[0] if self.validation else []
            return found, f"unlike all that it knows in its {', '.join(strange)}" if strange else ""
        params = {name: torch.tensor([value]) for name, value in picture.params.items()}
        # fits begin at the smooth lens that is drawn: the minimum that a search would find, at once
        answer = self.network.answers(image, {name: params[name] for name in ("background_rms", "exposure_time")},
                                      starts=params)  # fmt: skip
        return answer.probabilities, answer.reasons[0]


def judge_for(recipe: Recipe) -> Judge | None:
    """Of all classifiers with a name that were trained on images of this recipe, or of it with lines changed, the one
    with the highest AUC on its own test images; None where there is none."""
    runs = {name: run for name, run in list_weights().items() if run.task == "classification"}
    mine = [name for name, run in runs.items() if f"{run.recipe}_".startswith(f"{recipe.name}_")]
    if not mine:
        return None
    best = max(mine, key=lambda name: runs[name].metrics["macro_auc"]["value"])
    path = runs[best].folder / WEIGHTS
    load = load_fit_classifier if judges_fits(metadata_of(path)) else load_classifier
    network = load(path)
    if network.native_size != recipe.instrument.pixels or tuple(network.classes) != tuple(recipe.classes):
        return None
    return Judge(best, network, load_validation(path))
