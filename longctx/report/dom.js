"use strict";
// Nodes are only ever made here: text becomes text nodes, whatever it holds.

const SVG = "http://www.w3.org/2000/svg";

function build(node, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (typeof value === "function") node.addEventListener(name, value);
    else if (value !== undefined && value !== false) node.setAttribute(name, value);
  }
  node.append(...children.filter((child) => child !== null));
  return node;
}

/** An HTML element; attributes that are functions are listeners of that event. */
function html(name, attributes = {}, ...children) {
  return build(document.createElement(name), attributes, children);
}

/** The same, in SVG. */
function svg(name, attributes = {}, ...children) {
  return build(document.createElementNS(SVG, name), attributes, children);
}

const byId = (id) => document.getElementById(id);

const formats = new Map();

/** A number with thousands separators; a dash for what was not measured. */
function figure(value, decimals) {
  if (typeof value !== "number") return "\u2013";
  if (!formats.has(decimals)) {
    const digits = { minimumFractionDigits: decimals, maximumFractionDigits: decimals };
    formats.set(decimals, new Intl.NumberFormat("en-US", digits));
  }
  return formats.get(decimals).format(value);
}

/** " [low, high]", or nothing. */
function intervalText(interval, decimals) {
  if (!interval) return "";
  return ` [${interval.map((bound) => figure(bound, decimals)).join(", ")}]`;
}

/** A labelled choice; options are [value, text] pairs, values are strings. */
function select(label, options, value, change) {
  const control = html(
    "select",
    { change: () => change(control.value) },
    ...options.map(([key, text]) => html("option", { value: key, selected: key === value && "" }, text)),
  );
  return html("label", { class: "field" }, label, control);
}

/** A labelled check box. */
function check(label, checked, change) {
  const box = html("input", { type: "checkbox", change: () => change(box.checked) });
  box.checked = checked;
  return html("label", { class: "check" }, box, label);
}
