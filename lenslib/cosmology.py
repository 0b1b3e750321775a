"""Distances: from masses, velocity dispersions and lengths to angles on the sky."""

from functools import lru_cache
from typing import Literal

import numpy as np
from pydantic import Field, model_validator

from lenslib.priors import Strict


class Cosmology(Strict):
    """Flat Lambda-CDM and the redshifts of lens and source.

    `distances: luminosity` converts a mass to an Einstein radius as DeepLenseSim does (deeplense/lens.py,
    mass_to_radius): luminosity distances, and their difference in place of the lens-source distance.
    """

    H0: float = Field(70.0, gt=0)
    Om0: float = Field(0.3, gt=0, lt=1)
    Ob0: float = Field(0.05, ge=0, lt=1)
    z_lens: float = Field(gt=0)
    z_source: float = Field(gt=0)
    distances: Literal["angular_diameter", "luminosity"] = "angular_diameter"
    z_source_convention: float | None = None

    @model_validator(mode="after")
    def _order(self):
        if min(self.z_source, self.z_source_convention or self.z_source) <= self.z_lens:
            raise ValueError("z_source must be above z_lens")
        if self.Ob0 > self.Om0:
            raise ValueError("Ob0, the baryons, cannot be more than Om0, all matter")
        return self

    @property
    def deflection_scale(self) -> float:
        """What the recipe's deflections are multiplied by: 1, unless they are stated for a source at
        `z_source_convention`, as in lenstronomy's multi-plane mode."""
        if self.z_source_convention is None:
            return 1.0
        return _distance_ratio(self, self.z_source) / _distance_ratio(self, self.z_source_convention)

    @property
    def kpc(self) -> float:
        """One proper kiloparsec at the lens, in arcsec."""
        return _arcsec_per_kpc(self)

    def theta_E_squared(self, mass):
        """Squared Einstein radius in arcsec^2 of a point mass in solar masses (any shape)."""
        return np.asarray(mass) * _theta_E_squared_per_mass(self)

    def theta_E_of_dispersion(self, sigma_v):
        """Einstein radius in arcsec of an isothermal lens of velocity dispersion `sigma_v` in km/s, 4 pi (sigma_v/c)^2
        D_ls/D_s, for a source at `z_source_convention` where there is one."""
        ratio = _distance_ratio(self, self.z_source_convention or self.z_source)
        return 4 * np.pi * (np.asarray(sigma_v) / 299792.458) ** 2 * ratio * np.degrees(3600)

    def r200(self, mass):
        """Radius in arcsec within which a halo of `mass` solar masses has 200 times the critical density."""
        return (3 * np.asarray(mass) / (800 * np.pi * _critical_density(self))) ** (1 / 3) * self.kpc


@lru_cache
def _theta_E_squared_per_mass(cosmology: Cosmology) -> float:
    """4 G M_sun / c^2 D_ls / (D_l D_s) in arcsec^2."""
    from astropy import constants, units

    model = _flat_lambda_cdm(cosmology)
    z_lens, z_source = cosmology.z_lens, cosmology.z_source
    if cosmology.distances == "luminosity":
        lens, source = model.luminosity_distance(z_lens), model.luminosity_distance(z_source)
        between = source - lens
    else:
        lens, source = model.angular_diameter_distance(z_lens), model.angular_diameter_distance(z_source)
        between = model.angular_diameter_distance_z1z2(z_lens, z_source)
    squared = 4 * constants.G * constants.M_sun / constants.c**2 * between / (lens * source)
    return float(squared.to(units.dimensionless_unscaled)) * units.rad.to(units.arcsec) ** 2


@lru_cache
def _distance_ratio(cosmology: Cosmology, z_source: float) -> float:
    """D_ls / D_s."""
    model = _flat_lambda_cdm(cosmology)
    between = model.angular_diameter_distance_z1z2(cosmology.z_lens, z_source)
    return float(between / model.angular_diameter_distance(z_source))


@lru_cache
def _arcsec_per_kpc(cosmology: Cosmology) -> float:
    return float(_flat_lambda_cdm(cosmology).arcsec_per_kpc_proper(cosmology.z_lens).value)


@lru_cache
def _critical_density(cosmology: Cosmology) -> float:
    """At the lens's redshift, in solar masses a cubic kiloparsec."""
    return float(_flat_lambda_cdm(cosmology).critical_density(cosmology.z_lens).to_value("Msun / kpc3"))


def _flat_lambda_cdm(cosmology: Cosmology):
    from astropy.cosmology import FlatLambdaCDM

    return FlatLambdaCDM(H0=cosmology.H0, Om0=cosmology.Om0, Ob0=cosmology.Ob0)
