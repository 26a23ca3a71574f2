// Quality against cost: one SVG a cost, points with whiskers, the Pareto front.

const HEIGHT = 320;
const MARGIN = { top: 14, right: 18, bottom: 44, left: 54 };
const SHAPES = [
  "M-5,0a5,5 0 1,0 10,0a5,5 0 1,0 -10,0z",
  "M-4.6,-4.6h9.2v9.2h-9.2z",
  "M0,-6L5.6,4.4H-5.6z",
  "M0,-6.4L5.2,0L0,6.4L-5.2,0z",
  "M0,6L5.6,-4.4H-5.6z",
  "M-2,-6h4v4h4v4h-4v4h-4v-4h-4v-4h4z",
];
const LOG_FROM = 20;

/** Round values across [low, high]; powers of ten and their 2 and 5 fold on a log axis. */
function ticks(low, high, log) {
  const found = [];
  if (log) {
    for (let power = Math.floor(Math.log10(low)); power <= Math.log10(high); power += 1) {
      for (const step of [1, 2, 5]) found.push(step * 10 ** power);
    }
  } else {
    const rough = (high - low) / 6;
    const unit = 10 ** Math.floor(Math.log10(rough));
    const step = unit * [1, 2, 5, 10].find((times) => times * unit >= rough);
    for (let n = Math.ceil(low / step); n * step <= high; n += 1) found.push(n * step + 0); // no -0
  }
  return found.filter((tick) => tick >= low && tick <= high);
}

const tickText = (tick) => new Intl.NumberFormat("en-US", { maximumSignificantDigits: 4 }).format(tick);

/** An axis over the values: {at(value) -> pixel, ticks, log}. */
function axis(values, from, to, mayBeLog, logFrom = LOG_FROM) {
  let low = Math.min(...values);
  let high = Math.max(...values);
  const log = mayBeLog && low > 0 && high / low > logFrom;
  if (log) {
    low /= 1.15;
    high *= 1.15;
  } else {
    const pad = (high - low) * 0.08 || Math.abs(high) * 0.1 || 0.5;
    low = low >= 0 ? Math.max(0, low - pad) : low - pad;
    high += pad;
  }
  const scale = log ? Math.log : (value) => value;
  const share = (value) => (scale(value) - scale(low)) / (scale(high) - scale(low));
  return { at: (value) => from + share(value) * (to - from), ticks: ticks(low, high, log), log };
}

/**
 * The Pareto front, from the best cost to the worst: each point's interval lies above those before it.
 * Fewer than two such points are no front: nothing that costs more can be told to be better.
 */
function paretoFront(points, moreIsBetter = false) {
  const sign = moreIsBetter ? -1 : 1;
  const [lowest, highest] = [0, 1].map((end) => (point) => (point.interval ? point.interval[end] : point.score));
  const front = [];
  for (const point of [...points].sort((a, b) => sign * (a.cost - b.cost) || b.score - a.score)) {
    const last = front[front.length - 1];
    if (!last || lowest(point) > highest(last)) front.push(point);
  }
  return front.length > 1 ? front : [];
}

/** Pixel of each point across; points of the same cost stand side by side, to be told apart. */
function lefts(points, x, costColumn, plot) {
  const groups = new Map();
  for (const point of points) {
    const cost = figure(point.cost, costColumn.decimals);
    groups.set(cost, [...(groups.get(cost) || []), point]);
  }
  const found = new Map();
  for (const group of groups.values()) {
    const gap = Math.min(10, (plot.right - plot.left) / 5 / group.length);
    const width = gap * (group.length - 1);
    const first = Math.min(Math.max(x.at(group[0].cost) - width / 2, plot.left + 6), plot.right - 6 - width);
    group.forEach((point, n) => found.set(point, first + n * gap));
  }
  return found;
}

/** False where the full cache is not told from answers that know nothing. */
const canBeTold = (points) => points.every(({ row }) => !row.telling || row.telling[1]);

/** The chart of points {row, score, interval, cost}; `look(run)` gives {colour, shape}. */
function drawChart(points, scoreColumn, costColumn, width, look, choose) {
  const plot = { left: MARGIN.left, right: width - MARGIN.right, top: MARGIN.top, bottom: HEIGHT - MARGIN.bottom };
  const x = axis(points.map((point) => point.cost), plot.left, plot.right, true);
  const heights = points.flatMap((point) => [point.score, ...(point.interval || [])]);
  const y = axis(heights, plot.bottom, plot.top, false);
  const lines = [
    ...x.ticks.flatMap((tick) => [
      svg("line", { class: "grid", x1: x.at(tick), x2: x.at(tick), y1: plot.top, y2: plot.bottom }),
      svg("text", { x: x.at(tick), y: plot.bottom + 16, "text-anchor": "middle" }, tickText(tick)),
    ]),
    ...y.ticks.flatMap((tick) => [
      svg("line", { class: "grid", x1: plot.left, x2: plot.right, y1: y.at(tick), y2: y.at(tick) }),
      svg("text", { x: plot.left - 7, y: y.at(tick) + 4, "text-anchor": "end" }, tickText(tick)),
    ]),
  ];
  const front = canBeTold(points) ? paretoFront(points, costColumn.more_is_better) : [];
  const left = lefts(points, x, costColumn, plot);
  const stairs = front.map((point, n) =>
    n ? `H${left.get(point)}V${y.at(point.score)}` : `M${left.get(point)},${y.at(point.score)}`);
  const middle = (plot.top + plot.bottom) / 2;
  return svg(
    "svg",
    { viewBox: `0 0 ${width} ${HEIGHT}`, height: HEIGHT, role: "group",
      "aria-label": `${scoreColumn.label} against ${costColumn.label}, ${points.length} runs` },
    ...lines,
    svg("text", { class: "title", x: (plot.left + plot.right) / 2, y: HEIGHT - 8, "text-anchor": "middle" },
      `${costColumn.label}${x.log ? ", log scale" : ""} (${costColumn.more_is_better ? "more" : "less"} is better)`),
    svg("text", { class: "title", "text-anchor": "middle", transform: `translate(13 ${middle}) rotate(-90)` },
      `${scoreColumn.label} (more is better)`),
    front.length
      ? svg("path", { class: "front", d: `${stairs.join("")}H${costColumn.more_is_better ? plot.left : plot.right}` })
      : null,
    ...points.map((point) => {
      const place = { left: left.get(point), y, onFront: front.includes(point) };
      return mark(point, place, look(point.run), choose, scoreColumn, costColumn);
    }),
  );
}

const runOfPoint = new WeakMap();

/** Show which points are of chosen runs; the points stay, and with them the keyboard's place. */
function markChosen(isChosen) {
  for (const node of document.querySelectorAll(".point")) {
    const chosen = isChosen(runOfPoint.get(node));
    node.classList.toggle("chosen", chosen);
    node.setAttribute("aria-pressed", String(chosen));
  }
}

function mark(point, place, { colour, shape }, choose, scoreColumn, costColumn) {
  const { left, y, onFront } = place;
  const paint = `var(--c${colour})`;
  const interval = intervalText(point.interval, scoreColumn.decimals);
  const lines = [
    `${scoreColumn.label}: ${figure(point.score, scoreColumn.decimals)}${interval}`,
    `${costColumn.label}: ${figure(point.cost, costColumn.decimals)}`,
    `${point.run.model}, ${point.run.dtype}`,
    ...(onFront ? ["on the Pareto front"] : []),
    ...(point.row.missing ? [`samples scored: ${point.row.samples}, ${point.row.missing}`] : []),
  ];
  const node = svg(
    "g",
    {
      class: "point", tabindex: "0", role: "button",
      "aria-label": [point.run.label, ...lines].join("; "),
      click: () => choose(point.row.run),
      keydown: (event) => {
        if (event.key === "Enter" || event.key === " ") {
          event.preventDefault();
          choose(point.row.run);
        }
      },
      pointerenter: () => showTooltip(node, point.run.label, lines),
      focus: () => showTooltip(node, point.run.label, lines),
      pointerleave: hideTooltip,
      blur: hideTooltip,
    },
    point.interval
      ? svg("line", { class: "whisker", stroke: paint, x1: left, x2: left,
        y1: y.at(point.interval[0]), y2: y.at(point.interval[1]) })
      : null,
    onFront ? svg("circle", { class: "ring", cx: left, cy: y.at(point.score), r: 10 }) : null,
    svg("path", { class: "shape", d: SHAPES[shape], fill: paint, stroke: paint,
      transform: `translate(${left} ${y.at(point.score)})` }),
    point.row.missing ? svg("text", { class: "partial", x: left + 7, y: y.at(point.score) - 6 }, "\u2021") : null,
  );
  runOfPoint.set(node, point.row.run);
  return node;
}

function showTooltip(node, title, lines) {
  const tooltip = byId("tooltip");
  tooltip.replaceChildren(html("strong", {}, title), ...lines.map((line) => html("div", {}, line)));
  tooltip.hidden = false;
  const box = node.querySelector(".shape").getBoundingClientRect();
  const left = Math.min(box.right + 10, document.documentElement.clientWidth - tooltip.offsetWidth - 8);
  const above = box.top - tooltip.offsetHeight - 8;
  const top = left < box.right + 10 ? (above < 0 ? box.bottom + 8 : above) : box.top;
  tooltip.style.left = `${Math.max(8, left) + window.scrollX}px`;
  tooltip.style.top = `${top + window.scrollY}px`;
}

function hideTooltip() {
  byId("tooltip").hidden = true;
}
