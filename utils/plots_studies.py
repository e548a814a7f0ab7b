"""What the studies of the ledger found, drawn from their committed results: experiments/study_NAME/results.json.

A reader without the runs sees the same picture: nothing is trained here.
"""

import matplotlib.pyplot as plt

from experiments.ledger import HERE, Claim
from experiments.verdict import Order, weigh_order
from utils.whiteboard import INK, use_style

PALE = "#A3A8B0"  # of what is undecided


def read_study(name: str) -> tuple[dict[str, dict], list[Order]]:
    """Return the arms of a study by seed, and what its pairs say."""
    claim = Claim(HERE / name)
    return claim.kept["arms"], [weigh_order(pair, claim.kept["arms"]) for pair in claim.held["verdict"]["order"]]


def plot_study(
    name: str, title: str, shown: dict[str, str], value: str = "", caption: str = "bits per byte, held out"
) -> None:
    """Draw every seed of some arms, and beside them the pairs of them with 95 % intervals, pale if they hold 0.

    Args:
        shown: the arms to draw, and what they are called.
        value: what is drawn of a run, if not its bits per byte.
    """
    arms, orders = read_study(name)
    orders = [o for o in orders if o.value == value and {o.lower, o.upper} <= set(shown)]
    use_style()
    height = 0.42 * max(len(shown), len(orders)) + 1.5
    fig, (left, right) = plt.subplots(1, 2, figsize=(9.5, height))
    for y, arm in enumerate(shown):
        numbers = [run["also"][value] if value else run["number"] for run in arms[arm].values()]
        left.plot(numbers, [y] * len(numbers), "o", color=INK, alpha=0.4)
        left.plot([sum(numbers) / len(numbers)], [y], "|", color=INK, ms=18, mew=2.5)
    left.set(yticks=range(len(shown)), yticklabels=list(shown.values()), xlabel=caption)
    for y, order in enumerate(orders):
        colour = PALE if order.word == "undecided" else INK
        right.errorbar(100 * order.mean, y, xerr=100 * order.half, fmt="|", color=colour, ms=14, mew=2.5, lw=2)
        right.plot([100 * gap for gap in order.each], [y] * len(order.each), "o", color=colour, alpha=0.4)
    names = [f"{shown[o.lower]}\nbeside {shown[o.upper]}{f', step {o.step}' if o.step else ''}" for o in orders]
    right.axvline(0, color=INK, lw=1)
    right.set(yticks=range(len(orders)), yticklabels=names, xlabel="difference in %, 95 % interval")
    for ax, rows in ((left, shown), (right, orders)):
        ax.set_ylim(len(rows) - 0.5, -0.5)
    fig.suptitle(title, x=0.02, ha="left", weight="bold")
    fig.tight_layout()
    plt.show()
