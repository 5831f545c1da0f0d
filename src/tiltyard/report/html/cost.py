"""Cost and energy of a run: an estimate from the time of its stages, with how it was made in words."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from tiltyard.report.html.reading import number, rounded

WATTS_THREAD = 10.0  # a busy core of a server with its share of memory and power supply: 6 to 15 W
WATTS_GPU = 500.0  # a data-centre GPU under load with its share of the host: 300 to 700 W


def cost_of(stages: Sequence[Mapping[str, Any]], watts: float | None, price: float | None) -> dict[str, Any]:
    """{hours, watt_hours, money, text, how} of a run's stages.

    Args:
        watts: of the machine under load, where the user knows it; None: from threads and devices.
        price: of an hour of the machine; None: no money.
    """
    seconds = sum(number(stage.get("seconds")) or 0.0 for stage in stages)
    joules = sum((number(stage.get("seconds")) or 0.0) * (watts or _watts(stage)) for stage in stages)
    gpus = any(stage.get("device", "cpu").startswith("cuda") for stage in stages)
    money = None if price is None else seconds / 3600 * price
    if watts is not None:
        how = f"seconds of every stage times {watts:g} W, as given"
    elif gpus:
        how = f"seconds of every stage times {WATTS_GPU:g} W a GPU; the true figure is between 0.6 and 1.4 times that"
    else:
        how = (
            f"seconds of every stage times its threads (1 where not recorded) times {WATTS_THREAD:g} W, a busy core "
            "with its share of memory and power supply; the true figure is between 0.6 and 1.5 times that"
        )
    if money is not None:
        how += f"; money at {price:g} an hour"
    energy = joules / 3600
    shown = f"{energy / 1000:.2f} kWh" if energy >= 1000 else f"{energy:.0f} Wh" if energy >= 10 else f"{energy:.1f} Wh"
    text = f"about {shown} (an estimate)" if seconds else ""
    return {
        "seconds": rounded(seconds),
        "watt_hours": rounded(energy),
        "money": rounded(money),
        "energy": shown,
        "text": text + (f", {money:.2f} in money" if money is not None and seconds else ""),
        "how": f"Not measured: {how}. Idle time, cooling and other work on the machine are not in it.",
    }


def _watts(stage: Mapping[str, Any]) -> float:
    if str(stage.get("device", "cpu")).startswith("cuda"):
        return WATTS_GPU
    return WATTS_THREAD * (number(stage.get("threads")) or 1.0)
