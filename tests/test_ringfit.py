"""The fitted lens's critical curve, against the deflection of the reference kernel."""

import numpy as np
import pytest
import torch
from caustics.lenses import func

from lenslib.lens_light import axis_ratio
from lenslib.ringfit import critical_curve

LENSES = [
    dict(theta_E=1.2, e1=0.0, e2=0.0, gamma1=0.0, gamma2=0.0, center_x=0.0, center_y=0.0),
    dict(theta_E=1.0, e1=0.15, e2=-0.1, gamma1=0.08, gamma2=0.05, center_x=0.03, center_y=-0.02),
    dict(theta_E=0.6, e1=-0.2, e2=0.12, gamma1=-0.1, gamma2=0.15, center_x=-0.1, center_y=0.1),
]


def jacobian(params, points):
    """d(source)/d(image) [n, 2, 2] by automatic differentiation of the isothermal ellipsoid and shear."""
    q, angle = (torch.as_tensor(a) for a in axis_ratio(params["e1"], params["e2"]))
    x = torch.tensor(points, requires_grad=True)
    center, theta_E = (torch.tensor(params[k]) for k in ("center_x", "center_y")), torch.tensor(params["theta_E"])
    ax, ay = func.reduced_deflection_angle_sie(*center, q.clamp(max=0.9999), angle, theta_E, x[:, 0], x[:, 1])
    g1, g2 = params["gamma1"], params["gamma2"]
    source = (x[:, 0] - ax - g1 * x[:, 0] - g2 * x[:, 1], x[:, 1] - ay - g2 * x[:, 0] + g1 * x[:, 1])
    return torch.stack([torch.autograd.grad(s.sum(), x, retain_graph=True)[0] for s in source], 1).numpy()


@pytest.mark.parametrize("params", LENSES)
def test_magnification_diverges_on_the_critical_curve(params):
    a = jacobian(params, critical_curve(params, 60))
    assert np.abs(np.linalg.det(a)).max() < 1e-3
    # tangential, not radial: of the two eigenvalues it is the one that does not vanish that is near one
    assert np.trace(a, axis1=1, axis2=2).min() > 0.5


def test_the_curve_of_a_round_lens_is_its_einstein_ring():
    np.testing.assert_allclose(np.hypot(*critical_curve(LENSES[0]).T), 1.2, rtol=1e-12)
