"""How fast one network predicts in each form that `utils.submission.acceleration` knows, beside the path of a usual notebook.

``python -m benchmarks.inference [--architectures cnn,resnet50] [--height 512] [--width 256] [--batch 8] [--rounds 5]
[--out outputs/bench]`` from the project's root prints one table and writes inference.json into the folder. On two
cores it takes about five minutes.

- *plain*: ``model.eval()`` and ``torch.no_grad()`` in float32, as the network was built: no channels_last, nothing else.
- *float32*: channels_last, which is the reference that the others must agree with.
- the others: `utils.submission.acceleration.offered`, each whether or not it would be chosen.

Weights are random, and so are the statistics of batch norms, as those of a trained network are not 0 and 1; the pictures are
noise on the device, and nothing is loaded. A round runs every form once, so that a noisy machine is as noisy for each; ratios
are within a round. A batch counts pictures: of ``rnn`` half as many breasts, each with two.
"""

import argparse
import copy
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import median

import torch
from torch import nn

from benchmarks.loops import VIEWS, make_table
from benchmarks.timing import seconds
from benchmarks.training import describe_machine
from utils.core.devices import pick_device
from utils.core.files import write_json
from utils.images.settings import CacheSettings
from utils.networks.encoders import Encoder
from utils.networks.models import Outputs, build_model
from utils.runs.config import ModelConfig, TrainConfig
from utils.submission.acceleration import REFERENCE, disagreement, offered, with_encoders
from utils.tables.vocabulary import METADATA, Vocabulary
from utils.training.inference import forward
from utils.training.loading import Batch
from utils.training.randomness import seed_everything

ARCHITECTURES = ("cnn", "resnet50", "efficientnet_b0", "rnn")
PLAIN = "plain"


def main() -> None:
    """Measure, print the table, and write it as JSON."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--architectures", default=",".join(ARCHITECTURES), help="names with commas between")
    parser.add_argument("--height", type=int, default=512)
    parser.add_argument("--width", type=int, default=256)
    parser.add_argument("--batch", type=int, default=8, help="pictures, an even number")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path, default=Path("outputs/bench"))
    given = parser.parse_args()
    device = pick_device()
    rows = []
    for name in given.architectures.split(","):
        model, settings = ModelConfig(name.strip(), given.height, given.width), CacheSettings(given.height, given.width)
        config = TrainConfig(model, settings, batch_size=given.batch)
        rows.append(measure(config, device, given.rounds))
        print(table(rows[-1:]), flush=True)
    machine = describe_machine(device)
    print(f"On {machine['device']}, {machine['threads']} threads: medians of {given.rounds} rounds [lowest, highest].\n")
    print(table(rows))
    write_json(given.out / "inference.json", {"machine": machine, "rows": rows})


class PlainEncoder(nn.Module):
    """An encoder without channels_last."""

    def __init__(self, encoder: Encoder):
        super().__init__()
        self.backbone, self.mean, self.std = copy.deepcopy(encoder.backbone), encoder.mean, encoder.std
        self.backbone.to(memory_format=torch.contiguous_format)

    def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        maps = self.backbone.forward_features((images.float() / 255 - self.mean) / self.std)
        return self.backbone.forward_head(maps, pre_logits=True), maps


def measure(config: TrainConfig, device: torch.device, rounds: int) -> dict:
    """Measure every form of one network, in interleaved rounds.

    Returns
    -------
    dict
        ``architecture``, ``size``, ``batch``; by form: ``seconds``, one number a round, and ``difference`` of a probability to
        the reference's; ``refused``, where a form failed or would not be chosen for what it gives.
    """
    seed_everything(0)
    batch = make_batch(config.model, config.batch_size, device)
    network = build_model(config.model, Vocabulary.from_images(make_table(2))).eval()
    randomise_norms(network)
    network = network.to(device, memory_format=torch.channels_last)
    row = {"architecture": config.model.architecture, "batch": config.batch_size, "difference": {}, "refused": {}}
    row["size"] = [config.model.image_height, config.model.image_width]
    expected = predict(network, batch, device)
    forms = {}
    for name, make in ways(config, device, batch).items():
        try:
            forms[name] = with_encoders(network, make)
            outputs = predict(forms[name], batch, device)
        except Exception as error:  # as in utils.submission.acceleration
            row["refused"][name] = f"{type(error).__name__}: {error}"
            forms.pop(name, None)
            continue
        row["difference"][name] = (outputs.logit.sigmoid() - expected.logit.sigmoid()).abs().max().item()
        if why := disagreement(outputs, expected):
            row["refused"][name] = why
    row["seconds"] = {name: [] for name in forms}
    for _ in range(rounds):
        for name, form in forms.items():
            row["seconds"][name].append(seconds(partial(predict, form, batch, device), device))
    return row


def ways(config: TrainConfig, device: torch.device, batch: Batch) -> dict[str, Callable]:
    """Give by name what makes an encoder's form."""
    made = {name: partial(one.make, images=batch["images"]) for name, one in offered(config, device).items()}
    return {PLAIN: PlainEncoder, REFERENCE: copy.deepcopy} | made


def predict(network: nn.Module, batch: Batch, device: torch.device) -> Outputs:
    """Pass the batch through."""
    with torch.no_grad():
        return forward(network, batch, device)


def make_batch(config: ModelConfig, count: int, device: torch.device) -> Batch:
    """Make a batch of noise; of ``rnn``, two pictures a breast."""
    views = len(VIEWS) if config.item == "breast" else 1
    shape = (count, 1, config.image_height, config.image_width)
    return {
        "images": torch.randint(256, shape, dtype=torch.uint8, device=device),
        "metadata": torch.zeros(count, len(METADATA), device=device),
        "lengths": torch.full((count // views,), views),
    }


def randomise_norms(network: nn.Module) -> None:
    """Give batch norms statistics as after training, other than 0 and 1."""
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 1.5)


def table(rows: list[dict]) -> str:
    """Return the Markdown table."""
    head = ("network", "picture", "batch", "form", "images/s", "over plain", "probability differs by", "refused")
    lines = ["| " + " | ".join(head) + " |", "|---" * len(head) + "|"]
    for row in rows:
        where = [row["architecture"], "{} × {}".format(*row["size"]), str(row["batch"])]
        lines += ["| " + " | ".join([*where, *_cells(row, name)]) + " |" for name in {**row["seconds"], **row["refused"]}]
    return "\n".join(lines) + "\n"


def _cells(row: dict, name: str) -> list[str]:
    why = row["refused"].get(name, "").split("\n")[0]
    if name not in row["seconds"]:
        return [name, "–", "–", "–", why]
    times = row["seconds"][name]
    ratios = [plain / own for plain, own in zip(row["seconds"][PLAIN], times, strict=True)]
    over_plain = f"{median(ratios):.2f} [{min(ratios):.2f}, {max(ratios):.2f}]"
    return [name, f"{row['batch'] / median(times):.3g}", over_plain, f"{row['difference'][name]:.1e}", why]


if __name__ == "__main__":
    main()
