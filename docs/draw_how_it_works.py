"""Draws docs/how-it-works-{light,dark}.svg: a network of six layers under AugLocal with d = 3."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

LAYERS = ("#46327e", "#365c8d", "#277f8e", "#1f8f6f", "#3f8a3a", "#8a7a1c")
THEMES = {
    "light": {"text": "#1f2328", "muted": "#59636e", "wall": "#8c959f", "gradient": "#c4570a", "plain": "#59636e"},
    "dark": {"text": "#e6edf3", "muted": "#9198a1", "wall": "#6e7681", "gradient": "#f0883e", "plain": "#6e7681"},
}
# The plan of six layers at d = 3: for each module its layers, and the layers that its auxiliary network copies.
MODULES = (((0,), (2, 5)), ((1,), (3, 5)), ((2,), (4, 5)), ((3, 4, 5), ()))

WIDTH, HEIGHT = 900, 330
BOX_W, BOX_H, STEP = 54, 34, 50
COLUMN, GAP = 144, 30
LEFT, BASE = 62, 264
"""Left end of the first column, and the middle line of the primary network."""


def box(x: float, y: float, label: str, fill: str, *, copy: bool = False) -> str:
    style = f'fill="{fill}" fill-opacity="0.30" stroke="{fill}" stroke-width="1.5" stroke-dasharray="4 3"'
    shape = f'<rect x="{x - BOX_W / 2}" y="{y - BOX_H / 2}" width="{BOX_W}" height="{BOX_H}" rx="5" '
    shape += f"{style}/>" if copy else f'fill="{fill}"/>'
    return shape + f'<text class="{"copy" if copy else "layer"}" x="{x}" y="{y + 5}">{label}</text>'


def arrow(x1: float, y1: float, x2: float, y2: float, kind: str) -> str:
    return f'<line class="{kind}" x1="{x1}" y1="{y1}" x2="{x2}" y2="{y2}" marker-end="url(#{kind})"/>'


def loss(x: float, y: float, label: str) -> str:
    index = f'<tspan class="index" dx="1" dy="3">{label}</tspan>'
    return (
        f'<circle class="loss" cx="{x}" cy="{y}" r="17"/><text class="loss-text" x="{x}" y="{y + 4}">loss{index}</text>'
    )


def text(x: float, y: float, content: str, kind: str = "note", anchor: str = "middle") -> str:
    return f'<text class="{kind}" x="{x}" y="{y}" text-anchor="{anchor}">{content}</text>'


def auxiliary(x: float, selected: tuple[int, ...], index: int, plain: str) -> list[str]:
    """Draw a column above the layer at ``x``: copies, head, loss; forward arrows left, gradients right."""
    labels = [*((str(layer), LAYERS[layer]) for layer in selected), ("head", plain)]
    parts = []
    for position, (label, fill) in enumerate(labels):
        y = BASE - (position + 1) * STEP
        parts += [box(x, y, label, fill, copy=True)]
    for position in range(len(labels) + 1):
        low, high = BASE - position * STEP - BOX_H / 2, BASE - (position + 1) * STEP + BOX_H / 2
        parts += [arrow(x - 12, low, x - 12, high + 1, "forward"), arrow(x + 12, high, x + 12, low - 1, "gradient")]
    parts.append(loss(x, BASE - (len(labels) + 1) * STEP, str(index)))
    return parts


def drawing(theme: dict[str, str]) -> str:
    parts: list[str] = []
    top, bottom = 24, BASE + 50
    parts += [text(30, BASE + 5, "images", "note"), arrow(56, BASE, LEFT + 44, BASE, "forward")]
    for index, (layers, selected) in enumerate(MODULES):
        start = LEFT + index * COLUMN
        xs = [start + COLUMN / 2 + offset * (BOX_W + GAP) for offset in range(len(layers))]
        if index:
            parts.append(f'<line class="wall" x1="{start}" y1="{top}" x2="{start}" y2="{bottom}"/>')
            parts.append(arrow(start - COLUMN / 2 + BOX_W / 2, BASE, xs[0] - BOX_W / 2 - 1, BASE, "forward"))
        for layer, x in zip(layers, xs, strict=True):
            parts.append(box(x, BASE, str(layer), LAYERS[layer]))
        if selected:
            parts += auxiliary(xs[0], selected, index, theme["plain"])
            parts.append(text(xs[0], bottom - 6, f"module {index}"))
            continue
        xs.append(xs[-1] + BOX_W + GAP)
        parts.append(box(xs[-1], BASE, "g", theme["plain"]))
        for left, right in pairwise(xs):
            parts.append(arrow(left + BOX_W / 2, BASE - 6, right - BOX_W / 2 - 1, BASE - 6, "forward"))
            parts.append(arrow(right - BOX_W / 2, BASE + 6, left + BOX_W / 2 + 1, BASE + 6, "gradient"))
        above = BASE - STEP
        parts += [arrow(xs[-1] - 12, BASE - BOX_H / 2, xs[-1] - 12, above + 17, "forward")]
        parts += [arrow(xs[-1] + 12, above + 14, xs[-1] + 12, BASE - BOX_H / 2 - 1, "gradient")]
        parts.append(loss(xs[-1], above, str(index)))
        parts.append(text((xs[0] + xs[-1]) / 2, bottom - 6, f"module {index}: last layers and classifier g"))
    return "\n".join([*parts, *legend(theme)])


def legend(theme: dict[str, str]) -> list[str]:
    """Draw the legend at the upper right, where the last module leaves room."""
    key, words, rows = 548, 592, [44 + 28 * row for row in range(4)]
    dashed = f'fill="{theme["plain"]}" fill-opacity="0.3" stroke="{theme["plain"]}" stroke-width="1.5"'
    return [
        arrow(key, rows[0], key + 32, rows[0], "forward"),
        text(words, rows[0] + 4, "forward", anchor="start"),
        arrow(key + 132 + 32, rows[0], key + 132, rows[0], "gradient"),
        text(words + 132, rows[0] + 4, "gradient", anchor="start"),
        f'<line class="wall" x1="{key + 16}" y1="{rows[1] - 11}" x2="{key + 16}" y2="{rows[1] + 11}"/>',
        text(words, rows[1] + 4, "cut: values pass, gradients do not", anchor="start"),
        f'<rect x="{key + 2}" y="{rows[2] - 9}" width="28" height="18" rx="4" fill="{theme["plain"]}"/>',
        text(words, rows[2] + 4, "primary network: 6 layers and a classifier g", anchor="start"),
        f'<rect x="{key + 2}" y="{rows[3] - 9}" width="28" height="18" rx="4" {dashed} stroke-dasharray="4 3"/>',
        text(words, rows[3] + 4, "auxiliary network: copies of these layers", anchor="start"),
        text(words, rows[3] + 21, "with their own weights; dropped after training", anchor="start"),
    ]


def svg(theme: dict[str, str]) -> str:
    def marker(kind: str, color: str) -> str:
        return (
            f'<marker id="{kind}" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" orient="auto">'
            f'<path d="M0 0 8 4 0 8z" fill="{color}"/></marker>'
        )

    style = f"""
text {{ font-family: -apple-system, "Segoe UI", Helvetica, Arial, sans-serif; font-size: 13px; fill: {theme["text"]} }}
.layer, .copy, .loss-text {{ text-anchor: middle; font-weight: 600 }}
.layer {{ fill: #fff }}
.note {{ fill: {theme["muted"]} }}
.loss {{ fill: none; stroke: {theme["gradient"]}; stroke-width: 1.5 }}
.loss-text {{ font-size: 10px; font-weight: 400 }}
.index {{ font-size: 8px }}
.forward {{ stroke: {theme["muted"]}; stroke-width: 1.6 }}
.gradient {{ stroke: {theme["gradient"]}; stroke-width: 1.6 }}
.wall {{ stroke: {theme["wall"]}; stroke-width: 2; stroke-dasharray: 7 5 }}
"""
    title = "Four local modules, divided by cuts; the gradient of each one's loss stays inside."
    markers = marker("forward", theme["muted"]) + marker("gradient", theme["gradient"])
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" role="img"><title>{title}</title>'
        f"<style>{style}</style><defs>{markers}</defs>\n"
        f"{drawing(theme)}\n</svg>\n"
    )


if __name__ == "__main__":
    for name, theme in THEMES.items():
        (Path(__file__).parent / f"how-it-works-{name}.svg").write_text(svg(theme), encoding="utf-8")
