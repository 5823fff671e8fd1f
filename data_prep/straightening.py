"""Straightened curved planar reformation: image and labels in the coordinates of a centreline.

Two unit vectors n(s), b(s) across the centreline p(s) turn about it as little as possible (a rotation-minimising frame;
double reflection of Wang et al., "Computation of rotation minimizing frames", ACM Transactions on Graphics 27(1),
2008). Sample (i, j, k) lies at p(s_i) + u_j n(s_i) + v_k b(s_i). The arc lengths s_i are the centres of equal parts of
the whole length, and u_j, v_k are the centres of pixels around the axis. A longitudinal cut at the angle a has the
samples p(s_i) + u_j (cos a n(s_i) + sin a b(s_i)).

Near the axis, distances along and across are those in the patient. Off the axis a length along the vessel is shown
longer or shorter by the fraction u / (radius of curvature), as in any such reformation.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.ndimage import map_coordinates

from data_prep.centrelines import smooth_curve

__all__ = [
    "Frames", "first_normal", "make_frames", "rotation_minimising", "sample_grid", "sample_image", "sample_labels",
]  # fmt: skip


@dataclass(frozen=True)
class Frames:
    """Points of a centreline and the frame in each; all of shape (N, 3), RAS mm and unit vectors.

    Attributes:
        points: centres of N equal parts of the centreline.
        tangents, normals, binormals: right-handed orthonormal frames.
    """

    points: np.ndarray
    tangents: np.ndarray
    normals: np.ndarray
    binormals: np.ndarray


def make_frames(points: np.ndarray, samples: int) -> Frames:
    """Divide a centreline (N, 3) into ``samples`` equal parts and put a frame into the centre of each."""
    curve, length = smooth_curve(points, sigma=0)
    at = (np.arange(samples) + 0.5) * length / samples
    places, tangents = curve(at), curve(at, 1)
    tangents /= np.linalg.norm(tangents, axis=1, keepdims=True)
    normals = rotation_minimising(places, tangents, first_normal(tangents[0]))
    return Frames(places, tangents, normals, np.cross(tangents, normals))


def first_normal(tangent: np.ndarray) -> np.ndarray:
    """The direction across a tangent that points most to superior; to anterior, where the vessel itself runs up."""
    up = np.array([0.0, 0.0, 1.0]) if abs(tangent[2]) < 0.9 else np.array([0.0, 1.0, 0.0])
    across = up - (up @ tangent) * tangent
    return across / np.linalg.norm(across)


def rotation_minimising(points: np.ndarray, tangents: np.ndarray, normal: np.ndarray) -> np.ndarray:
    """Carry a normal along a curve (N, 3) by double reflection; an error of fourth order in the step."""
    normals = np.empty_like(points)
    normals[0] = normal
    for i, step in enumerate(np.diff(points, axis=0)):
        # The first reflection is in the plane half-way between the points, the second makes the tangents coincide.
        norm = step @ step
        carried = normals[i] - 2 / norm * (step @ normals[i]) * step
        tangent = tangents[i] - 2 / norm * (step @ tangents[i]) * step
        turn = tangents[i + 1] - tangent
        carried -= 2 / (turn @ turn) * (turn @ carried) * turn
        # Rounding errors would add up.
        carried -= (carried @ tangents[i + 1]) * tangents[i + 1]
        normals[i + 1] = carried / np.linalg.norm(carried)
    return normals


def sample_grid(
    frames: Frames, across: tuple[int, ...], spacing: float, angle: float, affine: np.ndarray
) -> np.ndarray:
    """Voxel coordinates of the samples, shape (3, N, *across), float32: across one axis for a cut, two for a volume.

    Args:
        frames: frames of the centreline.
        across: number of pixels across the vessel, (64,) or (64, 64).
        spacing: spacing of these pixels, mm.
        angle: rotation of the frame about the tangent in degrees, from the normal towards the binormal.
        affine: of the volume, voxel to RAS mm, shape (4, 4).
    """
    inverse = np.linalg.inv(affine)
    cosine, sine = np.cos(np.deg2rad(angle)), np.sin(np.deg2rad(angle))
    turned = (cosine * frames.normals + sine * frames.binormals, cosine * frames.binormals - sine * frames.normals)
    dims = len(across)
    # The sums are taken in voxel coordinates: three small products instead of one for each sample.
    grid = _spread(frames.points @ inverse[:3, :3].T + inverse[:3, 3], dims)
    for axis, (count, direction) in enumerate(zip(across, turned)):
        offsets = (np.arange(count) - (count - 1) / 2) * spacing
        shape = [count if i == axis else 1 for i in range(dims)]
        grid = grid + offsets.reshape(1, 1, *shape).astype(np.float32) * _spread(direction @ inverse[:3, :3].T, dims)
    return grid


def _spread(vectors: np.ndarray, dims: int) -> np.ndarray:
    """Vectors (N, 3) as (3, N, 1, …) of float32."""
    return vectors.T.reshape(3, -1, *[1] * dims).astype(np.float32)


def sample_image(volume: np.ndarray, voxels: np.ndarray, order: int, outside: float) -> np.ndarray:
    """Interpolate a volume at voxel coordinates (3, *S) by splines of ``order``; samples beyond it are ``outside``."""
    box, local = _crop(volume.shape, voxels, margin=1 if order < 2 else 8)
    part = volume[box].astype(np.float32)
    return map_coordinates(part, local, order=order, mode="constant", cval=outside, output=np.float32)


def sample_labels(label: np.ndarray, voxels: np.ndarray) -> np.ndarray:
    """The label of the voxel in which each of the voxel coordinates (3, *S) lies; 0 beyond the volume.

    A structure's volume is thus preserved on average, whatever its shape. The label of the largest interpolated share
    would look smoother, but takes 6 % from a plaque two voxels thick.
    """
    box, local = _crop(label.shape, voxels, margin=1)
    return map_coordinates(label[box], local, order=0, mode="constant")


def _crop(shape: tuple[int, ...], voxels: np.ndarray, margin: int) -> tuple[tuple[slice, ...], np.ndarray]:
    """The part of a volume that coordinates (3, *S) reach, and the coordinates within that part."""
    flat = voxels.reshape(3, -1)
    low = np.clip(np.floor(flat.min(1)).astype(int) - margin, 0, np.array(shape) - 1)
    high = np.clip(np.ceil(flat.max(1)).astype(int) + margin + 1, low + 1, shape)
    local = voxels - low.reshape(3, *[1] * (voxels.ndim - 1)).astype(np.float32)
    return tuple(slice(a, b) for a, b in zip(low, high)), local
