"""A training loop by hand on digits of 8x8 pixels: every local module learns from its own loss."""

import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch.utils.data import DataLoader, TensorDataset

from localize import localize
from localize.models import cifar_resnet

torch.manual_seed(0)
pixels, digits = load_digits(return_X_y=True)
images = torch.tensor(pixels / 16, dtype=torch.float32).view(-1, 1, 8, 8)
x, x_test, y, y_test = train_test_split(images, torch.tensor(digits), test_size=0.2, stratify=digits, random_state=0)
loader = DataLoader(TensorDataset(x, y), batch_size=64, shuffle=True, drop_last=True)

model = cifar_resnet(14, in_channels=1)  # any vision model will do
local = localize(model, "auglocal", d=3, example_inputs=x[:2])
print(local.plan)

optimizer = torch.optim.SGD(local.parameters(), lr=0.05, momentum=0.9, nesterov=True, weight_decay=1e-4)
for epoch in range(4):
    total = dict.fromkeys((module.name for module in local.plan.modules), 0.0)
    for batch, labels in loader:
        for out in local.steps(batch, labels):  # input to output; a module's memory is freed before the next one runs
            out.loss.backward()
            total[out.name] += out.loss.item() / len(loader)
        optimizer.step()
        optimizer.zero_grad()
    print(f"epoch {epoch + 1}:", ", ".join(f"{name} {loss:.3f}" for name, loss in total.items()))

model.eval()  # your own object, trained: nothing to convert
with torch.no_grad():
    accuracy = (model(x_test).argmax(1) == y_test).float().mean()
print(f"test accuracy {accuracy:.3f}")
