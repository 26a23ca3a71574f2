// Figures against the context length: a line a run.

/** The chart of lines [{run, number, points: [{row, length, value}]}]; `look(run)` as for points. */
function drawLengths(lines, column, width, look, choose) {
  const plot = { left: MARGIN.left + 16, right: width - MARGIN.right, top: MARGIN.top, bottom: HEIGHT - MARGIN.bottom };
  const points = lines.flatMap((line) => line.points);
  const x = axis(points.map((point) => point.length), plot.left, plot.right, true, 1.5);
  const y = axis(points.map((point) => point.value), plot.bottom, plot.top, true);
  const lengths = [...new Set(points.map((point) => point.length))].sort((a, b) => a - b);
  const against = { label: "context, tokens", decimals: 0 };
  const marks = lines.flatMap((line) => line.points.map((point) => mark(
    { row: point.row, run: line.run, score: point.value, cost: point.length, interval: null },
    { left: x.at(point.length), y, onFront: false }, look(line.run), choose, column, against)));
  return svg(
    "svg",
    { viewBox: `0 0 ${width} ${HEIGHT}`, height: HEIGHT, role: "group",
      "aria-label": `${column.label} against context length, ${lines.length} runs` },
    ...spread(lengths, x).flatMap((tick) => [
      svg("line", { class: "grid", x1: x.at(tick), x2: x.at(tick), y1: plot.top, y2: plot.bottom }),
      svg("text", { x: x.at(tick), y: plot.bottom + 16, "text-anchor": "middle" }, figure(tick, 0)),
    ]),
    ...y.ticks.flatMap((tick) => [
      svg("line", { class: "grid", x1: plot.left, x2: plot.right, y1: y.at(tick), y2: y.at(tick) }),
      svg("text", { x: plot.left - 7, y: y.at(tick) + 4, "text-anchor": "end" }, tickText(tick)),
    ]),
    svg("text", { class: "title", x: (plot.left + plot.right) / 2, y: HEIGHT - 8, "text-anchor": "middle" },
      `context, tokens${x.log ? ", log scale" : ""}`),
    svg("text", { class: "title", "text-anchor": "middle", transform: `translate(13 ${(plot.top + plot.bottom) / 2}) rotate(-90)` },
      `${column.label}${y.log ? ", log scale" : ""}`),
    ...lines.map((line) => svg("polyline", { class: "line", stroke: `var(--c${look(line.run).colour})`,
      points: line.points.map((point) => `${x.at(point.length)},${y.at(point.value)}`).join(" ") })),
    ...marks,
  );
}

/** Those of the values that leave each other room for their text. */
function spread(values, x) {
  const kept = [];
  for (const value of values) {
    if (!kept.length || x.at(value) - x.at(kept[kept.length - 1]) > 48) kept.push(value);
  }
  return kept;
}
