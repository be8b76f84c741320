"""The training loop that one would otherwise write around timm, which `benchmarks.training` measures the kit's against.

Pictures of three channels, normalised on the CPU to float, from a DataLoader of two processes; float32 on a CPU, and autocast
with a GradScaler on a GPU; the loss is asked for at each step. The random changes of a picture are the kit's. There is neither
a running average of weights nor clipping of gradients. The loader's processes live on, so that their start is not measured.
"""

from pathlib import Path

import albumentations as A  # noqa: N812  (the name that its own documentation uses)
import cv2
import timm
import torch
from albumentations.pytorch import ToTensorV2
from torch import nn
from torch.utils.data import DataLoader, Dataset

from utils.networks.encoders import PlainCnn

DROPOUT = 0.2  # the kit's default


class PictureDataset(Dataset):
    """PNG files and labels; three channels, or one for ``cnn``."""

    def __init__(self, paths: list[Path], labels: list[float], channels: int):
        self.paths, self.labels, self.channels = paths, labels, channels
        normalise = A.Normalize() if channels == 3 else A.Normalize(mean=0.5, std=0.5)
        self.transform = A.Compose(
            [
                A.HorizontalFlip(p=0.5),
                A.VerticalFlip(p=0.5),
                A.Affine(scale=(0.85, 1.15), translate_percent=(-0.06, 0.06), rotate=(-20, 20), shear=(-8, 8), p=0.8),
                A.RandomBrightnessContrast(0.15, 0.15, p=0.5),
                A.CoarseDropout((1, 4), (0.05, 0.15), (0.05, 0.15), p=0.3),
                normalise,
                ToTensorV2(),
            ]
        )

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        if self.channels == 3:
            picture = cv2.cvtColor(cv2.imread(str(self.paths[index])), cv2.COLOR_BGR2RGB)
        else:
            picture = cv2.imread(str(self.paths[index]), cv2.IMREAD_GRAYSCALE)
        return self.transform(image=picture)["image"], torch.tensor(self.labels[index], dtype=torch.float32)


class TimmLoop:
    """Model, loader and optimizer of such a script; ``cnn`` is the kit's own, everything else is timm's."""

    def __init__(self, name: str, paths: list[Path], labels: list[float], batch_size: int, device: torch.device):
        self.device = device
        channels = 1 if name == "cnn" else 3
        self.model = _plain_cnn() if name == "cnn" else timm.create_model(name, num_classes=1, drop_rate=DROPOUT)
        self.model.to(device)
        self.loader = DataLoader(
            PictureDataset(paths, labels, channels),
            batch_size,
            shuffle=True,
            num_workers=2,
            pin_memory=device.type == "cuda",
            drop_last=True,
            persistent_workers=True,
        )
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=3e-4, weight_decay=0.05)
        self.criterion = nn.BCEWithLogitsLoss()
        self.scaler = torch.amp.GradScaler(device.type, enabled=device.type == "cuda")

    def train_epoch(self) -> float:
        """Train one epoch; returns its mean loss."""
        self.model.train()
        total = 0.0
        for images, labels in self.loader:
            total += self.step(images, labels)
        return total / len(self.loader)

    def step(self, images: torch.Tensor, labels: torch.Tensor) -> float:
        """Take a step with a batch; returns its loss."""
        images, labels = images.to(self.device), labels.to(self.device)
        self.optimizer.zero_grad()
        with torch.autocast(self.device.type, dtype=torch.float16, enabled=self.device.type == "cuda"):
            loss = self.criterion(self.model(images).squeeze(1), labels)
        self.scaler.scale(loss).backward()
        self.scaler.step(self.optimizer)
        self.scaler.update()
        return loss.item()


def _plain_cnn() -> nn.Module:
    cnn = PlainCnn(DROPOUT)
    return nn.Sequential(cnn, nn.Linear(cnn.num_features, 1))
