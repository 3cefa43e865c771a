"""Finite-element solutions of the two-dimensional wave equation, for many initial fields at once.

u_tt = c^2 (u_xx + u_yy) on a square, linear triangles (scikit-fem), u prescribed on the boundary
(zero unless said otherwise), started at rest. Time steps are Newmark's with beta = 1/4 and gamma =
1/2 (Newmark 1959): implicit, stable for every step, of second order, and without loss of energy.
The wave speed is one for all fields, so that one sparse factorization serves them all.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import sparse
from scipy.sparse.linalg import splu
from threadpoolctl import threadpool_limits


@dataclass(frozen=True)
class Membrane:
    """An assembled mesh of n x n nodes; node (i, j) of the grid, x first, is number i * n + j."""

    points: np.ndarray  # [nodes, 2]
    mass: sparse.csr_matrix  # [nodes, nodes]
    stiffness: sparse.csr_matrix  # [nodes, nodes], of the operator minus Laplacian
    inside: np.ndarray  # numbers of the nodes that are free to move
    edge: np.ndarray  # numbers of the nodes on the boundary
    basis: Any  # scikit-fem's


def assemble(n: int, low: float = 0.0, high: float = 1.0) -> Membrane:
    """Mass and stiffness matrices of linear triangles on [low, high]^2 with n nodes a side.
    ValueError below 3 nodes.
    """
    from skfem import Basis, ElementTriP1, MeshTri
    from skfem.models.poisson import laplace, mass

    if n < 3:
        raise ValueError(f"{n} nodes a side leave none inside the boundary")
    axis = np.linspace(low, high, n)
    basis = Basis(MeshTri.init_tensor(axis, axis), ElementTriP1())
    edge = basis.get_dofs().all()
    inside = np.setdiff1d(np.arange(n * n), edge)
    return Membrane(basis.doflocs.T.copy(), mass.assemble(basis).tocsr(), laplace.assemble(basis).tocsr(), inside,
                    np.sort(edge), basis)  # fmt: skip


def bumps(points: np.ndarray, parameters: np.ndarray) -> np.ndarray:
    """Gaussian bumps [points, samples] of parameters [samples, 4]: centre x and y, width (standard
    deviation), amplitude.
    """
    x, y, width, amplitude = parameters.T
    distance = (points[:, :1] - x) ** 2 + (points[:, 1:] - y) ** 2
    return amplitude * np.exp(-distance / (2 * width**2))


def solve(membrane: Membrane, start: np.ndarray, dt: float, steps: int, c: float = 1.0,
          boundary: np.ndarray | None = None) -> np.ndarray:
    """Displacements u [steps + 1, nodes, samples] from `start` [nodes, samples] at rest.

    Newmark's velocities and accelerations are eliminated, which leaves, with A = M + (c dt)^2/4 K
    and B = M - (c dt)^2/4 K, the recursion A u_{k+1} = 2 B u_k - A u_{k-1}; from rest, A u_1 = B
    u_0.
    boundary: prescribed values [steps + 1, edge nodes, samples]; None for zero, which also
    overrides `start` there.
    """
    stiff = (c * dt) ** 2 / 4 * membrane.stiffness
    a, b = (membrane.mass + stiff).tocsr(), (membrane.mass - stiff).tocsr()
    inside, edge = membrane.inside, membrane.edge
    factors, coupling = splu(a[inside][:, inside].tocsc()), a[inside][:, edge]
    u = np.zeros((steps + 1, *start.shape))
    u[0] = start
    u[:, edge] = 0.0 if boundary is None else boundary
    # the factors are made of small blocks, on which threads cost ten times what they save
    with threadpool_limits(1):
        for k in range(steps):
            load = b @ u[k] if k == 0 else 2 * (b @ u[k]) - a @ u[k - 1]
            u[k + 1, inside] = factors.solve(load[inside] - coupling @ u[k + 1, edge])
    return u


def leapfrog(membrane: Membrane, start: np.ndarray, dt: float, steps: int, c: float = 1.0) -> np.ndarray:
    """The explicit scheme: central differences and the lumped (diagonal) mass; shapes as in
    `solve`, u = 0 on the edge.

    On this mesh each update reads a node and its four neighbours alone. Unstable for dt beyond h /
    (c sqrt 2).
    """
    lumped = np.asarray(membrane.mass.sum(1))
    u = np.zeros((steps + 1, *start.shape))
    u[0, membrane.inside] = start[membrane.inside]
    for k in range(steps):
        push = -((c * dt) ** 2) * (membrane.stiffness @ u[k]) / lumped
        new = u[k] + push / 2 if k == 0 else 2 * u[k] - u[k - 1] + push
        u[k + 1, membrane.inside] = new[membrane.inside]
    return u


def energy(membrane: Membrane, u: np.ndarray, dt: float, c: float = 1.0) -> np.ndarray:
    """Kinetic plus elastic energy [steps, samples] halfway between steps, which Newmark's rule
    keeps exactly.
    """
    speed, middle = np.diff(u, axis=0) / dt, (u[1:] + u[:-1]) / 2
    form = lambda matrix, x: np.stack([(f * (matrix @ f)).sum(0) for f in x]) / 2  # noqa: E731
    return form(membrane.mass, speed) + c**2 * form(membrane.stiffness, middle)


def grid(n: int, low: float, high: float) -> np.ndarray:
    """Points [n * n, 2] of a regular grid on [low, high]^2 with its border, x slowest."""
    axis = np.linspace(low, high, n)
    return np.stack(np.meshgrid(axis, axis, indexing="ij"), -1).reshape(-1, 2)


def restrict(membrane: Membrane, points: np.ndarray) -> sparse.csr_matrix:
    """The matrix [points, nodes] that evaluates a nodal field at `points` [points, 2], linearly on
    each triangle.
    """
    return sparse.csr_matrix(membrane.basis.probes(np.ascontiguousarray(points.T)))


def eigenmode(points: np.ndarray, times: np.ndarray, c: float = 1.0) -> np.ndarray:
    """The slowest standing wave of the unit square, sin(pi x) sin(pi y) cos(sqrt(2) pi c t): values
    [times, points, 1].
    """
    shape = np.sin(np.pi * points[:, 0]) * np.sin(np.pi * points[:, 1])
    return (np.cos(np.sqrt(2) * np.pi * c * np.asarray(times))[:, None] * shape)[..., None]


def order(mesh: str, sizes: tuple[int, ...] = (9, 17, 33), horizon: float = 0.5) -> float:
    """Observed order of convergence to the eigenmode at t = horizon: slope of log error on log
    step.

    mesh: "space" refines the mesh at a time step too short to matter; "time" shortens the step and
    compares with the
    closed form of the same mesh's own mode, so that the mesh does not matter.
    """
    errors = []
    for n in sizes:
        nodes, steps = (n, 512) if mesh == "space" else (9, n - 1)
        membrane = assemble(nodes)
        start, exact = eigenmode(membrane.points, [0.0, horizon])
        if mesh == "time":
            start, exact = own_mode(membrane, horizon)
        found = solve(membrane, start, horizon / steps, steps)[-1]
        errors.append(np.linalg.norm(found - exact) / np.linalg.norm(exact) if mesh == "time" else np.abs(found - exact).max())
    return float(np.polyfit(np.log([1 / (n - 1) for n in sizes]), np.log(errors), 1)[0])


def own_mode(membrane: Membrane, horizon: float) -> tuple[np.ndarray, np.ndarray]:
    """Slowest mode of the assembled matrices, and what it becomes after `horizon` with time
    continuous; [nodes, 1] each.
    """
    from scipy.linalg import eigh

    inside = membrane.inside
    matrices = (m[inside][:, inside].toarray() for m in (membrane.stiffness, membrane.mass))
    value, vector = eigh(*matrices, subset_by_index=[0, 0])
    start = np.zeros((len(membrane.points), 1))
    start[inside] = vector / np.abs(vector).max()
    return start, start * np.cos(np.sqrt(value[0]) * horizon)
