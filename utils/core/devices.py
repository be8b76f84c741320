"""The CPU cores and GPUs that this process may use."""

import os


def cpu_count() -> int:
    """Return the number of CPU cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def pick_device(number: int = 0):
    """Return an NVIDIA GPU if one works, else the CPU; Apple's MPS is not used.

    ``torch.cuda.is_available()`` is True even on GPUs that torch no longer supports (Kaggle's P100), so this tries an
    operation.

    Parameters
    ----------
    number : int
        Index of the GPU, modulo the number of GPUs.

    Returns
    -------
    torch.device
    """
    import torch

    if torch.cuda.is_available():
        device = torch.device("cuda", number % max(1, torch.cuda.device_count()))
        try:
            try_gpu(device)
            torch.cuda.set_device(device)
            return device
        except RuntimeError as error:
            print(f"The GPU does not work with torch {torch.__version__} ({str(error).splitlines()[0]}): using the CPU.")
            print("On Kaggle, choose the accelerator 'GPU T4 x2' in the notebook's settings.")
    return torch.device("cpu")


def try_gpu(device) -> None:
    """Compute something on a GPU; raise torch's RuntimeError if that fails."""
    import torch

    torch.ones(8, device=device).mul(2).sum().item()


def pick_devices() -> list:
    """Return all GPUs as a list of ``torch.device`` if they work, else the CPU alone."""
    import torch

    first = pick_device()
    return [torch.device("cuda", number) for number in range(torch.cuda.device_count())] if first.type == "cuda" else [first]
