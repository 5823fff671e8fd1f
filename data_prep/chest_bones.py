"""Bones of the chest as attenuation maps: ribs, clavicles, shoulders, spine, sternum.

All maps are dimensionless line integrals of the attenuation coefficient, float32 (H, W), in the body coordinates of
:mod:`data_prep.chest_anatomy`. Functions with a ``side`` draw that side only, with ``x`` counted from the midline.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from data_prep.chest_anatomy import LEFT, RIGHT, Frame, Lung, curve, ramp, segment

__all__ = ["ribs", "skeleton"]

_SPINE_HALF_WIDTH = curve([(-0.3, 0.034), (0.0, 0.037), (0.4, 0.043), (1.0, 0.055)])
_BLADE_MEDIAL = curve([(0.0, 0.40), (0.06, 0.380), (0.14, 0.374), (0.24, 0.384), (0.34, 0.408), (0.44, 0.45)])
_BLADE_LATERAL = curve([(0.0, 0.50), (0.06, 0.515), (0.14, 0.500), (0.24, 0.474), (0.34, 0.450), (0.44, 0.45)])


def ribs(frame: Frame, lung: Lung, t: float, heart: np.ndarray, shape: Mapping[str, float]) -> np.ndarray:
    """Posterior and anterior arcs of one side's ribs.

    A rib runs obliquely around the cage: seen from the front, its posterior half falls a little towards the side, its
    anterior half falls steeply towards the sternum, and they meet where the wall is tangent to the beam. All posterior
    halves are one periodic function of the level relative to that course, and so are all anterior halves.

    Args:
        frame: pixels.
        lung: the lung of that side, whose outer wall they follow.
        t: displacement of the lung's diaphragm; where the wall has moved outwards, so have the ribs.
        heart: pixels of the heart, bool (H, W).
        shape: standardised shape coefficients ``rib_fall``, ``rib_drop``, ``rib_space``.
    """
    x, y = lung.side * frame.x, frame.y
    cage, wall = lung.cage(y), lung.wall(y, t)
    medial = np.maximum(lung.medial(y), np.where(heart, x, 0).max(1, keepdims=True))
    # where the wall has moved outwards, so have the ribs over the lung, but not those over heart and mediastinum
    squeeze = np.where(wall - medial > 0.01, (cage - medial) / np.maximum(wall - medial, 0.01), 1)
    x = np.where(x > medial, medial + (x - medial) * squeeze, x).astype(np.float32)
    wall = cage + np.float32(0.014)
    q = np.clip(x / wall, 0, 1)
    tangent = np.sqrt(1 - q * q)
    fall, drop = 0.125 + 0.015 * shape["rib_fall"], 0.17 + 0.02 * shape["rib_drop"]
    spacing = 0.069 + 0.004 * shape["rib_space"]
    edge_of_cage = ramp(wall - x, 0.012 + frame.pixel)
    # ribs and muscle between them line the wall, where the beam runs along it
    lining = 0.10 * np.exp(-(((wall - x) / 0.010) ** 2)) * ramp(y - 0.06, 0.08) * ramp(0.95 - y, 0.3) * (x > 0.1)
    below = ramp(y - 0.62, 0.25)
    total = lining * edge_of_cage
    courses = (
        (fall * (1 - tangent) - 0.03 * np.sin(np.pi * q), 0.20, 0.10, 0.40),
        (fall + drop * tangent * (1 - 0.3 * tangent), 0.11, 0.50, 0.46),
    )
    for course, strength, inner, thickness in courses:
        phase = (y - course + 0.052) / spacing
        offset = phase - np.floor(phase) - 0.5
        distance = np.abs(offset)
        edge = 2.0 * frame.pixel / spacing + 0.10
        body = ramp(thickness / 2 - distance, edge)
        # the lower border is a thin flange, the upper one thick and round: denser below
        rim = ramp(distance - 0.3 * thickness, edge) * (0.6 + 0.8 * (offset > 0))
        present = ramp(q - inner - 0.45 * below, 0.16) * ramp(phase - 0.5, 0.4) * ramp(11.0 - phase, 3.0)
        total += strength * present * edge_of_cage * body * (0.85 + 0.35 * rim)
    return total


def skeleton(frame: Frame, shape: Mapping[str, float]) -> np.ndarray:
    """Spine, sternum, clavicles and shoulders: the bones that no variable moves."""
    total = _spine(frame, shape)
    for side in (LEFT, RIGHT):
        columns, half = frame.half(side)
        total[:, columns] += _clavicle(half, side, shape) + _shoulder(half, side, shape)
    return total


def _clavicle(frame: Frame, side: int, shape: Mapping[str, float]) -> np.ndarray:
    s = (side * frame.x - np.float32(0.048)) / np.float32(0.40)
    lift = 0.105 + 0.03 * shape["clavicles"] + 0.012 * side * shape["asymmetry"]
    # an S: convex towards the front in its medial half
    course = 0.098 + 0.014 * shape["clavicles"] - lift * s + 0.020 * np.sin(2 * np.pi * np.clip(s, 0, 1))
    half = 0.0145 + 0.009 * np.exp(-((s / 0.10) ** 2)) + 0.013 * np.clip(s - 0.7, 0, 0.3)
    offset = np.abs(frame.y - course)
    edge = 2.0 * frame.pixel + 0.004
    body = ramp(half - offset, edge) * ramp(s, 0.05) * ramp(1.0 - s, 0.05)
    return body * (0.26 - 0.09 * np.clip(s, 0, 1) + 0.06 * ramp(offset - 0.55 * half, edge))


def _shoulder(frame: Frame, side: int, shape: Mapping[str, float]) -> np.ndarray:
    """Shoulder blade, acromion and upper arm."""
    x, y = side * frame.x - np.float32(0.04 * shape["scapula"]), frame.y
    edge = 2.0 * frame.pixel + 0.006
    lateral = _BLADE_LATERAL(y) - x
    blade = np.minimum(np.minimum(x - _BLADE_MEDIAL(y), lateral), np.minimum(y - 0.035 - 0.1 * (x - 0.45), 0.43 - y))
    plate = ramp(blade, 0.02) * (0.07 + 0.09 * np.exp(-np.clip(lateral, 0, None) / 0.02))
    head = 0.058 - np.hypot(x - 0.555, (y - 0.10) * 0.9)
    along, distance = segment(x, y, (0.37, 0.07), (0.53, 0.01))
    acromion = ramp(0.010 + 0.006 * along - distance, edge)
    _, distance = segment(x, y, (0.565, 0.12), (0.63, 0.60))
    shaft = ramp(0.030 - distance, edge) * (0.5 + 0.5 * ramp(distance - 0.016, edge))
    return plate + 0.28 * ramp(head, 0.025) + 0.10 * acromion + 0.25 * shaft


def _spine(frame: Frame, shape: Mapping[str, float]) -> np.ndarray:
    """Vertebral bodies with discs between, pedicles, spinous and transverse processes; the sternum in front."""
    y = frame.y
    half = _SPINE_HALF_WIDTH(y)
    x = frame.x - (0.006 * shape["scoliosis"] * np.sin(5 * (y - 0.1))).astype(np.float32)
    phase = (y + 0.4) / (0.052 + 0.012 * np.clip(y, 0, 1))
    offset = np.abs(phase - np.floor(phase) - 0.5)
    across = np.abs(x)
    waist = half * (0.93 + 0.14 * offset)
    column = np.clip(1 - np.abs(x / waist) ** 3, 0, 1) ** 0.6 * (0.36 - 0.18 * ramp(offset - 0.41, 0.12))
    pedicles = 0.14 * np.exp(-(((across - 0.62 * half) / 0.007) ** 2)) * np.exp(-((offset / 0.16) ** 2))
    process = 0.14 * np.exp(-((x / 0.006) ** 2)) * np.exp(-(((offset - 0.3) / 0.15) ** 2))
    transverse = 0.07 * np.exp(-((offset / 0.14) ** 2)) * ramp(0.085 - across, 0.02) * ramp(across - half, 0.01)
    sternum = 0.05 * ramp(0.045 - across, 0.02) * ramp(y - 0.10, 0.03) * ramp(0.40 - y, 0.08)
    return column + pedicles + process + transverse + sternum
