"""A loop that calls one ``backward`` on one loss, as timm's and Accelerate's do: two of its lines change.

``torchrun --nproc_per_node 2 examples/unchanged_loop.py`` runs it as two processes of data-parallel training.
"""

from typing import Any

import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch.utils.data import DataLoader, TensorDataset

from localize import localize
from localize.models import cifar_resnet

try:
    from accelerate import Accelerator
except ImportError:  # the loop runs without it too, on the CPU
    Accelerator = None

EPOCHS = 4


def train(model: torch.nn.Module, loader: DataLoader[Any]) -> None:
    network: Any = localize(model, "auglocal", d=3)  # was: network = model
    optimizer = torch.optim.SGD(network.parameters(), lr=0.05, momentum=0.9, nesterov=True, weight_decay=1e-4)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, EPOCHS * len(loader))
    accelerator = Accelerator() if Accelerator else None
    if accelerator:
        network, optimizer, loader, schedule = accelerator.prepare(network, optimizer, loader, schedule)

    for epoch in range(EPOCHS):
        total = 0.0
        for images, labels in loader:
            loss = network(images, labels)  # was: loss = criterion(network(images), labels)
            accelerator.backward(loss) if accelerator else loss.backward()
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
            total += loss.item() / len(loader)
        print(f"epoch {epoch + 1}: sum of the local losses {total:.3f}")


def main() -> None:
    torch.manual_seed(0)
    pixels, digits = load_digits(return_X_y=True)
    images = torch.tensor(pixels / 16, dtype=torch.float32).view(-1, 1, 8, 8)
    x, x_test, y, y_test = train_test_split(
        images, torch.tensor(digits), test_size=0.2, stratify=digits, random_state=0
    )
    model = cifar_resnet(14, in_channels=1)
    train(model, DataLoader(TensorDataset(x, y), batch_size=64, shuffle=True, drop_last=True))

    model.cpu().eval()
    with torch.no_grad():
        accuracy = (model(x_test).argmax(1) == y_test).float().mean()
    print(f"test accuracy {accuracy:.3f}")


if __name__ == "__main__":
    main()
