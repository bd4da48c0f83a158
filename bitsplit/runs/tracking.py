"""Weights & Biases beside the records: one run a cell, offline unless the user is logged in."""

import io
import os
from dataclasses import dataclass
from pathlib import Path

import pandas
from matplotlib.figure import Figure
from PIL import Image

from bitsplit.report import figures, record


@dataclass(frozen=True)
class WandB:
    """Where runs go: `project`, and `entity` (a user or a team) if it is not the default one."""

    project: str = "bitsplit"
    entity: str | None = None

    def log(self, run: dict, folder: Path, group: str | None) -> None:
        """Mirrors one record: configuration, metrics, seconds, errors by layer, and accuracy against bit-width with the
        records of the same network in `folder`. Cells of one sweep share a `group`."""
        import wandb  # takes a second, which a run that finds its record need not wait

        settings = wandb.Settings(silent=True, console="off", init_timeout=30, disable_git=True)
        logged_in = wandb.login(prompt=False) if "WANDB_MODE" not in os.environ else None
        mode = os.environ.get("WANDB_MODE") or ("online" if logged_in else "offline")
        cell = f"w{run['wbits']}a{run['abits']}-s{run['seed']} {run['variant']}".rstrip()
        tracked = wandb.init(
            project=self.project,
            entity=self.entity,
            mode=mode,
            group=group,
            name=f"{run['data']['name']}-{run['model']}-{run['method']}-{cell}",
            config=run["config"] | {key: run[key] for key in ("config_hash", "commit", "versions", "device")},
            settings=settings,
        )
        try:
            for network, metrics in run["metrics"].items():
                numbers = {name: value for name, value in metrics.items() if not isinstance(value, (str, list))}
                tracked.summary.update({f"{network}/{name}": value for name, value in numbers.items()})
            tracked.summary.update({f"seconds/{phase}": value for phase, value in run["seconds"].items()})
            layers = pandas.DataFrame(run["layers"]).astype({"shape": str})
            logged = {"layers": wandb.Table(dataframe=layers)}
            records = map(record.read, sorted(folder.glob(f"{run['model']}-*.json")))
            for name, figure in figures.bit_width_figures([other for other in records if other]).items():
                logged[f"accuracy against bit-width, {name}"] = wandb.Image(_rendered(figure))
            tracked.log(logged)
        finally:
            tracked.finish()


def _rendered(figure: Figure) -> Image.Image:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=100)
    return Image.open(buffer)
