// The page's state and what is drawn from it.

const MOST_CHOSEN = 4;
const MOST_KINDS = 5;
const FILTERS = [
  ["task", "task"], ["model", "model"], ["device", "device"], ["attn", "attention"],
  ["kv_mode", "KV cache"], ["quant_mode", "weights"], ["dtype", "dtype"],
];

function main() {
  const data = JSON.parse(byId("data").textContent);
  const chart = { scope: null, score: null, costs: data.chart_costs, series: null, lengthCosts: data.length_costs };
  const sweep = { group: Math.max(0, data.groups.findIndex((group) => group.all_lengths)), method: "", depthRun: null };
  const view = { onlyDifferences: true, onlyOther: false, context: null, shown: PAGE };
  const filters = {};
  let words = [];
  let chosen = [];

  const runOf = (row) => data.runs[row.run];
  const facts = data.rows.map((row) => {
    const run = runOf(row);
    return [run.label, run.run_id, run.task, run.model, run.device, row.context_tokens].join(" ").toLowerCase();
  });
  const places = new Map(data.rows.map((row, place) => [row, place]));
  const facet = (row, key) => String(key === "context_tokens" ? row.context_tokens : runOf(row)[key]);
  const isVisible = (row) =>
    Object.entries(filters).every(([key, value]) => value === "" || facet(row, key) === value) &&
    words.every((word) => facts[places.get(row)].includes(word));
  const isChosen = (run) => chosen.includes(run);

  const colours = ranks(data.runs.map((run) => run.kv_mode), "none");
  const shapes = ranks(data.runs.map((run) => run.attn));
  // The first colour is the full cache's; the others are used again when there are too many.
  const colourOf = (mode) => (colours.get(mode) === 0 ? 0 : 1 + ((colours.get(mode) - 1) % 7));
  const look = (run) => ({ colour: colourOf(run.kv_mode), shape: shapes.get(run.attn) % SHAPES.length });

  const table = runTable(data, choose);
  byId("table").append(table.node);

  function choose(run) {
    chosen = isChosen(run) ? chosen.filter((other) => other !== run) : [...chosen, run].slice(-MOST_CHOSEN);
    view.shown = PAGE;
    drawChosen();
  }

  function drawFilters() {
    const contexts = [["context_tokens", "context, tokens"]];
    const controls = [...FILTERS, ...contexts].map(([key, label]) => {
      const values = [...new Set(data.rows.map((row) => facet(row, key)))];
      if (values.length < 2) return null;
      values.sort((a, b) => a.localeCompare(b, "en", { numeric: true }));
      filters[key] = "";
      const text = (value) => (key === "context_tokens" ? figure(Number(value), 0) : value);
      const options = [["", "all"], ...values.map((value) => [value, text(value)])];
      return select(label, options, "", (value) => { filters[key] = value; draw(); });
    });
    const search = html("input", {
      type: "search", placeholder: "words in names",
      input: () => { words = search.value.toLowerCase().split(/\s+/).filter(Boolean); draw(); },
    });
    byId("filters").append(...controls.filter(Boolean), html("label", { class: "field" }, "search", search));
  }

  function scopes() {
    const found = new Map();
    for (const row of data.rows) {
      const { task, device } = runOf(row);
      const key = JSON.stringify([task, row.data, device, row.context_tokens]);
      const name = `${runOf(row).data}, ${figure(row.context_tokens, 0)} tokens, ${row.asked} samples, ${device}`;
      if (!found.has(key)) found.set(key, { key, name, rows: [] });
      // An older run that was out of memory knows of no samples; another one does.
      if (row.asked && !found.get(key).rows.some((other) => other.asked)) found.get(key).name = name;
      found.get(key).rows.push(row);
    }
    const all = [...found.values()];
    const isUsed = (name) => all.filter((scope) => scope.name === name).length > 1;
    // The most telling first; those without a full cache to compare with last, the largest first.
    const rank = (scope) => Math.min(...scope.rows.map((row) => (row.telling ? row.telling[0] : Infinity)));
    all.sort((a, b) => (rank(a) === rank(b) ? b.rows.length - a.rows.length : rank(a) - rank(b)));
    return all.map((scope) => ({ ...scope, name: isUsed(scope.name) ? `${scope.name}, data ${scope.rows[0].data}` : scope.name }));
  }

  const scores = data.columns.filter((column) => column.score);
  const costs = data.columns.filter((column) => column.cost);
  const hasScore = (row) => scores.some(({ key }) => row.figures[key] !== undefined);
  const allScopes = scopes().filter((scope) => scope.rows.some(hasScore));

  function drawCharts() {
    const drawable = allScopes.filter((scope) => scope.rows.some((row) => isVisible(row) && hasScore(row)));
    const width = Math.max(300, Math.floor((byId("charts").clientWidth - 16) / (window.innerWidth > 900 ? 2 : 1)));
    if (!drawable.length) {
      byId("chart-controls").replaceChildren();
      byId("legend").replaceChildren();
      byId("charts").replaceChildren(html("p", { class: "empty" },
        "No run that is shown has quality figures; those with random weights have none."));
      return;
    }
    const shownRows = (scope) => scope.rows.filter(isVisible);
    const scope = drawable.find(({ key }) => key === chart.scope) || drawable[0];
    const rows = shownRows(scope);
    const usable = scores.filter(({ key }) => rows.some((row) => row.figures[key] !== undefined));
    const score = usable.find(({ key }) => key === chart.score) || usable[0];
    const measured = costs.filter(({ key }) => rows.some((row) => row.figures[key] !== undefined));
    byId("chart-controls").replaceChildren(
      select("samples", drawable.map(({ key, name }) => [key, name]), scope.key, (value) => { chart.scope = value; drawCharts(); }),
      select("score", usable.map(({ key, label }) => [key, label]), score.key, (value) => { chart.score = value; drawCharts(); }),
    );
    byId("charts").replaceChildren(...chart.costs.map((wanted, place) => {
      const cost = measured.find(({ key }) => key === wanted) || measured[place] || measured[0];
      if (!cost) return html("p", { class: "empty" }, "No cost was measured in the runs that are shown.");
      const points = rows
        .filter((row) => row.figures[score.key] !== undefined && row.figures[cost.key] !== undefined)
        .map((row) => ({
          row, run: runOf(row), score: row.figures[score.key], cost: row.figures[cost.key],
          interval: row.figures[`${score.key}_ci95`],
        }));
      return html("figure", {},
        select("cost", measured.map(({ key, label }) => [key, label]), cost.key, (value) => { chart.costs[place] = value; drawCharts(); }),
        points.length
          ? drawChart(points, score, cost, width, look, choose)
          : html("p", { class: "empty" }, "Not measured in the runs that are shown."));
    }));
    drawLegend(rows.map(runOf));
    markChosen(isChosen);
  }

  /** Runs that can stand in one chart against length, those of most points first. */
  function allSeries(rows) {
    const found = new Map();
    for (const row of rows) {
      const { task, model, device } = runOf(row);
      const key = JSON.stringify([task, model, device]);
      if (!found.has(key)) found.set(key, { key, name: [task, model, device].join(", "), rows: [], lengths: new Set() });
      found.get(key).rows.push(row);
      found.get(key).lengths.add(row.context_tokens);
    }
    return [...found.values()].sort((a, b) => b.lengths.size - a.lengths.size || b.rows.length - a.rows.length);
  }

  function drawLengthCharts() {
    const measured = costs.filter(({ key }) => data.rows.some((row) => isVisible(row) && row.figures[key] !== undefined));
    const series = allSeries(data.rows.filter(isVisible).filter((row) => costs.some(({ key }) => row.figures[key] !== undefined)));
    if (!series.length) {
      byId("length-controls").replaceChildren();
      byId("lengths").replaceChildren(html("p", { class: "empty" }, "No cost was measured in the runs that are shown."));
      return;
    }
    const one = series.find(({ key }) => key === chart.series) || series[0];
    byId("length-controls").replaceChildren(select("runs", series.map(({ key, name }) => [key, name]), one.key,
      (value) => { chart.series = value; drawLengthCharts(); }));
    const room = byId("lengths").clientWidth;
    const columns = Math.max(1, Math.min(chart.lengthCosts.length, Math.floor((room + 16) / (350 + 16))));
    const width = Math.max(300, Math.floor((room - 16 * (columns - 1)) / columns));
    byId("lengths").replaceChildren(...chart.lengthCosts.map((wanted, place) => {
      const cost = measured.find(({ key }) => key === wanted) || measured.find(({ key }) => key === data.chart_costs[0]) || measured[0];
      const lines = [...new Set(one.rows.map((row) => row.run))].map((number) => ({
        run: data.runs[number],
        points: one.rows.filter((row) => row.run === number && row.figures[cost.key] !== undefined)
          .map((row) => ({ row, length: row.context_tokens, value: row.figures[cost.key] }))
          .sort((a, b) => a.length - b.length),
      })).filter((line) => line.points.length);
      return html("figure", {},
        select("cost", measured.map(({ key, label }) => [key, label]), cost.key, (value) => { chart.lengthCosts[place] = value; drawLengthCharts(); }),
        lines.length
          ? drawLengths(lines, cost, width, look, choose)
          : html("p", { class: "empty" }, "Not measured in the runs that are shown."));
    }));
    markChosen(isChosen);
  }

  /** Show the table of a group, and what of it a map can show. */
  function drawSweep() {
    const group = data.groups[sweep.group];
    byId("sweep-section").hidden = !group;
    if (!group) return;
    const both = (full, other) => {
      chosen = [full, other];
      view.shown = PAGE;
      drawChosen();
    };
    byId("sweep-controls").replaceChildren(select("runs", data.groups.map(({ name }, place) => [String(place), name]),
      String(sweep.group), (value) => { sweep.group = Number(value); drawSweep(); }));
    byId("sweep").replaceChildren(sweepTable(group, both));
    const tasks = taskMap(data, sweep.method);
    const named = new Map([[group.full, "full cache"], ...group.choices.map((choice) => [choice.run, nameOf(choice)])]);
    const depths = [...named.keys()].filter((number) => group.depths[number]);
    const [best] = group.best.map((place) => group.choices[place].run);
    const run = [sweep.depthRun, best, depths[0]].find((number) => depths.includes(number));
    byId("heats").replaceChildren(...[
      tasks && html("div", {}, html("h3", {}, "Share of the full cache's score"),
        select("method", [["", "the best of each cell"], ...heatMethods(data).map((name) => [name, name])], sweep.method,
          (value) => { sweep.method = value; drawSweep(); }),
        html("div", { class: "scroll" }, tasks)),
      depths.length ? html("div", {}, html("h3", {}, "Where in the text the answer stands"),
        select("run", depths.map((number) => [String(number), named.get(number)]),
          String(run), (value) => { sweep.depthRun = Number(value); drawSweep(); }),
        html("div", { class: "scroll" }, depthMap(group, run))) : null,
    ].filter(Boolean));
  }

  function openGroup(group) {
    sweep.group = data.groups.indexOf(group);
    drawSweep();
    byId("sweep-section").scrollIntoView();
  }

  function drawLegend(runs) {
    const entry = (paint, shape, text) => html("span", {},
      svg("svg", { viewBox: "-8 -8 16 16", "aria-hidden": "true" }, svg("path", { d: SHAPES[shape], fill: paint })), text);
    const modes = [...colours.keys()].filter((mode) => runs.some((run) => run.kv_mode === mode));
    const backends = [...shapes.keys()].filter((attn) => runs.some((run) => run.attn === attn));
    byId("legend").replaceChildren(
      html("strong", {}, "KV cache"),
      ...modes.map((mode) => entry(`var(--c${colourOf(mode)})`, 0, mode === "none" ? "full cache" : mode)),
      html("strong", {}, "attention"),
      ...backends.map((attn) => entry("var(--muted)", shapes.get(attn) % SHAPES.length, attn)));
  }

  function draw() {
    table.show(isVisible);
    const visible = data.rows.filter(isVisible);
    byId("count").textContent =
      `${figure(visible.length, 0)} of ${figure(data.rows.length, 0)} rows, ${data.statistics} and mean scores ` +
      "with 95% intervals. Click a heading to sort, tick up to four runs to see them side by side." +
      missingText(visible.filter((row) => row.missing));
    hideTooltip();
    drawCharts();
    drawLengthCharts();
  }

  function drawChosen() {
    table.markChosen(isChosen);
    markChosen(isChosen);
    showDetails(byId("details"), data, chosen, view, choose, drawChosen);
  }

  /** A run with the full cache and one that is otherwise the same, so that there is a comparison to look at. */
  function firstChoice() {
    const [group] = data.groups;
    if (group && group.choices.length) return [group.full, (group.choices[group.best[0]] || group.choices[0]).run];
    const same = (one, two) => ["attn", "quant_mode", "dtype", "model"].every((key) => one[key] === two[key]);
    for (const scope of allScopes) {
      const fulls = scope.rows.filter((row) => runOf(row).kv_mode === "none");
      fulls.sort((a, b) => (runOf(b).quant_mode === "none") - (runOf(a).quant_mode === "none"));
      for (const full of fulls) {
        const pruned = scope.rows.find((row) => runOf(row).kv_mode !== "none" && same(runOf(row), runOf(full)));
        if (pruned) return [full.run, pruned.run];
      }
    }
    return [0];
  }

  const different = (key) => [...new Set(data.runs.map((run) => run[key]))].join(", ");
  byId("about").textContent = `Runs: ${figure(data.runs.length, 0)}. Data: ${different("task")}. Models: ${different("model")}.`;
  drawFilters();
  byId("answer").replaceChildren(...answerTable(data, openGroup));
  drawSweep();
  chosen = firstChoice();
  draw();
  drawChosen();
  new ResizeObserver(() => drawCharts()).observe(byId("charts"));
  new ResizeObserver(() => drawLengthCharts()).observe(byId("lengths"));
}

/** What the mark of partial cells means, with each reason once; nothing where no row has it. */
function missingText(rows) {
  if (!rows.length) return "";
  const kinds = [...new Set(rows.map((row) => `${figure(row.n, 0)} of ${figure(row.asked, 0)}: ${row.missing}`))].sort();
  const shown = kinds.slice(0, MOST_KINDS).join("; ");
  const more = kinds.length > MOST_KINDS ? `; and ${kinds.length - MOST_KINDS} more, under the samples of their rows` : "";
  return ` \u2021 Not all samples that were asked for were scored, in ${figure(rows.length, 0)} rows (${shown}${more}).`;
}

/** Value -> its place among the different values, sorted, `first` before all others. */
function ranks(values, first) {
  const different = [...new Set(values)].sort((a, b) => (b === first) - (a === first) || a.localeCompare(b));
  return new Map(different.map((value, place) => [value, place]));
}

main();
