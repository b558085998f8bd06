"""A detector. Its backbone learns locally which shapes are in the image; the detector's own loss trains the rest."""

from functools import partial
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F
from torchvision.models import resnet18
from torchvision.models.detection import RetinaNet
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.backbone_utils import BackboneWithFPN
from torchvision.models.detection.retinanet import RetinaNetHead
from torchvision.ops import box_iou

from localize import localize

CLASSES, SIZE = 2, 64  # squares and crosses


def scenes(count: int) -> tuple[list[torch.Tensor], list[dict[str, torch.Tensor]]]:
    """Draw noise with one or two shapes in it, and return the images and where the shapes are."""
    images, targets = [], []
    for _ in range(count):
        image = 0.2 * torch.rand(3, SIZE, SIZE)
        boxes, labels = [], []
        for column in range(int(torch.randint(1, 3, ()))):
            side, label = int(torch.randint(14, 26, ())), int(torch.randint(CLASSES, ()))
            left, top = 32 * column + int(torch.randint(32 - side, ())), int(torch.randint(SIZE - side, ()))
            shape = torch.ones(side, side)
            if label == 1:
                shape[: side // 3, : side // 3] = shape[: side // 3, -(side // 3) :] = 0
                shape[-(side // 3) :, : side // 3] = shape[-(side // 3) :, -(side // 3) :] = 0
            image[:, top : top + side, left : left + side] += 0.7 * shape
            boxes.append([left, top, left + side, top + side])
            labels.append(label)
        images.append(image)
        targets.append({"boxes": torch.tensor(boxes, dtype=torch.float32), "labels": torch.tensor(labels)})
    return images, targets


class DetectorLoss(nn.Module):
    """The loss of the last local module, from the levels of the pyramid, with the parameters that it trains."""

    def __init__(self, detector: RetinaNet) -> None:
        super().__init__()
        self.head, self.anchors, self.compute_loss = detector.head, detector.anchor_generator, detector.compute_loss

    def forward(self, features: dict[str, torch.Tensor], target: Any) -> torch.Tensor:
        images, boxes = target
        levels = list(features.values())
        losses = self.compute_loss(boxes, self.head(levels), self.anchors(images, levels))
        return torch.stack(list(losses.values())).sum()


def present(logits: torch.Tensor, target: Any) -> torch.Tensor:
    """Return the loss of the other modules, which must tell the classes in the image."""
    _, boxes = target
    return F.binary_cross_entropy_with_logits(
        logits, torch.stack([F.one_hot(b["labels"], CLASSES).amax(0).float() for b in boxes])
    )


torch.manual_seed(0)
backbone = BackboneWithFPN(resnet18(weights=None), {"layer2": "0", "layer3": "1"}, [128, 256], 64)
anchors = AnchorGenerator(((14, 19, 25),) * 3, ((1.0,),) * 3)
head = RetinaNetHead(64, 3, CLASSES, norm_layer=partial(nn.GroupNorm, 8))
detector = RetinaNet(backbone, CLASSES, min_size=SIZE, max_size=SIZE, anchor_generator=anchors, head=head)
local = localize(
    detector.backbone,
    d=2,
    granularity="block",
    example_inputs=torch.empty(2, 3, SIZE, SIZE),
    outputs=CLASSES,
    criterion=present,
    output_criterion=DetectorLoss(detector),
)
print(local.plan)

detector.train()
optimizer = torch.optim.Adam(local.parameters())  # the detector's head is among them
schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, total_steps=150)
for step in range(150):
    images, targets = detector.transform(*scenes(8))
    losses = {}
    for out in local.steps(images.tensors, (images, targets)):
        out.loss.backward()
        losses[out.name] = out.loss.item()
    optimizer.step()
    optimizer.zero_grad()
    schedule.step()
    if step % 50 == 49:
        print(f"step {step + 1}:", ", ".join(f"{name} {loss:.3f}" for name, loss in losses.items()))

images, targets = scenes(50)
with torch.no_grad():
    found = detector.eval()(images)  # the detector as torchvision made it, trained
right = 0
for boxes, target in zip(found, targets, strict=True):
    if len(boxes["boxes"]):
        overlap, index = box_iou(boxes["boxes"][:1], target["boxes"]).max(1)
        right += bool(overlap > 0.5) and bool(target["labels"][index] == boxes["labels"][0])
print(f"test share of first boxes that are right {right / len(images):.3f}")
