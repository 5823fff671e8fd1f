"""Which vessel a labelled voxel belongs to: a straightened picture is 16 mm wide and shows neighbouring vessels, too.

A vessel is modelled as a chain of balls, each as wide as the labelled vessel is there. A place belongs to the vessel
beneath whose wall it lies deepest (or whose wall is nearest). A side branch begins where it leaves the vessel it comes
from; up to there, places belong to that longer vessel.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.ndimage import map_coordinates
from scipy.spatial import KDTree

from data_prep.centrelines import Vessel, arc_length, smooth_curve
from data_prep.volumes import Volume

__all__ = ["Axis", "foreign", "other_limb", "trace_axes"]

STEP = 0.5
"""Distance between the balls along a vessel, mm."""

REACH = 5.0
"""No coronary artery is wider than twice this, mm."""

DIRECTIONS = 16


@dataclass(frozen=True)
class Axis:
    """A smoothed centreline as it lies in its label volume.

    Attributes:
        points: shape (N, 3), RAS mm, from the ostium or, for a side branch, the wall of the vessel it comes from.
        radii: of the labelled vessel, plaque included, shape (N,), mm; 0 where the centreline runs outside of it.
        start: arc length from the ostium to the first point, mm.
        tree: index of the tree.
    """

    points: np.ndarray
    radii: np.ndarray
    start: float
    tree: int

    @property
    def length(self) -> float:
        return float(arc_length(self.points)[-1])


def trace_axes(vessels: Sequence[Vessel], label: Volume, sigma: float) -> list[Axis]:
    """Smooth the centrelines, measure the vessels' radii around them, and cut off what belongs to a longer vessel.

    Args:
        vessels: the vessels of all trees of a volume; within a tree the longer ("elder") ones first.
        label: label volume; all labels but 0 are vessel.
        sigma: standard deviation of the smoothing Gaussian, mm.
    """
    axes: list[Axis] = []
    for vessel in vessels:
        curve, length = smooth_curve(vessel.points, sigma)
        points = curve(np.linspace(0, length, max(2, round(length / STEP)) + 1))
        radii, start = _radii(points, label), vessel.start
        elders = [axis for axis in axes if axis.tree == vessel.tree]
        if elders:
            distance, nearest = KDTree(np.concatenate([e.points for e in elders])).query(points)
            # where both begin, the lines may reach beyond the label, and the elder's radius is 0 there
            inside = distance < np.maximum(np.concatenate([e.radii for e in elders]), STEP)[nearest]
            # At least two points stay: a vessel that never leaves its elder is then found to be short.
            first = min(int(np.argmin(inside)) if not inside.all() else len(points), len(points) - 2)
            start += float(arc_length(points)[first])
            points, radii = points[first:], radii[first:]
        axes.append(Axis(points, radii, start, vessel.tree))
    return axes


def foreign(axes: Sequence[Axis], own: int, places: np.ndarray, depth: np.ndarray) -> np.ndarray:
    """Which places belong to another vessel than ``axes[own]``.

    Of shorter vessels of the tree, and of other trees, only balls that do not touch a ball of ``axes[own]`` count:
    where a side branch leaves, the wall between the two belongs to the longer vessel.

    Args:
        axes: all vessels of the volume.
        own: index of the vessel.
        places: shape (M, 3), RAS mm.
        depth: how far each place lies beneath the own vessel's wall (negative: beyond it), shape (M,), mm.

    Returns:
        Shape (M,), boolean.
    """
    vessel, chain = axes[own], KDTree(axes[own].points)
    centres, radii = [], []
    for index, other in enumerate(axes):
        counted = other.radii > 0
        if index > own or other.tree != vessel.tree:
            distance, nearest = chain.query(other.points)
            counted &= distance > other.radii + vessel.radii[nearest]
        if index != own:
            centres.append(other.points[counted])
            radii.append(other.radii[counted])
    if not sum(map(len, centres)) or not len(places):
        return np.zeros(len(places), bool)
    distance, nearest = KDTree(np.concatenate(centres)).query(places)
    return np.concatenate(radii)[nearest] - distance > depth


def other_limb(vessel: Axis, places: np.ndarray, depth: np.ndarray, at: np.ndarray) -> np.ndarray:
    """Which places lie deeper in a distant part of the same vessel: where it bends back, both of its limbs are near.

    Args:
        vessel: the vessel.
        places: shape (M, 3), RAS mm.
        depth: how far each place lies beneath the vessel's wall at its own section (negative: beyond it), (M,), mm.
        at: arc length of each place's section from the axis' first point, shape (M,), mm.

    Returns:
        Shape (M,), boolean.
    """
    distance, nearest = KDTree(vessel.points).query(places)
    apart = np.abs(arc_length(vessel.points)[nearest] - at)
    return (apart > REACH) & (vessel.radii[nearest] - distance > depth)


def _radii(points: np.ndarray, label: Volume) -> np.ndarray:
    """Distance from the centreline to the first voxel outside the vessel: the median over directions across, since a
    side branch or a touching neighbour lies in only a few of them."""
    tangents = np.gradient(points, axis=0)
    tangents /= np.linalg.norm(tangents, axis=1, keepdims=True)
    first = np.cross(tangents, np.eye(3)[np.abs(tangents).argmin(1)])
    first /= np.linalg.norm(first, axis=1, keepdims=True)
    second = np.cross(tangents, first)
    angles = np.arange(DIRECTIONS) * 2 * np.pi / DIRECTIONS
    rays = np.cos(angles)[:, None] * first[:, None] + np.sin(angles)[:, None] * second[:, None]
    step = 0.25 * float(label.spacing.min())
    ways = np.arange(step / 2, REACH, step)
    places = points[:, None, None] + ways[:, None] * rays[:, :, None]
    inverse = np.linalg.inv(label.affine)
    voxels = np.moveaxis(places @ inverse[:3, :3].T + inverse[:3, 3], -1, 0)
    inside = map_coordinates(label.voxels, voxels, order=0, mode="constant") > 0
    return np.median(np.cumprod(inside, axis=2).sum(2) * step, axis=1)
