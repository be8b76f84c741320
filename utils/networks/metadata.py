"""Network parts that read an image's test-time metadata: age, implant, view, machine and site.

Training hides random values, so that networks can cope with an age or a machine that test.csv lacks.
"""

import numpy as np
import torch
from sklearn.linear_model import LogisticRegression
from torch import nn

from utils.tables.vocabulary import CATEGORIES, METADATA, Vocabulary

HIDE_METADATA = 0.1  # share of codes and ages that training shows as unseen or missing
NUMBERS = len(METADATA) - len(CATEGORIES)
AGE, AGE_MISSING = METADATA.index("age"), METADATA.index("age_missing")
COPIES = 10  # copies of each image in the regression, each with different values hidden
# Out-of-fold AUC per breast, on one image of each of the 1,589 breasts of a public sample, three seeds: 0.635 with 0.1, 0.634
# with 1, 0.632 with 10 (with COPIES). A logistic regression without hiding reaches 0.632, gradient boosting 0.61.
INVERSE_PENALTY = 0.1


def hide(metadata: torch.Tensor) -> torch.Tensor:
    """Hide random values of metadata (N, 6): codes become 0 (unseen), ages become missing."""
    numbers, codes = metadata[:, :NUMBERS].clone(), metadata[:, NUMBERS:]
    codes = codes * (torch.rand(codes.shape, device=codes.device) >= HIDE_METADATA)
    hidden = torch.rand(len(numbers), device=numbers.device) < HIDE_METADATA
    numbers[hidden, AGE], numbers[hidden, AGE_MISSING] = 0.0, 1.0
    return torch.cat([numbers, codes], dim=1)


class MetadataEmbedding(nn.Module):
    """Embed an image's metadata: numbers unchanged, categories by a table whose entry 0 means "unseen"."""

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
    """A logistic regression on metadata, whose logit is added to the image's.

    Forty metadata features would be lost among an encoder's thousand, and an encoder's learning rate is too low to learn
    them in a few epochs. Hence a separate logit, initialised by `fit`.
    """

    def __init__(self, vocabulary: Vocabulary):
        super().__init__()
        self.embedding = MetadataEmbedding(vocabulary, size=1)
        self.weights = nn.Linear(NUMBERS, 1)
        for parameter in self.parameters():
            nn.init.zeros_(parameter)

    def forward(self, metadata: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
        """Return the mean logit of each item's images, (B,), from the metadata of all images, (N, 6)."""
        embedded = self.embedding(metadata)  # (N, 3 + 3)
        logits = self.weights(embedded[:, :NUMBERS]).squeeze(1) + embedded[:, NUMBERS:].sum(dim=1)  # (N,)
        items = torch.arange(len(lengths)).repeat_interleave(lengths.cpu()).to(logits.device)  # (N,)
        zeros = torch.zeros(len(lengths), device=logits.device)
        return zeros.index_add(0, items, logits) / lengths.to(logits.device)

    def fit(self, metadata: torch.Tensor, labels: np.ndarray) -> None:
        """Initialise the weights by a logistic regression on the training images' metadata.

        The mean logit becomes 0, since the head's bias learns how frequent cancer is among the sampled items.

        Parameters
        ----------
        metadata : Tensor (N, 6)
            From `utils.tables.vocabulary.Vocabulary.encode`.
        labels : ndarray of shape (N,)
            Must contain both classes.
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
        """Return numbers and one-hot codes as one array."""
        sizes = [table.num_embeddings for table in self.embedding.tables]
        codes = metadata[:, NUMBERS:].long().T
        parts = [nn.functional.one_hot(column, size) for column, size in zip(codes, sizes, strict=True)]
        return torch.cat([metadata[:, :NUMBERS], *parts], dim=1).numpy()
