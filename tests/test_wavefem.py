"""The wave solver against closed forms, another formulation of its time steps, and another mesh."""

from __future__ import annotations

import numpy as np
import pytest

from layerbook.data import wavefem

DT = 1 / 64


@pytest.fixture(scope="module")
def membrane() -> wavefem.Membrane:
    return wavefem.assemble(17)


@pytest.fixture(scope="module")
def start(membrane) -> np.ndarray:
    bumps = wavefem.bumps(membrane.points, np.array([[0.4, 0.6, 0.1, 1.0], [0.7, 0.3, 0.08, -2.0]]))
    bumps[membrane.edge] = 0
    return bumps


def test_matrices_are_those_of_linear_triangles(membrane):
    h, i = 1 / 16, 8 * 17 + 8
    k, m = (x[i].toarray().reshape(17, 17)[7:10, 7:10] for x in (membrane.stiffness, membrane.mass))
    assert np.allclose(k, [[0, -1, 0], [-1, 4, -1], [0, -1, 0]])
    # the diagonal that cuts the squares, and not the other
    assert np.allclose(m * 12 / h**2, [[1, 1, 0], [1, 6, 1], [0, 1, 1]])
    assert membrane.mass.sum() == pytest.approx(1) and np.allclose(
        membrane.stiffness @ np.ones(289), 0
    )
    assert len(membrane.edge) == 64 and not set(membrane.edge) & set(membrane.inside)
    assert np.allclose(membrane.points[18], [h, h]) and np.allclose(membrane.points[1], [0, h])
    with pytest.raises(ValueError, match="2 nodes"):
        wavefem.assemble(2)


def test_errors_fall_by_four_with_mesh_and_with_step():
    assert wavefem.order("space") == pytest.approx(2, abs=0.1) and wavefem.order(
        "time"
    ) == pytest.approx(2, abs=0.05)


def test_the_own_mode_turns_with_newmarks_closed_form_frequency(membrane):
    shape, end = wavefem.own_mode(membrane, 0.5)
    u = wavefem.solve(membrane, shape, DT, 32)
    one = membrane.inside[0]
    assert end[one, 0] / shape[one, 0] == pytest.approx(np.cos(np.sqrt(2) * np.pi / 2), abs=0.02)
    value = (shape.T @ (membrane.stiffness @ shape) / (shape.T @ (membrane.mass @ shape))).item()
    turn = 2 * np.arctan(np.sqrt(value) * DT / 2)
    assert np.allclose(u, np.cos(turn * np.arange(33))[:, None, None] * shape, atol=1e-10)


def test_steps_equal_newmarks_own_formulation(membrane, start):
    """Displacement, velocity and acceleration with beta = 1/4 and gamma = 1/2, by dense linear
    algebra.
    """
    c, inside = 1.3, membrane.inside
    m, k = (x[inside][:, inside].toarray() for x in (membrane.mass, c**2 * membrane.stiffness))
    u, v = start[inside], np.zeros_like(start[inside])
    a, found = np.linalg.solve(m, -k @ u), wavefem.solve(membrane, start, DT, 20, c)
    for step in range(1, 21):
        guess = u + DT * v + DT**2 / 4 * a
        new = np.linalg.solve(m + DT**2 / 4 * k, -k @ guess)
        u, v, a = guess + DT**2 / 4 * new, v + DT / 2 * (a + new), new
        assert np.allclose(found[step, inside], u, atol=1e-10)
    assert not found[:, membrane.edge].any()


def test_energy_is_kept_and_a_wrong_first_step_would_show(membrane, start):
    u = wavefem.solve(membrane, start, DT, 64)
    e = wavefem.energy(membrane, u, DT)
    assert e.shape == (64, 2) and (np.ptp(e, 0) / e[0]).max() < 1e-10
    elastic = (start * (membrane.stiffness @ start)).sum(0) / 2
    # the mean of two steps is smoother than either
    assert np.allclose(e[0], elastic, rtol=0.1) and (e[0] < elastic).all()
    u[1] *= 1.01
    e = wavefem.energy(membrane, u, DT)
    assert (np.ptp(e, 0) / e[0]).min() > 1e-4


def test_the_explicit_scheme_reads_four_neighbours_and_agrees_for_short_steps(membrane, start):
    u = wavefem.leapfrog(membrane, start, DT, 3).reshape(4, 17, 17, 2)
    lap = u[:, 2:, 1:-1] + u[:, :-2, 1:-1] + u[:, 1:-1, 2:] + u[:, 1:-1, :-2] - 4 * u[:, 1:-1, 1:-1]
    second = (u[2:] - 2 * u[1:-1] + u[:-2])[:, 1:-1, 1:-1]
    assert np.allclose(second, (DT * 16) ** 2 * lap[1:-1], atol=1e-12)
    fine = wavefem.assemble(65)
    smooth = wavefem.eigenmode(fine.points, [0.0])[0]
    one, other = (f(fine, smooth, 1 / 256, 64)[-1] for f in (wavefem.solve, wavefem.leapfrog))
    assert np.abs(one - other).max() < 2e-3


def test_fields_are_read_off_linearly(membrane):
    points = wavefem.grid(5, 0.5, 0.95)
    assert (
        points[0].tolist() == [0.5, 0.5]
        and points[1].tolist() == [0.5, 0.6125]
        and len(points) == 25
    )
    plane = 2 * membrane.points[:, 0] - 3 * membrane.points[:, 1] + 1
    assert np.allclose(
        wavefem.restrict(membrane, points) @ plane, 2 * points[:, 0] - 3 * points[:, 1] + 1
    )
    nodes = wavefem.restrict(membrane, membrane.points[[0, 40, 288]])
    assert np.allclose(nodes.toarray(), np.eye(289)[[0, 40, 288]])


def test_a_submodel_driven_by_the_true_border_follows_the_whole():
    """A wave that passes through a part of the square, prescribed on that part's border alone."""
    part, times = wavefem.assemble(17, 0.5, 1.0), np.linspace(0, 0.5, 129)
    exact = wavefem.eigenmode(part.points, times)
    u = wavefem.solve(part, exact[0], times[1], 128, boundary=exact[:, part.edge])
    assert np.abs(u - exact).max() < 2e-3
    still = wavefem.solve(part, exact[0], times[1], 128)
    assert np.abs(still - exact).max() > 0.1  # with a border held at zero it does not
