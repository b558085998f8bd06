"""Semantic segmentation by local losses: every module predicts a map that says to which digit each pixel belongs."""

import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.nn import functional as F

from localize import localize

CLASSES = 11  # ten digits, and paper


def conv(inputs: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(inputs, outputs, 3, padding=1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU())


class UNet(nn.Module):
    """A U-Net with three resolutions."""

    def __init__(self, width: int = 24) -> None:
        super().__init__()
        w = width
        self.down = nn.ModuleList([nn.Sequential(conv(a, b), conv(b, b)) for a, b in ((1, w), (w, 2 * w))])
        self.middle = nn.Sequential(conv(2 * w, 4 * w), conv(4 * w, 4 * w))
        self.rise = nn.ModuleList([nn.ConvTranspose2d(4 * w, 2 * w, 2, 2), nn.ConvTranspose2d(2 * w, w, 2, 2)])
        self.up = nn.ModuleList([nn.Sequential(conv(2 * b, b), conv(b, b)) for b in (2 * w, w)])
        self.classifier = nn.Conv2d(w, CLASSES, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        skips = []
        for down in self.down:
            x = down(x)
            skips.append(x)
            x = F.max_pool2d(x, 2)
        x = self.middle(x)
        for rise, up in zip(self.rise, self.up, strict=True):
            x = up(torch.cat([skips.pop(), rise(x)], 1))
        result: torch.Tensor = self.classifier(x)
        return result


torch.manual_seed(0)
pixels, digits = load_digits(return_X_y=True)
tiles, labels = torch.tensor(pixels / 16, dtype=torch.float32).view(-1, 8, 8), torch.tensor(digits)


def pages(count: int, first: int, last: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return images (count, 1, 16, 16) of four digits each, and a class for each pixel."""
    drawn = torch.randint(first, last, (count, 2, 2))
    images = tiles[drawn].transpose(2, 3).reshape(count, 1, 16, 16)
    classes = labels[drawn].repeat_interleave(8, 1).repeat_interleave(8, 2)
    return images, torch.where(images[:, 0] > 0.25, classes, 10)


model = UNet()
x, y = pages(2, 0, 1400)
local = localize(model, d=2, last="single", example_inputs=x)
print(local.plan)

optimizer = torch.optim.Adam(local.parameters(), lr=3e-3)
schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 1e-2, total_steps=200)
for step in range(200):
    x, y = pages(32, 0, 1400)
    losses = {}
    for out in local.steps(x, y):  # out.logits is (32, 11, 16, 16), whatever the module's own resolution
        out.loss.backward()
        losses[out.name] = out.loss.item()
    optimizer.step()
    optimizer.zero_grad()
    schedule.step()
    if step % 50 == 49:
        print(f"step {step + 1}:", ", ".join(f"{name} {loss:.3f}" for name, loss in losses.items()))

model.eval()
with torch.no_grad():
    x, y = pages(300, 1400, len(tiles))
    found = model(x).argmax(1)
overlaps = [((found == k) & (y == k)).sum() / ((found == k) | (y == k)).sum() for k in range(CLASSES)]
print(f"test mean IoU {torch.stack(overlaps).mean():.3f}")
