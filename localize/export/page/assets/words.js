// Format text and numbers, and make elements. Names are only ever inserted as text, so markup in them does nothing.

const data = JSON.parse(document.getElementById("data").textContent);
const SVG = document.getElementById("graph").namespaceURI;

function fill(element, attributes, children) {
  for (const [name, value] of Object.entries(attributes || {})) {
    if (value !== null && value !== undefined && value !== false)
      element.setAttribute(name, value === true ? "" : value);
  }
  for (const child of children) {
    if (child !== null && child !== undefined && child !== "") element.append(child);
  }
  return element;
}

const h = (tag, attributes, ...children) => fill(document.createElement(tag), attributes, children);
const s = (tag, attributes, ...children) => fill(document.createElementNS(SVG, tag), attributes, children);
const byId = (id) => document.getElementById(id);

// Control characters would vanish or break lines, so each is shown as a replacement character.
const clean = (text) =>
  String(text).replace(/[\u0000-\u001f\u007f-\u009f\u200e\u200f\u2028-\u202e\u2066-\u2069]/g, "\ufffd");

// Write a number with three digits and a unit: 464, 74k, 1.81G.
function si(value) {
  const units = ["", "k", "M", "G", "T"];
  let unit = 0;
  while (Number(value.toPrecision(3)) >= 1000 && unit < units.length - 1) {
    value /= 1000;
    unit += 1;
  }
  return (unit === 0 || value >= 1000 ? String(Math.round(value)) : String(Number(value.toPrecision(3)))) + units[unit];
}

// Write a number of bytes with three digits and a decimal unit: 1.21 GB.
function bytes(value) {
  const units = ["B", "kB", "MB", "GB", "TB"];
  let unit = 0;
  while (Number(value.toPrecision(3)) >= 1000 && unit < units.length - 1) {
    value /= 1000;
    unit += 1;
  }
  return `${unit === 0 ? value : value.toPrecision(3)}\u00a0${units[unit]}`;
}

const grouped = (value) => String(value).replace(/\B(?=(\d{3})+$)/g, "\u202f");
const sizes = (text) => clean(text).replace(/x/g, "\u2009\u00d7\u2009");
const weight = (value) => String(Number(value.toPrecision(3)));
const plural = (count, word) => `${count} ${word}${count === 1 ? "" : "s"}`;
const percent = (value) => `${value < 0.1 ? (100 * value).toPrecision(2) : Math.round(100 * value)}\u202f%`;

const LETTERS = { name: "600 13px", small: "400 11px" };
const pen = document.createElement("canvas").getContext("2d");
const widths = new Map();

// Return the width of a text in the typeface of the page, by which boxes are sized.
function widthOf(text, letters) {
  const key = `${letters}|${text}`;
  if (!widths.has(key)) {
    pen.font = `${LETTERS[letters]} ${getComputedStyle(document.body).fontFamily}`;
    widths.set(key, pen.measureText(text).width);
  }
  return widths.get(key);
}

// Cut a text to the given width, and end it with an ellipsis.
function clip(text, letters, room) {
  if (widthOf(text, letters) <= room) return text;
  const letterList = Array.from(text);
  let low = 0;
  let high = letterList.length;
  while (low < high) {
    const middle = (low + high + 1) >> 1;
    if (widthOf(`${letterList.slice(0, middle).join("")}\u2026`, letters) <= room) low = middle;
    else high = middle - 1;
  }
  return `${letterList.slice(0, low).join("")}\u2026`;
}
