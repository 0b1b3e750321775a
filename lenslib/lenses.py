"""What a recipe says of its smooth lenses: the main one, external shear, and companions in the same plane."""

from typing import Literal

import numpy as np
from pydantic import Field, model_validator

from lenslib.cosmology import Cosmology
from lenslib.priors import Ellipticity, Position, Shear, Strict, prior

# (1 - q) / (1 + q) of an axis ratio of 0.2
FLATTEST = 0.8 / 1.2 + 1e-9


class Lens(Strict):
    """The main lens: `sie`, or `epl` with a logarithmic density slope. Its size is an Einstein radius in arcsec, or a
    mass in solar masses or a velocity dispersion in km/s turned into one with the recipe's cosmology."""

    profile: Literal["sie", "epl"] = "sie"
    theta_E: prior(low=1e-3) | None = None
    mass: prior(low=1) | None = None
    sigma_v: prior(low=1) | None = None
    slope: prior(1.05, 2.95) = Field(default={"value": 2.0}, validate_default=True)
    ellipticity: Ellipticity
    center: Position

    @model_validator(mode="after")
    def _one_size(self):
        if sum(size is not None for size in (self.theta_E, self.mass, self.sigma_v)) != 1:
            raise ValueError("give exactly one of theta_E, mass and sigma_v")
        if self.profile == "sie" and self.slope.support() != (2.0, 2.0):
            raise ValueError("an sie has slope 2; use profile epl for other slopes")
        if self.profile == "epl" and self.ellipticity.flattest() > FLATTEST:
            raise ValueError("an epl must have an axis ratio of at least 0.2: its series is not accurate below")
        return self

    def einstein_radius(self, size, cosmology: Cosmology):
        """Arcsec, for a value of the size that this lens is given by."""
        if self.mass is not None:
            return np.sqrt(cosmology.theta_E_squared(size))
        return cosmology.theta_E_of_dispersion(size) if self.sigma_v is not None else size

    @property
    def parameters(self) -> tuple[str, ...]:
        """Names of what shapes the image, external shear among them."""
        slope = ("gamma",) if self.profile == "epl" else ()
        shape = ("lens_e1", "lens_e2", "lens_center_x", "lens_center_y")
        return ("lens_theta_E", *slope, *shape, "gamma1", "gamma2")

    @property
    def size(self):
        """The prior that the size is drawn from."""
        return self.theta_E or self.mass or self.sigma_v

    def draw(self, stream, n: int, cosmology: Cosmology) -> dict[str, np.ndarray]:
        """Parameters [n], theta_E twice: of the mass in all, and of the smooth lens, from which some may be taken."""
        theta_E = self.einstein_radius(self.size.draw(stream("theta_E"), n), cosmology)
        e1, e2 = self.ellipticity.draw(stream, n, "lens_")
        center_x, center_y = self.center.draw(stream, n, "lens_center_")
        drawn = {"theta_E": theta_E, "lens_theta_E": theta_E.copy(), "gamma": self.slope.draw(stream("gamma"), n)}
        return drawn | {"lens_e1": e1, "lens_e2": e2, "lens_center_x": center_x, "lens_center_y": center_y}


class Companions(Strict):
    """`count` more lenses in the plane of the main one, drawn independently of each other: the galaxies of a cluster
    (`sie`), or a cloud of point masses (`point`). What a recipe calls the Einstein radius stays that of its main lens.
    """

    profile: Literal["sie", "point"]
    count: int = Field(gt=0, le=200)
    theta_E: prior(low=0)
    ellipticity: Ellipticity | None = None
    position: Position

    @model_validator(mode="after")
    def _shape(self):
        if (self.profile == "sie") != (self.ellipticity is not None):
            raise ValueError("an sie needs an ellipticity, and a point has none")
        return self

    def draw(self, stream, n: int, name: str, scale: float) -> dict[str, np.ndarray]:
        """Parameters [n] of each companion k, named `<name>_<k>_<parameter>`; deflections are multiplied by `scale`."""
        shape = (n, self.count)
        # an isothermal lens deflects in proportion to its Einstein radius, a point mass to its square
        theta_E = self.theta_E.draw(stream(f"{name}_theta_E"), shape) * (scale if self.profile == "sie" else scale**0.5)
        x, y = self.position.draw(stream, shape, f"{name}_")
        columns = {"theta_E": theta_E, "center_x": x, "center_y": y}
        if self.ellipticity is not None:
            columns["e1"], columns["e2"] = self.ellipticity.draw(stream, shape, f"{name}_")
        return {f"{name}_{k}_{key}": value[:, k] for k in range(self.count) for key, value in columns.items()}


class ClassLens(Strict):
    """The lens or the shear that one class has in place of the recipe's."""

    lens: Lens | None = None
    shear: Shear | None = None
