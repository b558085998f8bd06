"""All learning rules on one network: their costs, and their accuracy after four epochs of 8x8 digits.

Run: python examples/compare_rules.py
"""

from typing import Any

import torch
from sklearn.datasets import load_digits

from localize import METHODS, localize
from localize.memory.peak import peak_step_bytes
from localize.models import cifar_resnet

EPOCHS, BATCH = 4, 64
OPTIONS: dict[str, dict[str, Any]] = {"auglocal": {"d": 2}, "auglocal+infopro": {"d": 2}, "gn-dgl": {"head": "joint"}}

images, labels = load_digits(return_X_y=True)
x = torch.tensor(images / 16, dtype=torch.float32).view(-1, 1, 8, 8)
y = torch.tensor(labels)
order = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))
train, test = order[:1400], order[1400:]

print(f"{'method':17} {'modules':>7} {'MACs, M':>8} {'peak, MB':>8} {'accuracy':>8}")
accuracies = {}
for method in METHODS:
    torch.manual_seed(0)
    model = cifar_resnet(8, in_channels=1)
    local = localize(model, method, max_cut=1, seed=0, example_inputs=x[:2], **OPTIONS.get(method, {}))
    optimizer = torch.optim.SGD(local.parameters(), lr=0.05, momentum=0.9, nesterov=True, weight_decay=1e-4)
    steps = EPOCHS * (len(train) // BATCH)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.05, total_steps=steps)
    for _ in range(EPOCHS):
        for batch in train[torch.randperm(len(train))].split(BATCH)[:-1]:
            for out in local.steps(x[batch], y[batch]):
                out.loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            schedule.step()
    # With gn-dgl it is a smaller network that learns; with all others, the model itself.
    trained = local.primary.eval()
    with torch.no_grad():
        accuracies[method] = (trained(x[test]).argmax(1) == y[test]).float().mean().item()
    macs = (local.plan.macs + local.plan.auxiliary_macs) / 1e6
    peak = peak_step_bytes(local, BATCH, image_shape=(1, 8, 8)) / 1e6
    print(f"{method:17} {len(local.plan.modules):7} {macs:8.2f} {peak:8.1f} {accuracies[method]:8.3f}")

print(f"lowest test accuracy {min(accuracies.values()):.3f}")
