"""Find the white frame around a scanned film: it is not tissue, and is drawn black."""

import numpy as np

REACH = 0.08  # of the longer side: widest frame
GAP = 0.02  # of the longer side: farthest from the edge that it may begin
LEVEL = 0.92  # of the brightest pixel: a white frame is at least this bright
LENGTH = 0.3  # of the side: shorter runs are a label, or skin that touches the edge of the image
GREY_LENGTH = 0.6  # LENGTH of a frame that is not the brightest part: a chest wall may look like it
DROP = 0.9  # of the frame's level: two pixels behind the frame, the image is darker than this
# A thinner line is harmless; an outline that software draws is 1 pixel, or 1/256 of the side.
THINNEST = 0.0035  # of the longer side
FEWEST_PIXELS = 2
Box = tuple[int, int, int, int]  # top, left, bottom, right, half open


def film_box(small: np.ndarray, scale: float) -> Box:
    """Find the box inside the white frame of a scanned film; the entire image if there is no frame.

    ``small`` is a shrunken image, each of whose pixels is ``scale`` pixels of the original.
    """
    height, width = small.shape
    brightest = float(small.max())
    top, bottom = (_frame_depth(side, brightest, scale) for side in (small.T, small[::-1].T))
    left, right = (_frame_depth(side, brightest, scale) for side in (small, small[:, ::-1]))
    return top, left, height - bottom, width - right


def _frame_depth(lines: np.ndarray, brightest: float, scale: float) -> int:
    """Return how many columns at the left are frame."""
    longest = max(lines.shape)
    reach = round(REACH * longest)
    if lines.shape[1] < 4 * reach or not reach:
        return 0
    strip = lines[:, : reach + 3]
    usual = float(np.sort(strip[:, 0])[len(strip) // 2])
    depth = _white_depth(strip, LEVEL * brightest, LENGTH)
    if usual > brightest / 3:
        depth = max(depth, _white_depth(strip, LEVEL * usual, GREY_LENGTH))
    if not depth:
        return 0
    # The first pixel is centred on the edge, and the pixel behind the frame may be part frame.
    bright = strip[strip[:, 0] >= 0.8 * np.percentile(strip[:, 0], 90)]
    at, behind, beyond = (np.median(bright[:, place]) for place in (depth - 1, depth, depth + 1))
    thickness = depth - 0.5 + float(np.clip((behind - beyond) / max(at - beyond, 1e-6), 0, 1))
    return depth + 1 if thickness >= max(THINNEST * longest, FEWEST_PIXELS / scale) else 0


def _white_depth(strip: np.ndarray, level: float, length: float) -> int:
    """Return how deep white reaches on ``length`` of the side, in runs from near the edge to a sharp drop."""
    reach = strip.shape[1] - 3
    gap = round(GAP / REACH * reach)
    if np.count_nonzero(strip[:, : gap + 1].max(axis=1) >= level) < length * len(strip):
        return 0
    white = strip >= level
    first = white.argmax(axis=1)
    run = np.logical_and.accumulate(white | (np.arange(strip.shape[1]) < first[:, None]), axis=1)
    end = run.sum(axis=1)
    behind = strip[np.arange(len(strip)), np.minimum(end + 1, reach + 2)]
    framed = white.any(axis=1) & (first <= gap) & (end <= reach) & (behind < DROP * level)
    return int(np.flatnonzero((white & run)[framed].sum(axis=0) >= length * len(strip)).max(initial=-1)) + 1
