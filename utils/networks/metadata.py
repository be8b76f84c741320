"""Networks' parts that read the test-time metadata of an image: age, implant, view, machine and site.

In training some values are hidden at random, so that a machine or an age that test.csv lacks is no surprise.
"""

import numpy as np
import torch
from sklearn.linear_model import LogisticRegression
from torch import nn

from utils.tables.vocabulary import CATEGORIES, METADATA, Vocabulary

HIDE_METADATA = 0.1  # share of codes and ages shown as unseen or missing in training
NUMBERS = len(METADATA) - len(CATEGORIES)
AGE, AGE_MISSING = METADATA.index("age"), METADATA.index("age_missing")
COPIES = 10  # of each image, with other values hidden, that the regression sees
# Out of fold on the 1,589 images of a public sample, one a breast, three seeds: 0.635 with 0.1, 0.634 with 1, 0.632 with 10
# (penalties with COPIES; a logistic regression without hiding 0.632, gradient boosting 0.61).
INVERSE_PENALTY = 0.1


def hide(metadata: torch.Tensor) -> torch.Tensor:
    """Hide some values of metadata (N, 6): codes become 0 (unseen), ages missing."""
    numbers, codes = metadata[:, :NUMBERS].clone(), metadata[:, NUMBERS:]
    codes = codes * (torch.rand(codes.shape, device=codes.device) >= HIDE_METADATA)
    hidden = torch.rand(len(numbers), device=numbers.device) < HIDE_METADATA
    numbers[hidden, AGE], numbers[hidden, AGE_MISSING] = 0.0, 1.0
    return torch.cat([numbers, codes], dim=1)


class MetadataEmbedding(nn.Module):
    """Embed the metadata of an image: numbers as they are, categories by a table whose entry 0 is "unseen"."""

    def __init__(self, vocabulary: Vocabulary, size: int = 8):
        super().__init__()
        self.tables = nn.ModuleList(nn.Embedding(len(getattr(vocabulary, column)) + 1, size) for column in CATEGORIES)
        self.num_features = NUMBERS + size * len(CATEGORIES)

    def forward(self, metadata: torch.Tensor) -> torch.Tensor:
        metadata = hide(metadata) if self.training else metadata
        numbers, codes = metadata[:, :NUMBERS], metadata[:, NUMBERS:].long()  # (N, 3), (N, 3)
        embedded = [table(codes[:, column]) for column, table in enumerate(self.tables)]  # each (N, size)
        return torch.cat([numbers, *embedded], dim=1)


class MetadataLogit(nn.Module):
    """A logistic regression on metadata, to be added to the logit that the pictures give.

    Next to a thousand features of an encoder, forty of metadata would be drowned, and at an encoder's learning rate they would
    not be learned in a few epochs. So the metadata has a logit of its own, and starts where `fit` puts it.
    """

    def __init__(self, vocabulary: Vocabulary):
        super().__init__()
        self.embedding = MetadataEmbedding(vocabulary, size=1)
        self.weights = nn.Linear(NUMBERS, 1)
        for parameter in self.parameters():
            nn.init.zeros_(parameter)

    def forward(self, metadata: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
        """Give the mean logit of each item's images, (B,), from the metadata of all images, (N, 6)."""
        embedded = self.embedding(metadata)  # (N, 3 + 3)
        logits = self.weights(embedded[:, :NUMBERS]).squeeze(1) + embedded[:, NUMBERS:].sum(dim=1)  # (N,)
        items = torch.arange(len(lengths)).repeat_interleave(lengths.cpu()).to(logits.device)  # (N,)
        zeros = torch.zeros(len(lengths), device=logits.device)
        return zeros.index_add(0, items, logits) / lengths.to(logits.device)

    def fit(self, metadata: torch.Tensor, labels: np.ndarray) -> None:
        """Start from what metadata alone tells in training.

        The mean logit becomes 0: how frequent cancer is among the items that a step draws is left to the head's bias.

        Parameters
        ----------
        metadata : Tensor (N, 6)
            Of the training images, as from `utils.tables.vocabulary.Vocabulary.encode`.
        labels : ndarray of shape (N,)
            Of both classes.
        """
        columns = self._columns(hide(metadata.repeat(COPIES, 1)))
        model = LogisticRegression(C=INVERSE_PENALTY / COPIES, max_iter=1000).fit(columns, np.tile(labels, COPIES))
        weights = torch.from_numpy(model.coef_[0]).float()
        mean = float((self._columns(metadata) @ weights.numpy()).mean())
        tables = [table.weight for table in self.embedding.tables]
        numbers, *entries = weights.split([NUMBERS, *map(len, tables)])
        with torch.no_grad():
            self.weights.weight.copy_(numbers[None])
            self.weights.bias.fill_(-mean)
            for table, values in zip(tables, entries, strict=True):
                table.copy_(values[:, None])

    def _columns(self, metadata: torch.Tensor) -> np.ndarray:
        """Give numbers and, for each code, a column that is 1 where it is the image's."""
        sizes = [table.num_embeddings for table in self.embedding.tables]
        codes = metadata[:, NUMBERS:].long().T
        parts = [nn.functional.one_hot(column, size) for column, size in zip(codes, sizes, strict=True)]
        return torch.cat([metadata[:, :NUMBERS], *parts], dim=1).numpy()
